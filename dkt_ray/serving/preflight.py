"""(Ray) Is there room for the replicas that start before the old ones stop?"""

from __future__ import annotations

from typing import Final

import psutil
import ray

from dkt_ray.errors import RolloutError
from dkt_ray.serving.deployments import ServeArgs

GIB: Final = 1 << 30
ROUNDING: Final = 1e-4  # of Ray's resources


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
    total, free = (each.get("CPU", 0.0) for each in (ray.cluster_resources(), ray.available_resources()))
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
