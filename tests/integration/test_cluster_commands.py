"""The set-up and start commands of cluster.yaml, verbatim, on a local head and worker with token authentication.

Jobs are submitted to it, and serve.yaml is deployed on it.

The commands see a home of their own, whose virtual environment borrows this one's packages, so that pip finds every
requirement satisfied; and a network of their own (a Linux network namespace) with an address for each node, so that the
ports in the file are free. Only the two variables that cluster.yaml offers for such a trial are set, and PATH.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import yaml

from dkt_ray.data.query import Query
from dkt_ray.registry.store import Registry
from dkt_ray.serving.predictor import Predictor
from dkt_ray.storage import open_store
from tests import bundles

pytestmark = pytest.mark.namespace

ROOT = Path(__file__).parents[2]
HEAD, WORKER = "10.77.0.1", "10.77.0.2"
COMMAND_S = 240
SERVE = "~/dkt-venv/bin/serve"
ASK = """
import json, sys
from dkt_ray import Client
with Client("http://127.0.0.1:8000", deadline_s=60) as client:
    found = client.predict(json.loads(sys.argv[1]), [])
    print(json.dumps([found.model_version, [each.probability for each in found.predictions]]))
"""


class Node(NamedTuple):
    """A home directory, and the process that holds the network namespace."""

    home: Path
    network: int

    def run(self, command: str, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run a shell command there."""
        environment = {
            "HOME": str(self.home),
            "PATH": f"{sys.base_prefix}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "PIP_NO_BUILD_ISOLATION": "false",  # pip's way to say: build without isolation, hence without a network
            "PIP_NO_INDEX": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "DKT_STOP": "true",  # not `ray stop`: it would end every Ray of this machine
        }
        enter = ["nsenter", "--target", str(self.network), "--user", "--net", "--preserve-credentials"]
        return subprocess.run(
            [*enter, f"--wd={self.home}", "/bin/bash", "-c", command],
            env=environment | extra,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def node(cluster) -> Iterator[Node]:
    """What the launcher has done before it runs a command: an empty node, the code and the token copied to it."""
    home = Path(tempfile.mkdtemp(prefix="dkt-node-"))  # short: Ray's sockets have paths of at most 107 bytes
    with subprocess.Popen(["unshare", "--user", "--map-root-user", "--net", "sleep", "infinity"]) as holder:
        node = Node(home, holder.pid)
        try:
            _wait_for_namespace(holder)
            _succeed(node, f"ip link set lo up; ip addr add {HEAD}/32 dev lo; ip addr add {WORKER}/32 dev lo")
            _copy_code(cluster["rsync_exclude"], home / "dkt-ray")
            _borrow_packages(home / "dkt-venv")
            _succeed(node, "~/dkt-venv/bin/ray get-auth-token --generate", RAY_AUTH_MODE="token")
            yield node
        finally:
            for process in _processes_of(home):
                process.kill()
            psutil.wait_procs(_processes_of(home), timeout=20)
            holder.kill()
            shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def head(cluster, node) -> Node:
    """A head, set up and started by the file's own commands."""
    for command in cluster["setup_commands"]:
        _succeed(node, command)
    (node.home / "ray_bootstrap_config.yaml").write_text(json.dumps(_local_autoscaling()))
    options = f"--node-ip-address={HEAD} --temp-dir={node.home}/ray --num-cpus=2 --object-store-memory=150000000"
    for command in cluster["head_start_ray_commands"]:
        _succeed(node, command, DKT_RAY_OPTIONS=options)
    return node


def test_setup_leaves_a_private_token_and_an_installed_package(head):
    token = head.home / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.parent.stat().st_mode & 0o777 == 0o700
    listed = head.run("~/dkt-venv/bin/dkt --help")
    assert listed.returncode == 0, listed.stderr
    assert "simulate" in listed.stdout
    [installed] = (head.home / "dkt-venv").glob("lib/*/site-packages/dkt_ray-*.dist-info/direct_url.json")
    assert json.loads(installed.read_text())["url"] == f"file://{head.home}/dkt-ray"


def test_a_job_without_the_token_is_refused(head):
    submit = "~/dkt-venv/bin/ray job submit --address http://127.0.0.1:8265 -- true"
    anonymous = head.run(submit, RAY_AUTH_MODE="disabled")
    assert anonymous.returncode != 0
    assert "Unauthorized" in anonymous.stdout + anonymous.stderr
    wrong = head.run(submit, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64)
    assert wrong.returncode != 0
    assert "succeeded" not in wrong.stdout


def test_a_job_with_the_token_runs_a_script_of_jobs(head):
    submitted = head.run(
        "cd ~/dkt-ray && ~/dkt-venv/bin/ray job submit --address http://127.0.0.1:8265 --working-dir . -- "
        f"python jobs/simulate.py --set users=30 --set out={head.home}/logs",
        RAY_AUTH_MODE="token",
    )
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert "succeeded" in submitted.stdout
    results = [line for line in submitted.stdout.splitlines() if line.startswith("{")]
    assert json.loads(results[-1])["users"] == 30
    assert any((head.home / "logs").iterdir())


def test_the_dashboard_answers_on_loopback_only(head):
    probe = "exec 3<>/dev/tcp/{}/8265"
    assert head.run(probe.format("127.0.0.1")).returncode == 0
    assert "refused" in head.run(probe.format(HEAD)).stderr


def test_serve_deploy_of_the_yaml_serves_the_bundle_of_the_alias(head):
    store, members = str(head.home / "store"), bundles.save_members(head.home / "members")
    digest = bundles.build(head.home / "bundle", members)
    Registry(open_store(store)).publish(head.home / "bundle", digest)
    Registry(open_store(store)).promote("champion", digest, None, "a test")
    config = yaml.safe_load((ROOT / "serve_app/serve.yaml").read_text())
    config["applications"] = [each for each in config["applications"] if each["name"] == "api"]
    config["applications"][0]["args"] |= {"store": store, "cache": str(head.home / "copies")}
    (head.home / "serve.yaml").write_text(yaml.safe_dump(config))
    (head.home / "ask.py").write_text(ASK)
    try:
        _succeed(head, f"{SERVE} deploy serve.yaml", RAY_AUTH_MODE="token")
        deadline = time.monotonic() + COMMAND_S
        while "status: RUNNING" not in (told := head.run(f"{SERVE} status --name api", RAY_AUTH_MODE="token").stdout):
            assert time.monotonic() < deadline, told
            assert "FAILED" not in told, told
        known = bundles.world().state.questions["question"].to_pylist()[:2]
        answer = head.run(f"~/dkt-venv/bin/python ask.py '{json.dumps(known)}'")
        assert answer.returncode == 0, answer.stderr
        expected = Predictor.load(head.home / "bundle", digest).answer([Query([], [], known)])[0].probability
        version, found = json.loads(answer.stdout)
        assert (version, found) == (digest, pytest.approx(expected.tolist(), abs=1e-9))
    finally:
        _succeed(head, f"{SERVE} shutdown --yes", RAY_AUTH_MODE="token")


def test_a_worker_joins_with_the_token_and_not_without(cluster, head):
    options = f"--node-ip-address={WORKER} --num-cpus=1 --object-store-memory=100000000"
    for command in cluster["worker_start_ray_commands"]:
        _succeed(head, command, RAY_HEAD_IP=HEAD, DKT_RAY_OPTIONS=options)
    count = (
        "import ray; ray.init(address='auto', log_to_driver=False); "
        "print(sum(node['Alive'] for node in ray.nodes()), ray.cluster_resources()['CPU'])"
    )
    ask = f'~/dkt-venv/bin/python -c "{count}"'
    deadline = time.monotonic() + COMMAND_S
    while "2 3.0" not in (answer := head.run(ask, RAY_AUTH_MODE="token", RAY_ADDRESS=f"{HEAD}:6379")).stdout:
        assert time.monotonic() < deadline, answer.stdout + answer.stderr
    stranger = head.run(ask, RAY_AUTH_MODE="disabled", RAY_ADDRESS=f"{HEAD}:6379")
    assert stranger.returncode != 0


def _succeed(node: Node, command: str, **extra: str) -> None:
    done = node.run(command, **extra)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def _wait_for_namespace(holder: subprocess.Popen[bytes]) -> None:
    """Until `unshare` has become `sleep`, which it does after it has made the namespaces."""
    deadline = time.monotonic() + 20
    while Path(f"/proc/{holder.pid}/comm").read_text().strip() != "sleep":
        assert holder.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _copy_code(excluded: list[str], target: Path) -> None:
    """As rsync does: a pattern that starts with / means the top folder only."""
    top = {pattern[1:] for pattern in excluded if pattern.startswith("/")}
    anywhere = {pattern for pattern in excluded if not pattern.startswith("/")}
    shutil.copytree(
        ROOT, target, ignore=lambda folder, names: (top if Path(folder) == ROOT else set()) | anywhere & set(names)
    )


def _borrow_packages(environment: Path) -> None:
    """A virtual environment that sees this one's packages, with the commands of Ray that pip would have written."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (environment / "lib" / version / "site-packages" / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for name, start in (("ray", "ray.scripts.scripts import main"), ("serve", "ray.serve.scripts import cli as main")):
        command = environment / "bin" / name
        command.write_text(f"#!{environment}/bin/python\nfrom {start}\nmain()\n")
        command.chmod(0o755)


def _local_autoscaling() -> dict[str, Any]:
    """What `ray up` would have put on the head, for a provider without a cloud."""
    return {
        "cluster_name": "dkt-test",
        "max_workers": 0,
        "provider": {"type": "readonly"},
        "available_node_types": {"head": {"resources": {}, "node_config": {}, "max_workers": 0}},
        "head_node_type": "head",
    }


def _processes_of(home: Path) -> list[psutil.Process]:
    """The processes that the commands left behind: those that have this home."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("HOME") == str(home):
                found.append(process)
        except psutil.Error:
            continue
    return found
