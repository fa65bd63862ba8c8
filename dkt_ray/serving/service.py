"""(Ray) The service that runs: what serves, how another bundle takes its place, and how what is half done is ended."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import httpx
from pydantic import Field
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus

from dkt_ray.config import Config, build
from dkt_ray.errors import DktError, RolloutError, StorageError
from dkt_ray.registry.store import AliasEntry, Registry
from dkt_ray.serving.deployments import DEPLOYMENT, ServeArgs, application
from dkt_ray.serving.edge import VERSION
from dkt_ray.serving.fleet import is_loopback
from dkt_ray.serving.intent import Intent, Intents
from dkt_ray.serving.keys import KEYS
from dkt_ray.serving.preflight import check_room
from dkt_ray.serving.ring import needed
from dkt_ray.storage import open_store

logger = logging.getLogger(__name__)

APPLICATION: Final = "api"
REQUEST_TIMEOUT_S: Final = 30.0
AGREEING_ANSWERS: Final = 10  # in a row, each over a connection of its own
POLL_S: Final = 0.25
PROBE_S: Final = 2.0  # a replica tells its version at once; what takes longer waits behind other requests
BUSY: Final = "busy"
DOWN: Final = "down"


class ServiceConfig(Config):
    """Which service is changed, and where it is known."""

    store: str = "data/store"
    """Folder or s3://bucket/prefix."""
    alias: str = "champion"
    """Alias that says which bundle serves."""
    host: str = "127.0.0.1"
    """Address to listen on, where Serve is not running yet."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port of the service."""
    timeout_s: float = Field(default=180.0, gt=0)
    """How long new replicas may take."""

    @property
    def address(self) -> str:
        """Where the service answers."""
        return f"http://{self.host}:{self.port}"

    @property
    def registry(self) -> Registry:
        """The registry of the store."""
        return Registry(open_store(self.store))

    @property
    def intents(self) -> Intents:
        """What is begun and not ended with the alias."""
        return Intents.of(open_store(self.store), self.alias)


def check_keys(args: ServeArgs, config: ServiceConfig) -> None:
    """Refuse to serve without keys what others can reach; each replica refuses it too.

    Raises:
        ConfigError: there are none.
    """
    store = open_store(args.store)
    if (args.keys == "required" or not is_loopback(config.host)) and not store.exists(KEYS):
        raise needed(store)


def start(config: ServiceConfig) -> None:
    """Start Serve where it does not run yet."""
    serve.start(http_options={"host": config.host, "port": config.port, "request_timeout_s": REQUEST_TIMEOUT_S})


def handle() -> DeploymentHandle[Any]:
    """The way to the replicas' methods, past the HTTP proxy."""
    return serve.get_app_handle(APPLICATION)


def deploy(args: ServeArgs, config: ServiceConfig, intents: Intents | None = None, *, surge: bool = True) -> None:
    """Deploy the application and wait until every replica answers with its bundle.

    Replicas above min_replicas that find no place are not waited for.

    Args:
        intents: where somebody may ask to stop; None: nobody can.
        surge: see `application`.

    Raises:
        RolloutError: it failed, took longer than `timeout_s`, or somebody asked to stop.
    """
    deadline = time.monotonic() + config.timeout_s
    anew = intents is not None and _all_run(args)  # a rollout of equal arguments is there to replace the replicas
    target = serve.RunTarget(application(args, surge), name=APPLICATION, route_prefix="/")
    serve.run_many([target], wait_for_applications_running=False)
    agreeing, last, replicas_of = 0, "", handle()
    while agreeing < AGREEING_ANSWERS:
        if time.monotonic() > deadline:
            raise RolloutError(f"not up after {config.timeout_s} s ({last}); give more time with timeout_s")
        last = _state(None if anew else args.min_replicas)
        told = last == "RUNNING" and version(config) in (args.bundle, BUSY)
        answered = told and (agreeing or _all_run(args, replicas_of))
        agreeing = agreeing + 1 if answered else 0
        if not answered:
            if intents is not None:
                intents.check()
            time.sleep(POLL_S)


def bring_back(args: ServeArgs, config: ServiceConfig) -> None:
    """Deploy what served before; without room beside what serves, it takes its place.

    Raises:
        RolloutError: it failed, or took longer than `timeout_s`.
    """
    surge = True
    if not _all_run(args):  # else it serves all the time
        try:
            check_room(args, starting=1, resident_mib=0)
        except RolloutError as error:
            logger.warning("%s: what serves stops first, and requests wait until bundle %s is up", error, args.bundle)
            surge = False
    deploy(args, config, surge=surge)


def version(config: ServiceConfig) -> str | None:
    """The bundle that answers now, asked over a new connection; None: nobody answers there.

    BUSY: more waits than is answered in time; DOWN: the way in answers, and no replica behind it.
    """
    try:
        patience = httpx.Timeout(5.0, read=PROBE_S)
        answer = httpx.get(f"{config.address}/livez", timeout=patience, trust_env=False)  # takes no key
    except httpx.ReadTimeout:
        return BUSY
    except httpx.HTTPError:
        return None
    if answer.status_code in (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.REQUEST_TIMEOUT):
        return BUSY
    if answer.is_server_error:
        return DOWN
    return answer.headers.get(VERSION) if answer.status_code == httpx.codes.OK else None


def running(config: ServiceConfig) -> ServeArgs | None:
    """Arguments of the application that serves now, its bundles as digests; None where none does.

    Where no replica tells them, they are those of the last rollout or rollback that ended well.

    Raises:
        RolloutError: it runs, but does not answer at the given address, or nobody knows its arguments.
    """
    if APPLICATION not in serve.status().applications:
        return None
    remove = "or remove it with `serve shutdown`"
    if version(config) is None:
        raise RolloutError(
            f"application {APPLICATION} runs, but does not answer at {config.address}; give its address with "
            f"--set host=... --set port=..., {remove}"
        )
    found, kept = _told(), config.intents.serving()
    if found:
        return found[0]
    if kept is None:
        raise RolloutError(
            f"application {APPLICATION} runs, but none of its replicas answers, and no rollout has kept their "
            f"arguments; wait until one is up, {remove}"
        )
    logger.warning("no replica answers: what serves is taken from the last rollout, bundle %s", kept["bundle"])
    return _args(kept)


def replicas() -> int:
    """Replicas that run now."""
    found = serve.status().applications.get(APPLICATION)
    deployment = found.deployments.get(DEPLOYMENT) if found else None
    return sum(deployment.replica_states.values()) if deployment else 0


@contextmanager
def changing(intent: Intent, config: ServiceConfig) -> Iterator[None]:
    """Write down what is about to happen; when it fails, what served before serves again.

    Raises:
        RolloutError: it failed; says why, and what serves now.
    """
    intents, entry = config.intents, config.registry.alias(config.alias)
    intent = _goes_on(intent, intents)
    intents.begin(intent)
    try:
        intents.check()  # written first and looked then: whoever takes over meanwhile finds the intent
        yield
    except KeyboardInterrupt:
        logger.warning("interrupted; %s", _undo(intent, entry, config))
        raise
    except Exception as error:  # the border of the job: whatever went wrong, the old bundle must serve
        raise RolloutError(f"bundle {intent.bundle} is not served: {error}; {_undo(intent, entry, config)}") from error
    intents.succeed(intent)


def _told(replicas_of: DeploymentHandle[Any] | None = None) -> list[ServeArgs]:
    """What every replica runs, asked past all queues; empty where one of them does not answer, or none is there."""
    try:
        asked = (handle() if replicas_of is None else replicas_of).broadcast("arguments")
        found: list[ServeArgs] = asked.results(timeout_s=REQUEST_TIMEOUT_S)
    except (RayError, RayServeException, TimeoutError):
        return []
    return found


def _all_run(args: ServeArgs, replicas_of: DeploymentHandle[Any] | None = None) -> bool:
    """Whether there are replicas, and all of them run with these arguments."""
    found = _told(replicas_of)
    return bool(found) and all(each == args for each in found)


def _undo(intent: Intent, entry: AliasEntry | None, config: ServiceConfig) -> str:
    """The alias first: what is killed after that is undone by the next call, and not finished."""
    if config.intents.taken_over():
        return "whoever has taken over says what serves"
    try:
        _point_back(intent, entry, config)
    except StorageError as error:
        _, how = _restore(_args(intent.before), config)
        return f"{how}, but alias {config.alias} has moved and does not move back ({error}): the next call ends this"
    done, how = _restore(_args(intent.before), config)
    if done:
        config.intents.end()
    return how


def _point_back(intent: Intent, entry: AliasEntry | None, config: ServiceConfig) -> None:
    """Undo a move of the alias, if there was one since this entry."""
    now = config.registry.alias(config.alias)
    back = entry.bundle if entry else (intent.before or {}).get("bundle")
    if now is not None and now != entry and now.bundle == intent.bundle and back not in (None, now.bundle):
        config.registry.promote(config.alias, back, now.bundle, f"undone: {intent.action}")


def _restore(before: ServeArgs | None, config: ServiceConfig) -> tuple[bool, str]:
    """Go back to what served before; whether that went well, and how it stands in words."""
    if before is None:
        serve.delete(APPLICATION)
        return True, "nothing served before, and nothing serves now"
    try:
        if not _serves(before):
            bring_back(before, config)
    except (DktError, RayServeException) as error:
        return False, f"the bundle before, {before.bundle}, did not come back either: {error}"
    return True, f"the bundle before, {before.bundle}, serves"


def recover(config: ServiceConfig) -> str | None:
    """Finish or undo what a killed rollout or rollback left half done: the service follows the alias.

    Returns:
        What was found and done, in words; None where nothing was left half done, or something else serves since then.

    Raises:
        RolloutError: what should serve does not come up; the next call tries again.
    """
    intents = config.intents
    intent = intents.pending()
    if intent is None:
        return None
    entry = config.registry.alias(config.alias)
    finished = intent.done(entry.bundle if entry else None)
    wanted = _args(intent.after if finished else intent.before)
    found = f"an unfinished {intent.action} of bundle {intent.bundle} is {'finished' if finished else 'undone'}"
    now = _told()
    if now and not any(_is_of(intent, each) for each in now):
        intents.end()
        logger.warning("an old %s of bundle %s is forgotten: something else serves", intent.action, intent.bundle)
        return None
    if APPLICATION not in serve.status().applications:
        told = f"{found}: nothing serves any more"
    else:
        done, how = _restore(wanted, config)
        if not done:
            raise RolloutError(f"{found}: {how}")
        told = f"{found}: {f'bundle {wanted.bundle} serves' if wanted else how}"
    intents.end()
    logger.warning("%s", told)
    return told


def recover_if_possible(config: ServiceConfig) -> str | None:
    """As `recover`, but what does not succeed is only told: a rollout of something better must be possible."""
    try:
        return recover(config)
    except DktError as error:
        logger.warning("%s; going on with something else", error)
        return str(error)


def _is_of(intent: Intent, args: ServeArgs) -> bool:
    """Whether this is what an intent found, or put there."""
    return intent.bundle in (args.bundle, args.challenger) or args == _args(intent.before)


def _goes_on(intent: Intent, intents: Intents) -> Intent:
    """With what served well, where one before could be neither finished nor undone."""
    try:
        left = intents.pending()
        before = left and _args(left.before)
    except DktError:  # of another release
        return intent
    return intent.model_copy(update={"before": before.model_dump()}) if before else intent


def _args(values: Mapping[str, Any] | None) -> ServeArgs | None:
    return None if values is None else build(ServeArgs, values)


def _serves(args: ServeArgs) -> bool:
    """Whether all is as it should be already: a deployment of equal arguments would replace every replica."""
    try:
        return _state() == "RUNNING" and _all_run(args)
    except RolloutError:
        return False


def _state(least: int | None = None) -> str:
    """State of the application in one word, or in a few while it is being changed.

    Args:
        least: replicas that are enough, though more may want to start; None: all there should be run.

    Raises:
        RolloutError: the deployment failed.
    """
    found = serve.status().applications.get(APPLICATION)
    if found is None:
        return "not deployed"
    deployment = found.deployments.get(DEPLOYMENT)
    if found.status == ApplicationStatus.DEPLOY_FAILED:
        message = (deployment.message if deployment else "") or found.message
        raise RolloutError(f"its replicas do not start: {_last_line(message)}")
    if deployment is None or (least is None and found.status != ApplicationStatus.RUNNING):
        return f"{found.status.value}"
    counts = {str(state): count for state, count in deployment.replica_states.items() if count}
    settled = {"RUNNING"} if least is None else {"RUNNING", "STARTING"}
    enough = counts.get("RUNNING", 0) >= (least or 1)
    return "RUNNING" if enough and counts.keys() <= settled else f"replicas: {counts}"


def _last_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "no reason given")
