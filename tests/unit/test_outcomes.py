"""Predictions, their outcomes, and what is told of them: on SQLite, behind the journal, and over HTTP."""

import hashlib
import json
import threading

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sqlalchemy.exc import DataError

from dkt_ray.data.query import Query
from dkt_ray.errors import ConfigError, UnavailableError
from dkt_ray.events.database import writing
from dkt_ray.events.outcomes import Joined, Outcomes, worse_by
from dkt_ray.events.sql import open_events
from dkt_ray.events.tables import OUTCOMES, RECOMMENDATIONS
from dkt_ray.metrics import log_loss
from dkt_ray.pipelines import outcomes
from dkt_ray.registry.store import Registry
from dkt_ray.serving.api import Served, build_app
from dkt_ray.serving.journal import MOST_TARGETS, Journal, unexported_since
from dkt_ray.serving.memory import Memory
from dkt_ray.serving.series import Meters
from dkt_ray.serving.telemetry import Telemetry
from dkt_ray.storage import open_store
from tests.event_promises import ANN, PRIVACY, until
from tests.outcome_promises import NOW, Meter, OutcomePromises, answered, scores
from tests.requests import post


@pytest.fixture
def events(tmp_path):
    opened = open_events(f"sqlite:///{tmp_path}/events.db", PRIVACY)
    yield opened
    opened.close()


class TestSqlite(OutcomePromises):
    pass


class Held:
    """A database that writes nothing until it is let go."""

    def __init__(self):
        self.gate, self.kept, self.fails = threading.Event(), [], None

    def keep(self, predictions, recommended):
        self.gate.wait(300)
        if self.fails:
            raise self.fails
        self.kept += predictions
        return len(predictions)

    def join(self, events):
        return len(events)

    def expire(self, now):
        return 0

    def bundles(self):
        return []


def test_requests_never_wait_for_the_journal_and_what_finds_no_room_is_counted():
    meter, held = Meter(), Held()
    journal = Journal(held, Meters(meter), most_waiting=5)
    journal.predicted(ANN, "b", Query([], [], ["q"] * 3), scores(0.1, 0.2, 0.3))
    until(lambda: not journal._waiting)  # the writer has taken them, and is held
    journal.predicted(ANN, "b", Query([], [], ["q"] * 4), scores(0.1, 0.2, 0.3, 0.4))
    journal.heard([answered("q", 1), answered("q", 0)])
    assert meter.found["dkt_predictions", "dropped"] == 1
    held.gate.set()
    journal.close()
    assert [each.probability for each in held.kept] == [0.1, 0.2, 0.3, 0.1, 0.2, 0.3, 0.4]
    assert meter.found["dkt_predictions", "joined"] == 1


def test_of_many_targets_the_first_are_kept():
    meter, held = Meter(), Held()
    held.gate.set()
    journal = Journal(held, Meters(meter))
    journal.predicted(ANN, "b", Query([], [], ["q"] * (MOST_TARGETS + 7)), scores(*[0.5] * (MOST_TARGETS + 7)))
    journal.close()
    assert (len(held.kept), meter.found["dkt_predictions", "over_limit"]) == (MOST_TARGETS, 7)


@pytest.mark.parametrize("error", [UnavailableError("gone"), DataError("INSERT", {}, Exception("a value"))])
def test_what_the_database_does_not_take_costs_what_was_waiting_and_no_more(error):
    meter, held = Meter(), Held()
    held.fails = error
    held.gate.set()
    journal = Journal(held, Meters(meter))
    journal.predicted(ANN, "b", Query([], [], ["q"]), scores(0.5))
    until(lambda: meter.found["dkt_predictions", "dropped"] == 1)
    held.fails = None
    journal.predicted(ANN, "b", Query([], [], ["q"]), scores(0.6))
    journal.close()
    assert [each.probability for each in held.kept] == [0.6]
    assert meter.found["dkt_predictions", "dropped"] == 1


@pytest.fixture
def service(predictor, events):
    """The API with a log of events and a journal."""
    told = Telemetry.alone()
    journal = Journal(Outcomes(events.engine, PRIVACY), told.meters)
    told = Telemetry(told.counters, told.meters, journal=journal)

    async def answer(query):
        return predictor.answer([query])[0]

    memory = Memory(events.log, events.histories, PRIVACY, heard=journal.heard)
    app = build_app(lambda student: Served(predictor, answer), telemetry=told, memory=memory)
    with TestClient(app) as client:
        yield client
    journal.close()


def kept(client, rows):
    """Wait until so many rows are written."""
    until(lambda: f'dkt_predictions_total{{what="kept"}} {rows}.0' in client.get("/metrics").text)


def test_predictions_of_stored_users_meet_their_answers(service, known, predictor, monkeypatch):
    assert service.get("/v1/outcomes").json() == {"window": 10_000, "bundles": []}
    told = post(service, {"user_id": "ann", "targets": known[:2]}).json()["predictions"]
    students = [{"user_id": "bob", "targets": [known[3]]}, {"targets": [known[4]]}]
    batch = service.post("/v1/predict:batch", json={"students": students}).json()
    post(service, {"targets": known[:3]})  # of nobody who is stored
    service.post("/v1/knowledge-state", json={"user_id": "ann"})  # asks for probes
    kept(service, 3)
    answers = [("ann", known[0]), ("ann", known[1]), ("bob", known[3]), ("bob", known[4])]
    graded = [
        {"event_id": str(place), "user_id": user, "question": question, "correct": place % 2}
        for place, (user, question) in enumerate(answers)
    ]
    for _ in range(2):
        assert service.post("/v1/events", json={"events": graded}).status_code == 200
    until(lambda: service.get("/v1/outcomes").json()["bundles"])
    until(lambda: 'dkt_predictions_total{what="joined"} 3.0' in service.get("/metrics").text)
    [found] = service.get("/v1/outcomes").json()["bundles"]
    assert (found["model_version"], found["outcomes"]) == (predictor.version, 3)
    said = np.array([each["probability"] for each in (*told, *batch["items"][0]["answer"]["predictions"])])
    assert found["log_loss"] == pytest.approx(log_loss(np.array([0, 1, 0]), said))
    monkeypatch.setattr(Outcomes, "latest", None)
    assert service.get("/v1/outcomes").json()["bundles"] == [found]  # as the journal computed it
    assert 'dkt_events_total{what="added"} 4.0' in service.get("/metrics").text
    assert 'dkt_events_total{what="repeated"} 4.0' in service.get("/metrics").text


def test_recommendations_for_stored_users_are_logged_with_policy_and_propensity(service, events, predictor):
    answer = service.post("/v1/recommend", json={"user_id": "ann", "limit": 3, "band": [0.5, 0.75]}).json()
    service.post("/v1/recommend", json={"limit": 3})
    service.post("/v1/recommend", json={"user_id": "bob", "band": [1, 0]})  # refused
    kept(service, 3)
    with events.engine.connect() as connection:
        rows = connection.execute(RECOMMENDATIONS.select()).mappings().all()
    assert [(row["rank"], row["question"]) for row in rows] == [
        (rank, item["question"]) for rank, item in enumerate(answer["recommendations"], 1)
    ]
    [same] = {(row["user"], row["bundle"], row["policy"], row["candidates"], row["propensity"]) for row in rows}
    assert same == (PRIVACY.user("ann"), predictor.version, "band 0.5-0.75 v1", answer["candidates"], 1.0)


def test_what_the_export_has_not_written_has_an_age(events, tmp_path):
    store = open_store(str(tmp_path / "store"))
    events.log.append([answered("q", 1, 5), answered("q", 1, 9)])
    assert unexported_since(events.log, store) == 5  # nobody exports
    store.write_json("exports/events/pointer.json", {"after": 1, "rows": 1})
    assert unexported_since(events.log, store) == 9
    store.write_json("exports/events/pointer.json", {"after": 2, "rows": 2})
    meter = Meter()
    Journal(Outcomes(events.engine, PRIVACY), Meters(meter), lambda: unexported_since(events.log, store)).close()
    assert 0 <= meter.found["dkt_unexported_seconds",] < 60  # none waits


def test_without_stored_users_there_are_no_outcomes(client):
    answer = client.get("/v1/outcomes")
    assert (answer.status_code, "`events`" in answer.json()["detail"]) == (404, True)


NONE = dict.fromkeys(("log_loss", "auc", "ece"))


def drawn(rows, shift, seed):
    """Outcomes whose probabilities are too high by some log-odds."""
    random = np.random.default_rng(seed)
    truth = random.uniform(0.1, 0.9, rows)
    said = 1 / (1 + np.exp(-(np.log(truth / (1 - truth)) + shift)))
    return Joined(said, (random.random(rows) < truth).astype(np.int64), np.full(rows, NOW))


def test_worse_is_told_from_chance():
    good, same, bad = drawn(4000, 0.0, 1), drawn(4000, 0.0, 2), drawn(4000, 2.0, 3)
    chance = worse_by(good, same)
    assert chance["low"] < 0 < chance["high"]
    found = worse_by(bad, same)
    assert 0.1 < found["low"] < found["value"] < found["high"]
    reference = log_loss(same.correct, same.probability)
    against = worse_by(bad, reference)
    assert against["value"] == pytest.approx(found["value"])
    assert found["low"] < against["low"] < against["high"] < found["high"]  # a figure has no chance of its own
    assert worse_by(drawn(20, 2.0, 4), reference)["low"] < against["low"]  # few say little


@pytest.fixture
def rule(tmp_path, monkeypatch):
    """Two bundles in a registry, with so many outcomes and such a shift each; says what `dkt outcomes` did."""

    def decide(live, before, margin=0.05, **metrics):
        registry = Registry(open_store(str(tmp_path / "store")))
        digests = []
        for name in ("before", "live"):
            manifest = json.dumps({"name": name, "provenance": {"metrics": metrics}}).encode()
            digests.append(hashlib.sha256(manifest).hexdigest())
            registry.store.write(f"bundles/{digests[-1]}/manifest.json", manifest)
        registry.promote("champion", digests[0], None, "first")
        registry.promote("champion", digests[1], digests[0], "second")
        url = f"sqlite:///{tmp_path}/events.db"
        opened = open_events(url, PRIVACY)
        with writing(opened.engine) as connection:
            for digest, (rows, shift) in zip(digests, (before, live), strict=True):
                joined = zip(*(column.tolist() for column in drawn(rows, shift, rows)), strict=True)
                values = [{"bundle": digest, "probability": p, "correct": y, "at": at} for p, y, at in joined]
                connection.execute(OUTCOMES.insert(), values)
        opened.close()
        called = []
        monkeypatch.setattr(
            outcomes, "_roll_back", lambda reason, config: called.append(reason) or {"bundle": digests[0]}
        )
        settings = {"events": url, "store": str(tmp_path / "store"), "rollback_if": {"log_loss": margin}}
        result = outcomes.run(outcomes.OutcomesConfig.model_validate(settings))
        assert result["champion"] == digests[1]
        assert (result["rolled_back"] == {"bundle": digests[0]}) == bool(called)
        return result["against"], bool(called)

    monkeypatch.delenv("DKT_EVENTS_URL", raising=False)
    return decide


@pytest.mark.parametrize(
    ("live", "before", "margin", "decision"),
    [
        ((3000, 2.0), (2500, 0.0), 0.05, ("the bundle before", True)),
        ((3000, 0.0), (2500, 0.0), 0.05, ("the bundle before", False)),
        ((3000, 2.0), (2500, 2.0), 0.05, ("the bundle before", False)),  # both: the students have changed
        ((3000, 2.0), (2500, 0.0), 5.0, ("the bundle before", False)),
        ((3000, 2.0), (100, 0.0), 0.05, ("its manifest", True)),
        ((3000, 0.0), (100, 0.0), 0.05, ("its manifest", False)),
        ((100, 2.0), (2500, 0.0), 0.05, (None, False)),
    ],
)
def test_a_champion_that_got_worse_is_taken_back(rule, live, before, margin, decision):
    assert rule(live, before, margin, log_loss={"value": 0.62, "low": 0.6, "high": 0.64}) == decision


def test_without_anything_to_compare_with_nothing_is_concluded(rule):
    assert rule((3000, 2.0), (100, 0.0)) == (None, False)


def test_the_table_names_the_champion():
    told = {"a" * 64: {"outcomes": 12, "log_loss": 0.51234, "auc": None, "ece": 0.1}, "b" * 64: {"outcomes": 0} | NONE}
    lines = outcomes.table(told, "a" * 64).splitlines()
    assert lines[1] == "aaaaaaaaaaaa         12    0.5123       -  0.1000  champion"
    assert outcomes.table({}, None) == "no outcomes yet"
    with pytest.raises(ConfigError, match="DKT_EVENTS_URL"):
        outcomes.run(outcomes.OutcomesConfig())


def test_a_database_of_a_mistyped_name_is_not_made(tmp_path, monkeypatch):
    monkeypatch.delenv("DKT_EVENTS_URL", raising=False)
    with pytest.raises(ConfigError, match=r"evnets\.db: no such file"):
        outcomes.run(outcomes.OutcomesConfig(events=f"sqlite:///{tmp_path}/evnets.db", store=str(tmp_path / "store")))
    assert not (tmp_path / "evnets.db").exists()
