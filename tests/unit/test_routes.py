"""The routes beside /v1/predict: what they answer, and what each wrong request is told."""

import asyncio
from dataclasses import replace

import pytest
from fastapi.testclient import TestClient

from dkt_ray.data.query import Query, gather
from dkt_ray.errors import UnavailableError
from dkt_ray.serving.api import Served, build_app
from dkt_ray.serving.batching import Batcher
from dkt_ray.serving.contract import BatchResponse
from dkt_ray.serving.predictor import Predictor
from tests.requests import event, post

BATCH = "/v1/predict:batch"


def test_a_batch_answers_each_student_as_alone_and_refuses_the_wrong_ones_alone(client, known):
    good = [
        {"targets": known[:2]},
        {"history": [event(known[0], 1)], "targets": [known[1], "new"], "explain": True},
        {"history": [event(known[0], 1, timestamp=1772467200)], "targets": known[:1], "student": "s"},
    ]
    bad = [
        (7, "/students/1", "dictionary"),
        ({"targets": ["q"], "history": [event(correct=2)]}, "/students/3/history/0/correct", "equal to 1"),
        ({}, "/students/4/targets", "is missing"),
        (
            {"targets": ["q"], "history": [event(timestamp=2), event(timestamp=1)]},
            "/students/6/history/1/timestamp",
            "oldest first",
        ),
        ({"targets": ["q"], "wrong": 1}, "/students/7/wrong", "is not a known field"),
        ({"targets": ["q"], "half\ud800": 1}, "/students/8", ""),
    ]
    students = [good[0], bad[0][0], good[1], bad[1][0], bad[2][0], good[2], bad[3][0], bad[4][0], bad[5][0]]
    answer = post(client, {"students": students}, BATCH)
    assert answer.status_code == 200
    items = answer.json()["items"]
    BatchResponse.model_validate(answer.json())
    assert [item["status"] for item in items] == [200, 422, 200, 422, 422, 200, 422, 422, 422]
    assert [items[index]["answer"] for index in (0, 2, 5)] == [post(client, body).json() for body in good]
    for index, (_, pointer, message) in zip((1, 3, 4, 6, 7, 8), bad, strict=True):
        problem = items[index]["problem"]
        assert problem["errors"][0]["pointer"] == pointer
        assert message in problem["detail"]
        assert problem["status"] == 422


@pytest.mark.parametrize(
    ("body", "pointer", "message"),
    [
        ({}, "/students", "is missing"),
        ({"students": []}, "/students", "at least 1 item"),
        ({"students": [{"targets": ["q"]}] * 257}, "/students", "at most 256"),
        ({"students": [{"targets": ["q"] * 9000}] * 6}, "/students", "at most 50000 together"),
    ],
)
def test_a_batch_that_is_wrong_as_a_whole_is_refused(client, body, pointer, message):
    answer = post(client, body, BATCH)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == pointer
    assert message in answer.json()["detail"]


def test_students_of_a_batch_are_scored_together_and_one_that_crashes_takes_no_other_with_it(predictor, known):
    sizes = []

    def score(queries):
        sizes.append(len(queries))
        if any("crash" in query.target for query in queries):
            raise RuntimeError("the secret of the house")
        if any("silence" in query.target for query in queries):
            raise UnavailableError("none answers; try again later")
        return predictor.answer(queries)

    batcher = Batcher(score, 256, 10_000, 10_000)
    with TestClient(build_app(lambda student: Served(predictor, batcher)), raise_server_exceptions=False) as client:
        fine = post(client, {"students": [{"targets": known[:1]}] * 50}, BATCH)
        assert {item["status"] for item in fine.json()["items"]} == {200}
        assert max(sizes) > 1
        mixed = post(client, {"students": [{"targets": known[:1]}, {"targets": ["crash"]}]}, BATCH)
        assert [item["status"] for item in mixed.json()["items"]] == [200, 500]
        assert "secret" not in mixed.text
        unanswered = post(client, {"students": [{"targets": known[:1]}, {"targets": ["silence"]}]}, BATCH)
        assert [item["status"] for item in unanswered.json()["items"]] == [200, 503]
        assert unanswered.json()["items"][1]["problem"]["detail"] == "none answers; try again later"
        assert post(client, {"students": [{"targets": ["silence"]}]}, BATCH).status_code == 503
        assert post(client, {"students": [{"targets": ["crash"]}]}, BATCH).status_code == 500
        batcher._max_waiting_rows = 0  # all but the first are refused
        assert post(client, {"students": [{"targets": known[:1]}] * 50}, BATCH).status_code == 429


def test_each_student_of_a_batch_is_answered_by_the_bundle_that_is_chosen_for_them(predictor, known):
    asked = []

    other = Predictor(replace(predictor._bundle, digest="0" * 64))

    def choose(student):
        asked.append(student)

        async def answer(query):
            await asyncio.sleep(0)
            return predictor.answer([query])[0]

        return Served(other if student == "b" else predictor, answer)

    with TestClient(build_app(choose)) as client:
        asked.clear()
        students = [{"targets": known[:1], "student": name} for name in ("a", "b", "a")]
        answer = post(client, {"students": students}, BATCH)
        alone = post(client, students[1])
    assert asked == ["a", "b", "a", "b"]
    versions = [item["answer"]["model_version"] for item in answer.json()["items"]]
    assert versions == [predictor.version, other.version, predictor.version]
    assert answer.headers["x-model-version"] == ", ".join(sorted({*versions}))
    assert alone.headers["x-model-version"] == alone.json()["model_version"] == other.version


SCORE = "/v1/score"
SETS = {"entrance": ("A000000000", "never seen", "A001001011"), "default": ("A000000000",)}


@pytest.fixture(scope="module")
def scoring(predictor):
    async def answer(query):
        return predictor.answer([query])[0]

    with TestClient(build_app(lambda student: Served(predictor, answer), score_sets=SETS)) as client:
        yield client


def test_a_score_is_100_times_the_mean_probability_as_the_offline_scorer_has_it(scoring, predictor, known):
    history = [event(question, index % 2) for index, question in enumerate(known[:8])]
    found = post(scoring, {"history": history, "target_set": "entrance"}, SCORE).json()
    query = Query(known[:8], [0, 1] * 4, SETS["entrance"])
    expected = 100 * predictor.score(*gather([query])).probability.mean()
    assert found["score"] == pytest.approx(expected, abs=1e-9)
    assert (found["target_set"], found["questions"], found["unknown_questions"]) == ("entrance", 3, ["never seen"])
    wrong = [each | {"correct": 0} for each in history]
    assert post(scoring, {"history": wrong, "target_set": "entrance"}, SCORE).json()["score"] < found["score"]


def test_the_default_set_is_the_most_answered_questions_unless_it_is_given(client, scoring, predictor, known):
    assert post(client, {}, SCORE).json()["questions"] == min(100, len(known))
    assert post(scoring, {}, SCORE).json()["questions"] == 1


def test_a_set_that_is_not_there_is_refused_with_those_that_are(client, scoring):
    for which, there in ((client, "default"), (scoring, "default, entrance")):
        answer = post(which, {"target_set": "Ada"}, SCORE)
        assert answer.status_code == 422
        assert answer.json()["errors"] == [
            {"pointer": "/target_set", "message": f"is not a set of this service; expected one of {there}"}
        ]
