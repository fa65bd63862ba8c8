"""Two nodes, and the head of them is lost: what its clients see, who know both addresses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from tempfile import mkdtemp
from typing import NamedTuple

import psutil

from benchmarks import ledger
from benchmarks.ledger import OK, Entry
from benchmarks.load import ROOT
from benchmarks.serving_sides import free_port
from dkt_ray.session import EVERYWHERE, ON_CLUSTERS, ON_THIS_MACHINE
from tests.reliability.processes import PROXY, REPLICA, pids, wait_until
from tests.reliability.scenarios import Outcome
from tests.reliability.user import User
from tests.reliability.world import FAST, START_S, UNJUDGED, World

CLUSTER = """
import json, sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False})
other = cluster.add_node(env_vars={"RAY_SERVE_WORKER_PROXY_HTTP_PORT": sys.argv[1]})
pids = [[each.process.pid for several in node.all_processes.values() for each in several]
        for node in (cluster.head_node, other)]
print(json.dumps([cluster.address, *pids]), flush=True)
sys.stdin.read()
"""
ROLLOUT = """
import json, sys
import ray
from ray import serve
from dkt_ray.serving import rollout
config = rollout.RolloutConfig(**json.loads(sys.argv[1]))
ray.init(log_to_driver=False)
options = {"host": config.host, "port": config.port, "request_timeout_s": 30}
serve.start(proxy_location="EveryNode", http_options=options)
rollout.run(config)
"""


def head_kill(world: World, seconds: float, rate: float) -> Outcome:
    """Every process of the head is killed; the other node's proxy and replica answer on.

    Args:
        seconds: how long the load goes on after that.
    """
    with _two_nodes() as cluster:
        first, second = replace(world, port=free_port()), replace(world, port=cluster.port)
        _roll_out(first, cluster.address)
        wait_until(lambda: all(_below(PROXY, each) and _below(REPLICA, each) for each in cluster[1:3]), START_S)
        with User(world, urls=[first.url, second.url]) as user, second.load(rate=rate) as load:
            load.wait_for(20)
            user.wait_for(20)
            at = time.monotonic()
            _kill_trees(cluster.head)
            user.wait_for(20)
            wait_until(lambda: time.monotonic() > at + seconds, seconds + START_S)
        alive = bool(_below(REPLICA, cluster.other))
        problems = ["the head lives on"] if _below("", cluster.head) else []
    problems += world.wrong(load.entries) + world.wrong(user.entries)
    return Outcome(
        "head_kill",
        {
            "seconds": seconds,
            "client_share": _share(user.entries, at),
            "raw_share": _share(load.entries, at),
            "other_node_alive": alive,
            "raw": ledger.figures(load.entries),
            "client": ledger.figures(user.entries),
            "first_errors": [entry.error for entry in ledger.failed([*user.entries, *load.entries])[:5]],
        },
        problems,
        {"raw": load.entries, "client": user.entries},
    )


class _Cluster(NamedTuple):
    """Two nodes on this machine, by the processes that Ray started for each (their children are the workers)."""

    address: str
    head: list[int]
    other: list[int]
    port: int  # of the other node's proxy


@contextmanager
def _two_nodes() -> Iterator[_Cluster]:
    temporary, port = mkdtemp(prefix="dkt-two-", dir="/tmp"), free_port()  # short: unix sockets lie there
    clean = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER, str(port)],
        env=clean | EVERYWHERE | ON_THIS_MACHINE | ON_CLUSTERS | {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": temporary},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        yield _Cluster(*json.loads(process.stdout.readline()), port)
    finally:
        _kill_trees([process.pid])
        process.wait()
        shutil.rmtree(temporary, ignore_errors=True)


def _roll_out(world: World, address: str) -> None:
    replicas = FAST | {"cache": str(world.cache)}
    alone = {"store": world.store, "bundle": world.digests[0], "port": world.port, "timeout_s": START_S, "alias": "two"}
    settings = json.dumps({**UNJUDGED, **alone} | {"replicas": replicas})
    environment = os.environ | EVERYWHERE | ON_THIS_MACHINE | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": address}
    subprocess.run([sys.executable, "-c", ROLLOUT, settings], env=environment, check=True)


def _below(title: str, roots: Sequence[int]) -> set[int]:
    return set().union(*(pids(title, root) for root in roots if psutil.pid_exists(root)))


def _kill_trees(roots: Sequence[int]) -> None:
    """Kill -9 processes and all that they started."""
    found = [psutil.Process(root) for root in roots if psutil.pid_exists(root)]
    for process in [*(child for root in found for child in root.children(recursive=True)), *found]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _share(entries: Sequence[Entry], after: float) -> float:
    """Share of the requests that ended later which were answered with 200."""
    ended = [entry.status == OK for entry in entries if entry.answered >= after]
    return round(sum(ended) / len(ended), 5) if ended else 0.0
