"""(Ray) `dkt rollback`: the bundle before serves again; a rollout that is at work, or was killed, is ended instead."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any, Final

from dkt_ray.errors import ConflictError, RolloutError
from dkt_ray.registry.cache import local_copy
from dkt_ray.registry.store import AliasEntry
from dkt_ray.serving import service
from dkt_ray.serving.intent import Intent
from dkt_ray.serving.service import ServiceConfig

logger = logging.getLogger(__name__)

POLL_S: Final = 0.25


class RollbackConfig(ServiceConfig):
    """Settings of `dkt rollback`."""

    reason: str = "rollback"
    """Why; kept in the alias's history."""


def run(config: RollbackConfig) -> dict[str, Any]:
    """Go back. Nothing is judged, and no golden request is replayed here: replicas do that before they are ready.

    Returns:
        The newest move of the alias; ended: what was half done and has been ended, so that the alias stays (None: it
        moved); seconds.

    Raises:
        NotFoundError: the alias does not exist.
        ConflictError: there is no bundle before, or another rollback is at work.
        RolloutError: the bundle before does not come up; what served goes on, and the alias points to it.
    """
    started = time.monotonic()
    with ExitStack() as ours:
        ended = _end_what_is_half_done(config, ours)
        entry = config.registry.alias(config.alias) if ended else _go_back(config)
    seconds = round(time.monotonic() - started, 1)
    move = asdict(entry) if entry else {"bundle": None, "previous": None}  # the alias's first rollout was ended
    logger.info("%s: %s after %.1f s", config.alias, ended or f"bundle {move['bundle']} serves again", seconds)
    return {"alias": config.alias, **move, "ended": ended, "seconds": seconds}


def _end_what_is_half_done(config: RollbackConfig, ours: ExitStack) -> str | None:
    """Says what was ended; None where nothing was, or where that turned out to be done: then the alias has to move."""
    stopped = _take_over(config, ours)
    intent = config.intents.pending()
    if intent is None:
        return stopped
    told = service.recover(config)
    entry = config.registry.alias(config.alias)
    done = intent.done(entry.bundle if entry else None)
    return told if done == (intent.action == "rollback") else None


def _take_over(config: RollbackConfig, ours: ExitStack) -> str | None:
    """Hold the lease; a rollout at work is asked to give up, and says so when it has.

    One that has changed nothing yet is not waited for; one that has just succeeded is no rollout at work any more.
    """
    intents, before = config.intents, config.registry.alias(config.alias)
    deadline = time.monotonic() + config.timeout_s
    asked = False
    while True:
        try:
            ours.enter_context(intents.held())
        except ConflictError as error:
            at_work = intents.pending()
            if at_work is not None and at_work.action == "rollback":
                raise
            if time.monotonic() > deadline:
                raise RolloutError(f"{error}; it was asked to stop and did not within {config.timeout_s} s") from None
            if not asked and _needs_no_asking(at_work, config):
                time.sleep(POLL_S)
                continue
            asked = True
            if at_work is None:
                intents.take_over()
                continue
            intents.ask_to_stop(config.reason)  # again and again: one who begins deletes it
            time.sleep(POLL_S)
        else:
            same = config.registry.alias(config.alias) == before
            return "the rollout that was at work has been ended" if asked and same else None


def _needs_no_asking(at_work: Intent | None, config: RollbackConfig) -> bool:
    """Whether the one at work has done all that it was there for, or has left by now."""
    if at_work is None:
        return config.intents.succeeded() or config.intents.free()
    entry = config.registry.alias(config.alias)
    return at_work.done(entry.bundle if entry else None)


def _go_back(config: RollbackConfig) -> AliasEntry:
    """Move the alias first: what is killed after that is finished by the next call."""
    registry, running = config.registry, service.running(config)
    entry = registry.alias(config.alias)
    if running is None or entry is None or entry.previous is None:
        return registry.rollback(config.alias, config.reason)
    local_copy(registry, entry.previous, running.copies)  # it is there, and its files are whole
    after = running.model_copy(update={"bundle": entry.previous, "challenger": None})
    with service.changing(Intent(action="rollback", before=running.model_dump(), after=after.model_dump()), config):
        moved = registry.rollback(config.alias, config.reason)
        service.bring_back(after, config)
    return moved
