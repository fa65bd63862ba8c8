"""(Ray) Is there room for the replicas that start before the old ones stop?"""

from __future__ import annotations

import time
from typing import Final

import psutil
import ray

from dkt_ray.errors import RolloutError
from dkt_ray.serving.deployments import ServeArgs

GIB: Final = 1 << 30
ROUNDING: Final = 1e-4  # of Ray's resources
PATIENCE_S: Final = 20.0  # replicas that were told to end may take so long
POLL_S: Final = 0.5


def check_room(args: ServeArgs, starting: int, resident_mib: float) -> str:
    """Refuse a rollout whose first new replica would wait for a place for ever.

    With room for fewer than all, Serve replaces them one after another.

    Args:
        starting: replicas that start.
        resident_mib: memory of one of them, as the clean process measured it.

    Returns:
        What is needed and what is free, in words.

    Raises:
        RolloutError: there is room for none of them.
    """
    total, free = ray.cluster_resources().get("CPU", 0.0), _free(args.num_cpus)
    if free + ROUNDING < args.num_cpus:
        raise RolloutError(
            f"no room to start new replicas before the old ones stop: one takes num_cpus {args.num_cpus:g}, and "
            f"{free:g} of the cluster's {total:g} logical CPUs are free; stop something, add a node, or lower "
            "replicas.num_cpus"
        )
    at_once = min(starting, int((free + ROUNDING) / args.num_cpus))
    told = f"{starting} replicas of {args.num_cpus:g} CPUs, {free:g} of {total:g} free: {at_once} at once"
    if sum(node["Alive"] for node in ray.nodes()) > 1:
        return f"{told}; memory not checked on a cluster of several nodes"
    needed, available = at_once * resident_mib / 1024, psutil.virtual_memory().available / GIB
    if available < needed:
        raise RolloutError(
            f"no memory for a second bundle beside the one that serves: {at_once} new replicas take {needed:.2f} GiB, "
            f"{available:.2f} GiB are free; stop something, or take a larger machine"
        )
    return f"{told}, {needed:.2f} GiB of {available:.2f}"


def _free(wanted: float) -> float:
    """Logical CPUs that are free, or soon will be where something has just ended."""
    ends = time.monotonic() + PATIENCE_S
    while True:
        free = float(ray.available_resources().get("CPU", 0.0))
        enough = free + ROUNDING >= wanted
        if enough or ray.cluster_resources().get("CPU", 0.0) < wanted or time.monotonic() > ends:
            return free
        time.sleep(POLL_S)
