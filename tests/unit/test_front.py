"""In front of Serve: its plain refusals become problem details, and no header of a client steers it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray.serve._private import constants
from ray.serve._private.http_util import configure_http_middlewares, convert_object_to_asgi_messages
from ray.serve.config import HTTPOptions

from dkt_ray.serving.edge import PROBLEM, SAFE
from dkt_ray.serving.front import ALWAYS, MOST, STEERS, Front
from dkt_ray.session import ON_CLUSTERS, SERVE

ROOT = Path(__file__).parents[2]
STEERING = {
    "x-request-timeout-seconds": "0",
    "X-Request-Disconnect-Disabled": "?1",
    "serve_multiplexed_model_id": "other",
    "Serve-Multiplexed-Model-Id": "other",
    "x-session-id": "7",
}
HEADERS = STEERING | {"x-request-id": "mine"}


class Serve:
    """Answers as Serve itself does, and keeps the headers that reach it."""

    def __init__(self, status: int, content: Any = "Request dropped due to backpressure") -> None:
        self.status, self.content, self.headers = status, content, {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.headers = dict(scope["headers"])
        extra = [(b"retry-after", b"1"), (b"x-request-id", b"mine")]
        if not self.status:
            return  # as when the replica has died
        for message in convert_object_to_asgi_messages(self.content, status_code=self.status, extra_headers=extra):
            await send(message)

    def get(self, path: str = "/v1/predict", headers: dict[str, str] = HEADERS) -> httpx.Response:
        for middleware in configure_http_middlewares(HTTPOptions()).middlewares:
            app = middleware.cls(self)

        async def get() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://serve") as client:
                return await client.get(path, headers=headers)

        return asyncio.run(get())


def test_everything_that_starts_ray_tells_serve_so():
    assert SERVE.items() <= os.environ.items()
    assert len(configure_http_middlewares(HTTPOptions()).middlewares) == 1
    ray_start = 'RAY_USAGE_STATS_ENABLED=0;\n    eval "$(python -m dkt_ray.session)";\n    ray start'
    assert (ROOT / "cluster.yaml").read_text().count(ray_start) == 2
    image = (ROOT / "deploy/Dockerfile").read_text().splitlines()
    assert {f"ENV {name}={value}" for name, value in ON_CLUSTERS.items()} <= set(image)
    printed = subprocess.run([sys.executable, "-m", "dkt_ray.session"], capture_output=True, text=True, check=True)
    assert printed.stdout.splitlines() == [f"export {name}={value}" for name, value in ON_CLUSTERS.items()]


@pytest.mark.parametrize("status", [404, 408, 429, 500, 503])
def test_serves_own_refusals_are_problem_details(status):
    found = Serve(status).get()
    assert (found.status_code, found.headers["content-type"]) == (status, PROBLEM)
    assert (found.headers["retry-after"], found.headers["x-request-id"]) == ("1", "mine")
    assert found.json() == found.json() | {"status": status, "instance": "/v1/predict", "request_id": "mine"}
    assert "backpressure" not in found.text


def test_where_nothing_is_deployed_nothing_sent_is_repeated():
    found = Serve(404, "Path '/v1/users/CANARY' not found.").get("/v1/users/CANARY")
    assert "CANARY" not in found.text
    assert SAFE.items() <= dict(found.headers).items()


def test_a_replica_that_dies_is_a_bad_gateway():
    found = Serve(0).get()
    assert (found.status_code, found.headers["content-type"]) == (502, PROBLEM)
    assert (found.headers["x-request-id"], found.json()["request_id"]) == ("mine", "mine")


def test_other_answers_pass_as_they_are():
    assert Serve(200).get().text == "Request dropped due to backpressure"
    for status in (404, 503):
        assert Serve(status, {"a": 1}).get().json() == {"a": 1}
    assert Serve(503, "not ready").get("/-/healthz").text == "not ready"


def test_no_client_steers_serve_and_a_request_id_is_one():
    serve = Serve(200)
    serve.get()
    assert serve.headers[b"x-request-id"] == b"mine"
    assert serve.headers.keys().isdisjoint(name.lower().encode() for name in STEERING)
    for forged in ("a b", "x" * 129, "\x7f"):
        serve.get(headers={"x-request-id": forged})
        assert b"x-request-id" not in serve.headers


def test_every_header_that_serve_reads_is_known():
    """Of Ray 2.60: look again when this fails."""
    named = {value for name, value in vars(constants).items() if name.endswith("_HEADER") and isinstance(value, str)}
    named |= {constants.SERVE_MULTIPLEXED_MODEL_ID, constants.SERVE_SESSION_ID}
    assert {name.replace("-", "_") for name in named} <= STEERS | {"x_request_id"}


def test_more_requests_than_a_proxy_works_off_are_refused_before_serve_sees_them():
    reached, goes_on = [], asyncio.Event()

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["path"])
        if scope["path"] == "/v1/predict":
            await goes_on.wait()
        for message in convert_object_to_asgi_messages("fine", status_code=200):
            await send(message)

    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(Front(serve))
        async with httpx.AsyncClient(transport=transport, base_url="http://serve", timeout=60) as client:
            waiting = [asyncio.create_task(client.post("/v1/predict")) for _ in range(MOST)]
            while len(reached) < MOST:
                await asyncio.sleep(0)
            refused = await client.post("/v1/predict", headers={"x-request-id": "mine"})
            health = [await client.get(path) for path in ALWAYS]
            goes_on.set()
            return [refused, *health, *await asyncio.gather(*waiting), await client.post("/v1/predict")]

    refused, *others = asyncio.run(run())
    assert (refused.status_code, refused.headers["content-type"], refused.headers["retry-after"]) == (429, PROBLEM, "1")
    assert refused.json()["request_id"] == "mine"
    assert {other.status_code for other in others} == {200}
    assert len(reached) == MOST + len(ALWAYS) + 1
