"""Requests beside training: equal ones are told apart from shifted ones, whatever way the values come."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from fastapi.testclient import TestClient

from dkt_ray.data.query import Query
from dkt_ray.ensemble.scorer import Scores
from dkt_ray.errors import BundleError
from dkt_ray.registry import bundle, profile
from dkt_ray.registry.catalogue import Catalogue, table
from dkt_ray.serving import drift, telemetry
from dkt_ray.serving.api import Served, build_app
from dkt_ray.serving.drift import Drift
from dkt_ray.serving.predictor import Predictor
from dkt_ray.serving.telemetry import Telemetry
from tests import bundles
from tests.requests import event, post

CATALOGUE = Catalogue(table(bundles.world().state))


def answers(histories, rows):
    """Each answer as the request that would have come before it, with made-up scores."""
    question, random = histories.question.strings(), np.random.default_rng(5)
    for row in rows:
        start = histories.offsets[np.searchsorted(histories.offsets, row, "right") - 1]
        past = slice(int(start), int(row))
        scores = random.beta(4, 2, 1)
        query = Query(
            question=question[past].tolist(),
            correct=histories.correct[past].tolist(),
            target=[question[row]],
            timestamp=histories.timestamp[past].tolist(),
            at=int(histories.timestamp[row]),
        )
        yield query, Scores(scores, {}, np.zeros(1, bool))


@pytest.fixture(scope="module")
def world():
    """More students than the bundles' world, so that chance is small; the scores' reference is of the same kind."""
    histories = bundles.simulate(users=400, seed=3)
    scores = np.random.default_rng(6).beta(4, 2, 5000)
    return histories, profile.of_training(histories, CATALOGUE, scores)


def fed(world, change=lambda query, scores: (query, scores), count=1500):
    histories, looked = world
    found = Drift(looked, profile.difficulties(CATALOGUE))
    for query, scores in answers(histories, np.random.default_rng(4).integers(0, histories.rows, count)):
        found.add(*change(query, scores))
    return found.indices()


def test_requests_like_the_training_data_show_no_drift(world):
    found = fed(world)
    assert set(found) == set(profile.EDGES)
    assert all(index is not None and index < 0.1 for index in found.values()), found


HARDEST = max(CATALOGUE.rows, key=lambda row: row["difficulty"])["question"]


@pytest.mark.parametrize(
    ("quantity", "change"),
    [
        ("history_length", lambda q, s: (replace(q, question=q.question[-2:], correct=q.correct[-2:]), s)),
        ("recent_right", lambda q, s: (replace(q, correct=[1] * len(q.correct)), s)),
        ("difficulty", lambda q, s: (replace(q, target=[HARDEST]), s)),
        ("gap_s", lambda q, s: (replace(q, at=q.at + 40 * 86_400_000), s)),
        ("hour", lambda q, s: (replace(q, at=q.at - q.at % 86_400_000 + 3 * profile.HOUR_MS), s)),
        ("unknown", lambda q, s: (q, replace(s, unknown=np.array([q.at % 10 == 0])))),
        ("score", lambda q, s: (q, replace(s, probability=s.probability / 2))),
    ],
)
def test_a_shift_of_one_quantity_is_seen_in_it(world, quantity, change):
    assert fed(world, change)[quantity] > 0.25


def test_nothing_is_concluded_from_few_requests(world):
    assert set(fed(world, count=200).values()) == {None}


def test_what_was_asked_long_ago_is_forgotten(world):
    histories, looked = world
    found = Drift(looked, profile.difficulties(CATALOGUE))
    query, scores = next(answers(histories, [int(histories.offsets[1]) - 1]))
    odd = replace(query, target=["new"]), replace(scores, unknown=np.ones(1, bool))
    for _ in range(2000):
        found.add(*odd)
    before = found.report()["unknown"]["requests"][1]
    for _ in range(2000):
        found.add(query, scores)
    after = found.report()["unknown"]["requests"][1]
    assert before == 1
    assert after == pytest.approx(1 / 3, abs=0.02)  # of 1/2 + 1, half a life ago and now


def test_a_profile_counts_what_stands_before_each_answer():
    few = bundles.simulate(users=3)
    looked = profile.of_training(few, CATALOGUE).quantities
    lengths = np.concatenate([np.arange(length) for length in few.lengths])
    edges = [-np.inf, *profile.EDGES["history_length"], np.inf]
    expected = [int(((lengths >= low) & (lengths < high)).sum()) for low, high in pairwise(edges)]
    assert list(looked["history_length"].counts) == expected
    assert sum(looked["recent_right"].counts) == few.rows - 3  # not before the first answer
    assert sum(looked["gap_s"].counts) == few.rows - 3
    untimed = profile.of_training(replace(few, timestamp=None), CATALOGUE).quantities
    assert set(untimed) == {"history_length", "recent_right", "difficulty", "unknown"}


def test_the_service_tells_drift_of_what_students_are_predicted(predictor, known, monkeypatch):
    monkeypatch.setattr(drift, "AT_LEAST", 3)
    told = Telemetry.alone()

    async def answer(query):
        return predictor.answer([query])[0]

    with TestClient(build_app(lambda student: Served(predictor, answer), telemetry=told)) as client:
        for _ in range(3):
            post(client, {"history": [event(known[0])], "targets": ["new"]})
        client.post("/v1/recommend", json={})  # asks for every question, which says nothing
        found = client.get("/v1/drift").json()
        text = client.get("/metrics").text
    assert found["model_version"] == predictor.version
    unknown = found["quantities"]["unknown"]
    assert (unknown["requests"], unknown["values"]) == ([0, 1], pytest.approx(3, abs=0.1))
    assert unknown["index"] > 1
    line = f'dkt_drift{{bundle="{predictor.version[: telemetry.SHORT]}",quantity="unknown"}}'
    assert f"{line} {unknown['index']}" in text


def test_a_bundle_without_a_profile_serves_all_the_same(tmp_path):
    members = bundles.save_members(tmp_path / "members")
    state, chain = bundles.world().state, bundles.Chain.weighted(bundles.WEIGHTS)
    provenance = bundle.Provenance(dataset="tiny", dataset_fingerprint="0", members={})
    digest = bundle.build(tmp_path / "bundle", state, members, chain, provenance)
    predictor = Predictor.load(tmp_path / "bundle", digest)
    with TestClient(build_app(lambda student: Served(predictor, None))) as client:
        answer = client.get("/v1/drift")
    assert (answer.status_code, predictor.profile) == (404, None)
    assert "publish its run again" in answer.json()["detail"]


def test_a_damaged_profile_is_refused(tmp_path):
    digest = bundles.build(tmp_path / "bundle", bundles.save_members(tmp_path / "members"))
    path = tmp_path / "bundle" / profile.FILE
    path.write_text(path.read_text().replace('"counts"', '"count"'))
    with pytest.raises(BundleError, match=r"profile\.json"):
        bundle.load(tmp_path / "bundle", digest)
    with pytest.raises(ValueError, match="one more than the 2 edges"):
        profile.Histogram(edges=(1, 2), counts=(1, 2))
