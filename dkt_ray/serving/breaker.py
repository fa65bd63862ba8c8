"""Circuit breakers: a member that fails is left out of the answer; one that goes on failing is not asked for a while.

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
from typing import TYPE_CHECKING

from pydantic import Field

from dkt_ray.config import Config

if TYPE_CHECKING:  # who deploys needs the settings only, not torch
    from dkt_ray.ensemble.scorer import Member, Members
    from dkt_ray.features.batch import Rows
    from dkt_ray.models.base import Probabilities

logger = logging.getLogger(__name__)


class BreakerConfig(Config):
    """When a member is left out."""

    member_timeout_s: float = Field(default=5.0, gt=0)
    """Time share of a member for a batch of up to 1,000 rows (events and targets); in proportion for larger ones."""
    failures: int = Field(default=3, ge=1)
    """Batches in a row that fail (an error, an answer that is no probability, too slow) before it is not asked."""
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

    def __call__(self, members: Members, past: Rows, targets: Rows) -> dict[str, Probabilities]:
        """The probabilities of the members that answered."""
        now = self._clock()
        resting = {name for name in members if self._rests_until.get(name, now) > now}
        answers = self._ask({name: model for name, model in members.items() if name not in resting}, past, targets)
        if not answers:
            answers = self._ask({name: members[name] for name in sorted(resting)}, past, targets)
        self.counts.update((name, "resting") for name in resting - set(answers))
        return {name: answers[name] for name in members if name in answers}

    def _ask(self, members: Members, past: Rows, targets: Rows) -> dict[str, Probabilities]:
        answers = {}
        limit_s = self._config.member_timeout_s * max(1.0, (past.rows + targets.rows) / 1000)
        for name, model in members.items():
            started = self._clock()
            answer, failure = _answer(name, model, past, targets)
            if answer is not None:
                answers[name] = answer
                failure = "slow" if self._clock() - started > limit_s else None
            self._note(name, failure)
        return answers

    def _note(self, name: str, failure: str | None) -> None:
        if failure is None:
            self._failures[name] = 0
            return
        self.counts[name, failure] += 1
        self._failures[name] += 1
        if self._failures[name] >= self._config.failures:
            self._rests_until[name] = self._clock() + self._config.rest_s
            logger.warning("member %s is not asked for %g s (%s)", name, self._config.rest_s, failure)


def _answer(name: str, model: Member, past: Rows, targets: Rows) -> tuple[Probabilities | None, str | None]:
    """A member's probabilities, or None and what went wrong; the log gets no value of the request."""
    try:
        found = model.score(past, targets)
    except Exception as error:  # noqa: BLE001 - the border of the replica: the other members answer
        at = traceback.extract_tb(error.__traceback__)[-1]
        logger.warning("member %s left out: %s at %s:%s", name, type(error).__name__, at.filename, at.lineno)
        return None, "error"
    if found.shape == (targets.rows,) and bool(((found >= 0) & (found <= 1)).all()):
        return found, None
    logger.warning("member %s left out: its answers are no probabilities", name)
    return None, "value"
