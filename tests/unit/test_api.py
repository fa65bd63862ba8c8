"""The HTTP API against a real small bundle, without Ray: answers, limits, and what each bad request is told."""

import asyncio
from dataclasses import replace
from http import HTTPStatus

import numpy as np
import pytest
from fastapi.testclient import TestClient

from dkt_ray.data.query import Query
from dkt_ray.ensemble.opinions import Opinions
from dkt_ray.errors import UnavailableError
from dkt_ray.registry.forgotten import Forgotten
from dkt_ray.serving import contract, edge
from dkt_ray.serving.api import Served, build_app
from dkt_ray.serving.predictor import Predictor
from tests import bundles
from tests.requests import event, post


def test_answers_equal_the_predictors_own(client, predictor, known):
    history = [event(q, index % 2, timestamp=f"2026-03-02 16:0{index}:00") for index, q in enumerate(known[:6])]
    body = {"student": 17, "history": history, "targets": [known[0], "new", {"question": 5, "concepts": ["3", "1_2"]}]}
    answer = post(client, body | {"at": "2026-03-02T17:30:00+01:00", "explain": True})
    assert answer.status_code == 200
    found = answer.json()
    start = 1772467200000
    query = Query(
        known[:6],
        [0, 1, 0, 1, 0, 1],
        [known[0], "new", "5"],
        timestamp=[start + 60_000 * index for index in range(6)],
        target_concepts=["", "", "1_2_3"],
        at=start + 30 * 60_000,
    )
    expected = predictor.answer([query])[0]
    assert found["model_version"] == predictor.version
    assert found["cold_start"] is False
    assert found["weights"] == bundles.WEIGHTS
    assert [each["question"] for each in found["predictions"]] == [known[0], "new", "5"]
    assert [each["probability"] for each in found["predictions"]] == expected.probability.tolist()
    for family, column in expected.members.items():
        assert [each["members"][family] for each in found["predictions"]] == column.tolist()
    assert [each["unknown_question"] for each in found["predictions"]] == [False, True, True]
    assert found["unknown_questions"] == ["new", "5"]
    opinions = np.array(list(expected.members.values()))
    assert [each["spread"] for each in found["predictions"]] == (opinions.max(0) - opinions.min(0)).tolist()
    assert (found["degraded"], found["left_out"], found["truncated"]) == (False, [], 0)


def test_members_and_weights_come_on_request_only(client, known):
    answer = post(client, {"targets": known[:2]}).json()
    assert "weights" not in answer
    assert [set(each) for each in answer["predictions"]] == [
        {"question", "probability", "spread", "unknown_question"}
    ] * 2


def test_the_time_of_the_targets_is_passed_on(predictor, known):
    asked = []

    async def answer(query):
        asked.append(query)
        return predictor.answer([query])[0]

    with TestClient(build_app(lambda student: Served(predictor, answer))) as client:
        for at in ("2026-03-02 16:00:00", "2026-03-02T17:00:00+01:00", 1772467200, None):
            assert post(client, {"targets": known[:1], "at": at}).status_code == 200
    assert [query.at for query in asked] == [1772467200000] * 3 + [None]


@pytest.mark.parametrize("events", [0, 63, 64, 95, 96, 200])
def test_what_no_network_reads_one_by_one_is_counted(client, predictor, known, events):
    """The context of the small network is 32: it reads from the start of the block before that of the target."""
    history = [event(known[index % 5]) for index in range(events)]
    found = post(client, {"history": history, "targets": known[:1]}).json()
    assert found["truncated"] == max(0, events // 32 - 1) * 32
    assert predictor.truncated(events, ["lightgbm"]) == 0


def test_members_that_were_left_out_are_named_and_the_others_weigh_1(predictor, known):
    async def answer(query):
        scores = predictor.answer([query])[0]
        members = {"lstm_attention": scores.members["lstm_attention"]}
        return replace(scores, members=members, left_out=("lightgbm",))

    with TestClient(build_app(lambda student: Served(predictor, answer))) as client:
        found = post(client, {"targets": known[:1], "explain": True}).json()
    assert (found["degraded"], found["left_out"]) == (True, ["lightgbm"])
    assert found["weights"] == {"lstm_attention": 1.0}
    assert found["predictions"][0]["spread"] == 0.0


def test_a_member_without_weight_counts_whole_when_it_is_the_only_one_left(tmp_path, known):
    """What explains the answer is what made it."""
    bundles.build(tmp_path / "bundle", bundles.save_members(tmp_path / "members"), {"lightgbm": 1, "lstm_attention": 0})
    predictor = Predictor.load(tmp_path / "bundle")

    def ask(members, past, targets):
        return Opinions({"lstm_attention": members["lstm_attention"].score(past, targets)}, {})

    async def answer(query):
        return predictor.answer([query], ask)[0]

    with TestClient(build_app(lambda student: Served(predictor, answer))) as client:
        found = post(client, {"targets": known[:1], "explain": True}).json()
    assert found["weights"] == {"lstm_attention": 1.0}
    [prediction] = found["predictions"]
    assert prediction["members"] == {"lstm_attention": prediction["probability"]}


def test_epoch_seconds_and_milliseconds_and_naive_times_are_the_same_time(client, known):
    def ask(first, second):
        history = [event(known[0], 0, timestamp=first), event(known[1], 1, timestamp=second)]
        return post(client, {"history": history, "targets": known[:3]}).json()

    assert ask(1772467200, 1772467260) == ask(1772467200000, 1772467260000)
    assert ask(1772467200, 1772467260) == ask("2026-03-02 16:00:00", "2026-03-02T16:01:00Z")


def test_cold_start_is_said(client, known):
    answer = post(client, {"targets": known[:2]}).json()
    assert answer["cold_start"] is True
    assert len(answer["predictions"]) == 2


def test_every_response_is_labelled(client, predictor, known):
    answer = post(client, {"targets": known[:1]}, **{"x-request-id": "abc-1"})
    assert answer.headers["x-request-id"] == "abc-1"
    assert answer.headers["x-model-version"] == predictor.version
    forged = client.get("/livez", headers={"x-request-id": "x y\tz"}).headers["x-request-id"]
    assert len(forged) == 32
    assert client.get("/nowhere").headers["x-model-version"] == predictor.version


NAN = "NaN"
BAD = {
    "no targets": ({"history": []}, "/targets", "is missing", None),
    "empty targets": ({"targets": []}, "/targets", "at least 1 item", "array"),
    "targets not a list": ({"targets": "q"}, "/targets", "valid list", "string"),
    "too many targets": ({"targets": ["q"] * 10_001}, "/targets", "at most 10000 items", "array"),
    "target of wrong type": ({"targets": ["q", 1.5]}, "/targets/1/question", "valid string", "number"),
    "target null": ({"targets": [None]}, "/targets/0/question", "valid string", "null"),
    "target without question": ({"targets": [{"test": "t"}]}, "/targets/0/question", "is missing", None),
    "empty question": ({"targets": [""]}, "/targets/0/question", "at least 1 character", "string"),
    "long question": ({"targets": ["q" * 201]}, "/targets/0/question", "at most 200 characters", "string"),
    "half a surrogate": ('{"targets": ["\\ud800"]}', "/targets/0/question", "unicode", "string"),
    "history not a list": ({"history": {}, "targets": ["q"]}, "/history", "valid list", "object"),
    "answer missing": ({"history": [{"question": "q"}], "targets": ["q"]}, "/history/0/correct", "is missing", None),
    "answer as text": ({"history": [event(correct="1")], "targets": ["q"]}, "/history/0/correct", "integer", "string"),
    "answer as bool": (
        {"history": [event(correct=True)], "targets": ["q"]},
        "/history/0/correct",
        "integer",
        "boolean",
    ),
    "answer 2": (
        {"history": [event(), event(correct=2)], "targets": ["q"]},
        "/history/1/correct",
        "equal to 1",
        "integer",
    ),
    "answer hidden": (
        {"history": [event(correct=-1)], "targets": ["q"]},
        "/history/0/correct",
        "equal to 0",
        "integer",
    ),
    "answer NaN": (
        '{"history": [{"question": "q", "correct": NaN}], "targets": ["q"]}',
        "/history/0/correct",
        "integer",
        NAN,
    ),
    "answer infinite": (
        '{"history": [{"question": "q", "correct": 1e999}], "targets": ["q"]}',
        "/history/0/correct",
        "integer",
        "Infinity",
    ),
    "time NaN": (
        '{"history": [{"question": "q", "correct": 1, "timestamp": NaN}], "targets": ["q"]}',
        "/history/0/timestamp",
        "NaN values not permitted",
        NAN,
    ),
    "time in words": (
        {"history": [event(timestamp="noon")], "targets": ["q"]},
        "/history/0/timestamp",
        "valid datetime",
        "string",
    ),
    "at in the year 1e9": ({"targets": ["q"], "at": 1e18}, "/at", "after 9999", "number"),
    "times on some events": (
        {"history": [event(timestamp=1772467200), event()], "targets": ["q"]},
        "/history/1/timestamp",
        "send all or none",
        None,
    ),
    "times run backwards": (
        {"history": [event(timestamp=1772467200), event(timestamp=1772467199)], "targets": ["q"]},
        "/history/1/timestamp",
        "oldest first",
        None,
    ),
    "too many rows": (
        {"history": [event()] * 49_999, "targets": ["q", "r"]},
        "/history",
        "at most 50000 together",
        None,
    ),
    "too many events": ({"history": [event()] * 50_001, "targets": ["q"]}, "/history", "at most 50000 items", "array"),
    "unknown field": ({"targets": ["q"], "tagrets": []}, "/tagrets", "is not a known field", None),
    "a list for a body": ([], "", "valid dictionary", "array"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_are_refused_with_the_field(client, name):
    body, pointer, message, found = BAD[name]
    answer = post(client, body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["title"], problem["status"], problem["instance"]) == ("Unprocessable Entity", 422, "/v1/predict")
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert problem["errors"][0]["pointer"] == pointer
    assert message in problem["errors"][0]["message"]
    assert problem["errors"][0].get("found") == found
    assert message in problem["detail"]


@pytest.mark.parametrize("path", ["predict", "knowledge-state", "recommend", "score"])
def test_errors_never_repeat_values(client, path):
    secret = "Ada-Lovelace-1815"
    for body in (
        {"targets": [{"question": "q", "test": secret * 20}], "student": [secret]},
        {"history": [event(correct=secret, timestamp=secret)], "targets": ["q"], "concepts": [secret], "at": secret},
    ):
        answer = post(client, body, f"/v1/{path}")
        assert answer.status_code == 422
        assert secret not in answer.text


def test_what_is_not_json_is_refused(client):
    for body in (b"", b"{", b'{"targets": ["q"]', b"[" * 100_000, b"\xff\xfe", b"nonsense"):
        answer = post(client, body)
        assert answer.status_code in (400, 422), body[:20]
        assert answer.headers["content-type"] == "application/problem+json"
    answer = client.post("/v1/predict", data={"targets": "q"})
    assert answer.status_code == 415
    assert "application/json" in answer.json()["detail"]


def test_a_body_over_the_limit_is_refused_before_it_is_parsed(client):
    filler = b" " * edge.MAX_BODY
    announced = post(client, b'{"targets": ["q"]}' + filler)
    assert announced.status_code == 413
    assert announced.json()["title"] == HTTPStatus.REQUEST_ENTITY_TOO_LARGE.phrase

    taken = 0

    def chunks():
        nonlocal taken
        for _ in range(64):
            taken += 1
            yield b" " * (1 << 20)

    chunked = client.post("/v1/predict", content=chunks(), headers={"content-type": "application/json"})
    assert chunked.status_code == 413
    just_fits = post(client, b'{"targets": ["q"]}'.ljust(edge.MAX_BODY))
    assert just_fits.status_code == 200


def test_a_chunked_body_is_not_read_past_the_limit(predictor):
    read, sent = 0, []

    async def receive():
        nonlocal read
        read += 1 << 20
        return {"type": "http.request", "body": b" " * (1 << 20), "more_body": True}

    async def send(message):
        sent.append(message)

    async def answer(query):
        raise AssertionError("must not get here")

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/predict",
        "headers": [(b"content-type", b"application/json")],
    }
    app = build_app(lambda student: Served(predictor, answer))
    asyncio.run(edge.Labels(edge.Edge(app), predictor.version)(scope, receive, send))
    assert sent[0]["status"] == 413
    assert read == edge.MAX_BODY + (1 << 20)


def test_routes_and_verbs_that_do_not_exist_are_problems_too(client):
    missing = client.get("/v2/everything")
    assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")
    wrong_verb = client.get("/v1/predict")
    assert (wrong_verb.status_code, wrong_verb.json()["title"]) == (405, "Method Not Allowed")
    limit = client.get("/v1/questions?limit=many")
    assert limit.status_code == 422
    assert limit.json()["errors"][0]["pointer"] == "/limit"


def test_a_crash_is_a_500_without_details(predictor):
    async def answer(query):
        raise RuntimeError("the secret of the house")

    with TestClient(build_app(lambda student: Served(predictor, answer)), raise_server_exceptions=False) as client:
        crashed = post(client, {"targets": ["q"]})
        assert crashed.status_code == 500
        assert crashed.headers["content-type"] == "application/problem+json"
        assert crashed.json()["request_id"] == crashed.headers["x-request-id"]
        assert "secret" not in crashed.text
        assert client.get("/livez").status_code == 200
        assert client.get("/readyz").status_code == 500


def test_whoever_asks_whether_it_is_ready_has_one_query_a_second_scored(predictor, monkeypatch):
    now, asked = [0.0], []

    async def answer(query):
        asked.append(now[0])
        if now[0] == 2.0:
            raise UnavailableError("not now")
        return predictor.answer([query])[0]

    monkeypatch.setattr("dkt_ray.serving.api.monotonic", lambda: now[0])
    with TestClient(build_app(lambda student: Served(predictor, answer))) as client:
        for now[0], status in ((0.0, 200), (0.9, 200), (1.0, 200), (1.5, 200), (2.0, 503), (2.0, 503), (2.1, 200)):
            assert client.get("/readyz").status_code == status
    assert asked == [0.0, 1.0, 2.0, 2.0, 2.1]


def test_models_says_what_answers(client, predictor):
    found = client.get("/v1/models").json()
    assert found["model_version"] == predictor.version
    assert {each["family"]: each["weight"] for each in found["members"]} == bundles.WEIGHTS
    assert found["metrics"] == {"auc": 0.71, "auc_interval": [0.65, 0.77]}


def test_models_says_whose_training_users_were_deleted_since(predictor):
    marks = {predictor.version: Forgotten(3, "2026-03-02T16:00:00+00:00")}
    app = build_app(lambda student: Served(predictor, None), challenger=predictor, marked=marks.get)
    with TestClient(app) as client:
        found = client.get("/v1/models").json()
        assert found["forgotten"] == {"count": 3, "since": "2026-03-02T16:00:00+00:00"}
        assert found["challenger"]["forgotten"] == found["forgotten"]
        assert contract.ModelsResponse.model_validate(found).forgotten.count == 3
        marks.clear()
        assert client.get("/v1/models").json()["forgotten"] is None


def test_models_names_the_challenger_of_a_rollout(predictor):
    with TestClient(build_app(lambda student: Served(predictor, None), challenger=predictor)) as client:
        found = client.get("/v1/models").json()
    assert found["challenger"]["model_version"] == found["model_version"] == predictor.version
    assert {each["family"] for each in found["challenger"]["members"]} == set(bundles.WEIGHTS)


def test_questions_are_the_most_answered_first(client, predictor):
    found = client.get("/v1/questions?limit=3").json()
    assert found["total"] == len(predictor.catalogue.rows)
    assert found["questions"] == predictor.catalogue.rows[:3]
    assert set(found["questions"][0]) == {"question", "test", "concepts", "count", "difficulty"}


def test_openapi_examples_run_as_they_stand_and_every_route_has_some(client):
    for path, verbs in client.get("/openapi.json").json()["paths"].items():
        if "get" in verbs:
            status = client.get(path).status_code  # 404 where it says that there is nothing to tell
            assert status == 200 or (status == 404 and "404" in verbs["get"]["responses"]), path
        if "post" in verbs:
            examples = verbs["post"]["requestBody"]["content"]["application/json"]["examples"]
            assert examples
            for title, example in examples.items():
                assert post(client, example["value"], path).status_code == 200, (path, title)


def test_responses_are_what_the_schema_says(client, known):
    contract.PredictResponse.model_validate(post(client, {"targets": known[:2]}).json())
    contract.KnowledgeResponse.model_validate(post(client, {}, "/v1/knowledge-state").json())
    contract.CatalogueResponse.model_validate(client.get("/v1/questions").json())
    contract.ModelsResponse.model_validate(client.get("/v1/models").json())


def test_the_docs_page_needs_nothing_from_elsewhere(client):
    page = client.get("/docs")
    assert page.status_code == 200
    assert "http://" not in page.text
    assert "https://" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
