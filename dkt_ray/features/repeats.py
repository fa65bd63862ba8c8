"""The recursion of repeated questions, as in features/kernels.py: does a student answer them as the time before?

Students review in the order of an earlier session, and platforms log a stretch twice: then an answer is known before it
is given, and no rate tells so.

Legend: Q query rows; `out` is [Q, one column per quantity].
"""

from __future__ import annotations

from math import log1p
from typing import Final

import numba
import numpy as np

from dkt_ray.features.kernels import Floats, Int8, Int32, Int64

REPEATS: Final = ("graded", "same", "recent_graded", "recent_same", "streak", "in_order", "vote", "replay_vote")
RECENT: Final = 10  # repeats that `recent` looks at


@numba.njit(cache=True, nogil=True)
def repeats(
    questions: Int32,
    correct: Int8,
    offsets: Int64,
    query_questions: Int32,
    visible: Int32,
    query_offsets: Int64,
    order: Int64,
    size: int,
    out: Floats,
) -> None:
    """Answers to questions that the student had met before, against the answer of the time before.

    A repeat counts where both answers are known. A stretch is replayed in order where rows that follow each other lie
    equally far from the last rows of the same questions; the query continues it where it lies as far from its own.

    Columns: those of REPEATS: repeats and those with the same answer, both also of the last RECENT repeats; equal
    answers in a row; rows replayed in order that the query continues; log(1 + x) of these two, with the sign of the
    last answer to the query's question (0 where there is none).
    """
    last = np.full(size, -1, np.int64)
    for user in range(len(offsets) - 1):
        start = offsets[user]
        row = start
        graded, same, streak, ordered, distance = 0, 0, 0, 0, 0
        recent = np.zeros(RECENT, np.int64)
        for i in range(query_offsets[user], query_offsets[user + 1]):
            query = order[i]
            while row < start + visible[query]:
                before = last[questions[row]] if questions[row] >= 0 else -1
                step = row - before if before >= 0 else 0
                ordered = 0 if step == 0 else ordered + 1 if step == distance else 1
                distance = step
                if before >= 0 and correct[row] >= 0 and correct[before] >= 0:
                    alike = 1 if correct[row] == correct[before] else 0
                    recent[graded % RECENT] = alike
                    graded += 1
                    same += alike
                    streak = streak + 1 if alike else 0
                if questions[row] >= 0:
                    last[questions[row]] = row
                row += 1
            key = query_questions[query]
            before = last[key] if key >= 0 else -1
            continued = ordered if before >= 0 and start + visible[query] - before == distance else 0
            sign = 2 * correct[before] - 1 if before >= 0 and correct[before] >= 0 else 0
            out[query, 0] = graded
            out[query, 1] = same
            out[query, 2] = min(graded, RECENT)
            out[query, 3] = recent.sum()
            out[query, 4] = streak
            out[query, 5] = continued
            out[query, 6] = sign * log1p(streak)
            out[query, 7] = sign * log1p(continued)
        for done in range(start, row):
            if questions[done] >= 0:
                last[questions[done]] = -1
