"""How a request of the HTTP API becomes a `Query`: fields checked together, times in ms, concepts sorted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Final, NamedTuple

from dkt_ray.data.query import Query
from dkt_ray.schema import CONCEPT_SEPARATOR
from dkt_ray.serving.contract import MAX_ROWS, Event, FieldError, StudentRequest, Target

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
EPOCH_UTC: Final = EPOCH.replace(tzinfo=None)


class Student(NamedTuple):
    """Whom a request is about."""

    past: Query  # without targets
    key: str | None  # decides who answers while a rollout tries out another bundle
    user: str | None = None  # the stored name, where his answers are kept here
    older: int = 0  # kept answers before the past, which are not read


def brought(request: StudentRequest) -> Student:
    """The student of a request that brings the history along.

    Raises:
        FieldError: events out of order, or only some of them timed.
    """
    history = request.history
    past = Query(
        question=[event.question for event in history],
        correct=[event.correct for event in history],
        test=[event.test or "" for event in history],
        concepts=[canonical(event.concepts) for event in history],
        timestamp=_times(history),
        target=(),
        at=shown(request),
    )
    return Student(past, request.student)


def shown(request: StudentRequest) -> int | None:
    """When the targets are shown, ms UTC."""
    return None if request.at is None else milliseconds(request.at)


def query(past: Query, targets: Sequence[Target]) -> Query:
    """A past that is asked for targets.

    Raises:
        FieldError: too many rows together.
    """
    return replace(
        of_known(past, [target.question for target in targets]),
        target_test=[target.test or "" for target in targets],
        target_concepts=[canonical(target.concepts) for target in targets],
    )


def of_known(past: Query, questions: Sequence[str]) -> Query:
    """A past that is asked for questions whose test and concepts the model knows.

    Raises:
        FieldError: as `query`.
    """
    events = len(past.question)
    if events + len(questions) > MAX_ROWS:
        raise FieldError(
            "/history",
            f"{events} events, {len(questions)} targets; expected at most {MAX_ROWS} together: send the latest",
        )
    return replace(past, target=questions)


def milliseconds(time: datetime) -> int:
    """UTC, rounded; a time without a zone is UTC already."""
    return round((time - (EPOCH if time.tzinfo else EPOCH_UTC)).total_seconds() * 1000)


def canonical(concepts: Sequence[str] | None) -> str:
    """Concepts as one sorted text; "" where there are none."""
    if not concepts:
        return ""
    tags = {tag.strip() for concept in concepts for tag in concept.split(CONCEPT_SEPARATOR)}
    return CONCEPT_SEPARATOR.join(sorted(tags - {""}))


def _times(history: Sequence[Event]) -> list[int] | None:
    times = [milliseconds(event.timestamp) for event in history if event.timestamp is not None]
    if not times:
        return None
    if len(times) < len(history):
        missing = next(index for index, event in enumerate(history) if event.timestamp is None)
        raise FieldError(f"/history/{missing}/timestamp", "missing, while other events have one; send all or none")
    for index, (before, after) in enumerate(pairwise(times), 1):
        if after < before:
            raise FieldError(f"/history/{index}/timestamp", "earlier than the event before it; send the oldest first")
    return times
