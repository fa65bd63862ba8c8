"""What was foreseen and what came: predictions for stored users are joined to their next answers.

An outcome holds no user. A prediction is of the next answer to its question: the latest one made before an answer, and
not more than `KEPT_DAYS` before it, is joined to it, unless the log has an answer in between; it and the older ones are
gone then, so that a repeated event changes nothing. An answer whose clock is ahead stands where it was received.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, Engine, Table, delete, func, insert, select

from dkt_ray import metrics
from dkt_ray.events import tombstones
from dkt_ray.events.database import pieces, read, written
from dkt_ray.events.model import DAY_MS, Event
from dkt_ray.events.retention import remove
from dkt_ray.events.tables import EVENTS, OUTCOMES, PREDICTIONS, RECOMMENDATIONS
from dkt_ray.metrics import Estimate
from dkt_ray.privacy import Privacy

KEPT_DAYS: Final = 30
WINDOW: Final = 10_000  # outcomes of a bundle that figures are of, the latest ones
OPEN: Final = 10  # predictions of one user, question and bundle: an answer may be told of after later ones were made

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Prediction:
    """One probability that was told of a stored user."""

    user: str
    question: str
    bundle: str
    probability: float
    at: int  # ms UTC


@dataclass(frozen=True, slots=True)
class Recommended:
    """One question that a stored user was recommended."""

    user: str
    question: str
    bundle: str
    policy: str  # the rule, its settings, and its version
    candidates: int
    rank: int  # 1: first
    propensity: float  # probability that the policy shows it to him
    at: int  # ms UTC


class Joined(NamedTuple):
    """Outcomes of one bundle, the latest first."""

    probability: Floats
    correct: Ints
    at: Ints  # ms UTC of the answers


@dataclass(frozen=True)
class Outcomes:
    """Predictions, recommendations and outcomes in the database of the events."""

    engine: Engine
    privacy: Privacy

    def keep(self, predictions: Sequence[Prediction], recommended: Sequence[Recommended] = ()) -> int:
        """Keep what was told of users, of predictions the latest ones; of users who were deleted meanwhile, nothing.

        Returns:
            How many rows are kept.

        Raises:
            UnavailableError: the database does not answer.
        """

        def work(connection: Connection) -> int:
            users = {each.user for each in predictions} | {each.user for each in recommended}
            gone = self._forgotten(connection, users)
            kept = 0
            tables: list[tuple[Table, Sequence[Prediction | Recommended]]]
            tables = [(PREDICTIONS, predictions), (RECOMMENDATIONS, recommended)]
            for table, rows in tables:
                values = [asdict(row) for row in rows if row.user not in gone]
                if values:
                    connection.execute(insert(table), values)
                kept += len(values)
            _crowd_out(connection, [each for each in predictions if each.user not in gone])
            return kept

        return written(self.engine, work) if predictions or recommended else 0

    def join(self, events: Iterable[Event]) -> int:
        """Make outcomes of graded answers that were foreseen.

        Args:
            events: in the log already.

        Returns:
            How many there are.

        Raises:
            UnavailableError: the database does not answer.
        """
        known = (event for event in events if event.correct is not None)
        graded = sorted(known, key=lambda event: (_known_at(event), event.answered_at))
        if not graded:
            return 0
        return written(self.engine, lambda connection: sum(_join(connection, each) for each in pieces(graded)))

    def expire(self, now: int, window: int = WINDOW) -> int:
        """Remove predictions and recommendations older than `KEPT_DAYS`, and outcomes that no figure is of any more.

        Returns:
            How many rows.

        Raises:
            UnavailableError: the database does not answer.
        """
        tables = (PREDICTIONS, RECOMMENDATIONS)
        removed = sum(remove(self.engine, table, table.c.at < now - KEPT_DAYS * DAY_MS) for table in tables)
        for bundle in self.bundles():
            of_bundle = OUTCOMES.c.bundle == bundle
            oldest = (
                select(OUTCOMES.c.number).where(of_bundle).order_by(OUTCOMES.c.number.desc()).offset(window).limit(1)
            )
            if found := self._rows(oldest):
                removed += remove(self.engine, OUTCOMES, of_bundle, OUTCOMES.c.number <= found[0].number)
        return removed

    def bundles(self) -> list[str]:
        """Bundles that have outcomes, the one with the newest first."""
        query = select(OUTCOMES.c.bundle).group_by(OUTCOMES.c.bundle).order_by(func.max(OUTCOMES.c.number).desc())
        return [bundle for (bundle,) in self._rows(query)]

    def latest(self, bundle: str, window: int = WINDOW) -> Joined:
        """The latest outcomes of a bundle."""
        columns = (OUTCOMES.c.probability, OUTCOMES.c.correct, OUTCOMES.c.at)
        query = select(*columns).where(OUTCOMES.c.bundle == bundle).order_by(OUTCOMES.c.number.desc()).limit(window)
        found = np.array([tuple(row) for row in self._rows(query)], np.float64).reshape(-1, len(columns))
        return Joined(found[:, 0], found[:, 1].astype(np.int64), found[:, 2].astype(np.int64))

    def _rows(self, query: Any) -> Sequence[Any]:
        return read(self.engine, lambda connection: connection.execute(query).all())

    def _forgotten(self, connection: Connection, users: set[str]) -> set[str]:
        marks = {self.privacy.mark(user): user for user in users}
        return {marks[mark] for mark in tombstones.among(connection, marks)}


def figures(joined: Joined) -> dict[str, Any]:
    """outcomes (their number), log_loss, auc, ece, since and until (ms UTC of the answers); None: does not exist."""
    y, p = joined.correct, joined.probability
    times = {"since": int(joined.at.min()), "until": int(joined.at.max())} if len(y) else {"since": None, "until": None}
    told = {"log_loss": metrics.log_loss(y, p), "auc": metrics.auc(y, p), "ece": metrics.ece(y, p)}
    return {"outcomes": len(y)} | told | times


def worse_by(live: Joined, before: Joined | float, samples: int = metrics.SAMPLES, seed: int = 0) -> Estimate:
    """How much higher the log-loss of live outcomes is than that of others, or than a figure; with an interval.

    The bootstrap is over outcomes: they hold no users whose answers could be kept together.
    """
    first, drawn = _log_losses(live, samples, seed)
    if isinstance(before, float):
        return metrics.estimate(first - before, drawn - before)
    second, others = _log_losses(before, samples, seed + 1)
    return metrics.estimate(first - second, drawn - others)


def _log_losses(joined: Joined, samples: int, seed: int) -> tuple[float, Floats]:
    loss = metrics.surprise(joined.correct, joined.probability)
    each = np.arange(len(loss))
    statistic = metrics.mean_statistic(loss, each)
    return float(loss.mean()), metrics.bootstrap({"log_loss": statistic}, len(loss), samples, seed)["log_loss"]


def _crowd_out(connection: Connection, predictions: Sequence[Prediction]) -> None:
    """Of each user, question and bundle, leave the `OPEN` latest predictions."""
    same = (PREDICTIONS.c.user, PREDICTIONS.c.question, PREDICTIONS.c.bundle)
    latest_first = (PREDICTIONS.c.at.desc(), PREDICTIONS.c.number.desc())
    place = func.row_number().over(partition_by=same, order_by=latest_first).label("place")
    for chosen in pieces(predictions):
        users, questions = ({getattr(each, name) for each in chosen} for name in ("user", "question"))
        ranked = select(PREDICTIONS.c.number, place).where(
            PREDICTIONS.c.user.in_(users), PREDICTIONS.c.question.in_(questions)
        )
        found = ranked.subquery()
        connection.execute(
            delete(PREDICTIONS).where(PREDICTIONS.c.number.in_(select(found.c.number).where(found.c.place > OPEN)))
        )


def _join(connection: Connection, events: Sequence[Event]) -> int:
    foreseen = _foreseen(connection, events)
    met: list[tuple[Event, Any]] = []
    used: list[int] = []
    for event in events:
        waiting = foreseen[event.user, event.question]
        before = [row for row in waiting if row.at <= _known_at(event)]
        if not before:
            continue
        if before[-1].at >= _known_at(event) - KEPT_DAYS * DAY_MS:
            met.append((event, before[-1]))
        used += [row.number for row in before]
        foreseen[event.user, event.question] = waiting[len(before) :]
    for chosen in pieces(used):
        connection.execute(delete(PREDICTIONS).where(PREDICTIONS.c.number.in_(chosen)))
    answers = _answers(connection, met)
    made = [
        {"bundle": row.bundle, "probability": row.probability, "correct": event.correct, "at": event.answered_at}
        for event, row in met
        if not any(row.at <= at < _known_at(event) for at in answers[event.user, event.question])
    ]
    if made:
        connection.execute(insert(OUTCOMES), made)
    return len(made)


def _answers(connection: Connection, met: Sequence[tuple[Event, Any]]) -> dict[tuple[str, str], list[int]]:
    """When users had answered questions, by the log, ms UTC, from the oldest of some predictions on."""
    users, questions = ({getattr(event, name) for event, _ in met} for name in ("user", "question"))
    query = select(EVENTS.c.user, EVENTS.c.question, EVENTS.c.answered_at, EVENTS.c.received_at).where(
        EVENTS.c.user.in_(users),
        EVENTS.c.question.in_(questions),
        EVENTS.c.answered_at >= min((row.at for _, row in met), default=0),
    )
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row in connection.execute(query) if met else ():
        found[row.user, row.question].append(_known_at(row))
    return found


def _known_at(answer: Event | Any) -> int:
    """When an answer was there, ms UTC: no later than it was received, though the client's clock may say so."""
    return int(min(answer.answered_at, answer.received_at))


def _foreseen(connection: Connection, events: Sequence[Event]) -> dict[tuple[str, str], list[Any]]:
    """Predictions by user and question, oldest first."""
    users, questions = ({getattr(event, name) for event in events} for name in ("user", "question"))
    query = (
        select(PREDICTIONS)
        .where(PREDICTIONS.c.user.in_(users), PREDICTIONS.c.question.in_(questions))
        .order_by(PREDICTIONS.c.at, PREDICTIONS.c.number)
    )
    found: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for row in connection.execute(query):
        found[row.user, row.question].append(row)
    return found
