"""(Ray) `dkt rollout`: replace the served bundle while requests flow, or leave everything as it was.

verify the bundle in a process of its own -> deploy it (new replicas start before old ones stop) -> wait until every
replica answers with it -> move the alias. On any failure the last good bundle is deployed again.
"""

from __future__ import annotations

import logging
import time
from typing import Any, ClassVar, Final

import httpx
from pydantic import Field
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus

from dkt_ray.config import Config, build
from dkt_ray.errors import BundleError, DktError, RolloutError
from dkt_ray.registry.cache import local_copy, resolve
from dkt_ray.registry.clean_process import verify_apart
from dkt_ray.registry.store import Registry
from dkt_ray.serving.deployments import DEPLOYMENT, ServeArgs, application
from dkt_ray.storage import open_store

logger = logging.getLogger(__name__)

APPLICATION: Final = "api"
REQUEST_TIMEOUT_S: Final = 30.0
AGREEING_ANSWERS: Final = 10  # in a row, each over a connection of its own
POLL_S: Final = 0.25


class RolloutConfig(Config):
    """Settings of `dkt rollout`."""

    positional: ClassVar[str | None] = "bundle"

    bundle: str
    """Digest of the bundle to serve, or an alias that points to it."""
    store: str = "data/store"
    """Folder or s3://bucket/prefix."""
    alias: str = "champion"
    """Alias that moves to the bundle when it serves."""
    host: str = "127.0.0.1"
    """Address to listen on, where Serve is not running yet."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port of the service."""
    timeout_s: float = Field(default=180.0, gt=0)
    """How long the new replicas may take."""
    verify_timeout_s: float = Field(default=120.0, gt=0)
    """How long the verification may take."""
    replicas: dict[str, Any] = Field(default_factory=dict)
    """Other arguments of the application, see ServeArgs (e.g. min_replicas); unset: as it is running."""
    reason: str = "rollout"
    """Why the alias moves; kept in its history."""


def run(config: RolloutConfig) -> dict[str, Any]:
    """Serve a bundle in place of the one that is running; start the service where nothing runs.

    Returns:
        bundle, previous (what served before), alias, seconds, address.

    Raises:
        RolloutError: the bundle is refused or did not come up; what served before serves, the alias has not moved.
    """
    started = time.monotonic()
    registry = Registry(open_store(config.store))
    digest = resolve(registry, config.bundle)
    entry = registry.alias(config.alias)
    try:
        verify_apart(local_copy(registry, digest), digest, config.verify_timeout_s)
    except BundleError as error:
        raise RolloutError(f"bundle {digest} is refused: {error}") from error
    previous = _running(config)
    if previous is None:
        serve.start(http_options={"host": config.host, "port": config.port, "request_timeout_s": REQUEST_TIMEOUT_S})
    try:
        deploy(_arguments(config, digest, previous), config)
        registry.promote(config.alias, digest, entry.bundle if entry else None, config.reason)
    except KeyboardInterrupt:
        logger.warning("interrupted; %s", _restore(previous, config))
        raise
    except Exception as error:  # the border of the job: whatever went wrong, the old bundle must serve
        raise RolloutError(f"bundle {digest} is not served: {error}; {_restore(previous, config)}") from error
    seconds = round(time.monotonic() - started, 1)
    logger.info("bundle %s serves at %s after %.1f s", digest, _address(config), seconds)
    return {
        "bundle": digest,
        "previous": previous.bundle if previous else None,
        "alias": config.alias,
        "seconds": seconds,
        "address": _address(config),
    }


def deploy(args: ServeArgs, config: RolloutConfig) -> None:
    """Deploy the application and wait until every replica answers with its bundle.

    Raises:
        RolloutError: it failed, or took longer than `timeout_s`.
    """
    deadline = time.monotonic() + config.timeout_s
    target = serve.RunTarget(application(args), name=APPLICATION, route_prefix="/")
    serve.run_many([target], wait_for_applications_running=False)
    agreeing, last = 0, ""
    while agreeing < AGREEING_ANSWERS:
        if time.monotonic() > deadline:
            raise RolloutError(f"not up after {config.timeout_s} s ({last}); give more time with timeout_s")
        last = _state()
        answered = last == "RUNNING" and _version(config) == args.bundle
        agreeing = agreeing + 1 if answered else 0
        if not answered:
            time.sleep(POLL_S)


def _state() -> str:
    """State of the application in one word, or in a few while replicas of two versions are there.

    Raises:
        RolloutError: the deployment failed.
    """
    found = serve.status().applications.get(APPLICATION)
    if found is None:
        return "not deployed"
    replicas = found.deployments.get(DEPLOYMENT)
    if found.status == ApplicationStatus.DEPLOY_FAILED:
        message = (replicas.message if replicas else "") or found.message
        raise RolloutError(f"its replicas do not start: {_last_line(message)}")
    if found.status != ApplicationStatus.RUNNING or replicas is None:
        return f"{found.status.value}"
    others = {str(state): count for state, count in replicas.replica_states.items() if state != "RUNNING"}
    return f"replicas: {others}" if any(others.values()) else "RUNNING"


def _version(config: RolloutConfig) -> str | None:
    """The bundle that answers now, asked over a new connection; None where nobody does."""
    try:
        answer = httpx.get(f"{_address(config)}/v1/models", timeout=5.0, trust_env=False)
    except httpx.HTTPError:
        return None
    return answer.json()["model_version"] if answer.status_code == httpx.codes.OK else None


def _running(config: RolloutConfig) -> ServeArgs | None:
    """Arguments of the application that serves now, its bundle as a digest; None where none does.

    Raises:
        RolloutError: it runs, but does not answer at the given address.
    """
    if APPLICATION not in serve.status().applications:
        return None
    if _version(config) is None:
        raise RolloutError(
            f"application {APPLICATION} runs, but does not answer at {_address(config)}; give its address with "
            "--set host=... --set port=..., or remove it with `serve shutdown`"
        )
    handle = serve.get_app_handle(APPLICATION)
    return handle.options(method_name="arguments").remote().result(timeout_s=REQUEST_TIMEOUT_S)


def _arguments(config: RolloutConfig, digest: str, previous: ServeArgs | None) -> ServeArgs:
    base = previous.model_dump() if previous else {}
    return build(ServeArgs, base | config.replicas | {"store": config.store, "bundle": digest})


def _restore(previous: ServeArgs | None, config: RolloutConfig) -> str:
    """Go back to what served before; says how that went."""
    if previous is None:
        serve.delete(APPLICATION)
        return "nothing served before, and nothing serves now"
    try:
        deploy(previous, config)
    except (DktError, RayServeException) as error:
        return f"the bundle before, {previous.bundle}, did not come back either: {error}"
    return f"the bundle before, {previous.bundle}, serves"


def _address(config: RolloutConfig) -> str:
    return f"http://{config.host}:{config.port}"


def _last_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "no reason given")
