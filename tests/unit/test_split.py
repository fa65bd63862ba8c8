"""A replica with two bundles: each student gets one of them, the other one's answer is measured and never returned."""

import asyncio
import re
from types import SimpleNamespace

import numpy as np
import pytest

from dkt_ray.data.query import Query
from dkt_ray.ensemble.scorer import Scores
from dkt_ray.errors import OverloadedError
from dkt_ray.serving import split
from dkt_ray.serving.api import Served
from dkt_ray.serving.edge import Edge, Labels
from dkt_ray.serving.split import Split
from dkt_ray.serving.traffic import Limits, Traffic, place, silence

QUERY = Query(question=[], correct=[], target=["q"])
STUDENTS = [f"student {n}" for n in range(40)]


def served(version, probability, wait=None, left_out=(), refuses=False):
    async def answer(query):
        if wait is not None:
            await wait.wait()
        if refuses:
            raise OverloadedError("too much is waiting")
        if probability is None:
            raise RuntimeError("a member is broken")
        return Scores(np.array([probability]), {}, np.zeros(1, bool), left_out=left_out)

    return Served(SimpleNamespace(version=version), answer)


async def asked(two, student):
    chosen = two.choose(student)
    scores = await chosen.answer(QUERY)
    return chosen.predictor.version, float(scores.probability[0])


def test_without_a_challenger_or_a_share_the_champion_answers():
    async def main():
        for two in (Split(served("old", 0.3)), Split(served("old", 0.3), served("new", 0.6))):
            assert {await asked(two, student) for student in [None, *STUDENTS]} == {("old", 0.3)}

    asyncio.run(main())


def test_a_share_is_dealt_by_the_hash_of_the_student_and_counted_by_side():
    async def main():
        two = Split(served("old", 0.3), served("new", 0.6))
        two.direct(Traffic(share=0.5))
        for student in STUDENTS:
            expected = ("new", 0.6) if place(student, "new") < 0.5 else ("old", 0.3)
            assert await asked(two, student) == expected
        assert await asked(two, None) == ("old", 0.3)
        found = two.direct(Traffic(share=0.5))
        news = sum(place(student, "new") < 0.5 for student in STUDENTS)
        assert (found.challenger.answered, found.champion.answered) == (news, len(STUDENTS) + 1 - news)
        assert two.direct(Traffic(share=0.6)).champion.ended == 0  # another step begins at nothing

    asyncio.run(main())


def test_a_shadow_is_measured_and_not_returned_even_where_it_fails_or_hangs(monkeypatch):
    async def main():
        two = Split(served("old", 0.3), served("new", 0.5))
        traffic = Traffic(compared=1.0)
        two.direct(traffic)
        for student in STUDENTS:
            assert await asked(two, student) == ("old", 0.3)
            await asyncio.sleep(0)
        found = two.direct(traffic)
        assert found.compared == len(STUDENTS)
        assert found.disagreement == pytest.approx(0.2)
        broken = Split(served("old", 0.3), served("new", None))
        broken.direct(traffic)
        assert await asked(broken, "s") == ("old", 0.3)
        await asyncio.sleep(0)
        found = broken.direct(traffic)
        assert (found.champion.errors, found.challenger.errors, found.compared) == (0, 1, 0)
        hanging = Split(served("old", 0.3), served("new", 0.5, wait=asyncio.Event()))
        hanging.direct(traffic)
        assert [await asked(hanging, s) for s in STUDENTS] == [("old", 0.3)] * len(STUDENTS)
        pending = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert len(pending) == split.COMPARED_AT_ONCE  # they do not pile up
        await asyncio.sleep(0)
        found = hanging.direct(traffic)
        assert (found.challenger.asked, found.challenger.ended) == (len(STUDENTS), 0)
        assert re.match(r"silence: 0 of 40", silence(found, Limits()))
        for task in pending:
            task.cancel()

    asyncio.run(main())


def test_an_unseen_answer_that_does_not_come_is_an_error(monkeypatch):
    monkeypatch.setattr(split, "MAX_WAIT_S", 0.01)

    async def main():
        two = Split(served("old", 0.3), served("new", 0.5, wait=asyncio.Event()))
        two.direct(Traffic(compared=1.0))
        await asked(two, "s")
        await asyncio.wait([task for task in asyncio.all_tasks() if task is not asyncio.current_task()], timeout=60)
        found = two.direct(Traffic(compared=1.0))
        assert (found.challenger.errors, found.compared) == (1, 0)

    asyncio.run(main())


@pytest.mark.parametrize(("why", "errors"), [("late", 1), ("gone", 0)])
def test_a_deadline_that_passes_is_the_challengers_error_and_a_client_that_goes_is_not(why, errors):
    async def main():
        two = Split(served("old", 0.3), served("new", 0.6, wait=asyncio.Event()))
        two.direct(Traffic(share=1.0))
        leaves, sent = asyncio.Event(), []

        async def app(scope, receive, send):
            if why == "gone":
                leaves.set()
            await asked(two, "s")

        messages = iter([{"type": "http.request", "body": b"{}"}, {"type": "http.disconnect"}])

        async def receive():
            message = next(messages)
            if message["type"] == "http.disconnect":
                await leaves.wait()
            return message

        async def send(message):
            sent.append(message)

        headers = [(b"content-type", b"application/json")]
        headers += [(b"x-request-deadline-ms", b"10")] * (why == "late")
        scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers}
        await Labels(Edge(app), "new")(scope, receive, send)
        assert [message["status"] for message in sent if "status" in message] == [504] * errors
        counts = two.direct(Traffic(share=1.0)).challenger
        assert (counts.asked, counts.errors, counts.answered) == (1, errors, 0)
        assert counts.latency.sum() == 1

    asyncio.run(main())


def test_an_error_of_the_challenger_is_the_clients_and_is_counted():
    async def main():
        two = Split(served("old", 0.3), served("new", None))
        two.direct(Traffic(share=1.0))
        with pytest.raises(RuntimeError, match="broken"):
            await asked(two, "s")
        assert two.direct(Traffic(share=1.0)).challenger.errors == 1

    asyncio.run(main())


def test_an_answer_without_a_member_counts_as_failed_and_one_refused_unseen_does_not_count():
    async def main():
        two = Split(served("old", 0.3, refuses=True), served("new", 0.6, left_out=("lstm",)))
        two.direct(Traffic(share=1.0))
        assert await asked(two, "s") == ("new", 0.6)
        with pytest.raises(OverloadedError):
            await asked(two, None)
        found = two.direct(Traffic(share=1.0))
        assert (found.challenger.errors, found.challenger.answered, found.champion.ended) == (1, 0, 0)

    asyncio.run(main())


def test_a_canary_that_nobody_speaks_for_any_more_lapses(monkeypatch):
    async def main():
        two = Split(served("old", 0.3), served("new", 0.6))
        two.direct(Traffic(share=1.0))
        assert await asked(two, "s") == ("new", 0.6)
        monkeypatch.setattr(split, "LAPSE_S", 0.0)
        assert await asked(two, "s") == ("old", 0.3)

    asyncio.run(main())
