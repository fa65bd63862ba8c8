"""A small form of `tests/reliability/fuzz.py`: requests of every kind to every route; and a wrong answer is seen."""

import json
import math
import random
from argparse import Namespace

import httpx
import pytest

from dkt_ray.serving import edge, rights
from tests.reliability import cases, fuzz
from tests.reliability.portions import Lost

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
    before = repr((cases.NASTY, body))
    for number in range(1000):
        cases.mutated(body, random.Random(number))
    assert repr((cases.NASTY, body)) == before


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
    case = cases.Case("right", "POST", "/v1/predict", "/v1/predict", {"x-request-deadline-ms": "5000"}, b"{}")
    assert wrong in fuzz.judged(case, response, seconds)
    assert bool(fuzz.judged(case, response, seconds)) == bool(wrong)


def of_livez(*statuses):
    """What was found where `/livez` answered so."""
    found = fuzz.Found()
    for status in statuses:
        found.add(cases.Case("right", "GET", "/livez", "/livez", {}, b""), httpx.Response(status, headers=SAFE), 0.5)
    return found


def reported(monkeypatch, capsys, told):
    """Exit status and report of the long run, where its processes have told this."""
    monkeypatch.setattr(fuzz.portions, "told", lambda work, portions, at_once: told)
    monkeypatch.setattr("sys.argv", ["fuzz"])
    status = fuzz.main()
    return status, json.loads(capsys.readouterr().out)["fuzz"]


@pytest.mark.parametrize(
    ("end", "status", "failures", "stopped"),
    [
        (None, 0, [], False),
        (Lost("killed"), 1, [{"wrong": "killed", "portion": 1, "during": "round 3"}], False),
        (KeyboardInterrupt(), 1, [], True),
    ],
)
def test_what_all_processes_have_found_is_reported_however_they_end(
    end, status, failures, stopped, monkeypatch, capsys
):
    def told():
        yield 0, (of_livez(200), "round 0")
        yield 1, (of_livez(200, 200), "round 3")
        yield 0, (of_livez(200, 200, 200), "the end")
        if isinstance(end, Lost):
            yield 1, end
        elif end:
            raise end

    code, report = reported(monkeypatch, capsys, told())
    assert (code, report["failures"], report["stopped"]) == (status, failures, stopped)
    assert (report["cases"], report["valid"], report["kinds"]) == (5, 5, {"right": 5})
    assert (report["routes"], report["slowest_ms"]) == ({"GET /livez": {"200": 5}}, {"GET /livez": 500.0})


def test_a_failure_of_any_process_is_a_failure(monkeypatch, capsys):
    told = ((number, (of_livez(200, status), "the end")) for number, status in enumerate([200, 500]))
    code, report = reported(monkeypatch, capsys, told)
    assert (code, [each["status"] for each in report["failures"]]) == (1, [500])


def test_portions_are_all_cases_and_none_has_the_rounds_of_another(tmp_path):
    asked = Namespace(cases=2 * fuzz.PORTION + 1, start=7, minutes=math.inf, url=None)
    portions = [(each.cases, each.start) for each in fuzz.divided(asked, tmp_path)]
    assert portions == [(fuzz.PORTION, 7), (fuzz.PORTION, 7 + fuzz.PORTION), (1, 7 + 2 * fuzz.PORTION)]
