"""Real Serve over HTTP: one bundle replaces another under load, bad ones are refused, and all paths give one answer."""

import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import numpy as np
import polars as pl
import psutil
import pytest
import yaml
from ray._common.utils import import_attr

from dkt_ray.data.query import Query
from dkt_ray.errors import RolloutError
from dkt_ray.registry.store import Registry
from dkt_ray.serving.predictor import Predictor
from dkt_ray.storage import open_store
from tests import bundles, runs
from tests.bad_bundles import edit, seal

FAST = {"num_cpus": 0.25, "min_replicas": 2, "max_replicas": 2, "graceful_shutdown_s": 5.0}


@dataclass
class World:
    """Two published bundles, their oracles, and the requests that tell them apart."""

    store: str
    cache: Path
    digests: list[str]
    oracles: dict[str, Predictor]
    queries: list[Query]
    port: int
    registry: Registry = field(init=False)

    def __post_init__(self) -> None:
        self.registry = Registry(open_store(self.store))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def rollout(self, digest, **more):
        from dkt_ray.serving import rollout

        replicas = FAST | {"cache": str(self.cache)}
        settings = {"store": self.store, "bundle": digest, "port": self.port, "replicas": replicas, "timeout_s": 180}
        settings |= {"gate": False, "trial": {"watch_s": 0}}
        return rollout.run(rollout.RolloutConfig(**settings | more))

    def alias(self):
        entry = self.registry.alias("champion")
        return entry.bundle if entry else None


def body_of(query):
    return {
        "history": [{"question": q, "correct": c} for q, c in zip(query.question, query.correct, strict=True)],
        "targets": list(query.target),
    }


@pytest.fixture(scope="module")
def world(ray_cluster, tmp_path_factory):
    from ray import serve

    folder = tmp_path_factory.mktemp("serve")
    store = str(folder / "store")
    oracles = {}
    for seed, weights in enumerate(
        ({"lightgbm": 0.6, "lstm_attention": 0.4}, {"lightgbm": 0.1, "lstm_attention": 0.9})
    ):
        members = bundles.save_members(folder / f"members{seed}", seed)
        digest = bundles.build(folder / f"bundle{seed}", members, weights)
        Registry(open_store(store)).publish(folder / f"bundle{seed}", digest)
        oracles[digest] = Predictor.load(folder / f"bundle{seed}")
    histories = bundles.world().histories
    names, known = histories.question.strings(), bundles.world().state.questions["question"].to_pylist()
    queries = [
        Query(names[a:b].tolist(), histories.correct[a:b].tolist(), known[: 1 + user % 5])
        for user, (a, b) in enumerate(zip(histories.offsets[:20], histories.offsets[1:21], strict=True))
    ]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    yield World(store, folder / "cache", list(oracles), oracles, queries, port)
    serve.shutdown()


class Load(threading.Thread):
    """Clients that ask all the time, keep every answer, and never retry."""

    def __init__(self, world: World, pause_s: float = 0.02) -> None:
        super().__init__(daemon=True)
        self.world = world
        self.pause_s = pause_s
        self.stopping = threading.Event()
        self.answers: list[tuple[int, str, list[float]]] = []
        self.failures: list[str] = []

    def wait_for_more(self, count: int = 20) -> None:
        """Wait until so many further requests have ended, one way or the other."""
        wanted = len(self.answers) + len(self.failures) + count
        give_up = time.monotonic() + 60
        while len(self.answers) + len(self.failures) < wanted and time.monotonic() < give_up:
            time.sleep(0.05)

    def run(self) -> None:
        with httpx.Client(base_url=self.world.url, timeout=30, trust_env=False) as client:
            index = 0
            while not self.stopping.is_set():
                index = (index + 1) % len(self.world.queries)
                try:
                    answer = client.post("/v1/predict", json=body_of(self.world.queries[index]))
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                    continue
                if answer.status_code != 200:
                    self.failures.append(f"{answer.status_code} {answer.text[:200]}")
                    continue
                found = answer.json()
                values = [each["probability"] for each in found["predictions"]]
                self.answers.append((index, found["model_version"], values))
                time.sleep(self.pause_s)

    def __enter__(self):
        self.start()
        self.wait_for_more()
        return self

    def __exit__(self, *error):
        self.wait_for_more()
        self.stopping.set()
        self.join(60)


def check_answers(world: World, load: Load) -> Counter:
    """Every answer equals the oracle of exactly the version that it names."""
    expected = {
        digest: [scores.probability for scores in oracle.answer(world.queries)]
        for digest, oracle in world.oracles.items()
    }
    versions = Counter()
    for index, version, values in load.answers:
        np.testing.assert_allclose(values, expected[version][index], rtol=0, atol=1e-6)
        others = [expected[digest][index] for digest in expected if digest != version]
        assert all(np.abs(values - other).max() > 1e-4 for other in others), "the oracles must be told apart"
        versions[version] += 1
    return versions


def test_the_first_rollout_starts_the_service(world):
    first = world.digests[0]
    result = world.rollout(first)
    assert (result["bundle"], result["previous"], result["address"]) == (first, None, world.url)
    assert world.alias() == first
    answer = httpx.post(f"{world.url}/v1/predict", json=body_of(world.queries[0]), trust_env=False)
    assert answer.headers["x-model-version"] == first
    assert len(answer.headers.get_list("x-request-id")) == 1
    expected = world.oracles[first].answer(world.queries[:1])[0]
    found = [each["probability"] for each in answer.json()["predictions"]]
    np.testing.assert_allclose(found, expected.probability, rtol=0, atol=1e-9)
    for path in ("/livez", "/readyz", "/openapi.json", "/docs", "/v1/models", "/v1/questions"):
        assert httpx.get(f"{world.url}{path}", trust_env=False).status_code == 200


def test_bad_requests_keep_their_meaning_behind_serve(world):
    wrong = httpx.post(f"{world.url}/v1/predict", json={"targets": []}, trust_env=False)
    assert (wrong.status_code, wrong.headers["content-type"]) == (422, "application/problem+json")
    assert wrong.json()["errors"][0]["pointer"] == "/targets"

    def chunks():
        for _ in range(10):
            yield b" " * (1 << 20)

    headers = {"content-type": "application/json"}
    for content in (b" " * (9 << 20), chunks()):
        large = httpx.post(f"{world.url}/v1/predict", content=content, headers=headers, trust_env=False, timeout=30)
        assert large.status_code == 413


def test_concurrent_requests_are_fused_and_each_gets_its_own_answer(world):
    loads = [Load(world, pause_s=0) for _ in range(8)]
    for load in loads:
        load.start()
    time.sleep(2)
    for load in loads:
        load.stopping.set()
    for load in loads:
        load.join(30)
        assert load.failures == []
        assert len(load.answers) > 3
        check_answers(world, load)


def test_a_rollout_under_load_fails_no_request_and_mixes_no_answers(world):
    first, second = world.digests
    before = replica_pids()
    with Load(world) as load:
        result = world.rollout(second)
    assert load.failures == []
    versions = check_answers(world, load)
    assert set(versions) == {first, second}  # requests were answered on both sides of the move
    order = [version for _, version, _ in load.answers]
    assert order[0] == first
    assert order[-1] == second
    assert result["previous"] == first
    assert world.alias() == second
    assert replica_pids().isdisjoint(before)  # other processes answer now


def replica_pids() -> set[int]:
    """Processes of the replicas that run."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if title.startswith("ray::ServeReplica:api:"):
            found.add(process.pid)
    return found


def damaged(world: World, tmp_path: Path, how) -> str:
    """Publish a bundle that somebody has damaged; the manifest agrees with the files again where `how` seals it."""
    members = bundles.save_members(tmp_path / "members", 1)
    weights = {"lightgbm": 0.3, "lstm_attention": 0.7}
    bundles.build(tmp_path / "bundle", members, weights)
    how(tmp_path / "bundle")
    from dkt_ray.registry.bundle import digest_of

    digest = digest_of(tmp_path / "bundle")
    world.registry.publish(tmp_path / "bundle", digest)
    return digest


def flip_a_bit(folder: Path) -> None:
    path = folder / "members/lightgbm/booster.txt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def wrong_golden(folder: Path) -> None:
    edit(folder / "golden.json", lambda content: content["answers"][5]["probability"].__setitem__(0, 0.123456))
    seal(folder)


def crash_the_parser(folder: Path) -> None:
    path = folder / "members/lightgbm/booster.txt"
    lines = path.read_text().splitlines()
    at = next(index for index, line in enumerate(lines) if line.startswith("leaf_value="))
    lines[at] = "leaf_value=0 0 0 0 0 0 0 " + lines[at].split("=", 1)[1]
    path.write_text("\n".join(lines) + "\n")
    seal(folder)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (flip_a_bit, r"is refused: .*booster\.txt: SHA-256"),
        (wrong_golden, r"is refused: .*golden\.json: request 5, target 0: ensemble answers"),
        (crash_the_parser, r"is refused: .*ended the process with signal \d+"),
    ],
)
def test_a_bad_bundle_is_refused_and_the_old_one_keeps_serving(world, tmp_path, how, reason):
    serving = world.alias()
    pids = replica_pids()
    bad = damaged(world, tmp_path, how)
    with Load(world) as load, pytest.raises(RolloutError, match=reason):
        world.rollout(bad)
    assert load.failures == []
    assert set(check_answers(world, load)) == {serving}
    assert world.alias() == serving
    assert replica_pids() == pids  # nothing was touched


def test_a_bundle_that_fails_in_the_replicas_is_rolled_back(world, tmp_path, monkeypatch):
    """Verification is made to look away, so that the replicas themselves must refuse the bundle."""
    from dkt_ray.registry.clean_process import Footprint
    from dkt_ray.serving import rollout

    serving = world.alias()
    bad = damaged(world, tmp_path, wrong_golden)
    looked_away = []
    monkeypatch.setattr(rollout, "verify_apart", lambda *args: looked_away.append(args) or Footprint(1.0, 1.0))
    with Load(world) as load, pytest.raises(RolloutError, match=rf"do not start: .*golden\.json.*{serving}, serves"):
        world.rollout(bad)
    assert looked_away
    assert load.failures == []
    assert set(check_answers(world, load)) == {serving}
    assert world.alias() == serving
    assert httpx.get(f"{world.url}/v1/models", trust_env=False).json()["model_version"] == serving


def test_a_replica_that_dies_is_replaced(world):
    import os
    import signal

    pids = replica_pids()
    os.kill(sorted(pids)[0], signal.SIGKILL)
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up and (len(replica_pids()) < len(pids) or replica_pids() == pids):
        time.sleep(0.5)
    assert len(replica_pids()) == len(pids)
    assert replica_pids() != pids
    found = httpx.get(f"{world.url}/v1/models", trust_env=False, timeout=30).json()
    assert found["model_version"] == world.alias()


def test_the_planted_wrong_answer_is_caught(world):
    load = Load(world)
    scores = world.oracles[world.digests[0]].answer(world.queries[:1])[0].probability
    load.answers = [(0, world.digests[0], (scores + 1e-3).tolist())]
    with pytest.raises(AssertionError):
        check_answers(world, load)


def test_http_the_predictor_and_the_score_job_give_one_answer(world, tmp_path):
    from dkt_ray.pipelines import scoring

    histories = bundles.world().histories.select(np.arange(10))
    correct = histories.correct.copy()
    correct[histories.offsets[1:] - 1] = -1
    hidden = replace(histories, correct=correct)
    log = runs.write_log(tmp_path / "test.csv", hidden, [str(user) for user in range(10)])
    out = tmp_path / "out.csv"
    scoring.run(scoring.ScoreConfig(data={"path": str(log)}, store=world.store, out=str(out), copies=str(world.cache)))
    job = pl.read_csv(out)["prediction"].to_list()
    names = histories.question.strings()
    direct = world.oracles[world.alias()].score_rows(hidden).probability
    http = []
    for start, stop in zip(histories.offsets[:-1], histories.offsets[1:], strict=True):
        past = range(start, stop - 1)
        times = histories.timestamp
        history = [{"question": names[i], "correct": int(correct[i]), "timestamp": int(times[i])} for i in past]
        body = {"history": history, "targets": [names[stop - 1]], "at": int(times[stop - 1])}
        answer = httpx.post(f"{world.url}/v1/predict", json=body, trust_env=False).json()
        http.append(answer["predictions"][0]["probability"])
    np.testing.assert_allclose(job, direct, rtol=0, atol=1e-6)
    np.testing.assert_allclose(http, direct, rtol=0, atol=1e-6)


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


def test_every_port_is_on_loopback(world):
    """Ray's own, Serve's proxy, and the internal port that Serve opens in each replica."""
    if world.alias() is None:
        world.rollout(world.digests[0])
    listening = [
        (psutil.Process(found.pid).name(), found.laddr.ip)
        for found in psutil.net_connections("tcp")
        if found.status == psutil.CONN_LISTEN and found.pid
    ]
    ours = [(name, ip) for name, ip in listening if name.startswith(("ray::", "raylet", "gcs_server"))]
    assert any(name.startswith("ray::ServeReplica") for name, _ in ours)
    assert [found for found in ours if found[1] not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")] == []
