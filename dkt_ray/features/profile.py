"""The second fitting pass: what training users' answers say about each question beyond its counts; additive, exact.

It needs the counts of the first pass. Whatever a fold's users add is computed from that fold's own counts only (their
abilities, their residuals), so that leaving a fold out leaves all of it out.

Legend: U users, N rows, J questions, B ability bins, S duration bins, D sketch width, K folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Final

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dkt_ray.data.history import Coded, Histories, Int8, Int32, Int64, Strings
from dkt_ray.data.splits import stable_hash
from dkt_ray.features.difficulty import Counts
from dkt_ray.features.kernels import MICRO
from dkt_ray.features.quantities import PAUSE_MS

ABILITIES: Final = np.linspace(-3.0, 3.0, 13)  # [B] centres of the ability bins, on the log-odds scale
ABILITY_PRIOR: Final = 1.0  # variance of a student's ability before the first answer
ABILITY_STEPS, ABILITY_ENOUGH = 40, 1e-6  # Newton steps at most, and the step that is the last one
QUESTION_PRIOR: Final = 4.0  # pseudo-answers at the fold's rate that a question's own rate starts from
DURATION_EDGES_MS: Final = np.rint(1000 * np.geomspace(1, PAUSE_MS / 1000, 31)).astype(np.int64)  # [S - 1]
SKETCH: Final = 32  # D
LAG_SECONDS: Final = 601  # 1-second bins of the time between two rows; the last one holds all longer ones

COLUMNS: Final = {
    "graded": len(ABILITIES),
    "right": len(ABILITIES),
    "durations": len(DURATION_EDGES_MS) + 1,
    "sketch": SKETCH,
}
_WIDTH: Final = sum(COLUMNS.values())


@dataclass(frozen=True, eq=False)
class Profile:
    """Integer tables per question and fold, and the times between rows; profiles of disjoint users add up."""

    question: Strings  # [J x K at most] distinct with `fold`, sorted
    fold: Int8
    values: Int64  # [len(question), the columns of COLUMNS one after another]
    lags: Int64  # [LAG_SECONDS] rows by whole seconds since the row before

    def column(self, name: str) -> Int64:
        """One of COLUMNS: graded and right answers by ability, right answers by duration, or the sketch."""
        names = list(COLUMNS)
        start = sum(COLUMNS[each] for each in names[: names.index(name)])
        return self.values[:, start : start + COLUMNS[name]]

    @classmethod
    def empty(cls) -> Profile:
        """The profile of nobody."""
        nothing = np.empty(0, object), np.empty(0, np.int8), np.empty((0, _WIDTH), np.int64)
        return cls(*nothing, np.zeros(LAG_SECONDS, np.int64))

    def to_table(self) -> pa.Table:
        """The profile as an Arrow table; the lags travel as the row of the empty question."""
        lags = np.zeros((-(-LAG_SECONDS // _WIDTH), _WIDTH), np.int64)
        lags.ravel()[:LAG_SECONDS] = self.lags
        values = np.concatenate([self.values, lags])
        return pa.table(
            {
                "question": pa.array([*self.question, *[None] * len(lags)], pa.string()),
                "fold": pa.array(np.concatenate([self.fold, np.zeros(len(lags), np.int8)]), pa.int8()),
                "values": pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), _WIDTH),
            }
        )

    @classmethod
    def from_table(cls, table: pa.Table) -> Profile:
        """Read back what `to_table` gave."""
        values = table["values"].combine_chunks().flatten().to_numpy().reshape(-1, _WIDTH)
        rows = table.num_rows - -(-LAG_SECONDS // _WIDTH)
        names = table["question"].to_numpy()[:rows].astype(object)
        return cls(names, table["fold"].to_numpy()[:rows], values[:rows], values[rows:].ravel()[:LAG_SECONDS])

    def without(self, fold: int) -> Profile:
        """The profile of all other folds (the lags hold no answers and stay)."""
        keep = self.fold != fold
        return Profile(self.question[keep], self.fold[keep], self.values[keep], self.lags)

    def collapsed(self) -> Profile:
        """The sum over folds."""
        return _grouped(self.question, np.zeros(len(self.fold), np.int8), self.values, self.lags)


def profile(histories: Histories, fold: Int8, counts: Counts, submitted: bool) -> Profile:
    """Profile the answers of training users (`fold >= 0`).

    Args:
        fold: [U] fold of each user, -1 for those who are not counted.
        counts: of the first pass, over all users.
        submitted: timestamps are those of submission (else of showing): whose question the time between two rows is.
    """
    users = np.flatnonzero(fold >= 0)
    training, fold = histories.select(users), fold[users]
    present = np.unique(training.question.codes)
    names = training.question.values[present]
    local = np.zeros(len(training.question.values), np.int32)
    local[present] = np.arange(len(present))
    rate = _own_rates(names, counts)  # [K, J]
    folds = len(rate)
    values = np.zeros((max(folds, 1) * len(names), _WIDTH), np.int64)
    lags = np.zeros(LAG_SECONDS, np.int64)
    timed = training.timestamp is not None
    time = training.timestamp if training.timestamp is not None else np.zeros(training.rows, np.int64)
    if training.rows:
        signs = _signs(names)
        logit = np.log(rate / (1.0 - rate))
        arguments = (local[training.question.codes], training.correct, training.offsets, fold, logit)
        _answers(*arguments, ABILITIES, ABILITY_PRIOR, values)
        _sketches(*arguments[:4], rate, signs, values, _WIDTH - SKETCH)
        if timed:
            _durations(*arguments[:3], time, fold, submitted, len(names), DURATION_EDGES_MS, values, lags)
    question = np.tile(names, max(folds, 1))
    of = np.repeat(np.arange(max(folds, 1)), len(names)).astype(np.int8)
    used = values.any(1)
    return _grouped(question[used], of[used], values[used], lags)


def merge_profiles(profiles: Sequence[Profile]) -> Profile:
    """Add profiles; the result does not depend on their order."""
    return _grouped(
        np.concatenate([each.question for each in profiles]),
        np.concatenate([each.fold for each in profiles]),
        np.concatenate([each.values for each in profiles]),
        reduce(np.add, [each.lags for each in profiles]),
    )


def _grouped(question: Strings, fold: Int8, values: Int64, lags: Int64) -> Profile:
    """Sum the rows of each question and fold, in sorted order."""
    if not len(question):
        return Profile(question.astype(object), fold, values, lags)
    coded = Coded.of(question.tolist())
    rank = np.argsort(np.argsort(coded.values.astype(str)))
    key = rank[coded.codes] * (int(fold.max()) + 1) + fold
    distinct, first, group = np.unique(key, return_index=True, return_inverse=True)
    summed = np.zeros((len(distinct), values.shape[1]), np.int64)
    np.add.at(summed, group, values)
    return Profile(question[first], fold[first], summed, lags)


def _own_rates(names: Strings, counts: Counts) -> npt.NDArray[np.float64]:
    """[K, J] rate of right answers to each question in each fold, smoothed towards the fold's own rate."""
    table = counts.table
    fold = table["fold"].to_numpy()
    folds = int(fold.max(initial=-1)) + 1
    place = {name: index for index, name in enumerate(names)}
    items = np.array([place.get(name, len(names)) for name in table["question"].to_pylist()], np.int64)
    graded, right = (np.zeros((folds, len(names) + 1), np.int64) for _ in range(2))
    for total, column in ((graded, "graded"), (right, "right")):
        np.add.at(total, (fold, items), table[column].to_numpy())
    overall = (right.sum(1) + 1) / (graded.sum(1) + 2)
    smoothed = (right + QUESTION_PRIOR * overall[:, None]) / (graded + QUESTION_PRIOR)
    return smoothed[:, :-1]


def _signs(names: Strings) -> npt.NDArray[np.float64]:
    """[J, D] +1 and -1 by a hash of the question (Achlioptas 2003, section 1: random projection with signs)."""
    bits = stable_hash(names, 0x5EED) >> np.arange(SKETCH, dtype=np.uint64)[:, None] & np.uint64(1)
    return np.ascontiguousarray(bits.T.astype(np.float64) * 2.0 - 1.0)


@numba.njit(cache=True, nogil=True)
def _answers(
    question: Int32, correct: Int8, offsets: Int64, fold: Int8, logit: npt.NDArray[np.float64],
    centres: npt.NDArray[np.float64], variance: float, values: Int64,
) -> None:  # fmt: skip
    """Graded and right answers by the student's ability: the mode of its posterior, by Newton steps of at most 1."""
    bins = len(centres)
    width = centres[1] - centres[0]
    questions = logit.shape[1]
    for user in range(len(offsets) - 1):
        ability = 0.0
        for _ in range(ABILITY_STEPS):
            slope = -ability / variance
            curve = -1.0 / variance
            for row in range(offsets[user], offsets[user + 1]):
                if correct[row] >= 0:
                    p = 1.0 / (1.0 + np.exp(-(ability + logit[fold[user], question[row]])))
                    slope += correct[row] - p
                    curve -= p * (1.0 - p)
            step = min(max(-slope / curve, -1.0), 1.0)
            ability += step
            if abs(step) < ABILITY_ENOUGH:
                break
        place = min(max(round((ability - centres[0]) / width), 0), bins - 1)
        for row in range(offsets[user], offsets[user + 1]):
            if correct[row] >= 0:
                line = fold[user] * questions + question[row]
                values[line, place] += 1
                values[line, bins + place] += correct[row]


@numba.njit(cache=True, nogil=True)
def _sketches(
    question: Int32, correct: Int8, offsets: Int64, fold: Int8, rate: npt.NDArray[np.float64],
    signs: npt.NDArray[np.float64], values: Int64, column: int,
) -> None:  # fmt: skip
    """Each question's row of the co-success matrix (products of residuals of one student), projected on the signs.

    A student's products weigh 1 / rows, so that nobody counts with the square of the history.
    """
    width = signs.shape[1]
    profile = np.zeros(width, np.float64)
    for user in range(len(offsets) - 1):
        start, stop = offsets[user], offsets[user + 1]
        profile[:] = 0.0
        for row in range(start, stop):
            if correct[row] >= 0:
                residual = correct[row] - rate[fold[user], question[row]]
                for d in range(width):
                    profile[d] += signs[question[row], d] * residual
        for row in range(start, stop):
            if correct[row] >= 0:
                residual = correct[row] - rate[fold[user], question[row]]
                line = fold[user] * rate.shape[1] + question[row]
                for d in range(width):
                    others = profile[d] - signs[question[row], d] * residual
                    values[line, column + d] += round(MICRO * residual * others / (stop - start))


@numba.njit(cache=True, nogil=True)
def _durations(
    question: Int32, correct: Int8, offsets: Int64, time: Int64, fold: Int8, submitted: bool, questions: int,
    edges: Int64, values: Int64, lags: Int64,
) -> None:  # fmt: skip
    """Right answers by the time spent on them, and all times between rows."""
    column = 2 * len(ABILITIES)
    for user in range(len(offsets) - 1):
        for row in range(offsets[user] + 1, offsets[user + 1]):
            gap = time[row] - time[row - 1]
            lags[min(max(gap // 1000, 0), len(lags) - 1)] += 1
            on = row if submitted else row - 1
            if correct[on] == 1 and 0 <= gap <= edges[-1]:
                line = fold[user] * questions + question[on]
                values[line, column + np.searchsorted(edges, gap)] += 1
