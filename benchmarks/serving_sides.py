"""The servers of the serving benchmark, each a tree of processes: ours, as `dkt rollout` starts it, and BentoML."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Final

import httpx
import psutil

from benchmarks.load import ROOT
from benchmarks.serving_requests import Body
from dkt_ray import session
from dkt_ray.errors import DktError
from dkt_ray.session import EVERYWHERE, ON_THIS_MACHINE

START_S: Final = 300.0
END_S: Final = 20.0
OURS: Final = """
import json, sys
from dkt_ray import session
settings = json.loads(sys.argv[1])
session.connect()
from ray import serve
from dkt_ray.serving import rollout
rollout.run(rollout.RolloutConfig(**settings))
sys.stdin.read()
serve.shutdown()
"""


@dataclass(frozen=True)
class Server:
    """A server that answers at a port of this machine."""

    name: str
    process: psutil.Process
    port: int
    path: str = "/v1/predict"
    listed: bool = False
    """A body holds a list of one request."""

    def bodies(self, bodies: Sequence[Body]) -> list[Any]:
        """Requests as this server reads them."""
        return [[body] for body in bodies] if self.listed else list(bodies)

    def cpu_s(self) -> float:
        """Seconds that its processes worked so far."""
        total = 0.0
        for process in self.tree():
            with suppress(psutil.Error):  # it ended meanwhile
                spent = process.cpu_times()
                total += spent.user + spent.system
        return total

    def held(self) -> int:
        """Bytes that its processes hold, their share of shared pages only."""
        total = 0
        for process in self.tree():
            with suppress(psutil.Error):
                total += process.memory_full_info().pss
        return total

    def stop(self) -> None:
        """Let its processes stand still (SIGSTOP)."""
        self._each(psutil.Process.suspend)

    def go_on(self) -> None:
        """Let them go on."""
        self._each(psutil.Process.resume)

    def _each(self, do: Callable[[psutil.Process], None]) -> None:
        for process in self.tree():
            with suppress(psutil.Error):
                do(process)

    def tree(self) -> list[psutil.Process]:
        """Its processes."""
        return [self.process, *self.process.children(recursive=True)]


@contextmanager
def ours(way: str, store: str, digest: str, **replicas: Any) -> Iterator[Server]:
    """The `api` application with its default settings, but for `replicas`.

    Args:
        way: `proxy` or `haproxy`: how requests come in (docs/decisions/).
    """
    port, folder = free_port(), mkdtemp(prefix="dkt-", dir="/tmp")  # short: unix sockets lie there
    settings = {"store": store, "bundle": digest, "port": port, "timeout_s": START_S, "replicas": replicas}
    command = [sys.executable, "-c", OURS, json.dumps(settings)]
    try:
        with _started(command, session.haproxy(Path(folder)) if way == "haproxy" else {}) as process:
            _wait_until_ready(process, port)
            yield Server(f"ours, {way}", psutil.Process(process.pid), port)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def bentoml(python: str, bundle: Path, workers: int) -> Iterator[list[Server]]:
    """BentoML with so many workers, its route that answers one request a call and the one that batches."""
    port = free_port()
    place = [*("benchmarks.serving_bentoml.service:Service", "--host", "127.0.0.1", "--port", str(port))]
    settings = {"DKT_BUNDLE": str(bundle), "DKT_WORKERS": str(workers), "BENTOML_DO_NOT_TRACK": "True"}
    with _started([python, "-m", "bentoml", "serve", *place], settings) as process:
        _wait_until_ready(process, port)
        tree = psutil.Process(process.pid)
        yield [
            Server(f"bentoml, {workers} workers", tree, port, "/predict"),
            Server(f"bentoml, {workers} workers, batched", tree, port, "/predict_many", listed=True),
        ]


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


@contextmanager
def _started(command: Sequence[str], settings: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process, and all that it started, until the end of the block."""
    alike = EVERYWHERE | ON_THIS_MACHINE | {"RAY_worker_niceness": "0", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | alike | settings,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        left = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for end in (process.stdin.close, process.terminate, process.kill):  # type: ignore[union-attr]
            end()
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_S)
                break
        for other in left:
            with suppress(psutil.NoSuchProcess):
                other.kill()


def _wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    give_up = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < give_up:
        with suppress(httpx.HTTPError):
            if httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).status_code == httpx.codes.OK:
                return
        time.sleep(0.5)
    ended = f"ended with {process.returncode}" if process.poll() is not None else f"is not ready after {START_S} s"
    raise DktError(f"the server at port {port} {ended}: see above")
