"""(Ray) What a replica asks Serve about the service that it is a part of."""

from __future__ import annotations

import ipaddress
import logging
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve._private.common import ReplicaState
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException

logger = logging.getLogger(__name__)


def replicas() -> int | None:
    """How many replicas of the calling replica's deployment take requests now; None where nobody answers.

    `ReplicaContext.world_size` does not follow the autoscaler in Ray 2.60.
    """
    context = serve.get_replica_context()
    try:
        found = serve.status().applications[context.app_name].deployments[context.deployment]
    except (KeyError, RayError, RayServeException) as error:
        logger.warning("how many replicas there are is not known now: %s", type(error).__name__)
        return None
    return max(1, found.replica_states.get(ReplicaState.RUNNING, 0))


def on_loopback() -> bool:
    """Whether nobody outside of this machine reaches the running Serve over HTTP."""
    client: Any = _get_global_client()
    return is_loopback(client.http_config.host)


def is_loopback(host: str | None) -> bool:
    """Whether an address is of this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False
