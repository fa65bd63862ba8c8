"""Circuit breakers: a member that fails is left out of the answer; one that goes on failing is not asked for a while.

A member that fails with some of the students of a batch is left out of their answers only: who is asked together with a
student whom it cannot read loses nothing.

Members are asked one after the other in one thread, where a member cannot be interrupted. One that is too slow has
answered by the time that this is known: its answers are used, and the delay counts as a failure. One that hangs is the
business of the replica's health check.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from pydantic import Field

from dkt_ray.config import Config
from dkt_ray.ensemble.opinions import Member, Members, Opinions

if TYPE_CHECKING:  # who deploys needs the settings only, not torch
    from dkt_ray.features.batch import Rows
    from dkt_ray.models.base import Probabilities

logger = logging.getLogger(__name__)


class BreakerConfig(Config):
    """When a member is left out."""

    member_timeout_s: float = Field(default=5.0, gt=0)
    """Time share of a member for a batch of up to 1,000 rows (events and targets); in proportion for larger ones."""
    failures: int = Field(default=3, ge=1)
    """Batches in a row that fail (for each student an error or an answer that is no probability; or too slow) before it
    is not asked."""
    rest_s: float = Field(default=10.0, gt=0)
    """How long it is not asked; then one batch decides."""


class Breakers:
    """Asks the members of one ensemble, and goes without those that fail; see `Scorer.score_queries`.

    While all of them rest they are asked all the same: a doubtful answer is better than none.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, config: BreakerConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()  # (member, why): error, value, slow, resting; in batches
        self._config = config
        self._clock = clock
        self._failures: Counter[str] = Counter()  # in a row
        self._rests_until: dict[str, float] = {}

    def __call__(self, members: Members, past: Rows, targets: Rows) -> Opinions:
        """The probabilities of the members that answered."""
        now = self._clock()
        resting = {name for name in members if self._rests_until.get(name, now) > now}
        found = self._ask({name: model for name, model in members.items() if name not in resting}, past, targets)
        if not found.given:
            found = self._ask({name: members[name] for name in sorted(resting)}, past, targets)
        self.counts.update((name, "resting") for name in resting - set(found.given))
        return found._replace(given={name: found.given[name] for name in members if name in found.given})

    def _ask(self, members: Members, past: Rows, targets: Rows) -> Opinions:
        found = Opinions({}, {})
        limit_s = self._config.member_timeout_s * max(1.0, (past.rows + targets.rows) / 1000)
        for name, model in members.items():
            until = self._clock() + limit_s
            answer = _answer(model, past, targets)
            if isinstance(answer, _Failure):
                logger.warning("member %s left out: %s", name, answer.told)
                self.counts[name, answer.why] += 1
                apart = self._apart(model, past, targets, until)
                if apart is None:
                    self._failed(name, answer.why)
                    continue
                answer, found.missing[name] = apart, np.isnan(apart)
            found.given[name] = answer
            if self._clock() > until:
                self.counts[name, "slow"] += 1
                self._failed(name, "slow")
            else:
                self._failures[name] = 0
        return found

    def _apart(self, model: Member, past: Rows, targets: Rows, until: float) -> Probabilities | None:
        """What a member that failed with all students says of each half of them, and so on; NaN: of whom nothing.

        Args:
            until: when no further student is tried.

        Returns:
            None where it is nothing at all.
        """
        students = len(targets.offsets) - 1
        if students < 2:
            return None
        found = np.full(targets.rows, np.nan)
        for start, stop in ((0, students // 2), (students // 2, students)):
            if self._clock() > until:
                break
            asked = _students(past, start, stop), _students(targets, start, stop)
            answer = _answer(model, *asked)
            apart = self._apart(model, *asked, until) if isinstance(answer, _Failure) else answer
            if apart is not None:
                found[targets.offsets[start] : targets.offsets[stop]] = apart
        return None if bool(np.isnan(found).all()) else found

    def _failed(self, name: str, why: str) -> None:
        self._failures[name] += 1
        if self._failures[name] >= self._config.failures:
            self._rests_until[name] = self._clock() + self._config.rest_s
            logger.warning("member %s is not asked for %g s (%s)", name, self._config.rest_s, why)


class _Failure(NamedTuple):
    why: str  # error, value
    told: str  # to the log: no value of the request


def _students(rows: Rows, start: int, stop: int) -> Rows:
    """The rows of some students."""
    offsets = rows.offsets[start : stop + 1]
    return rows.take(np.arange(offsets[0], offsets[-1]), offsets - offsets[0])


def _answer(model: Member, past: Rows, targets: Rows) -> Probabilities | _Failure:
    """A member's probabilities, or what went wrong."""
    try:
        found = model.score(past, targets)
    except Exception as error:  # noqa: BLE001 - the border of the replica: the other members answer
        at = traceback.extract_tb(error.__traceback__)[-1]
        return _Failure("error", f"{type(error).__name__} at {at.filename}:{at.lineno}")
    if found.shape == (targets.rows,) and bool(((found >= 0) & (found <= 1)).all()):
        return found
    return _Failure("value", "its answers are no probabilities")
