"""Rollouts over a real service: refused, stopped, killed and rolled back; every answer is of exactly one version."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
import yaml

from dkt_ray.data.query import Query
from dkt_ray.errors import RolloutError
from dkt_ray.registry import cache
from dkt_ray.registry.bundle import verify
from dkt_ray.registry.clean_process import Footprint
from dkt_ray.registry.store import Registry
from dkt_ray.serving.predictor import Predictor
from dkt_ray.serving.series import SHORT
from dkt_ray.storage import open_store
from tests import bundles, datasets, runs
from tests.bad_bundles import failing_network

COST = Footprint(resident_mib=500.0, latency_ms=5.0)
PATIENT = {"latency_slack_ms": 60_000, "disagreement": 1}  # this machine may be busy
NOT_SLOWER = {"latency_factor": 1e-6, "latency_slack_ms": 0}
CROSSED = {"errors": {}, "latency": NOT_SLOWER, "disagreement": {"disagreement": 0}}
REPLICAS = {"num_cpus": 0.25, "min_replicas": 1, "max_replicas": 1, "graceful_shutdown_s": 5.0}


class World:
    """Two published bundles, what each answers, and a service of the first."""

    def __init__(self, folder: Path) -> None:
        self.store = str(folder / "store")
        self.registry = Registry(open_store(self.store))
        self.cache = str(folder / "cache")
        known = bundles.world().state.questions["question"].to_pylist()
        self.body = {"history": [{"question": known[0], "correct": 1}], "targets": known[:3]}
        self.query = Query(question=[known[0]], correct=[1], target=known[:3])
        self.expected = {}
        for seed, share in enumerate((0.6, 0.1)):
            members = bundles.save_members(folder / f"members{seed}", seed)
            weights = {"lightgbm": share, "lstm_attention": 1 - share}
            digest = bundles.build(folder / f"bundle{seed}", members, weights)
            self.registry.publish(folder / f"bundle{seed}", digest)
            self.expected[digest] = Predictor.load(folder / f"bundle{seed}").answer([self.query])[0].probability
        log = runs.write_log(folder / "log.csv", bundles.simulate())
        data = {"folds": 2, "buckets": 2, "test_fraction": 0.4}  # its test users judge
        datasets.run(log, self.store, data=data, encoder={"min_count": 2}, dataset="tiny")
        self.first, self.second = self.expected
        assert np.abs(self.expected[self.first] - self.expected[self.second]).max() > 1e-3, "they can be told apart"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def settings(self, **more):
        return {"store": self.store, "port": self.port, "timeout_s": 180.0} | more

    def roll_out(self, digest, **more):
        from dkt_ray.serving.rollout import RolloutConfig, run

        replicas = REPLICAS | {"cache": self.cache}
        return run(
            RolloutConfig(**self.settings(bundle=digest, gate=False, replicas=replicas, trial={"watch_s": 0}) | more)
        )

    def roll_back(self):
        from dkt_ray.serving.rollback import RollbackConfig, run

        return run(RollbackConfig(**self.settings()))

    def alias(self):
        return self.registry.alias("champion").bundle

    def ask(self, student=None):
        body = self.body if student is None else self.body | {"student": student}
        answer = httpx.post(f"{self.url}/v1/predict", json=body, timeout=30, trust_env=False)
        assert answer.status_code == 200, answer.text
        found = answer.json()
        values = [each["probability"] for each in found["predictions"]]
        np.testing.assert_allclose(values, self.expected[found["model_version"]], rtol=0, atol=1e-6)
        return found["model_version"]

    def serves(self, digest):
        """Nothing is half done, and only this bundle answers."""
        from dkt_ray.serving import service

        config = service.ServiceConfig(**self.settings())
        assert config.intents.pending() is None
        args = service.running(config)
        return (args.bundle, args.challenger) == (digest, None) and {self.ask(f"s{n}") for n in range(20)} == {digest}


class Load(threading.Thread):
    """One client after another, each with an id of its own, who never retries and checks every answer."""

    def __init__(self, world: World) -> None:
        super().__init__(daemon=True)
        self.world, self.ended = world, threading.Event()
        self.answers: list[tuple[str, str]] = []
        self.failures: list[Exception] = []

    @property
    def versions(self) -> Counter:
        return Counter(version for _, version in self.answers)

    def wait_for(self, version: str | None = None, count: int = 5) -> None:
        """Wait for so many more answers, of one version or of any."""
        there = len(self.answers)
        give_up = time.monotonic() + 300
        while sum(version in (None, found) for _, found in self.answers[there:]) < count:
            assert time.monotonic() < give_up, f"no {count} answers of {version}: {self.versions}, {self.failures[:3]}"
            time.sleep(0.05)

    def run(self) -> None:
        while not self.ended.wait(0.02):
            student = f"student {len(self.answers) + len(self.failures)}"
            try:
                self.answers.append((student, self.world.ask(student)))
            except (AssertionError, httpx.HTTPError) as error:
                self.failures.append(error)

    def __enter__(self):
        self.start()
        self.wait_for()
        return self

    def __exit__(self, *error):
        self.ended.set()
        self.join(60)


class Killed(BaseException):
    """What no handler of a rollout catches: as after a kill -9, nothing is undone."""


def kill(monkeypatch, owner, name, work) -> None:
    """Do something that ends abruptly where it calls `owner.name`."""

    def killed(*args, **more):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killed)
        with pytest.raises(Killed):
            work()


@pytest.fixture(scope="module")
def world(ray_cluster, tmp_path_factory):
    from ray import serve

    from dkt_ray.serving import rollout

    world = World(tmp_path_factory.mktemp("rollout"))
    world.roll_out(world.first)
    with pytest.MonkeyPatch.context() as patch:  # in a process of its own it takes seconds, and it has been seen above
        patch.setattr(rollout, "verify_apart", lambda folder, digest, *more: (verify(folder, digest), COST)[1])
        patch.setattr(cache, "default_folder", None)  # copies lie where those of the replicas do
        yield world
    serve.shutdown()


@pytest.fixture(scope="module")
def failing(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("failing") / "bundle"
    digest = failing_network(folder, world.body["targets"][-1])
    world.registry.publish(folder, digest)
    others = Predictor.load(folder, digest).answer([world.query])[0].members
    world.expected[digest] = (0.5 * others["lightgbm"] + 0.2 * others["second"]) / 0.7
    return digest


@pytest.fixture
def start(world):
    """The champion, whichever it is, and the other bundle; nothing is half done."""
    digest = world.alias()
    assert world.serves(digest)
    return digest, world.second if digest == world.first else world.first


def test_what_is_judged_worse_costs_too_much_or_finds_no_room_is_refused_before_anything_changes(
    world, start, monkeypatch
):
    from dkt_ray.serving import preflight

    champion, other = start
    with pytest.raises(RolloutError, match=rf"cannot be judged against {champion}: no dataset 'none'.*gate=false"):
        world.roll_out(other, gate={"dataset": "none"})
    with pytest.raises(RolloutError, match=r"is refused by the gate: AUROC .* below auc_margin -0; .*gate\.override"):
        world.roll_out(other, gate={"auc_margin": 0})
    with pytest.raises(RolloutError, match=r"one takes num_cpus 100, and .* of the cluster's 4 logical CPUs are free"):
        world.roll_out(other, replicas={"num_cpus": 100})
    with pytest.raises(RolloutError, match=r"is refused: its files are 0\.\d MiB, above the budget of 0\.01"):
        world.roll_out(other, budget={"files_mib": 0.01})
    monkeypatch.setattr(preflight.psutil, "virtual_memory", lambda: SimpleNamespace(available=1 << 20))
    with pytest.raises(
        RolloutError, match=r"no memory for a second bundle .* 1 new replicas take .* 0\.00 GiB are free"
    ):
        world.roll_out(other)
    assert world.serves(champion)
    assert world.alias() == champion


def test_a_rollout_killed_at_any_stage_is_undone_or_finished_by_the_next_call(world, start, monkeypatch):
    from dkt_ray.serving import service

    champion, other = start
    kill(monkeypatch, service.Registry, "promote", lambda: world.roll_out(other))
    assert (world.alias(), world.ask()) == (champion, other)  # it serves, and the alias has not moved
    ended = world.roll_back()
    assert ended["ended"] == f"an unfinished rollout of bundle {other} is undone: bundle {champion} serves"
    assert ended["bundle"] == world.alias() == champion
    assert world.serves(champion)
    kill(monkeypatch, service.Intents, "end", lambda: world.roll_out(other))
    assert world.alias() == other  # all is done, only nobody has written that down
    before = world.registry.history("champion")
    recovered = service.recover(service.ServiceConfig(**world.settings()))
    assert recovered == f"an unfinished rollout of bundle {other} is finished: bundle {other} serves"
    assert world.registry.history("champion") == before
    assert world.serves(other)


def test_a_rollback_under_load_fails_no_request_and_a_killed_one_is_finished(world, start, monkeypatch):
    from dkt_ray.serving import service

    champion, other = start
    if world.registry.alias("champion").previous is None:
        world.roll_out(other)
        champion, other = other, champion
    with Load(world) as load:
        result = world.roll_back()
        load.wait_for(other)
    assert load.failures == []
    assert set(load.versions) == {champion, other}
    assert (result["bundle"], result["previous"], result["ended"]) == (other, champion, None)
    assert world.serves(other)
    kill(monkeypatch, service, "deploy", world.roll_back)
    assert (world.alias(), world.ask()) == (champion, other)  # the alias has moved, the service has not
    finished = world.roll_back()
    assert f"unfinished rollback of bundle {champion} is finished" in finished["ended"]
    assert world.alias() == champion
    assert world.serves(champion)


def test_a_rollback_takes_the_place_of_what_serves_where_no_further_replica_has_room(world, start, monkeypatch):
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    from dkt_ray.serving import preflight, service

    champion, other = start
    if world.registry.alias("champion").previous is None:
        world.roll_out(other)
        champion, other = other, champion
    surges, application = [], service.application
    monkeypatch.setattr(service, "application", lambda args, surge: surges.append(surge) or application(args, surge))
    monkeypatch.setattr(preflight, "PATIENCE_S", 0)
    taken = placement_group([{"CPU": ray.available_resources()["CPU"]}])
    try:
        assert taken.wait(120)
        give_up = time.monotonic() + 120
        while ray.available_resources().get("CPU", 0) >= REPLICAS["num_cpus"]:
            assert time.monotonic() < give_up, "nothing is free any more, and Ray does not say so"
            time.sleep(0.1)
        assert world.roll_back()["bundle"] == other
    finally:
        remove_placement_group(taken)
    assert surges == [False]
    assert world.serves(other)


def test_a_member_that_fails_at_run_time_is_left_out_of_that_answer(world, start, failing):
    world.roll_out(failing)
    with httpx.Client(base_url=world.url, timeout=30, trust_env=False) as client:
        found, whole = (
            client.post("/v1/predict", json=world.body | {"targets": targets, "explain": True}).json()
            for targets in (world.body["targets"], world.body["targets"][:1])
        )
        counted = f'dkt_left_out_total{{bundle="{failing[:SHORT]}",member="network",why="value"}} 1.0'
        assert counted in client.get("/metrics").text
    assert (found["model_version"], found["degraded"], found["left_out"]) == (failing, True, ["network"])
    assert found["weights"] == pytest.approx({"lightgbm": 5 / 7, "second": 2 / 7})
    assert (whole["degraded"], set(whole["weights"])) == (False, {"lightgbm", "second", "network"})
    assert world.ask() == failing  # and its probabilities are those of the others
    world.roll_back()
    assert world.serves(start[0])


def test_a_shadow_is_unseen_and_a_canary_asks_the_challenger_for_its_share_of_the_students(world, start):
    from dkt_ray.serving.traffic import place

    champion, other = start
    trial = {"shadow_requests": 20, "shares": [0.5], "step_requests": 20, "step_s": 120, "compared": 1, "watch_s": 1}
    trial |= {"limits": PATIENT}
    with Load(world) as load:
        result = world.roll_out(other, trial=trial, gate={"auc_margin": 0, "override": "a test"})
        load.wait_for(other)
    assert load.failures == []
    assert list(result["stages"]) == ["verify", "preflight", "gate", "load", "shadow", "canary 0.5", "replace", "watch"]
    assert not result["gate"]["passed"]
    assert world.registry.alias("champion").reason == "rollout; gate overridden: a test"
    found = result["trial"]
    assert found["shadow"]["challenger"]["answered"] >= 20
    assert found["shadow"]["disagreement"] > 1e-4
    assert found["canary 0.5"]["challenger"]["errors"] == 0
    last = max(n for n, (_, version) in enumerate(load.answers) if version == champion)
    canary = [student for student, version in load.answers[:last] if version == other]
    assert len(canary) >= 10
    assert all(place(student, other) < 0.5 for student in canary)
    assert world.alias() == other
    assert world.serves(other)


@pytest.mark.parametrize("how", [*CROSSED, "stop", "kill -9"])
def test_a_canary_that_is_bad_or_stopped_or_killed_leaves_the_champion(world, start, how, failing):
    champion, other = start[0], failing if how == "errors" else start[1]
    trial = {"shares": [0.5], "step_requests": 10**6, "step_s": 600, "compared": 1, "limits": PATIENT}
    with Load(world) as load:
        if how in CROSSED:
            with pytest.raises(RolloutError, match=rf"canary at 50%: {how}: .*{champion}, serves"):
                world.roll_out(other, trial=trial | {"limits": PATIENT | CROSSED[how]})
        else:
            attempt = another_process if how == "kill -9" else another_thread
            end, outcome = attempt(world, other, trial)
            load.wait_for(other)
            end()
            ended = world.roll_back()
            assert ("at work has been ended" if how == "stop" else "is undone") in ended["ended"]
            assert outcome() == ("stopped: rollback" if how == "stop" else -signal.SIGKILL)
    assert load.failures == []
    assert load.versions[other] > 0, "the canary answered somebody, or this proves nothing"
    assert world.alias() == champion
    assert world.serves(champion)


def another_thread(world: World, digest: str, trial: dict):
    """A rollout beside us; gives what ends it (nothing), and why it ended."""
    reasons: list[str] = []

    def work() -> None:
        try:
            world.roll_out(digest, trial=trial)
        except RolloutError as error:
            reasons.append(str(error.__cause__))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()

    def outcome() -> str:
        thread.join(120)
        return reasons[0]

    return lambda: None, outcome


def another_process(world: World, digest: str, trial: dict):
    """`dkt rollout` on this Ray; gives what kills it, and its exit code."""
    import ray

    settings = world.settings(gate=False, trial=trial)
    command = [sys.executable, "-m", "dkt_ray.cli", "rollout", digest]
    command += [f"--set={name}={json.dumps(value)}" for name, value in settings.items()]
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    process = subprocess.Popen(command, env=environment)

    def kill() -> None:
        process.kill()
        process.wait(120)

    return kill, lambda: process.wait(120)


def test_on_a_cold_start_from_yaml_the_alias_decides(world, start):
    from dkt_ray.serving.deployments import ServeArgs
    from serve_app.app import api

    applications = yaml.safe_load(Path("serve_app/serve.yaml").read_text())["applications"]
    [args] = [ServeArgs(**each["args"] | {"store": world.store}) for each in applications if each["name"] == "api"]
    assert args.bundle == "champion"
    built = api(args)._bound_deployment.init_args
    assert built[1:] == (start[0], None)


def test_the_planted_wrong_answer_is_caught(world, start, monkeypatch):
    monkeypatch.setitem(world.expected, start[0], world.expected[start[0]] + 1e-3)
    with pytest.raises(AssertionError):
        world.ask()
