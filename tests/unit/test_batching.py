"""Dynamic batching: who arrives while a batch is scored shares the next one; nobody is lost."""

import asyncio
import threading

import numpy as np
import pytest

from dkt_ray.data.query import Query
from dkt_ray.ensemble.scorer import Scores
from dkt_ray.errors import OverloadedError
from dkt_ray.serving.batching import Batcher

PLENTY = 10**9


class Recorder:
    """Scores a query as its first target's number; remembers the batches; waits at a gate."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, queries):
        self.gate.wait(300)
        self.batches.append([query.target[0] for query in queries])
        if any(query.target[0] == "bad" for query in queries):
            raise ValueError("bad")
        return [Scores(np.array([float(query.target[0])]), {}, np.array([False])) for query in queries]


def ask(name, rows=1):
    return Query(question=["q"] * (rows - 1), correct=[1] * (rows - 1), target=[str(name)])


async def gather(batcher, recorder, queries):
    """Send one query, then the others while the first is being scored."""
    recorder.gate.clear()
    tasks = [asyncio.create_task(batcher(queries[0]))]
    await asyncio.sleep(0.02)
    tasks += [asyncio.create_task(batcher(query)) for query in queries[1:]]
    await asyncio.sleep(0.02)
    recorder.gate.set()
    return await asyncio.gather(*tasks, return_exceptions=True)


def test_a_lone_request_is_scored_at_once_and_later_ones_together():
    recorder = Recorder()
    answers = asyncio.run(gather(Batcher(recorder, 32, 1000, PLENTY), recorder, [ask(i) for i in range(6)]))
    assert recorder.batches == [["0"], ["1", "2", "3", "4", "5"]]
    assert [answer.probability[0] for answer in answers] == [0, 1, 2, 3, 4, 5]


def test_batches_are_bounded_by_requests_and_by_rows():
    recorder = Recorder()
    asyncio.run(gather(Batcher(recorder, 2, 1000, PLENTY), recorder, [ask(i) for i in range(6)]))
    assert recorder.batches == [["0"], ["1", "2"], ["3", "4"], ["5"]]
    recorder = Recorder()
    sizes = [1, 4, 4, 4, 99, 1, 1]
    asyncio.run(gather(Batcher(recorder, 32, 10, PLENTY), recorder, [ask(i, rows) for i, rows in enumerate(sizes)]))
    assert recorder.batches == [["0"], ["1", "2"], ["3"], ["4"], ["5", "6"]]


def test_one_bad_query_does_not_take_the_others_with_it():
    recorder = Recorder()
    answers = asyncio.run(gather(Batcher(recorder, 32, 1000, PLENTY), recorder, [ask(0), ask(1), ask("bad"), ask(2)]))
    assert isinstance(answers[2], ValueError)
    assert [answers[i].probability[0] for i in (0, 1, 3)] == [0, 1, 2]


def test_requests_that_nobody_waits_for_are_not_scored():
    async def run():
        recorder = Recorder()
        recorder.gate.clear()
        batcher = Batcher(recorder, 32, 1000, 2000)
        first = asyncio.create_task(batcher(ask(0)))
        await asyncio.sleep(0.02)  # it is being scored
        gone = [asyncio.create_task(batcher(ask(i, rows=2))) for i in range(1000)]
        last = asyncio.create_task(batcher(ask(1000)))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match=r"^1000 requests are waiting already"):
            await last
        for task in gone:
            task.cancel()
        await asyncio.wait(gone)
        assert batcher.waiting == 0  # at once, though the first batch is still being scored
        last = asyncio.create_task(batcher(ask(1001)))
        await asyncio.sleep(0)
        assert batcher.waiting == 1
        late = asyncio.create_task(batcher(ask(1002)))
        await asyncio.sleep(0)
        late.cancel()
        recorder.gate.set()
        assert (await last).probability[0] == 1001
        await first
        assert batcher.counts == {"batches": 2, "scored": 2, "refused": 1, "dropped": 1001}
        return recorder.batches

    assert asyncio.run(run()) == [["0"], ["1001"]]


def test_a_query_beyond_the_bound_is_taken_when_nothing_waits():
    recorder = Recorder()
    answers = asyncio.run(gather(Batcher(recorder, 32, 1000, 10), recorder, [ask(0), ask(1, 99), ask(2)]))
    assert [answers[i].probability[0] for i in (0, 1)] == [0, 1]
    assert isinstance(answers[2], OverloadedError)


def test_it_says_how_long_a_batch_has_been_running_and_works_again_after_idling():
    async def run():
        recorder = Recorder()
        batcher = Batcher(recorder, 32, 1000, PLENTY)
        assert batcher.busy_s == 0
        recorder.gate.clear()
        task = asyncio.create_task(batcher(ask(1)))
        await asyncio.sleep(0.05)
        assert batcher.busy_s >= 0.02
        recorder.gate.set()
        await task
        await asyncio.sleep(0)
        assert batcher.busy_s == 0
        assert (await batcher(ask(5))).probability[0] == 5

    asyncio.run(run())


def test_the_loop_stays_free_while_a_batch_is_scored():
    async def run():
        recorder = Recorder()
        recorder.gate.clear()
        task = asyncio.create_task(Batcher(recorder, 32, 1000, PLENTY)(ask(1)))
        ticks = 0
        for _ in range(5):
            await asyncio.sleep(0.005)
            ticks += 1
        assert not task.done()
        recorder.gate.set()
        await task
        return ticks

    assert asyncio.run(run()) == 5


def test_an_error_reaches_the_one_who_asked():
    with pytest.raises(ValueError, match="bad"):
        asyncio.run(Batcher(Recorder(), 32, 1000, PLENTY)(ask("bad")))
