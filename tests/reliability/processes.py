"""The processes of the service that runs on this machine, and how they are killed."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import psutil
from ray import serve

from dkt_ray.serving.deployments import DEPLOYMENT
from dkt_ray.serving.rollout import APPLICATION

REPLICA = "ray::ServeReplica:api:"
CONTROLLER = "ray::ServeController"
PROXY = r"ray::ProxyActor|ray::HAProxyManager|\S*/haproxy "
PATIENCE_S = 300.0


def pids(title: str, root: int | None = None) -> set[int]:
    """Processes below one (unset: below this one) whose command line begins like this (a regular expression)."""
    found = set()
    for process in psutil.Process(root).children(recursive=True):
        try:
            if re.match(title, " ".join(process.cmdline())) and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process.pid)
        except psutil.Error:
            continue
    return found


class Kill(NamedTuple):
    """Between these moments of the monotonic clock a process was killed."""

    after: float
    before: float


def kill(pid: int) -> Kill:
    """Kill -9."""
    process, after = psutil.Process(pid), time.monotonic()
    process.kill()
    wait_until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)
    return Kill(after, time.monotonic())


def wait_for_another(title: str, before: set[int]) -> None:
    """Wait until as many processes of this title run as before, at least one of them new."""
    wait_until(lambda: len(pids(title)) >= len(before) and bool(pids(title) - before))


def replicas() -> dict[str, int]:
    """How many there are in each state, as Serve tells."""
    states = serve.status().applications[APPLICATION].deployments[DEPLOYMENT].replica_states
    return {str(state): number for state, number in states.items() if number}


def wait_for_replicas(count: int) -> None:
    """Wait until so many replicas are ready, and no other one is there."""
    wait_until(lambda: replicas() == {"RUNNING": count} and len(pids(REPLICA)) == count)


def wait_until(true: Callable[[], bool], patience_s: float = PATIENCE_S) -> float:
    """Wait; the seconds that it took.

    Raises:
        TimeoutError: it did not come true.
    """
    started = time.monotonic()
    while not true():
        if time.monotonic() > started + patience_s:
            raise TimeoutError(f"not so after {patience_s} s")
        time.sleep(0.05)
    return time.monotonic() - started


def held(title: str) -> int:
    """Bytes that processes of this title hold, their share of shared pages only."""
    total = 0
    for pid in pids(title):
        with suppress(psutil.NoSuchProcess):  # it ended meanwhile
            total += psutil.Process(pid).memory_full_info().pss
    return total
