"""Engines: what maps a function over small items; here the calling process, in `ray_engine` a Ray cluster.

A task gets a plain dict and returns one (numbers, texts and lists of them): the same through every engine.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from dkt_ray.log import progress
from dkt_ray.storage import Store

logger = logging.getLogger(__name__)

T = TypeVar("T")

Task = Callable[[dict[str, Any]], dict[str, Any]]

KEPT_AS: Final = "kept_as"  # the key of an item under which its result is kept


class Engine(Protocol):
    """Runs tasks, wherever that is."""

    @property
    def name(self) -> str:
        """What logs and results call it."""

    def share(self, value: T) -> Callable[[], T]:
        """Put a value where all tasks reach it; the function that is returned gives it back inside of a task."""

    def run(self, task: Task, items: Sequence[dict[str, Any]], stage: str) -> Iterator[dict[str, Any]]:
        """Map a task over items; results in the order of the items. A `DktError` of a task is raised here."""


class LocalEngine:
    """One task after another in the calling process; starts nothing."""

    name: Final = "local"

    def share(self, value: T) -> Callable[[], T]:
        """The value stays where it is."""
        return lambda: value

    def run(self, task: Task, items: Sequence[dict[str, Any]], stage: str) -> Iterator[dict[str, Any]]:
        """Map a task over items."""
        with progress(stage, len(items)) as reporter:
            for item in items:
                result = task(item)
                reporter.advance()
                yield result


@dataclass(frozen=True)
class ResumingEngine:
    """Another engine, whose finished tasks leave their results in a folder and are not run again.

    Args:
        kept: folder of the results, for one set of inputs and settings: it knows a task by its stage and its place.
    """

    engine: Engine
    kept: Store

    @property
    def name(self) -> str:
        """The other engine's."""
        return self.engine.name

    def share(self, value: T) -> Callable[[], T]:
        """As the other engine does."""
        return self.engine.share(value)

    def run(self, task: Task, items: Sequence[dict[str, Any]], stage: str) -> Iterator[dict[str, Any]]:
        """Map a task over those items that no earlier run has finished; results of all of them, in order."""
        folder = stage.replace(" ", "-")
        finished = set(self.kept.list(folder))
        keys = [f"{folder}/{number:05d}.json" for number in range(len(items))]
        left = [item | {KEPT_AS: key} for item, key in zip(items, keys, strict=True) if key not in finished]
        if len(left) < len(items):
            done = len(items) - len(left)
            logger.info("%s: %d of %d tasks were finished by an earlier run", stage, done, len(items))
        fresh = self.engine.run(partial(_keep, task=task, kept=self.kept), left, stage)
        for key in keys:
            yield self.kept.read_json(key) if key in finished else next(fresh)
        next(fresh, None)  # lets it end


def _keep(item: dict[str, Any], task: Task, kept: Store) -> dict[str, Any]:
    """Run a task and keep its result: last of all, so that what is kept was finished."""
    key = item.pop(KEPT_AS)
    result = task(item)
    kept.write_json(key, result)
    return result
