"""What is noted of a request on its way through: who it is about, what was scored for it, and where its time went.

It is at hand wherever the request's own task is, and in the tasks that this one starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, NamedTuple

from dkt_ray.data.query import Query
from dkt_ray.ensemble.scorer import Scores
from dkt_ray.serving import rights
from dkt_ray.serving.edge import Scope

QUEUE: Final = "queue"


class Shown(NamedTuple):
    """What a request's user is recommended."""

    policy: str  # the rule, its settings, and its version
    candidates: int
    questions: Sequence[str]  # the best first


@dataclass
class Trace:
    """Notes on one request."""

    scope: Scope = field(default_factory=dict)
    users: set[str] = field(default_factory=set)
    """Stored names of those whom it names."""
    bundles: set[str] = field(default_factory=set)
    events: int = 0
    targets: int = 0
    waited: float = 0.0
    """The longest wait for a batch, in seconds."""
    passes: dict[int, Mapping[str, float]] = field(default_factory=dict)
    """What each pass took; many students of a request may share one, which counts once."""
    foreseen: list[tuple[str, str, Query, Scores]] = field(default_factory=list)
    """What was scored for stored users: the user, the bundle, and both."""
    shown: Shown | None = None
    appended: Mapping[str, int] = field(default_factory=dict)
    """Events by what became of them."""

    @cached_property
    def route(self) -> str:
        """Template of the route, also where a request was refused; never the path as sent, which may be anything."""
        return rights.told(self.scope.get("path", "")) or "other"

    def scored(self, bundle: str, query: Query, scores: Scores) -> None:
        """One more query of the request has its answer."""
        self.bundles.add(bundle)
        self.events += len(query.question)
        self.targets += len(query.target)
        self.waited = max(self.waited, scores.waited)
        self.passes[id(scores.seconds)] = scores.seconds

    @property
    def stages(self) -> dict[str, float]:
        """Seconds: waiting for a batch, encoding, each member by name, blending; empty where nothing was scored."""
        total: dict[str, float] = {}
        for seconds in self.passes.values():
            for stage, part in seconds.items():
                total[stage] = total.get(stage, 0.0) + part
        return {QUEUE: self.waited, **total} if self.passes else {}


TRACE: Final[ContextVar[Trace | None]] = ContextVar("TRACE", default=None)
USER: Final[ContextVar[str | None]] = ContextVar("USER", default=None)


def current() -> Trace:
    """The notes of the request at hand; outside of one, notes that nobody reads."""
    return TRACE.get() or Trace()


def about(user: str | None) -> None:
    """From here on in this task, what is scored is about a stored user, or about nobody who is stored."""
    USER.set(user)
    if user is not None:
        current().users.add(user)
