"""(Ray) Attach to the cluster that is there, or start one on this machine, bound to loopback."""

from __future__ import annotations

import logging
import os
from typing import Final

import ray

logger = logging.getLogger(__name__)

# What a Ray started by us needs; a cluster made with `ray start` brings its own settings (cluster.yaml).
LOCAL_ENVIRONMENT: Final = {
    "RAY_AUTH_MODE": "disabled",  # every port is on loopback; never left to the default (it would write a token file)
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # bind every port to 127.0.0.1
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # today's default of the future: leave CUDA_VISIBLE_DEVICES alone
    "OMP_NUM_THREADS": "1",  # one thread per task: Ray does the parallel work
}
OBJECT_STORE_BYTES: Final = 512 << 20


def connect(address: str | None = None, cpus: int | None = None) -> None:
    """Initialise Ray for this process, unless that has been done already.

    Args:
        address: `auto` or a cluster's address; unset: RAY_ADDRESS if given, else a Ray of this process on this machine.
        cpus: logical CPUs of a Ray of our own; unset: the machine's.
    """
    if ray.is_initialized():
        return
    if address := address or os.environ.get("RAY_ADDRESS"):
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        logger.info("attached to the Ray cluster at %s", address)
        return
    for name, value in LOCAL_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    logger.info("started Ray on this machine with %d CPUs", int(ray.cluster_resources().get("CPU", 0)))


def disconnect() -> None:
    """Leave Ray; a Ray of our own ends with all its processes."""
    ray.shutdown()
