"""Two nodes, and the head of them is lost: what its clients see, who know both addresses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import psutil

from benchmarks import ledger
from benchmarks.ledger import OK, Entry
from benchmarks.load import ROOT
from benchmarks.serving_sides import free_port
from dkt_ray.session import EVERYWHERE, ON_THIS_MACHINE
from tests.reliability.processes import PROXY, REPLICA, pids, wait_until
from tests.reliability.scenarios import Outcome
from tests.reliability.user import User
from tests.reliability.world import FAST, START_S, UNJUDGED, World

RAY = str(Path(sys.executable).with_name("ray"))
NODE = ("--block", "--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats")
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
    with _two_nodes() as (head, other, address):
        first, second = replace(world, port=free_port()), replace(world, port=other.port)
        _roll_out(first, address)
        wait_until(lambda: bool(pids(PROXY, other.pid)) and bool(pids(REPLICA, other.pid)), START_S)
        urls = [first.url, second.url]
        with User(world, urls=urls) as user, second.load(rate=rate) as load:
            load.wait_for(20)
            user.wait_for(20)
            at = time.monotonic()
            _kill_tree(head.pid)
            until = at + seconds
            wait_until(lambda: time.monotonic() > until, seconds + START_S)
        alive = psutil.pid_exists(other.pid) and bool(pids(REPLICA, other.pid))
    problems = world.wrong(load.entries) + world.wrong(user.entries)
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
        {"head_kill": load.entries, "head_kill_client": user.entries},
    )


class _Node:
    """A node of a cluster of our own: `ray start --block`."""

    def __init__(self, arguments: Sequence[str], port: int, **settings: str) -> None:
        clean = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        self.port = port
        self.process = subprocess.Popen(
            [RAY, "start", *NODE, *arguments],
            env=clean | EVERYWHERE | ON_THIS_MACHINE | {"PYTHONPATH": str(ROOT)} | settings,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.pid = self.process.pid


@contextmanager
def _two_nodes() -> Iterator[tuple[_Node, _Node, str]]:
    gcs, port, temporary = free_port(), free_port(), mkdtemp(prefix="dkt-two-", dir="/tmp")  # short: unix sockets
    address, here = f"127.0.0.1:{gcs}", "--node-ip-address=127.0.0.1"
    head = _Node(["--head", f"--port={gcs}", here, f"--temp-dir={temporary}", "--include-dashboard=false"], port)
    nodes = [head]
    try:
        wait_until(lambda: bool(pids("", head.pid)) and _listens(gcs), START_S)
        nodes.append(_Node([f"--address={address}", here], port, RAY_SERVE_WORKER_PROXY_HTTP_PORT=str(port)))
        yield head, nodes[1], address
    finally:
        for node in nodes:
            _kill_tree(node.pid)
            node.process.wait()
        shutil.rmtree(temporary, ignore_errors=True)


def _roll_out(world: World, address: str) -> None:
    replicas = FAST | {"cache": str(world.cache)}
    alone = {"store": world.store, "bundle": world.digests[0], "port": world.port, "timeout_s": START_S, "alias": "two"}
    settings = json.dumps(UNJUDGED | alone | {"replicas": replicas})
    environment = os.environ | EVERYWHERE | ON_THIS_MACHINE | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": address}
    subprocess.run([sys.executable, "-c", ROLLOUT, settings], env=environment, check=True)


def _listens(port: int) -> bool:
    return any(
        found.laddr.port == port and found.status == psutil.CONN_LISTEN for found in psutil.net_connections("tcp")
    )


def _kill_tree(pid: int) -> None:
    if not psutil.pid_exists(pid):
        return
    root = psutil.Process(pid)
    for process in [*root.children(recursive=True), root]:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue


def _share(entries: Sequence[Entry], after: float) -> float:
    """Share of the requests that were sent later and answered with 200."""
    sent: list[Any] = [entry.status == OK for entry in entries if entry.sent >= after]
    return round(sum(sent) / len(sent), 5) if sent else 0.0
