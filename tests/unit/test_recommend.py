"""/v1/recommend: which questions, in which order, and why."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from dkt_ray.data.query import Query
from dkt_ray.errors import OverloadedError
from dkt_ray.serving import recommend
from dkt_ray.serving.contract import RecommendRequest
from dkt_ray.serving.requests import brought
from tests.requests import event, post

RECOMMEND = "/v1/recommend"


def history_of(known, count=6):
    return [event(q, index % 2, timestamp=1772467200 + 60 * index) for index, q in enumerate(known[:count])]


def probabilities(predictor, known, history):
    query = Query([e["question"] for e in history], [e["correct"] for e in history], known)
    query = replace(query, timestamp=[1000 * e["timestamp"] for e in history])
    return dict(zip(known, predictor.answer([query])[0].probability.tolist(), strict=True))


def test_by_band_is_by_distance_from_its_middle_without_what_was_just_seen(client, predictor, known):
    history = history_of(known)
    p = probabilities(predictor, known, history)
    low, high = np.quantile(list(p.values()), [0.3, 0.6]).tolist()
    body = {"history": history, "band": [low, high], "exclude_last": 2, "limit": 100}
    found = post(client, body, RECOMMEND).json()
    names = [each["question"] for each in found["recommendations"]]
    assert set(names) == set(known) - set(known[4:6])
    assert found["candidates"] == len(names)
    distances = [abs(p[name] - (low + high) / 2) for name in names]
    assert distances == sorted(distances)
    assert all(each["probability"] == pytest.approx(p[each["question"]], abs=1e-6) for each in found["recommendations"])
    inside = [each["in_band"] for each in found["recommendations"]]
    assert inside == [low <= each["probability"] <= high for each in found["recommendations"]]
    assert {True, False} == set(inside)
    for each in found["recommendations"]:
        assert ("within" in each["reason"]) == each["in_band"]
        assert f"{each['probability']:.0%}" in each["reason"]
    everything = post(client, body | {"exclude_last": 0}, RECOMMEND).json()["recommendations"]
    assert {each["question"] for each in everything} == set(known)


def test_only_questions_of_the_given_concepts_are_recommended(client, predictor):
    wanted = predictor.catalogue.concepts[-1]
    found = post(client, {"concepts": [wanted], "limit": 100}, RECOMMEND).json()["recommendations"]
    of = predictor.catalogue.concepts_of
    assert {each["question"] for each in found} == {q for q, concepts in of.items() if wanted in concepts}
    assert all(each["concepts"] == of[each["question"]] for each in found)


def test_the_gain_is_the_expected_mastery_after_an_answer_less_that_of_now(client, predictor, known):
    history = history_of(known)
    body = {"history": history, "by": "gain", "band": [0.5, 0.5], "limit": 3, "at": 1772470000}
    answer = post(client, body, RECOMMEND)
    assert answer.status_code == 200
    found = answer.json()["recommendations"]
    assert len(found) == 3
    assert [each["gain"] for each in found] == sorted((each["gain"] for each in found), reverse=True)

    def mastery(events, question):
        means = []
        for concept in predictor.catalogue.concepts_of[question]:
            probes = [q for q in predictor.catalogue.probes([concept])[concept] if q != question]
            asked = post(client, {"history": events, "targets": probes, "at": body["at"]}).json()["predictions"]
            means.append(np.mean([each["probability"] for each in asked]))
        return np.mean(means)

    for each in found:
        question, p = each["question"], each["probability"]
        right, wrong = (
            mastery([*history, event(question, correct, timestamp=body["at"])], question) for correct in (1, 0)
        )
        now = mastery(history, question)
        assert each["gain"] == pytest.approx(p * right + (1 - p) * wrong - now, abs=1e-6)
        assert f"by {100 * abs(each['gain']):.1f} points, from {now:.0%}" in each["reason"]


@pytest.mark.parametrize(
    ("given", "at", "expected"),
    [((), None, None), ((), 5, [5]), ((3, 4), None, [3, 4, 4]), ((3, 4), 9, [3, 4, 9]), ((3, 4), 1, [3, 4, 4])],
)
def test_what_is_answered_in_thought_is_answered_when_the_targets_are_shown(given, at, expected):
    query = Query(["q"] * len(given), [1] * len(given), ["t"], timestamp=list(given) or None, at=at)
    after = recommend._answered(query, "n", 0, ["u"])
    assert (after.timestamp, list(after.question), list(after.correct)) == (
        expected,
        ["q"] * len(given) + ["n"],
        [1] * len(given) + [0],
    )


def test_fewer_questions_are_compared_after_a_long_history(predictor, known):
    sizes = []

    async def answer(query):
        sizes.append(query.rows)
        return predictor.answer(
            [replace(query, question=query.question[-3:], correct=query.correct[-3:], test=None, concepts=None)]
        )[0]

    for events, compared in ((3, min(32, len(known))), (2_000, 12), (49_000, 1)):
        sizes.clear()
        history = [event("q")] * events
        request = RecommendRequest(history=history, by="gain", exclude_last=0, limit=100)
        past = brought(request).past
        _, found = asyncio.run(recommend.recommended(request, past, predictor.catalogue, answer))
        assert len(found["recommendations"]) == compared
        assert len(sizes) == 2 + 2 * compared
        assert sum(sizes[2:]) <= 110_000


def test_when_a_replica_is_full_the_rest_of_a_comparison_is_given_up(predictor, known):
    given_up = []

    async def answer(query):
        if len(query.target) > 20:  # the candidates, and the probes of them all
            return predictor.answer([query])[0]
        if not query.correct[-1]:
            raise OverloadedError("full")
        try:
            await asyncio.Event().wait()
        finally:
            given_up.append(query)

    request = RecommendRequest(history=[event("q")], by="gain", exclude_last=0)

    async def ask():
        with pytest.raises(OverloadedError):
            await recommend.recommended(request, brought(request).past, predictor.catalogue, answer)
        await asyncio.sleep(0)  # so that what was cancelled ends

    asyncio.run(ask())
    assert len(given_up) == min(recommend.COMPARED, len(known))


def test_nothing_is_left_when_all_was_just_seen(client, known):
    for by in ("band", "gain"):
        found = post(client, {"history": [event(q) for q in known], "by": by}, RECOMMEND)
        assert found.status_code == 200
        assert found.json()["recommendations"] == []


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"band": [0.8, 0.6]}, "/band"),
        ({"band": [0.8]}, "/band/1"),
        ({"band": [0.1, 1.5]}, "/band/1"),
        ({"by": "mood"}, "/by"),
        ({"limit": 0}, "/limit"),
        ({"limit": 101}, "/limit"),
        ({"exclude_last": -1}, "/exclude_last"),
        ({"concepts": ["alchemy"]}, "/concepts/0"),
    ],
)
def test_a_wrong_wish_is_refused_with_the_field(client, body, pointer):
    answer = post(client, body, RECOMMEND)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == pointer
