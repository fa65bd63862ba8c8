"""What is told of requests: where their time went, one line each in the log, and nothing of what they hold."""

import json
import logging
from contextvars import copy_context
from functools import partial

import numpy as np
import pytest
from fastapi.testclient import TestClient

from dkt_ray.data.query import Query
from dkt_ray.ensemble.scorer import Scores
from dkt_ray.events.sql import open_events
from dkt_ray.log import JsonLines
from dkt_ray.privacy import Privacy
from dkt_ray.serving import series, telemetry, trace
from dkt_ray.serving.api import Served, build_app
from dkt_ray.serving.batching import Batcher
from dkt_ray.serving.memory import Memory
from dkt_ray.serving.telemetry import Telemetry
from tests import bundles
from tests.requests import event, post
from tests.unit.test_breaker import Ensemble
from tests.unit.test_counters import samples

CANARY = "canary7f3a"
PRIVACY = Privacy(b"secret")


@pytest.fixture
def app(predictor, tmp_path):
    """The API with dynamic batching and stored users, as in a replica."""
    told = Telemetry.alone()
    batcher = Batcher(predictor.answer, 32, 50_000, 10**9, partial(told.batched, predictor.version))
    memory = Memory.of(open_events(f"sqlite:///{tmp_path}/events.db", PRIVACY), privacy=PRIVACY)
    app = build_app(lambda student: Served(predictor, batcher), telemetry=told, memory=memory)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client
    memory.close()


@pytest.fixture
def lines(caplog):
    """The lines of the access log so far, as they would be written."""
    caplog.set_level(logging.INFO, "dkt_ray.access")
    return lambda: [json.loads(JsonLines().format(each)) for each in caplog.records if each.name == "dkt_ray.access"]


def timing(answer):
    parts = [part.strip().split(";dur=") for part in answer.headers["server-timing"].split(",")]
    return {name: float(value) for name, value in parts}


def test_server_timing_says_where_the_time_went(app, known):
    for path, body in (
        ("predict", {"targets": known[:3]}),
        ("predict:batch", {"students": [{"targets": known[:2]}] * 5}),
        ("knowledge-state", {"history": [event(known[0])]}),
        ("recommend", {"history": [event(known[0])], "by": "gain", "limit": 3}),
        ("score", {}),
    ):
        answer = app.post(f"/v1/{path}", json=body)
        assert answer.status_code == 200, answer.text
        found = timing(answer)
        assert next(iter(found)) == "queue"
        assert set(found) == {"queue", "encode", *bundles.SMALL, "blend", "total"}
        stages = sum(value for name, value in found.items() if name not in ("queue", "total"))
        assert 0 < stages <= found["total"] + 0.1  # a pass that many students share counts once
    assert "server-timing" not in post(app, {"targets": []}).headers
    assert "server-timing" not in app.get("/v1/models").headers


def test_a_members_time_is_taken_where_it_fails_too():
    ensemble = Ensemble()
    ensemble.members["b"].fails = True
    assert set(ensemble.answer().seconds) == {"encode", "a", "b", "c", "blend"}


def test_every_request_has_a_line_that_names_nobody(app, known, lines, monkeypatch):
    monkeypatch.setenv("DKT_PRIVACY_KEY", "secret")
    user = {"user_id": f"{CANARY}-user"}
    sent = user | {"event_id": f"{CANARY}-e", "question": f"{CANARY}-q", "correct": 1}
    assert app.post("/v1/events", json={"events": [sent]}).status_code == 200
    assert post(app, user | {"student": f"{CANARY}-s", "targets": [f"{CANARY}-t", known[0]]}).status_code == 200
    app.get(f"/v1/{CANARY}/users?{CANARY}=1")
    app.post("/v1/predict", json={"targets": [{CANARY: 1}]}, headers={"x-request-id": "abc"})
    app.post("/v1/predict", content=b"[", headers={"content-type": "text/plain"})
    logged, answered, *refused = lines()
    assert (logged["route"], logged["status"]) == ("/v1/events", 200)
    version = app.get("/v1/models").json()["model_version"]
    assert {name: answered[name] for name in ("route", "status", "events", "targets", "bundle", "user")} == {
        "route": "/v1/predict",
        "status": 200,
        "events": 1,
        "targets": 2,
        "bundle": version[:12],
        "user": PRIVACY.mark(PRIVACY.user(f"{CANARY}-user"))[:12],
    }
    assert answered["ms"] >= answered["queue_ms"] >= 0
    assert len(answered["request_id"]) == 32
    assert [(each["route"], each["status"], each["request_id"] == "abc") for each in refused] == [
        ("other", 404, False),
        ("/v1/predict", 422, True),
        ("/v1/predict", 415, False),
    ]
    assert all("user" not in each and "bundle" not in each for each in refused)
    told = json.dumps(lines()) + app.get("/metrics").text
    assert CANARY not in told
    assert known[0] not in told


def test_a_batch_of_many_users_names_none(app, known, lines):
    students = [{"user_id": f"{CANARY}{index}", "targets": known[:1]} for index in range(3)]
    assert app.post("/v1/predict:batch", json={"students": students}).status_code == 200
    [line] = lines()
    assert "user" not in line
    assert (line["targets"], line["users"]) == (3, 3)
    assert CANARY not in json.dumps(line)


def test_without_a_key_the_log_has_no_user(app, known, lines, monkeypatch):
    monkeypatch.delenv("DKT_PRIVACY_KEY", raising=False)
    assert post(app, {"user_id": CANARY, "targets": known[:1]}).status_code == 200
    [line] = lines()
    assert (line["users"], "user" in line) == (1, False)


@pytest.mark.parametrize(("status", "rows"), [(200, 3), (504, 0)])
def test_only_what_was_answered_is_written_down(status, rows):
    told, notes = Telemetry(journal=Journal()), trace.Trace({"path": "/v1/predict"})

    def request():
        trace.TRACE.set(notes)
        trace.about("ann")
        told.scored("b", Query([], [], ["q1", "q2"]), Scores(np.array([0.1, 0.2]), {}, np.zeros(2, bool)))
        notes.shown = trace.Shown("gain v1", 9, ["q1"])
        told.ended(notes, status, 0.1)

    copy_context().run(request)
    assert len(told.journal.rows) == rows


class Journal:
    """Keeps what it is told."""

    def __init__(self):
        self.rows = []

    def predicted(self, user, bundle, query, scores):
        self.rows += [(user, bundle, question) for question in query.target]

    def recommended(self, user, bundle, policy, candidates, questions):
        self.rows += [(user, bundle, question) for question in questions]


def test_the_log_can_be_switched_off(predictor, lines):
    silent = Telemetry(access_log=False)
    with TestClient(build_app(lambda student: Served(predictor, None), telemetry=silent)) as client:
        client.get("/livez")
    assert lines() == []


def test_scores_spread_cold_starts_and_unknown_questions_are_counted(app, known):
    history = [event(known[0])]
    answers = [
        post(app, {"history": history, "targets": [*known[:10], "new"]}),
        post(app, {"targets": known[:4]}),
    ]
    probabilities = [each["probability"] for answer in answers for each in answer.json()["predictions"]]
    found = samples(app)
    short = answers[0].json()["model_version"][:12]
    tenths = {dict(pairs)["tenth"]: count for (name, *pairs), count in found.items() if name == "dkt_scores_total"}
    for tenth in {f"{min(int(p * 10), 9) / 10:.1f}" for p in probabilities} | set(tenths):
        assert tenths[tenth] == sum(min(int(p * 10), 9) == round(float(tenth) * 10) for p in probabilities)
    of_bundle = ("bundle", short)
    assert found["dkt_cold_starts_total", of_bundle] == 1
    assert found["dkt_unknown_questions_total", of_bundle] == 1
    assert found["dkt_spread_count", of_bundle] == 2
    assert found["dkt_stage_seconds_count", ("stage", "encode")] == 2
    assert found["dkt_stage_seconds_count", ("stage", "queue")] == 2
    app.post("/v1/predict:batch", json={"students": [{"targets": known[:1]}] * 9})
    found = samples(app)
    passes = found["dkt_stage_seconds_count", ("stage", "encode")] - 2
    assert 1 <= passes < 9  # the first goes alone at most, and what a pass took counts once
    assert found["dkt_stage_seconds_count", ("stage", "queue")] == 11
    assert found["dkt_batch_queries_sum", of_bundle] == 11


def test_every_series_is_named_once_and_is_told(predictor):
    names = [each.name for each in series.SERIES]
    assert len(set(names)) == len(names)
    told = Telemetry.alone()
    for each in series.SERIES:
        told.meters.add(each, 0.5, *each.labels)
    text = told.counters.response().body.decode()
    for each in series.SERIES:
        assert all(f"\n{name}{{" in text or f"\n{name} " in text for name in each.exposed)


def test_many_targets_are_counted_in_few_calls():
    """Not a time: the calls per query do not grow with its targets."""
    calls = []

    class Meter:
        def add(self, *args):
            calls.append(args)

    told = Telemetry(meters=series.Meters(Meter()))
    many = np.linspace(0, 1, 10_000)
    scores = Scores(many, {"a": many, "b": many}, np.zeros(10_000, bool))
    told.scored("abc", Query(["q"], [1], ["t"] * 10_000), scores)
    assert len(calls) <= 13


def test_the_header_is_in_milliseconds():
    assert telemetry.server_timing({"queue": 0.001, "total": 1.5}) == "queue;dur=1.00, total;dur=1500.00"
