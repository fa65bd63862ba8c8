"""The numeric features: causal columns of one row, read from the student's visible past and the encoder's state.

`FEATURES` is the one table of them. A feature is a function of `Past`, which answers questions such as "how many of the
visible rows had this concept, and how many were right" for all rows at once. Rows read nothing but what `visible` lets
them see, so history rows and many targets go through the same code.

Running counts are integers and sums of (answer - expected rate) are fixed point (1e-6), hence exact: a prefix of a
history gives bit-equal features.

Legend: U users, N past rows, Q query rows (the past itself, or targets), C concepts per row, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from dkt_ray.data.history import Int8, Int32, Int64

Floats = npt.NDArray[np.float64]

MICRO: Final = 1_000_000  # fixed-point unit of expected rates
PRIOR: Final = 2.0  # pseudo-answers that a student's own rates start from
MISSING: Final = -1.0  # log-seconds where a time is not known


class Tally(NamedTuple):
    """What the visible past holds under a row's key, [Q] each."""

    seen: Int64  # rows
    graded: Int64  # rows with a known answer
    right: Int64  # right answers
    surplus: Int64  # sum of (answer - expected rate) in 1e-6, over graded rows


@dataclass(frozen=True, eq=False)
class Past:
    """Source rows, and the query rows that ask about them."""

    offsets: Int64  # [U + 1] of the source rows
    keys: dict[str, Int32]  # [N, 1] or [N, C] call-local keys of the source rows, -1 = none
    sizes: dict[str, int]  # number of distinct keys
    correct: Int8  # [N]
    surplus: Int64  # [N] answer - expected rate in 1e-6, 0 where hidden
    timestamp: Int64 | None  # [N] ms

    query_offsets: Int64  # [U + 1]
    query_keys: dict[str, Int32]  # [Q, 1] or [Q, C]
    query_visible: Int32  # [Q]
    query_timestamp: Int64 | None  # [Q] ms: set only where a row may know its own time
    fitted: dict[str, Floats]  # [Q] columns of the encoder's state: log-odds and counts
    base_rate: float  # overall rate of right answers among training users
    _memory: dict[object, Tally] = field(default_factory=dict)

    def tally(self, key: str) -> Tally:
        """Counts over the visible rows that share the query's key (over all its concepts, where it has several)."""
        if key not in self._memory:
            self._memory[key] = self._in_order(key)
        return self._memory[key]

    def recent(self, rows: int) -> Tally:
        """Counts over the last `rows` visible rows."""
        if rows not in self._memory:
            stop = self.query_start + self.query_visible
            start = np.maximum(stop - rows, self.query_start)
            known = self.correct >= 0
            sums = [_span(v, start, stop) for v in (known, self.correct == 1, self.surplus)]
            self._memory[rows] = Tally(stop - start, *sums)
        return self._memory[rows]

    @property
    def query_start(self) -> Int64:
        """[Q] index of the first source row of the query's student."""
        return np.repeat(self.offsets[:-1], np.diff(self.query_offsets))

    def elapsed(self, back: int) -> Floats:
        """[Q] seconds between the last-but-`back` visible row and the one before it; -1 s where there are none."""
        if self.timestamp is None:
            return np.full(len(self.query_visible), MISSING)
        later = self.query_start + self.query_visible - 1 - back
        exists = self.query_visible >= back + 2
        later = np.where(exists, later, 1)
        if not len(self.timestamp):
            return np.full(len(self.query_visible), MISSING)
        seconds = (self.timestamp[np.minimum(later, len(self.timestamp) - 1)] - self.timestamp[later - 1]) / 1000.0
        return np.where(exists, np.maximum(seconds, 0.0), MISSING)

    def lag(self) -> Floats:
        """[Q] seconds from the last visible row to the query's own time; -1 s where either is not known."""
        if self.timestamp is None or self.query_timestamp is None or not len(self.timestamp):
            return np.full(len(self.query_visible), MISSING)
        last = np.where(self.query_visible > 0, self.query_start + self.query_visible - 1, 0)
        seconds = (self.query_timestamp - self.timestamp[last]) / 1000.0
        return np.where(self.query_visible > 0, np.maximum(seconds, 0.0), MISSING)

    def _in_order(self, key: str) -> Tally:
        keys = self.query_keys[key]
        visible = self.query_visible
        order = None
        if np.any(np.diff(visible) < 0):  # the kernel walks forward: sort each student's queries by what they see
            owner = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.query_offsets))
            order = np.lexsort((visible, owner))
            keys, visible = keys[order], visible[order]
        out = _walk(
            self.keys[key], self.correct, self.surplus, self.offsets, keys, visible, self.query_offsets, self.sizes[key]
        )
        if order is not None:
            sorted_out, out = out, np.empty_like(out)
            out[:, order] = sorted_out
        return Tally(*out)


@numba.njit(cache=True, nogil=True)
def _walk(
    keys: Int32,
    correct: Int8,
    surplus: Int64,
    offsets: Int64,
    query_keys: Int32,
    visible: Int32,
    query_offsets: Int64,
    size: int,
) -> Int64:
    """Two pointers per student: rows enter the counters when they become visible, queries read the counters."""
    counters = np.zeros((size, 4), np.int64)
    out = np.zeros((4, len(visible)), np.int64)
    for user in range(len(offsets) - 1):
        start = offsets[user]
        row = start
        for query in range(query_offsets[user], query_offsets[user + 1]):
            while row < start + visible[query]:
                for c in range(keys.shape[1]):
                    key = keys[row, c]
                    if key >= 0:
                        counters[key, 0] += 1
                        if correct[row] >= 0:
                            counters[key, 1] += 1
                            counters[key, 2] += correct[row]
                            counters[key, 3] += surplus[row]
                row += 1
            for c in range(query_keys.shape[1]):
                key = query_keys[query, c]
                if key >= 0:
                    for i in range(4):
                        out[i, query] += counters[key, i]
        for done in range(start, row):
            for c in range(keys.shape[1]):
                if keys[done, c] >= 0:
                    counters[keys[done, c], :] = 0
    return out


def _span(values: npt.NDArray[np.generic], start: Int64, stop: Int64) -> Int64:
    """Integer sums of values[start:stop] for many spans."""
    total = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    return total[stop] - total[start]


def _own_log_odds(past: Past, tally: Tally) -> Floats:
    """Smoothed log-odds of the student's own answers: PRIOR pseudo-answers at the overall rate."""
    right = tally.right + PRIOR * past.base_rate
    wrong = tally.graded - tally.right + PRIOR * (1.0 - past.base_rate)
    return np.log(right / wrong)


def _mean_surplus(tally: Tally) -> Floats:
    """Mean of (answer - expected rate), shrunk towards 0 by PRIOR pseudo-answers: ability net of difficulty."""
    return tally.surplus / MICRO / (tally.graded + PRIOR)


def _log_seconds(seconds: Floats) -> Floats:
    return np.where(seconds < 0, MISSING, np.log1p(np.maximum(seconds, 0.0)))


class Feature(NamedTuple):
    """One numeric column."""

    name: str
    compute: Callable[[Past], npt.NDArray[np.generic]]
    doc: str
    version: int = 1  # counts up when the same name comes to mean another number: older states and bundles are refused


def _count(key: str) -> Callable[[Past], Floats]:
    return lambda past: np.log1p(past.tally(key).seen)


def _odds(key: str) -> Callable[[Past], Floats]:
    return lambda past: _own_log_odds(past, past.tally(key))


def _surplus(key: str) -> Callable[[Past], Floats]:
    return lambda past: _mean_surplus(past.tally(key))


def _recent(rows: int) -> Callable[[Past], Floats]:
    return lambda past: _own_log_odds(past, past.recent(rows))


def _recent_surplus(rows: int) -> Callable[[Past], Floats]:
    return lambda past: _mean_surplus(past.recent(rows))


def _fitted(name: str) -> Callable[[Past], Floats]:
    return lambda past: past.fitted[name]


FEATURES: Final = (
    Feature("question_log_odds", _fitted("question"), "log-odds of a right answer to the question (training users)"),
    Feature("test_log_odds", _fitted("test"), "log-odds of a right answer in the question's test (training users)"),
    Feature("concept_log_odds", _fitted("concept"), "mean log-odds over the question's concepts (training users)"),
    Feature("question_count", _fitted("count"), "log(1 + graded answers to the question) among training users"),
    Feature("user_count", _count("user"), "log(1 + visible rows)"),
    Feature("user_log_odds", _odds("user"), "smoothed log-odds of the student's visible answers"),
    Feature("user_surplus", _surplus("user"), "mean of answer minus expected rate over the visible answers"),
    Feature("recent_5_log_odds", _recent(5), "smoothed log-odds of the last 5 visible answers"),
    Feature("recent_20_log_odds", _recent(20), "smoothed log-odds of the last 20 visible answers"),
    Feature(
        "recent_20_surplus", _recent_surplus(20), "mean of answer minus expected rate over the last 20 visible answers"
    ),
    Feature("user_concept_count", _count("concept"), "log(1 + visible rows that share a concept)"),
    Feature("user_concept_log_odds", _odds("concept"), "smoothed log-odds of the student on the question's concepts"),
    Feature(
        "user_concept_surplus", _surplus("concept"), "mean of answer minus expected rate on the question's concepts"
    ),
    Feature("user_test_count", _count("test"), "log(1 + visible rows of the same test)"),
    Feature("user_test_log_odds", _odds("test"), "smoothed log-odds of the student in the same test"),
    Feature("user_test_surplus", _surplus("test"), "mean of answer minus expected rate in the same test"),
    Feature("user_head_count", _count("head"), "log(1 + visible rows of the same head)"),
    Feature("user_head_log_odds", _odds("head"), "smoothed log-odds of the student in the same head"),
    Feature("user_head_surplus", _surplus("head"), "mean of answer minus expected rate in the same head"),
    Feature("user_question_count", _count("question"), "log(1 + earlier attempts at the question)"),
    Feature("user_question_log_odds", _odds("question"), "smoothed log-odds of the student's earlier attempts at it"),
    Feature(
        "lag_log", lambda past: _log_seconds(past.lag()), "log(1 + seconds since the last visible row), -1 unknown"
    ),
    Feature(
        "previous_elapsed_log",
        lambda past: _log_seconds(past.elapsed(0)),
        "log(1 + seconds between the last two visible rows), -1 unknown",
    ),
)
NUMBER_NAMES: Final = tuple(feature.name for feature in FEATURES)
VERSIONS: Final = tuple(f"{feature.name}@{feature.version}" for feature in FEATURES)


def numbers(past: Past) -> npt.NDArray[np.float32]:
    """All features of the query rows, float32 [Q, F]."""
    out = np.empty((len(past.query_visible), len(FEATURES)), np.float32)
    for column, feature in enumerate(FEATURES):
        out[:, column] = feature.compute(past)
    return out
