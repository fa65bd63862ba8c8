"""Who may do what: keys, roles, and what is said to those who may not."""

from __future__ import annotations

import logging
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from starlette.middleware import Middleware

from dkt_ray.serving import edge, guard, ratelimit, rights
from dkt_ray.serving import keys as keys_of
from dkt_ray.serving.api import Served, build_app
from dkt_ray.serving.guard import Guard
from dkt_ray.serving.keys import Holder, Keys, Known

NOW = keys_of.utc_now()


def held(name, days=1.0, **more):
    """A holder of one new key, and the key."""
    text, key = keys_of.make(NOW, days)
    return Holder(name=name, keys=(key,), **more), text


class Door:
    """An app that says who asks, behind the guard."""

    def __init__(self, keys, replicas=1):
        self.keys, self.refused, self.read = keys, Counter(), 0
        app = FastAPI(openapi_url=None)

        @app.post("/v1/predict:batch")
        async def batch():
            ratelimit.charge(4)

        @app.api_route("/{path:path}", methods=["GET", "POST", "DELETE"], include_in_schema=False)
        async def who(request: Request):
            self.read += 1
            caller = request.scope["state"]["caller"]
            return [caller.name, caller.role, caller.tenant]

        edge.install(app, "v", True, Middleware(Guard, lambda: Known(self.keys, replicas), self.refused))
        self.client = TestClient(app)

    def ask(self, key=None, method="GET", path="/v1/models", **headers):
        given = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}".encode()} if key else {})
        return self.client.request(method, path, headers=given | headers)


def test_without_keys_everybody_may_do_everything():
    assert Door(None).ask(method="DELETE", path="/v1/users/7").json() == ["", "admin", ""]


def test_a_key_says_who_asks_in_either_header():
    holder, key = held("platform", role="write", tenant="north")
    door = Door(Keys(holders=(holder,)))
    assert door.ask(key).json() == ["platform", "write", "north"]
    assert door.ask(**{"x-api-key": key}).json() == ["platform", "write", "north"]
    assert door.ask(key, **{"x-api-key": key}).json() == ["platform", "write", "north"]
    assert door.ask(**{"x-api-key": key, "authorization": "Basic x"}).json() == ["platform", "write", "north"]


def test_what_is_no_key_is_refused_before_anything_is_read_and_never_told_or_logged(caplog):
    holder, key = held("platform", role="admin")
    ended, old = held("ended", days=-1.0)
    _, strange = held("strange")
    door = Door(Keys(holders=(holder, ended)))
    forged = key[:-64] + strange[-64:]
    cases = {"missing": [None], "unknown": [strange, forged, "CANARY", "é" * 9, key[:-1], key + "0"], "expired": [old]}
    with caplog.at_level(logging.WARNING):
        for why, given in cases.items():
            for each in given:
                answer = door.ask(each, "POST", "/v1/predict")
                assert (answer.status_code, answer.headers["content-type"]) == (401, edge.PROBLEM), each
                assert answer.headers["www-authenticate"].startswith("Bearer")
                assert answer.json()["request_id"] == answer.headers["x-request-id"]
                assert each is None or each not in answer.text + caplog.text
            assert door.refused[why] == len(given)
        both = door.ask(key, **{"x-api-key": strange})
        basic = door.ask(authorization="Basic CANARY")
    assert (both.status_code, basic.status_code, door.read) == (401, 401, 0)
    assert "CANARY" not in caplog.text
    assert caplog.text.count("refused: unknown: POST /v1/predict of nobody known, request") == 6
    assert door.refused == {"missing": 2, "unknown": 6, "expired": 1, "several": 1}


@pytest.mark.parametrize("role", rights.ROLES)
def test_a_role_may_what_the_table_says_and_nothing_else(role):
    holder, key = held("platform", role=role)
    door = Door(Keys(holders=(holder,)))
    for method, path, needed in rights.RIGHTS:
        answer = door.ask(key, method, path.replace("{user_id}", "CANARY"))
        allowed = needed is None or rights.may(role, needed)
        assert answer.status_code == (200 if allowed else 403), path
        assert "CANARY" not in answer.text
        assert allowed or answer.json()["instance"] == path
        unknown = door.ask(method=method, path=path.replace("{user_id}", "CANARY"))
        assert unknown.status_code == (200 if needed is None else 401)
    for method, path in (
        ("GET", "/v1/unknown"),
        ("DELETE", "/v1/predict"),
        ("DELETE", "/v1/users/"),
        ("GET", "//livez"),
    ):
        answer = door.ask(key, method, path)
        assert answer.status_code == (200 if role == "admin" else 404), path
        assert door.ask(method=method, path=path).status_code == 401


def test_the_api_charges_a_batch_by_its_students(predictor):
    async def answer(query):
        return predictor.answer([query])[0]

    holder, key = held("platform", rate=1, burst=10)
    known = Known(Keys(holders=(holder,)))
    with TestClient(build_app(lambda student: Served(predictor, answer), known=lambda: known)) as client:
        body = {"students": [{"targets": ["q"]}] * 7}
        told = client.post("/v1/predict:batch", json=body, headers={"x-api-key": key})
        assert (told.status_code, told.headers["ratelimit"]) == (200, '"key";r=3;t=7')
        assert client.post("/v1/predict", json=body["students"][0]).status_code == 401


def test_the_table_has_every_route_of_the_api(api):
    served = {
        (method.upper(), path) for path, ways in api.get("/openapi.json").json()["paths"].items() for method in ways
    }
    hidden = {("GET", "/docs"), ("GET", "/openapi.json")}
    named = {(right.method, right.path) for right in rights.RIGHTS}
    assert served | hidden == named


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when a test says so."""
    now = [0.0]
    monkeypatch.setattr(guard.time, "monotonic", lambda: now[0])
    return now


def test_a_key_asks_at_its_rate_and_a_batch_of_n_students_counts_as_n(clock):
    slow, key = held("slow", rate=0.5, burst=8)
    other, their_key = held("other", rate=0.5, burst=8)
    door = Door(Keys(holders=(slow, other)), replicas=2)
    first = door.ask(key)
    assert (first.headers["ratelimit-policy"], first.headers["ratelimit"]) == ('"key";q=4;w=16', '"key";r=3;t=4')
    batch = door.ask(key, "POST", "/v1/predict:batch")
    assert (batch.status_code, batch.headers["ratelimit"]) == (200, '"key";r=0;t=24')
    refused = door.ask(key, "POST", "/v1/predict")
    assert (refused.status_code, refused.headers["retry-after"], refused.headers["content-type"]) == (
        429,
        "12",
        edge.PROBLEM,
    )
    assert refused.json()["request_id"] == refused.headers["x-request-id"]
    assert door.ask(their_key).status_code == 200
    clock[0] += 11.9
    assert door.ask(key).status_code == 429
    clock[0] += 0.2
    assert [door.ask(key).status_code for _ in range(2)] == [200, 429]
    clock[0] += 1000
    assert [door.ask(key).status_code for _ in range(5)] == [200] * 4 + [429]
    assert door.refused == {"rate": 4}
    assert "ratelimit" not in door.ask(path="/livez").headers


def test_the_documentation_tells_what_each_role_may():
    told = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    start = told.index("| route | no key | `read` | `write` | `admin` |")
    rows = told[start : told.index("\n\n", start)].splitlines()[2:]
    assert len(rows) == len(rights.RIGHTS)
    for row, (method, path, needed) in zip(rows, rights.RIGHTS, strict=True):
        roles = ["yes" if needed is None or rights.may(role, needed) else "403" for role in rights.ROLES]
        cells = [f"`{method} {path}`", "yes" if needed is None else "401", *roles]
        assert row == f"| {' | '.join(cells)} |"


def test_two_keys_at_a_time():
    holder, first = held("platform")
    second, key = keys_of.make(NOW, None)
    both = Keys(holders=(holder.model_copy(update={"keys": (*holder.keys, key)}),))
    assert both.holder(first, NOW.timestamp()).name == both.holder(second, NOW.timestamp()).name == "platform"
    assert both.holder(first, (NOW + timedelta(days=2)).timestamp()) == "expired"
    assert first not in both.model_dump_json()
