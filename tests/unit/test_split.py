"""A replica with two bundles: each student gets one of them, the other one's answer is measured and never returned."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from dkt_ray.data.query import Query
from dkt_ray.ensemble.scorer import Scores
from dkt_ray.errors import OverloadedError
from dkt_ray.serving import split
from dkt_ray.serving.api import Served
from dkt_ray.serving.split import Split
from dkt_ray.serving.traffic import Traffic, place

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
        for task in pending:
            task.cancel()

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
