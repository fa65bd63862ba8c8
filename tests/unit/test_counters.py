"""/metrics: every request is counted once, by route and status, and the tallies of others are told as they stand."""

import asyncio
from collections import Counter

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from dkt_ray.serving import series
from dkt_ray.serving.api import Served, build_app
from dkt_ray.serving.series import tally
from dkt_ray.serving.telemetry import Observed, Telemetry
from tests.requests import post


def samples(client):
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(answer.text)
    return {(each.name, *sorted(each.labels.items())): each.value for family in families for each in family.samples}


def requests(found):
    return {
        (labels["route"], int(labels["status"])): count
        for (name, *pairs), count in found.items()
        if name == "dkt_requests_total" and (labels := dict(pairs))
    }


def test_requests_are_counted_by_route_and_status(predictor, known):
    async def answer(query):
        if "crash" in query.target:
            raise RuntimeError
        return predictor.answer([query])[0]

    with TestClient(build_app(lambda student: Served(predictor, answer)), raise_server_exceptions=False) as client:
        for _ in range(3):
            post(client, {"targets": known[:1]})
        post(client, {"targets": []})
        post(client, {"targets": ["crash"]})
        client.post("/v1/predict", content=b"x" * 9_000_000, headers={"content-type": "application/json"})
        client.get("/v1/nobody/knows/this")
        client.get("/v1/questions?limit=3")
        found = samples(client)
    assert requests(found) == {
        ("/v1/predict", 200): 3,
        ("/v1/predict", 422): 1,
        ("/v1/predict", 500): 1,
        ("/v1/predict", 413): 1,
        ("other", 404): 1,
        ("/v1/questions", 200): 1,
    }
    assert found["dkt_request_seconds_count", ("route", "/v1/predict")] == 6
    assert found["dkt_request_seconds_bucket", ("le", "+Inf"), ("route", "/v1/predict")] == 6


def test_a_request_whose_client_has_gone_is_counted_as_such():
    async def cancelled(scope, receive, send):
        raise asyncio.CancelledError

    telemetry = Telemetry.alone()
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(Observed(cancelled, telemetry)({"type": "http"}, None, None))
    assert b'dkt_requests_total{route="other",status="499"} 1.0' in telemetry.counters.response().body


def test_the_tallies_of_others_are_read_when_asked_for(predictor):
    batching, left_out, telemetry = Counter(scored=2), Counter(), Telemetry.alone()
    for told in (
        tally(series.BATCHING, batching, "abc"),
        tally(series.BATCHING, Counter(scored=9), "def"),
        tally(series.LEFT_OUT, left_out, "abc"),
    ):
        telemetry.meters.ask(told)
    with TestClient(build_app(lambda student: Served(predictor, None), telemetry=telemetry)) as client:
        assert samples(client)["dkt_batching_total", ("bundle", "abc"), ("what", "scored")] == 2
        batching["scored"] += 5
        left_out["akt", "slow"] += 1
        found = samples(client)
    assert found["dkt_batching_total", ("bundle", "abc"), ("what", "scored")] == 7
    assert found["dkt_batching_total", ("bundle", "def"), ("what", "scored")] == 9
    assert found["dkt_left_out_total", ("bundle", "abc"), ("member", "akt"), ("why", "slow")] == 1
