"""Circuit breakers: a member that fails is left out of the answer; one that goes on failing is not asked for a while.

A member that cannot read some students of a batch is left out of their answers only. Which they are is known from its
answers, or, where it raises, found by asking again for halves of the batch, as long as that stays cheap (`ASKS`).

Members are asked one after the other in one thread, where a member cannot be interrupted. One that is too slow has
answered by the time that this is known: its answers are used, and the delay counts as a failure. One that hangs is the
business of the replica's health check.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from pydantic import Field

from dkt_ray.config import Config
from dkt_ray.ensemble.opinions import Member, Members, Opinions

if TYPE_CHECKING:  # who deploys needs the settings only, not torch
    from dkt_ray.features.batch import Rows
    from dkt_ray.models.base import Probabilities

logger = logging.getLogger(__name__)

ASKS: Final = 4  # for each doubling of a batch's students; two whom a member cannot read are found by so many


class BreakerConfig(Config):
    """When a member is left out."""

    member_timeout_s: float = Field(default=5.0, gt=0)
    """Time share of a member for a batch of up to 1,000 rows (events and targets); in proportion for larger ones."""
    failures: int = Field(default=3, ge=1)
    """Batches in a row that fail (with all students, with more than a few tries find, or too slow) before it rests."""
    rest_s: float = Field(default=10.0, gt=0)
    """How long it rests, that is, is not asked; then one batch decides."""


class Breakers:
    """Asks the members of one ensemble, and goes without those that fail; see `Scorer.score_queries`.

    While all of them rest they are asked all the same: a doubtful answer is better than none.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, config: BreakerConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()  # batches by (member, why): error value slow resting some
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
            started = self._clock()
            said, why, told = _heard(model, past, targets)
            slow, all_tried = self._clock() - started > limit_s, True
            if why is not None:
                logger.warning("member %s: %s", name, told)
            if why == "error" and self._failures[name] < self._config.failures:  # else this batch decides
                said, all_tried = self._apart(model, past, targets, started + self._config.member_timeout_s)
            missing = np.isnan(said)
            if why is not None and missing.all():  # of no target there is nothing either
                self._failed(name, why)
                continue
            found.given[name] = said
            if missing.any():
                self.counts[name, "some"] += 1
                found.missing[name] = missing
            if slow or not all_tried:
                self._failed(name, "slow" if slow else "error")
            else:
                self._failures[name] = 0
        return found

    def _apart(self, model: Member, past: Rows, targets: Rows, until: float) -> tuple[Probabilities, bool]:
        """What a member that raised says of halves of the students, of halves of those with whom it raises, and so on.

        Args:
            until: when it is not asked any more.

        Returns:
            [M] what it said, NaN of whom that is nothing; and whether all students whom it can read were found.
        """
        students = len(targets.offsets) - 1
        said, waiting = np.full(targets.rows, np.nan), deque(_halves(0, students))
        asks = ASKS * (students - 1).bit_length()
        while waiting and asks and self._clock() <= until:
            start, stop = waiting.popleft()
            heard = _heard(model, _students(past, start, stop), _students(targets, start, stop))
            asks -= 1
            if heard.why == "error":
                waiting += _halves(start, stop)
            else:
                said[targets.offsets[start] : targets.offsets[stop]] = heard.said
        return said, not waiting

    def _failed(self, name: str, why: str) -> None:
        self.counts[name, why] += 1
        self._failures[name] += 1
        if self._failures[name] >= self._config.failures:
            self._rests_until[name] = self._clock() + self._config.rest_s
            logger.warning("member %s is not asked for %g s (%s)", name, self._config.rest_s, why)


class _Heard(NamedTuple):
    said: Probabilities  # [M], NaN for students of whom it is nothing, or no probability
    why: str | None = None  # error, value: it did not answer for all of them
    told: str = ""  # to the log, without a value of the request


def _heard(model: Member, past: Rows, targets: Rows) -> _Heard:
    """A member's probabilities, or what went wrong."""
    nothing = np.full(targets.rows, np.nan)
    try:
        said = model.score(past, targets)
    except Exception as error:  # noqa: BLE001 - the border of the replica: the other members answer
        at = traceback.extract_tb(error.__traceback__)[-1]
        return _Heard(nothing, "error", f"{type(error).__name__} at {at.filename}:{at.lineno}")
    if said.shape != nothing.shape:
        return _Heard(nothing, "value", f"its answers have the shape {said.shape}, not {nothing.shape}")
    wrong = ~((said >= 0) & (said <= 1))
    if not wrong.any():
        return _Heard(said)
    student = np.repeat(np.arange(len(targets.offsets) - 1), np.diff(targets.offsets))
    unread = np.isin(student, student[wrong])
    return _Heard(np.where(unread, np.nan, said), "value", "some answers are no probabilities")


def _halves(start: int, stop: int) -> list[tuple[int, int]]:
    """Both halves of a range of students; none of a single one."""
    middle = (start + stop) // 2
    return [(start, middle), (middle, stop)] if stop - start > 1 else []


def _students(rows: Rows, start: int, stop: int) -> Rows:
    """The rows of some students."""
    offsets = rows.offsets[start : stop + 1]
    return rows.take(np.arange(offsets[0], offsets[-1]), offsets - offsets[0])
