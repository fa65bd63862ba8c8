"""Real Serve over HTTP: what it answers, what it refuses, where it listens; test_reliability.py is about load."""

import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import ray
import yaml
from ray._common.utils import import_attr

from benchmarks import ledger
from benchmarks.serving_sides import free_port
from dkt_ray.client import Client, RefusedError
from dkt_ray.errors import RolloutError
from dkt_ray.registry.clean_process import Footprint
from dkt_ray.serving import issue, series
from dkt_ray.serving.edge import PROBLEM
from tests.bad_bundles import BAD
from tests.reliability.processes import REPLICA, kill, pids, wait_for_another, wait_for_replicas
from tests.reliability.world import START_S, tiny

PATIENCE_S = 60.0
PROBE_S = 3.0  # what speaks HTTP answers at once


@pytest.fixture(scope="module")
def world(ray_cluster, tmp_path_factory):
    from ray import serve

    yield tiny(tmp_path_factory.mktemp("serve"), free_port())
    serve.shutdown()


@pytest.fixture(scope="module")
def http(world):
    with httpx.Client(base_url=world.url, trust_env=False, timeout=60) as client:
        yield client


def test_the_first_rollout_starts_the_service(world, http):
    first = world.digests[0]
    result = world.rollout(first, {"events": f"sqlite:///{world.cache.parent}/events.db"})
    assert (result["bundle"], result["previous"], result["address"]) == (first, None, world.url)
    assert world.alias() == first
    answer = http.post("/v1/predict", json=world.bodies[0])
    assert answer.headers["x-model-version"] == first
    assert len(answer.headers.get_list("x-request-id")) == 1
    expected = world.oracles[first].answer(world.queries[:1])[0]
    found = [each["probability"] for each in answer.json()["predictions"]]
    np.testing.assert_allclose(found, expected.probability, rtol=0, atol=1e-9)
    for path in ("/livez", "/readyz", "/openapi.json", "/docs", "/v1/models", "/v1/questions", "/metrics"):
        assert http.get(path).status_code == 200


def test_ray_exports_every_series_and_keeps_a_log_line_without_ids(world, http):
    """What the dashboard and the alerts read, and what Ray and Serve themselves write beside our own line."""
    canary = "canary93c1"
    http.post("/v1/predict", json=world.bodies[0] | {"student": canary})
    http.get(f"/v1/{canary}")
    sent = http.post("/v1/predict", json=world.bodies[0] | {"targets": [canary]})
    counted = (series.REQUESTS, series.REQUEST_SECONDS, series.STAGE_SECONDS, series.BATCHING, series.BATCH_QUERIES)
    names = [
        f"ray_{name}{{" for each in (*counted, series.SPREAD, series.SCORES, series.UNKNOWN) for name in each.exposed
    ]

    def shown():
        text = ray_series()
        return text if all(name in text for name in names) else None

    text = wait_until(shown)
    assert f'bundle="{world.digests[0][: series.SHORT]}"' in text
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    request_id = sent.headers["x-request-id"]

    def line():
        lines = [line for path in logs.glob("worker-*.err") for line in path.read_text().splitlines()]
        return next((json.loads(each) for each in lines if each.startswith("{") and request_id in each), None)

    told = wait_until(line)
    assert (told["route"], told["status"], told["targets"]) == ("/v1/predict", 200, 1)
    assert told["replica"]
    assert canary not in text
    assert [path for path in logs.rglob("*") if path.is_file() and canary.encode() in path.read_bytes()] == []


def test_answers_meet_what_replicas_foresaw_and_ray_tells_it(world, http):
    """Two replicas, one database: the answer may come to the other one."""
    user, question = {"user_id": "canary51f2"}, world.bodies[0]["targets"][0]
    assert http.post("/v1/predict", json=user | {"targets": [question]}).status_code == 200
    wait_until(lambda: _counted("kept") == 1)
    sent = user | {"event_id": "canary77aa", "question": question, "correct": 1}
    answer = http.post("/v1/events", json={"events": [sent]})
    assert answer.status_code == 200, answer.text
    assert answer.json()["added"] == 1
    wait_until(lambda: _counted("joined") == 1)
    [found] = wait_until(lambda: http.get("/v1/outcomes").json()["bundles"])
    assert (found["model_version"], found["outcomes"]) == (world.digests[0], 1)
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    written = b"".join(path.read_bytes() for path in logs.rglob("*") if path.is_file())
    assert b"canary51f2" not in written
    assert b"canary77aa" not in written


def test_what_was_acknowledged_is_in_the_next_answer_and_no_trace_is_left_of_who_was_deleted(world):
    canary, targets = "canary5e2a", world.bodies[0]["targets"]
    history, minutes = [], iter(range(60))
    with Client(world.url, deadline_s=120, try_s=30) as client:
        for event in world.bodies[0]["history"][:12]:
            history.append({**event, "timestamp": f"2026-03-02T16:{next(minutes):02}:00Z"})
            sent = {name: value for name, value in history[-1].items() if name != "timestamp"}
            client.record([{**sent, "user_id": canary, "answered_at": history[-1]["timestamp"]}])
            found = client.predict(targets, user_id=canary)
            expected = client.predict(targets, history)
            assert [each.probability for each in found.predictions] == pytest.approx(
                [each.probability for each in expected.predictions], abs=1e-9
            )
        assert client.user(canary).answers == len(history)
        receipt = client.forget(canary)
        assert receipt.removed["events"] == len(history)
        assert client.forget(canary).receipt == receipt.receipt
        for ask in (client.user, lambda user: client.predict(targets, user_id=user)):
            with pytest.raises(RefusedError, match="410"):
                ask(canary)
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    places = [*logs.rglob("*"), *world.cache.parent.glob("events.db*")]
    assert [path for path in places if path.is_file() and canary.encode() in path.read_bytes()] == []


def test_models_says_that_training_users_were_deleted(world, http):
    store, key = world.registry.store, f"marks/{world.alias()}.json"
    assert http.get("/v1/models").json()["forgotten"] is None
    since = "2026-03-02T16:00:00+00:00"
    store.write_json(key, {"users": ["0" * 64, "1" * 64], "since": since})
    told = wait_until(lambda: http.get("/v1/models").json()["forgotten"])
    assert told == {"count": 2, "since": since}
    store.delete(key)


def test_a_replica_that_is_killed_loses_no_event_and_keeps_none_twice(world):
    """Four who write, each event sent twice, and a replica that dies in the middle."""
    before, half, others = pids(REPLICA), threading.Barrier(5, timeout=600), 40
    with Client(world.url) as client:
        kept = client.events().events

    def write(writer):
        events = [
            {"event_id": f"{writer}-{n}", "user_id": f"w{writer}", "question": "q", "correct": 1} for n in range(80)
        ]
        with Client(world.url, deadline_s=300, try_s=60) as client:
            for start in range(0, 80, 20):
                if start == others:
                    half.wait()
                for _ in range(2):
                    client.record(events[start : start + 20])

    with ThreadPoolExecutor(4) as writers:
        done = [writers.submit(write, writer) for writer in range(4)]
        half.wait()
        kill(min(before))
        for each in done:
            each.result()
    wait_for_another(REPLICA, before)
    with Client(world.url, deadline_s=120) as client:
        assert client.events().events == kept + 4 * 80
        assert {client.user(f"w{writer}").answers for writer in range(4)} == {80}
    wait_for_replicas(2)


def ray_series():
    node = ray.nodes()[0]
    return httpx.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", trust_env=False).text


def _counted(what):
    lines = [line for line in ray_series().splitlines() if line.startswith("ray_dkt_predictions_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines if f'what="{what}"' in line)


def wait_until(found, limit_s=120):
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if value := found():
            return value
        time.sleep(0.5)
    raise AssertionError(f"not within {limit_s} s")


def test_bad_requests_keep_their_meaning_behind_serve(http):
    wrong = http.post("/v1/predict", json={"targets": []})
    assert (wrong.status_code, wrong.headers["content-type"]) == (422, "application/problem+json")
    assert wrong.json()["errors"][0]["pointer"] == "/targets"

    def chunks():
        for _ in range(10):
            yield b" " * (1 << 20)

    headers = {"content-type": "application/json"}
    for content in (b" " * (9 << 20), chunks()):
        large = http.post("/v1/predict", content=content, headers=headers)
        assert large.status_code == 413


def test_concurrent_requests_are_fused_and_each_gets_its_own_answer(world):
    with world.load(connections=8) as load:
        load.wait_for(80)
    assert ledger.failed(load.entries) == []
    assert world.wrong(load.entries) == []


def test_a_bundle_that_fails_in_the_replicas_is_rolled_back(world, http, tmp_path, monkeypatch):
    """Verification is made to look away, so that the replicas themselves must refuse the bundle."""
    from dkt_ray.serving import rollout

    serving = world.alias()
    bad = world.publish(BAD["wrong golden answers"], tmp_path / "bad")
    looked_away = []
    monkeypatch.setattr(rollout, "verify_apart", lambda *args: looked_away.append(args) or Footprint(1.0, 1.0))
    with world.load(rate=20.0) as load:
        load.wait_for(10)
        with pytest.raises(RolloutError, match=rf"do not start: .*golden\.json.*{serving}, serves"):
            world.rollout(bad)
        load.wait_for(10)
    assert looked_away
    assert ledger.failed(load.entries) == []
    assert world.wrong(load.entries, serving) == []
    assert world.alias() == serving
    assert http.get("/v1/models").json()["model_version"] == serving


def test_serve_yaml_deploys_these_applications_on_loopback(world):
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as build_app
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(yaml.safe_load(Path("serve_app/serve.yaml").read_text()))
    assert config.http_options.host == "127.0.0.1"
    assert config.http_options.request_timeout_s == 30
    for application in config.applications:
        args = application.args | ({"store": world.store} if application.name == "api" else {})
        build_app(import_attr(application.import_path), args)
    assert {each.name: each.route_prefix for each in config.applications} == {"api": "/", "demo": "/demo"}


def speaks_http(port):
    """Whether a port answers a request of HTTP/1.1 in HTTP."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            connection.settimeout(PROBE_S)
            return connection.recv(5) == b"HTTP/"
    except OSError:  # its process may have ended meanwhile
        return False


def test_every_port_is_on_loopback_and_http_only_where_the_documentation_says(world):
    """Of all processes of this Ray: its own, Serve's proxy, and the internal one that Serve opens in each replica."""
    if world.alias() is None:
        world.rollout(world.digests[0])
    listening = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found = [each.laddr for each in process.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
            listening |= {(process.name(), address.port): address.ip for address in found}
    assert any(name.startswith("ray::ServeReplica") for name, _ in listening)
    assert {name for name, _ in listening} >= {"raylet", "gcs_server"}
    assert set(listening.values()) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, listening
    http = {(name, port) for name, port in listening if name.startswith("ray::") and speaks_http(port)}
    named = set(re.findall(r"^\| `(ray::\w+)` \|", Path("docs/operations.md").read_text(), re.MULTILINE))
    assert {name for name, _ in http} <= named
    assert {port for name, port in http if name == "ray::ProxyActor"} <= {world.port}
    assert httpx.get(f"{world.url}/livez", trust_env=False, timeout=PATIENCE_S).status_code == 200


def answers(world, key, path="/v1/models"):
    """Statuses of some requests, each over a connection of its own, so that both replicas are asked."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return [httpx.get(world.url + path, headers=headers, trust_env=False, timeout=60) for _ in range(8)]


def until(world, key, holds):
    """Wait until every replica answers a key so; gives the answers."""
    ends = time.monotonic() + START_S
    while not all(map(holds, found := answers(world, key))):
        assert time.monotonic() < ends, [(each.status_code, each.headers) for each in found]
    return found


def status(code):
    return lambda answer: answer.status_code == code


def test_replicas_refuse_to_serve_without_keys_where_they_are_required(world, http, monkeypatch):
    """`dkt rollout` is made to look away."""
    from dkt_ray.serving import service

    if world.alias() is None:
        world.rollout(world.digests[0])
    looked_away, serving = [], world.alias()
    monkeypatch.setattr(service, "check_keys", lambda *args: looked_away.append(args))
    with pytest.raises(RolloutError, match=rf"do not start: .*has no API keys.*{serving}, serves"):
        world.rollout(serving, replicas={"keys": "required"})
    assert looked_away
    assert http.get("/v1/models").json()["model_version"] == serving


def test_keys_come_and_go_without_a_restart_and_rollouts_go_on(world):
    """The last test of this service: it takes keys from now on."""

    def keys(action, **settings):
        return issue.run(issue.KeysConfig(action=action, store=world.store, name="platform", **settings))

    if world.alias() is None:
        world.rollout(world.digests[0])
    assert {each.status_code for each in answers(world, None)} == {200}
    first = keys("add", burst=1000, rate=500)["key"]
    refused = until(world, None, status(401))[0]
    assert (refused.headers["content-type"], refused.headers["x-model-version"]) == (PROBLEM, world.alias())
    assert {each.status_code for each in answers(world, None, "/readyz")} == {200}
    until(world, first, lambda answer: answer.headers.get("ratelimit-policy") == '"key";q=500;w=2')  # a half in each
    other = world.other()
    assert world.rollout(other)["bundle"] == other
    second = keys("rotate")["key"]
    until(world, second, status(200))
    keys("revoke", key=first.split("_")[1])
    until(world, first, status(401))
    assert {each.headers["x-model-version"] for each in until(world, second, status(200))} == {other}
    metrics = [each.text for each in answers(world, second, "/metrics")]
    assert any('dkt_refused_total{why="unknown"}' in text for text in metrics)
    assert not [text for text in metrics if first in text or second in text]
