"""(Ray) `dkt rollout`: replace the served bundle while requests flow, or leave everything as it was.

verify in a process of its own -> preflight: is there room? -> gate: as good as the champion? -> shadow and canary,
where wanted -> replace (new replicas start before old ones stop) -> watch -> move the alias. Whatever fails, the bundle
before serves, and the exit code is not zero.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, TypeVar

from pydantic import Field

from dkt_ray.config import build
from dkt_ray.errors import BundleError, DktError, RolloutError
from dkt_ray.registry import bundle as bundles
from dkt_ray.registry.cache import local_copy
from dkt_ray.registry.clean_process import Budget, Footprint, check_size, verify_apart
from dkt_ray.registry.gate import GateConfig
from dkt_ray.registry.store import AliasEntry, Registry, resolve
from dkt_ray.serving import service
from dkt_ray.serving.deployments import ServeArgs
from dkt_ray.serving.examination import examine
from dkt_ray.serving.intent import Intent, Intents
from dkt_ray.serving.preflight import check_room
from dkt_ray.serving.service import APPLICATION, ServiceConfig
from dkt_ray.serving.traffic import Findings, Traffic
from dkt_ray.serving.trial import POLL_S, Trial, TrialConfig, direct, watch

__all__ = ["APPLICATION", "RolloutConfig", "run"]

logger = logging.getLogger(__name__)

TRIED: Final = ("shadow", "canary", "watch")  # stages that measure
T = TypeVar("T")


class RolloutConfig(ServiceConfig):
    """Settings of `dkt rollout`."""

    positional: ClassVar[str | None] = "bundle"

    bundle: str
    """Digest of the bundle to serve, or an alias that points to it."""
    verify_timeout_s: float = Field(default=120.0, gt=0)
    """How long the verification may take."""
    budget: Budget = Budget()
    gate: GateConfig | Literal[False] = GateConfig()
    """Judge the bundle against the one that the alias points to (or that serves); false: leave that out, which the
    alias's history then says. The first bundle of an alias has nobody to be judged against."""
    trial: TrialConfig = TrialConfig()
    replicas: dict[str, Any] = Field(default_factory=dict)
    """Other arguments of the application, see ServeArgs (e.g. min_replicas); unset: as it is running."""
    reason: str = "rollout"
    """Why the alias moves; kept in its history."""


class Stages:
    """Runs the stages of a rollout: one line each, what it found, and the seconds that it took."""

    def __init__(self, intents: Intents) -> None:
        self.seconds: dict[str, float] = {}
        self.found: dict[str, Any] = {}
        self._intents = intents

    def run(self, name: str, work: Callable[[], T], told: Callable[[T], str] = str, leave: bool = False) -> T:
        """Do one stage, unless somebody asked to stop.

        Args:
            told: its figures, in words.
            leave: it changes nothing, so that it is left alone when somebody asks to stop meanwhile.
        """
        self._intents.check()
        started = time.monotonic()
        found = _until_stopped(work, self._intents) if leave else work()
        self.seconds[name] = round(time.monotonic() - started, 1)
        self.found[name] = found
        logger.info("rollout: %s: %.1f s: %s", name, self.seconds[name], told(found))
        return found


def _until_stopped(work: Callable[[], T], intents: Intents) -> T:
    result: Future[T] = Future()

    def finish() -> None:
        try:
            result.set_result(work())
        except BaseException as error:  # noqa: BLE001 - the border of the thread: whoever waits gets it
            result.set_exception(error)

    threading.Thread(target=finish, daemon=True).start()  # so that it does not keep the process when it is left alone
    while not wait([result], POLL_S).done:
        intents.check()
    return result.result()


def run(config: RolloutConfig) -> dict[str, Any]:
    """Serve a bundle in place of the one that is running; start the service where nothing runs.

    Returns:
        bundle, previous (what served before), alias, address, seconds, stages (seconds of each), gate (its report, or
        why there is none), trial (what shadow, canary and watch measured), recovered (what a killed rollout had left
        half done, and how that ended).

    Raises:
        ConflictError: another rollout of the alias is at work.
        RolloutError: the bundle is refused or did not come up; what served before serves, the alias has not moved.
    """
    with config.intents.held():
        recovered = service.recover_if_possible(config)
        return _roll_out(config) | {"recovered": recovered}


def _roll_out(config: RolloutConfig) -> dict[str, Any]:
    started = time.monotonic()
    registry, stages = config.registry, Stages(config.intents)
    digest = resolve(registry, config.bundle)
    entry, before = registry.alias(config.alias), service.running(config)
    after = _arguments(config, digest, before)
    service.check_keys(after, config)
    try:
        footprint = stages.run("verify", lambda: _verify(registry, digest, after.copies, config), Footprint.told)
        starting = max(service.replicas(), after.min_replicas)
        both = 1 + (before is not None and config.trial.needs_both)
        stages.run("preflight", lambda: check_room(after, starting, both * footprint.resident_mib))
        champion = _champion(entry, before, digest)
        judged = partial(_judged, registry, champion, digest, after.copies, config)
        gate = stages.run("gate", judged, _gate_in_words, leave=True)
    except BundleError as error:
        raise RolloutError(f"bundle {digest} is refused: {error}") from error
    if before is None:
        service.start(config)
    intent = Intent(action="rollout", before=before.model_dump() if before else None, after=after.model_dump())
    with service.changing(intent, config):
        old = _try_out(before, digest, config, stages) if before is not None else Findings()
        stages.run("replace", lambda: service.deploy(after, config, config.intents), lambda _: f"{digest} serves")
        if before is not None and config.trial.watch_s:
            stages.run("watch", lambda: watch(old, config.trial, config.intents))
        reason = "; ".join(filter(None, (config.reason, gate.get("history"))))
        config.intents.check()
        registry.promote(config.alias, digest, entry.bundle if entry else None, reason)
    seconds = round(time.monotonic() - started, 1)
    logger.info("bundle %s serves at %s after %.1f s", digest, config.address, seconds)
    return {
        "bundle": digest,
        "previous": before.bundle if before else None,
        "alias": config.alias,
        "address": config.address,
        "seconds": seconds,
        "stages": stages.seconds,
        "gate": gate,
        "trial": {name: found for name, found in stages.found.items() if name.startswith(TRIED)},
    }


def _try_out(before: ServeArgs, digest: str, config: RolloutConfig, stages: Stages) -> Findings:
    """Shadow and canary, where the config wants them; returns what the version that serves did until now.

    Raises:
        RolloutError: a limit is crossed, or somebody asked to stop; the champion answers everybody again.
    """
    old = Findings()
    with suppress(RolloutError):  # a replica is gone: no reason not to replace it
        old = direct(service.handle(), Traffic())
    if not config.trial.needs_both or before.bundle == digest:
        return old
    both = before.model_copy(update={"challenger": digest})
    stages.run("load", lambda: service.deploy(both, config, config.intents), lambda _: "both bundles in every replica")
    trial = Trial(config.trial, config.intents)
    try:
        if config.trial.shadow_requests:
            stages.run("shadow", trial.shadow)
        for share in config.trial.shares:
            stages.run(f"canary {share:g}", partial(trial.canary, share))
    except BaseException:
        with suppress(RolloutError):  # a replica is gone; the others go back by themselves
            trial.end()
        raise
    return old


def _verify(registry: Registry, digest: str, copies: Path | None, config: RolloutConfig) -> Footprint:
    check_size(registry.store, f"bundles/{digest}", config.budget)
    return verify_apart(local_copy(registry, digest, copies), digest, config.verify_timeout_s, config.budget)


def _champion(entry: AliasEntry | None, before: ServeArgs | None, digest: str) -> str | None:
    """Whom the challenger is judged against: the alias's bundle, which nobody deploys past the gate, or else what runs.

    Returns:
        None or the digest itself, as the alias has it, where nothing else runs either.
    """
    known = (entry.bundle if entry else None, before.bundle if before else None)
    return next((each for each in known if each not in (None, digest)), known[0])


def _judged(
    registry: Registry, champion: str | None, digest: str, copies: Path | None, config: RolloutConfig
) -> dict[str, Any]:
    """The gate's report, which the store keeps; or why nobody judged.

    Raises:
        RolloutError: the bundle is not good enough, or cannot be judged.
    """
    if champion is None or champion == digest:
        return {"skipped": "there is no champion yet" if champion is None else "it is the champion"}
    if config.gate is False:
        return {"skipped": "gate=false", "history": "gate left out"}
    try:
        old, new = (bundles.load(local_copy(registry, each, copies), each) for each in (champion, digest))
        report = examine(registry.store, old, new, config.gate)
    except DktError as error:
        raise RolloutError(
            f"bundle {digest} cannot be judged against {champion}: {error}; name an evaluation set (gate.dataset, "
            "gate.users), or leave the gate out (gate=false)"
        ) from error
    config.intents.files.write_json(f"gates/{digest}.json", report)
    if report["passed"]:
        return report
    if not config.gate.override:
        raise RolloutError(
            f"bundle {digest} is refused by the gate: {'; '.join(report['failures'])}; publish a better one, or say "
            "why it may serve with gate.override"
        )
    return report | {"history": f"gate overridden: {config.gate.override}"}


def _gate_in_words(gate: Mapping[str, Any]) -> str:
    if "skipped" in gate:
        return f"left out: {gate['skipped']}"
    verdict = "passed" if gate["passed"] else f"overridden, {'; '.join(gate['failures'])}"
    low = gate["auc"]["difference"]["low"]
    at_worst = "unknown" if low is None else f"{low:+.4f}"
    return (
        f"{verdict}: AUROC difference at worst {at_worst}, by {gate['rows']} answers of {gate['users']} users of "
        f"dataset {gate['dataset']}, evaluation set {gate['fingerprint']}"
    )


def _arguments(config: RolloutConfig, digest: str, before: ServeArgs | None) -> ServeArgs:
    base = before.model_dump() if before else {}
    given = {"store": config.registry.store.url, "bundle": digest, "challenger": None}
    return build(ServeArgs, base | config.replicas | given)
