"""Requests of the HTTP API as tests send them, and the API with a log of events."""

import json
from contextlib import contextmanager

import httpx
from fastapi.testclient import TestClient

from dkt_ray.events.sql import open_events
from dkt_ray.privacy import Privacy
from dkt_ray.serving.api import Served, build_app
from dkt_ray.serving.batching import Batcher
from dkt_ray.serving.contract import MAX_ROWS
from dkt_ray.serving.keys import Known
from dkt_ray.serving.memory import Memory

PRIVACY = Privacy(b"a key of these tests")


def post(client, body, path="/v1/predict", **headers):
    content = body if isinstance(body, bytes | str) else json.dumps(body)
    return client.post(path, content=content, headers={"content-type": "application/json"} | headers)


def event(question="q", correct=1, **more):
    return {"question": question, "correct": correct} | more


def forwarded(client):
    """What connects `dkt_ray.Client` to an app in this process."""

    def forward(request):
        path = request.url.raw_path.decode()
        answer = client.request(request.method, path, content=request.content, headers=dict(request.headers))
        return httpx.Response(answer.status_code, headers=dict(answer.headers), content=answer.content)

    return httpx.MockTransport(forward)


@contextmanager
def service(predictor, folder, keys=None, privacy=PRIVACY, **more):
    """The API over a database in a folder."""
    memory = Memory.of(open_events(f"sqlite:///{folder}/events.db", privacy), privacy=privacy, **more)
    batcher = Batcher(predictor.answer, 32, MAX_ROWS, 4 * MAX_ROWS)
    app = build_app(lambda student: Served(predictor, batcher), memory=memory, known=lambda: Known(keys))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client
    memory.close()
