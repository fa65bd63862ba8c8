"""(Ray) Attach to the cluster that is there, or start one on this machine, bound to loopback."""

from __future__ import annotations

import logging
import os
from typing import Any, Final

from dkt_ray.errors import ClusterError

logger = logging.getLogger(__name__)

EVERYWHERE: Final = {
    "RAY_AUTH_MODE": "disabled",  # never left to Ray's default, which writes a token file; cluster.yaml sets `token`
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "dkt_ray.serving.front:middlewares",
}
ON_THIS_MACHINE: Final = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # every port of Ray on 127.0.0.1
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # leave CUDA_VISIBLE_DEVICES alone
    "OMP_NUM_THREADS": "1",  # one thread per task: Ray does the parallel work
    "POLARS_MAX_THREADS": "1",
}
OBJECT_STORE_BYTES: Final = 512 << 20


def prepare_environment() -> None:
    """Set what Ray must find in the environment; it reads some of it when it is imported, so call this before that.

    A cluster that RAY_ADDRESS names brings its own settings; without it, Ray is on this machine only.
    """
    for name, value in (EVERYWHERE if "RAY_ADDRESS" in os.environ else EVERYWHERE | ON_THIS_MACHINE).items():
        os.environ.setdefault(name, value)


def connect(running: bool = False) -> None:
    """Initialise Ray for this process, unless that has been done already.

    Args:
        running: attach to the cluster that runs on this machine; else RAY_ADDRESS, else a Ray of this process.

    Raises:
        ClusterError: there is no such cluster.
    """
    prepare_environment()
    import ray

    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS") or ("auto" if running else "local")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if address == "local":
        ray.init(address=address, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)
        logger.info("started Ray on this machine with %d CPUs", int(ray.cluster_resources().get("CPU", 0)))
        return
    try:
        ray.init(address=address, **quiet)
    except ConnectionError as error:
        raise ClusterError(
            f"no Ray cluster at {address}: {error}; start one (`dkt demo`, or `ray start --head`: docs/operations.md), "
            "or set RAY_ADDRESS"
        ) from None
    logger.info("attached to the Ray cluster at %s", address)
