"""A student's request as plain columns, and many of them gathered into one `Histories` and `Targets`.

A request over HTTP, a golden request of a bundle and a probe of the knowledge state are all a `Query`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from dkt_ray.data.history import Coded, Histories, Int64, Targets


@dataclass(frozen=True, slots=True)
class Query:
    """What one student did, oldest first, and the questions to be scored; an empty past is legal."""

    question: Sequence[str]  # [T]
    correct: Sequence[int]  # [T], 1 or 0
    target: Sequence[str]  # [M] questions to be scored
    test: Sequence[str] | None = None  # [T], "" where unknown
    concepts: Sequence[str] | None = None  # [T], canonical, "" where unknown
    timestamp: Sequence[int] | None = None  # [T], ms UTC
    target_test: Sequence[str] | None = None  # [M]
    target_concepts: Sequence[str] | None = None  # [M]
    at: int | Sequence[int] | None = None  # ms UTC: when the targets are shown, all of them or each, [M]
    seen: Sequence[int] | None = None  # [M] after how many of the past interactions each target stands; None: all

    @property
    def timing(self) -> tuple[bool, bool]:
        """Whether the past is timed, and then whether the targets are: queries that agree can be gathered."""
        timed = self.timestamp is not None and len(self.timestamp) > 0
        return timed, timed and self.at is not None

    @property
    def rows(self) -> int:
        """Number of past interactions and targets together."""
        return len(self.question) + len(self.target)


def gather(queries: Sequence[Query]) -> tuple[Histories, Targets]:
    """Columns of many queries, one after another; all of them must have the same `timing`."""
    assert len({query.timing for query in queries}) == 1, "queries of different timing"
    timed, shown = queries[0].timing
    histories = Histories(
        users=np.array([str(index) for index in range(len(queries))], object),
        offsets=_offsets(len(query.question) for query in queries),
        question=_coded(query.question for query in queries),
        test=_coded(query.test or [""] * len(query.question) for query in queries),
        concepts=_coded(query.concepts or [""] * len(query.question) for query in queries),
        correct=np.fromiter(chain.from_iterable(query.correct for query in queries), np.int8),
        timestamp=_times(queries) if timed else None,
    )
    offsets = _offsets(len(query.target) for query in queries)
    earlier = any(query.seen is not None for query in queries)
    targets = Targets(
        offsets,
        _coded(query.target for query in queries),
        _coded(query.target_test or [""] * len(query.target) for query in queries),
        _coded(query.target_concepts or [""] * len(query.target) for query in queries),
        _joined((query.at, len(query.target)) for query in queries) if shown else None,
        _joined((len(q.question) if q.seen is None else q.seen, len(q.target)) for q in queries) if earlier else None,
    )
    return histories, targets


def _times(queries: Iterable[Query]) -> Int64:
    return np.fromiter(chain.from_iterable(query.timestamp or () for query in queries), np.int64)


def _joined(columns: Iterable[tuple[int | Sequence[int] | None, int]]) -> Int64:
    """Columns one after another; one number stands for as many as are wanted."""
    return np.concatenate([np.broadcast_to(np.array(numbers, np.int64), wanted) for numbers, wanted in columns])


def _offsets(lengths: Iterable[int]) -> Int64:
    return np.concatenate([[0], np.cumsum(np.fromiter(lengths, np.int64))]).astype(np.int64)


def _coded(columns: Iterable[Sequence[str]]) -> Coded:
    return Coded.of(list(chain.from_iterable(columns)))
