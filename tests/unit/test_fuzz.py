"""A small form of `tests/reliability/fuzz.py`: requests of every kind to every route; and a wrong answer is seen."""

import math
import random

import httpx
import pytest

from dkt_ray.serving import edge, rights
from tests.reliability import fuzz

CASES, ROUND = 250, 12
HIDDEN = ("/docs", "/openapi.json")


def test_no_request_is_a_crash_and_every_refusal_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "SLACK_S", math.inf)  # how fast it is, the long run judges
    with fuzz.service(tmp_path) as (client, credentials):
        found = fuzz.fuzz(client, client.get("/openapi.json").json(), CASES, credentials, size=ROUND)
    assert found.failures == []
    assert found.cases == CASES
    assert found.valid > fuzz.LEAST_VALID * CASES
    assert found.kinds.keys() == fuzz.SHARES.keys()
    assert found.routes.keys() == {f"{each.method} {each.path}" for each in rights.RIGHTS if each.path not in HIDDEN}
    assert {200, 400, 401, 422} <= {status for statuses in found.routes.values() for status in statuses}


def test_what_has_been_sent_does_not_change_what_will_be():
    body = {"history": [{"question": "q", "correct": 1}], "targets": ["q"]}
    before = repr((fuzz.NASTY, body))
    for number in range(1000):
        fuzz.mutated(body, random.Random(number))
    assert repr((fuzz.NASTY, body)) == before


SAFE = {"x-content-type-options": "nosniff"}
PROBLEM = {"title": "t", "type": "about:blank", "detail": "d", "status": 422, "request_id": "r"}
NAMED = PROBLEM | {"errors": [{"pointer": "/a", "message": "m"}]}
IN = SAFE | {"content-type": edge.PROBLEM}


@pytest.mark.parametrize(
    ("response", "seconds", "wrong"),
    [
        (httpx.Response(422, headers=IN, json=NAMED), 0, ""),
        (httpx.Response(200, headers=SAFE), 0, "contract"),
        (httpx.Response(500, headers=IN, json=NAMED | {"status": 500}), 0, "server"),
        (httpx.Response(422, headers=IN, json=NAMED), 7.1, "7.1 s"),
        (httpx.Response(422, headers=SAFE, text="no"), 0, "a refusal as"),
        (httpx.Response(400, headers=IN, json=NAMED), 0, "something else"),
        (httpx.Response(422, headers=IN, json=PROBLEM), 0, "no field"),
        (httpx.Response(422, headers=IN, json=[]), 0, "no problem details"),
        (httpx.Response(422, headers={"content-type": edge.PROBLEM}, json=NAMED), 0, "protect"),
    ],
)
def test_what_is_wrong_is_seen(response, seconds, wrong):
    case = fuzz.Case("right", "POST", "/v1/predict", "/v1/predict", {"x-request-deadline-ms": "5000"}, b"{}")
    assert wrong in fuzz.judged(case, response, seconds)
    assert bool(fuzz.judged(case, response, seconds)) == bool(wrong)
