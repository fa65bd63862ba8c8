"""How a request of the HTTP API becomes a `Query`: fields checked together, times in ms, concepts sorted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise

from dkt_ray.data.query import Query
from dkt_ray.schema import CONCEPT_SEPARATOR
from dkt_ray.serving.contract import MAX_ROWS, Event, FieldError, StudentRequest, Target


def query(request: StudentRequest, targets: Sequence[Target]) -> Query:
    """A request as columns.

    Raises:
        FieldError: too many rows together, events out of order, or only some of them timed.
    """
    return replace(
        of_known(request, [target.question for target in targets]),
        target_test=[target.test or "" for target in targets],
        target_concepts=[_canonical(target.concepts) for target in targets],
    )


def of_known(request: StudentRequest, questions: Sequence[str]) -> Query:
    """A request as columns, asked for questions whose test and concepts the model knows.

    Raises:
        FieldError: as `query`.
    """
    history = request.history
    if len(history) + len(questions) > MAX_ROWS:
        raise FieldError(
            "/history",
            f"{len(history)} events, {len(questions)} targets; expected at most {MAX_ROWS} together: send the latest",
        )
    return Query(
        question=[event.question for event in history],
        correct=[event.correct for event in history],
        test=[event.test or "" for event in history],
        concepts=[_canonical(event.concepts) for event in history],
        timestamp=_times(history),
        target=questions,
        at=None if request.at is None else _milliseconds(request.at),
    )


def _times(history: Sequence[Event]) -> list[int] | None:
    times = [_milliseconds(event.timestamp) for event in history if event.timestamp is not None]
    if not times:
        return None
    if len(times) < len(history):
        missing = next(index for index, event in enumerate(history) if event.timestamp is None)
        raise FieldError(f"/history/{missing}/timestamp", "missing, while other events have one; send all or none")
    for index, (before, after) in enumerate(pairwise(times), 1):
        if after < before:
            raise FieldError(f"/history/{index}/timestamp", "earlier than the event before it; send the oldest first")
    return times


def _milliseconds(time: datetime) -> int:
    return round((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)


def _canonical(concepts: Sequence[str] | None) -> str:
    if not concepts:
        return ""
    tags = {tag.strip() for concept in concepts for tag in concept.split(CONCEPT_SEPARATOR)}
    return CONCEPT_SEPARATOR.join(sorted(tags - {""}))
