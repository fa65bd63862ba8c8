"""The edge over real sockets: deadlines, clients that go away, and refusals, each with its problem details."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request

from dkt_ray.errors import UnavailableError
from dkt_ray.serving import edge
from dkt_ray.serving.batching import Batcher
from tests.unit.test_batching import Recorder, ask

PATIENCE_S = 120.0
CLIENTS = 1000
WAVE = 100
HEADERS = {"content-type": "application/json"}


class Service:
    """An app behind the edge that batches what it is sent, on a port of its own."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        self.recorder = Recorder()
        self.batcher = Batcher(self.recorder, 32, 10**6, 2 * CLIENTS)

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.post("/{name}")
        async def answer(name: str, request: Request) -> float:
            await request.body()
            if name == "nobody":
                raise UnavailableError("none of the members a, b answers; try again later")
            return float((await self.batcher(ask(name))).probability[0])

        edge.install(app, "v", names_requests=True)
        return app

    def post(self, name: object, **headers: str) -> httpx.Response:
        return httpx.post(f"{self.url}/{name}", headers=HEADERS | headers, content=b"{}", timeout=PATIENCE_S)

    def connect(self, body: bytes = b"{}") -> socket.socket:
        """Ask for an answer that nobody reads."""
        connection = socket.create_connection(("127.0.0.1", self.port))
        head = b"POST /1 HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n"
        connection.sendall(head + body)
        return connection

    def until(self, condition: object) -> None:
        give_up = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < give_up, (self.batcher.waiting, self.batcher.counts)
            time.sleep(0.01)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """A batch is being scored meanwhile."""
        self.recorder.gate.clear()
        first = threading.Thread(target=self.post, args=(0,))
        first.start()
        self.until(lambda: self.batcher.busy_s > 0)
        try:
            yield
        finally:
            self.recorder.gate.set()
            first.join()


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr(edge, "MAX_WAIT_S", 10 * PATIENCE_S)  # on a busy machine a wave of clients takes its time
    with socket.create_server(("127.0.0.1", 0), backlog=2 * CLIENTS) as listening:
        service = Service(listening.getsockname()[1])
        server = uvicorn.Server(uvicorn.Config(service.app(), log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield service
        server.should_exit = True
        thread.join()


def test_a_request_whose_deadline_passes_in_the_queue_gets_504_and_is_not_scored(service):
    with service.busy():
        for patience_ms in (50, 500, 5_000, 50_000):  # until one was in the queue when its deadline passed
            late = service.post(1, **{"x-request-deadline-ms": str(patience_ms), "x-request-id": "mine"})
            assert (late.status_code, service.batcher.waiting) == (504, 0)
            if service.batcher.counts["dropped"]:
                break
    assert (late.status_code, late.headers["content-type"]) == (504, edge.PROBLEM)
    assert (late.headers["x-request-id"], late.json()["request_id"]) == ("mine", "mine")
    assert service.post(2, **{"x-request-deadline-ms": "60000"}).json() == 2
    assert service.recorder.batches == [["0"], ["2"]]
    assert service.batcher.counts == {"batches": 2, "scored": 2, "dropped": 1}


def test_the_service_has_a_limit_of_its_own_whatever_a_client_asks_for(service, monkeypatch):
    free = {"x-request-timeout-seconds": "0", "x-request-disconnect-disabled": "?1"}
    with service.busy():
        monkeypatch.setattr(edge, "MAX_WAIT_S", 0.05)
        for headers in ({}, {"x-request-deadline-ms": "999999999"}, free):
            assert service.post(1, **headers).status_code == 504
        monkeypatch.setattr(edge, "MAX_WAIT_S", PATIENCE_S)
    for wrong in ("soon", "-1", "1.5", "9999999999"):
        refused = service.post(1, **{"x-request-deadline-ms": wrong})
        assert (refused.status_code, refused.headers["content-type"]) == (400, edge.PROBLEM)
        assert wrong not in refused.text


def test_clients_that_go_away_leave_nothing_behind(service):
    with service.busy():
        for _ in range(CLIENTS // WAVE):
            clients = [service.connect() for _ in range(WAVE)]
            service.until(lambda: service.batcher.waiting == WAVE)
            service.connect(body=b"{").close()  # not even its body is there
            for client in clients:
                client.close()
            service.until(lambda: service.batcher.waiting == 0)
        assert service.batcher.counts == {"dropped": CLIENTS}
    assert service.post(2).json() == 2
    assert service.recorder.batches == [["0"], ["2"]]


def test_too_much_waiting_is_429_and_nobody_left_to_answer_is_503(service):
    service.batcher._max_waiting_rows = 1
    with service.busy():
        waiting = threading.Thread(target=service.post, args=(1,))
        waiting.start()
        service.until(lambda: service.batcher.waiting == 1)
        refused = service.post(2)
    waiting.join()
    nobody = service.post("nobody")
    for answer, status in ((refused, 429), (nobody, 503)):
        assert (answer.status_code, answer.headers["content-type"]) == (status, edge.PROBLEM)
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["detail"].endswith("try again later")


@pytest.mark.parametrize("body", [True, False])
def test_a_server_that_has_lost_the_request_is_no_error_of_ours(body):
    """Serve raises from `receive` when its proxy cancelled the request a moment ago."""
    answers = [{"type": "http.request", "body": b"{}", "more_body": False}] if body else []
    sent = []

    async def receive():
        if answers:
            return answers.pop()
        raise RuntimeError("cancelled before it executes")

    async def send(message):
        sent.append(message)

    async def never(scope, receive, send):
        await asyncio.Event().wait()

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-type", b"application/json")]}
    asyncio.run(edge.Labels(edge.Edge(never), "v")(scope, receive, send))
    assert sent == []
