"""(Ray) Which engine a job runs its tasks through; Ray is imported and started only where it is chosen."""

from __future__ import annotations

import logging
import os
import sys
from typing import Final, Literal

from dkt_ray import session
from dkt_ray.data.engine import Engine, LocalEngine

logger = logging.getLogger(__name__)

EngineKind = Literal["auto", "local", "ray"]

SUBMITTED: Final = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray in a job that was submitted
LOCAL_BYTES: Final = 512 << 20


def choose(kind: EngineKind, text_bytes: int, local_bytes: int) -> Engine:
    """The engine of a job.

    Args:
        kind: `auto` takes Ray for a large input, and where there is a cluster already (RAY_ADDRESS, or a Ray of this
            process); a submitted job always takes Ray.
        text_bytes: size of the input as plain text.
        local_bytes: an input above this is large.

    Raises:
        ClusterError: Ray was chosen, and RAY_ADDRESS names no cluster.
    """
    attached = "RAY_ADDRESS" in os.environ or _initialised()
    here = kind == "local" or (kind == "auto" and not attached and text_bytes <= local_bytes)
    if here and SUBMITTED not in os.environ:
        return LocalEngine()
    session.connect()
    from dkt_ray.data.ray_engine import RayEngine

    return RayEngine()


def _initialised() -> bool:
    """Whether this process has a Ray; asking does not import it."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())
