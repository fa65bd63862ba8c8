"""The recursions behind the features: compiled loops that walk each student's rows once, in order.

Every loop has two pointers per student: a row enters the counters when it becomes visible, a query reads the counters.
Counters are integers (or floats that are always summed from the student's first row on), so a prefix, a batch and a
batch of one give equal bits.

Legend: U users, N source rows, Q query rows, C keys per row, D sketch width; `out` is [Q, one column per quantity].
"""

from __future__ import annotations

from math import exp, log, log1p
from typing import Final

import numba
import numpy as np
import numpy.typing as npt

Int8 = npt.NDArray[np.int8]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

NEVER: Final = -1.0  # a time, duration or place that does not exist
MICRO: Final = 1_000_000  # fixed-point unit of expected rates
DAY_MS: Final = 86_400_000
BY_KEY: Final = (
    *("seen", "graded", "right", "surplus", "last", "last_answer", "last_ms", "span_ms", "repeats", "fading", "faded"),
)
NGRAM: Final = 4  # answers in the n-gram
UNSEEN_ANSWER: Final = -2.0


@numba.njit(cache=True, nogil=True)
def by_key(
    keys: Int32,
    correct: Int8,
    surplus: Int64,
    time: Int64,
    offsets: Int64,
    query_keys: Int32,
    visible: Int32,
    now: Int64,
    query_offsets: Int64,
    order: Int64,
    size: int,
    decay: float,
    recents: Int64,
    windows: Int64,
    out: Floats,
) -> None:
    """What the visible past holds under a row's key; where a row has several (concepts), the sum over them.

    A row that shares two keys with the query counts twice; `last`, its answer and its time are those of the latest row
    under any key, `span_ms` runs from a key's first row to its last, `repeats` are the rows of a key after its first.

    Columns: those of BY_KEY, then graded, right and surplus of the last n rows of the key for each n of `recents`, then
    seen, graded and right of the key's rows in the last w milliseconds before `now` for each w of `windows`.
    """
    width = keys.shape[1]
    count = np.zeros((size, 4), np.int64)
    last = np.full(size, -1, np.int64)
    first = np.full(size, -1, np.int64)
    fading = np.zeros((size, 2), np.float64)
    listed = len(recents) + len(windows) > 0
    longest = 0
    for user in range(len(offsets) - 1):
        longest = max(longest, offsets[user + 1] - offsets[user])
    room = np.zeros(size if listed else 0, np.int64)
    base = np.zeros(size if listed else 0, np.int64)
    when = np.empty(longest * width if listed else 0, np.int64)
    total = np.empty((longest * width if listed else 0, 3), np.int64)
    columns = len(BY_KEY)
    for user in range(len(offsets) - 1):
        start = offsets[user]
        if listed:
            _lay_out(keys, start, offsets[user + 1], room, base)
        row = start
        for i in range(query_offsets[user], query_offsets[user + 1]):
            query = order[i]
            while row < start + visible[query]:
                for c in range(width):
                    key = keys[row, c]
                    if key < 0:
                        continue
                    known = correct[row] >= 0
                    if known:
                        count[key, 1] += 1
                        count[key, 2] += correct[row]
                        count[key, 3] += surplus[row]
                        fading[key, 0] = decay * fading[key, 0] + correct[row]
                        fading[key, 1] = decay * fading[key, 1] + 1.0
                    if listed:
                        slot = base[key] + count[key, 0]
                        when[slot] = time[row]
                        for k in range(3):
                            total[slot, k] = count[key, k + 1]
                    count[key, 0] += 1
                    last[key] = row
                    if first[key] < 0:
                        first[key] = row
                row += 1
            for k in range(out.shape[1]):
                out[query, k] = 0.0
            latest = -1
            for c in range(query_keys.shape[1]):
                key = query_keys[query, c]
                if key < 0 or count[key, 0] == 0:
                    continue
                for k in range(4):
                    out[query, k] += count[key, k]
                seen = count[key, 0]
                out[query, 7] += max(time[last[key]] - time[first[key]], 0)
                out[query, 8] += seen - 1
                out[query, 9] += fading[key, 0]
                out[query, 10] += fading[key, 1]
                latest = max(latest, last[key])
                for n in range(len(recents)):
                    before = seen - recents[n]
                    for k in range(3):
                        earlier = total[base[key] + before - 1, k] if before > 0 else 0
                        out[query, columns + 3 * n + k] += count[key, k + 1] - earlier
                for w in range(len(windows)):
                    at = columns + 3 * len(recents) + 3 * w
                    before = _later_than(when, base[key], base[key] + seen, now[query] - windows[w]) - base[key]
                    out[query, at] += seen - before
                    for k in range(2):
                        earlier = total[base[key] + before - 1, k] if before > 0 else 0
                        out[query, at + 1 + k] += count[key, k + 1] - earlier
            out[query, 4] = latest - start if latest >= 0 else NEVER
            out[query, 5] = correct[latest] if latest >= 0 else UNSEEN_ANSWER
            out[query, 6] = time[latest] if latest >= 0 else NEVER
        for done in range(start, row):
            for c in range(width):
                key = keys[done, c]
                if key >= 0:
                    count[key, :] = 0
                    fading[key, :] = 0.0
                    last[key] = -1
                    first[key] = -1


@numba.njit(cache=True, nogil=True)
def _lay_out(keys: Int32, start: int, stop: int, room: Int64, base: Int64) -> None:
    """Give each key of a student's rows a place of its own for the list of its rows."""
    for row in range(start, stop):
        for c in range(keys.shape[1]):
            if keys[row, c] >= 0:
                room[keys[row, c]] += 1
    place = 0
    for row in range(start, stop):
        for c in range(keys.shape[1]):
            key = keys[row, c]
            if key >= 0 and room[key] > 0:
                base[key] = place
                place += room[key]
                room[key] = 0


@numba.njit(cache=True, nogil=True)
def _later_than(when: Int64, low: int, high: int, bound: int) -> int:
    """First place in when[low:high] (ascending) whose time is above the bound."""
    while low < high:
        middle = (low + high) // 2
        if when[middle] > bound:
            high = middle
        else:
            low = middle + 1
    return low


@numba.njit(cache=True, nogil=True)
def trace(
    correct: Int8,
    time: Int64,
    expected_ms: Floats,
    attributed: int,
    offsets: Int64,
    visible: Int32,
    own: Int64,
    query_offsets: Int64,
    order: Int64,
    session_ms: int,
    cap_ms: int,
    out: Floats,
) -> None:
    """The thread of a student's last rows: lags, durations, answers in a row, session, tempo.

    `own` is the query's own time where it may be known, else -1. A duration is the time between two rows that follow
    each other; it was spent on the later one's question where `attributed` is 0 (timestamps of submission), on the
    earlier one's where it is 1 (timestamps of showing); above `cap_ms` it is a pause, not a duration.

    Columns: lag, elapsed 0, 1 and 2 rows back (ms), n-gram of the last answers (base 3, newest last), answers alike in
    a row (wrong ones negative), rows, graded and right answers of the session, ms since its start, number of sessions,
    rows with a duration, sum of log ratios of duration and expected duration, log ratio of the last one.
    """
    for user in range(len(offsets) - 1):
        start = offsets[user]
        row = start
        ngram = 0
        run = 0
        session = np.zeros(3, np.int64)
        began = np.int64(0)
        sessions = 0
        timed = 0
        tempo = 0.0
        latest = 0.0
        for i in range(query_offsets[user], query_offsets[user + 1]):
            query = order[i]
            while row < start + visible[query]:
                answer = correct[row]
                ngram = (3 * ngram + (answer + 1 if answer >= 0 else 0)) % 3**NGRAM
                if answer >= 0:
                    step = 1 if answer == 1 else -1
                    run = run + step if run * step > 0 else step
                gap = time[row] - time[row - 1] if row > start else 0
                if row == start or gap > session_ms:
                    session[:] = 0
                    began = time[row]
                    sessions += 1
                session[0] += 1
                session[1] += answer >= 0
                session[2] += answer == 1
                if row > start and 0 <= gap <= cap_ms:
                    spent = log1p(gap / 1000.0) - log1p(expected_ms[row - attributed] / 1000.0)
                    tempo += spent
                    latest = spent
                    timed += 1
                row += 1
            rows = visible[query]
            end = start + rows - 1
            fresh = rows > 0 and own[query] >= 0 and own[query] - time[end] > session_ms
            out[query, 0] = max(own[query] - time[end], 0) if rows > 0 and own[query] >= 0 else NEVER
            for back in range(3):
                exists = rows >= back + 2
                out[query, 1 + back] = max(time[end - back] - time[end - back - 1], 0) if exists else NEVER
            out[query, 4] = ngram if rows > 0 else 0
            out[query, 5] = run
            for k in range(3):
                out[query, 6 + k] = 0 if fresh else session[k]
            out[query, 9] = 0 if fresh or rows == 0 else max(max(own[query], time[end]) - began, 0)
            out[query, 10] = sessions
            out[query, 11] = timed
            out[query, 12] = tempo
            out[query, 13] = latest


@numba.njit(cache=True, nogil=True)
def elo(
    concepts: Int32,
    easiness: Floats,
    correct: Int8,
    offsets: Int64,
    query_concepts: Int32,
    query_easiness: Floats,
    visible: Int32,
    query_offsets: Int64,
    order: Int64,
    size: int,
    rate: float,
    slowing: float,
    out: Floats,
) -> None:
    """Elo ratings of the student and of the student in each concept against fitted easiness (log-odds scale).

    An answer a to a question of easiness e moves the student by rate / (1 + slowing * n) * (a - p), p = sigmoid(user +
    mean concept rating + e), and likewise each of its concepts; n counts the earlier moves of that rating
    (Pelanek 2016, Applications of the Elo rating system in adaptive educational systems, section 3.2).

    Columns: user rating, mean rating of the query's concepts, and their sum with the query's easiness.
    """
    rating = np.zeros(size, np.float64)
    moves = np.zeros(size, np.int64)
    for user in range(len(offsets) - 1):
        start = offsets[user]
        row = start
        ability = 0.0
        moved = 0
        for i in range(query_offsets[user], query_offsets[user + 1]):
            query = order[i]
            while row < start + visible[query]:
                if correct[row] >= 0:
                    logit = ability + _mean_rating(rating, concepts, row) + easiness[row]
                    surprise = correct[row] - 1.0 / (1.0 + exp(-logit))
                    ability += rate / (1.0 + slowing * moved) * surprise
                    moved += 1
                    for c in range(concepts.shape[1]):
                        key = concepts[row, c]
                        if key >= 0:
                            rating[key] += rate / (1.0 + slowing * moves[key]) * surprise
                            moves[key] += 1
                row += 1
            skill = _mean_rating(rating, query_concepts, query)
            out[query, 0] = ability
            out[query, 1] = skill
            out[query, 2] = ability + skill + query_easiness[query]
        for done in range(start, row):
            for c in range(concepts.shape[1]):
                if concepts[done, c] >= 0:
                    rating[concepts[done, c]] = 0.0
                    moves[concepts[done, c]] = 0


@numba.njit(cache=True, nogil=True)
def _mean_rating(rating: Floats, concepts: Int32, row: int) -> float:
    total = 0.0
    known = 0
    for c in range(concepts.shape[1]):
        if concepts[row, c] >= 0:
            total += rating[concepts[row, c]]
            known += 1
    return total / known if known > 0 else 0.0


@numba.njit(cache=True, nogil=True)
def similar(
    items: Int64,
    sketch: Floats,
    correct: Int8,
    surplus: Int64,
    offsets: Int64,
    query_items: Int64,
    visible: Int32,
    query_offsets: Int64,
    order: Int64,
    out: Floats,
) -> None:
    """Success on similar questions: sums over the graded past, weighted by the cosine of two questions' sketches.

    Columns: sum of similarities, sum of similarity times (answer - expected rate).
    """
    width = sketch.shape[1]
    weights = np.zeros(width, np.float64)
    success = np.zeros(width, np.float64)
    for user in range(len(offsets) - 1):
        start = offsets[user]
        row = start
        weights[:] = 0.0
        success[:] = 0.0
        for i in range(query_offsets[user], query_offsets[user + 1]):
            query = order[i]
            while row < start + visible[query]:
                if correct[row] >= 0:
                    residual = surplus[row] / MICRO
                    for d in range(width):
                        weights[d] += sketch[items[row], d]
                        success[d] += sketch[items[row], d] * residual
                row += 1
            likeness = 0.0
            record = 0.0
            for d in range(width):
                likeness += sketch[query_items[query], d] * weights[d]
                record += sketch[query_items[query], d] * success[d]
            out[query, 0] = likeness
            out[query, 1] = record


(
    VALUE,
    LOG_COUNT,
    LOG_WRONG,
    LOG_ODDS,
    RATE,
    MEAN,
    SURPLUS,
    LOG_MS,
    CAPPED,
    SINCE_ROWS,
    SINCE_MS,
    LOG_MEAN_MS,
    DAYS,
    SINCE_CAPPED,
) = range(14)
CAP_S: Final = 600.0


@numba.njit(cache=True, nogil=True)
def evaluate(
    quantities: Floats,
    fitted: Floats,
    items: Int64,
    code: Int64,
    inputs: Int64,
    base_rate: float,
    prior: float,
    log_counts: Floats,
    log_right: Floats,
    log_wrong: Floats,
    out: npt.NDArray[np.float32],
) -> None:
    """Apply each feature's function to its inputs: [Q, P] quantities to [Q, F] numbers.

    Args:
        fitted: [J, len(FITTED)] values of items; input -1 - k is column k of them.
        items: [Q] item of each row.
        inputs: [F, 2].
        log_counts: log(1 + n) of small n; log_right, log_wrong: log(n + the prior's right, wrong answers).
    """
    small = len(log_counts)
    for q in range(len(out)):
        for f in range(len(code)):
            i, j = inputs[f, 0], inputs[f, 1]
            a = quantities[q, i] if i >= 0 else fitted[items[q], -1 - i]
            b = quantities[q, j] if j >= 0 else fitted[items[q], -1 - j]
            op = code[f]
            if op == VALUE:
                value = a
            elif op == LOG_COUNT:
                value = log_counts[int(a)] if a < small else log1p(a)
            elif op == LOG_WRONG:
                value = log_counts[int(b - a)] if b - a < small else log1p(b - a)
            elif op == LOG_ODDS:
                if b < small and a == int(a) and b == int(b):  # counts, not sums of fading weights
                    value = log_right[int(a)] - log_wrong[int(b - a)]
                else:
                    value = log((a + prior * base_rate) / (b - a + prior * (1.0 - base_rate)))
            elif op == RATE:
                value = a / b if b > 0.0 else 0.0
            elif op == MEAN:
                value = a / (b + prior)
            elif op == SURPLUS:
                value = a / MICRO / (b + prior)
            elif op == CAPPED:
                value = min(a / 1000.0, CAP_S) if a >= 0.0 else NEVER
            elif op == LOG_MS:
                value = log1p(a / 1000.0) if a >= 0.0 else NEVER
            elif op == SINCE_ROWS:
                value = log1p(b - 1.0 - a) if a >= 0.0 else NEVER
            elif op == SINCE_MS:
                value = log1p(max(b - a, 0.0) / 1000.0) if a >= 0.0 and b >= 0.0 else NEVER
            elif op == SINCE_CAPPED:
                value = min(max(b - a, 0.0) / 1000.0, CAP_S) if a >= 0.0 and b >= 0.0 else NEVER
            elif op == LOG_MEAN_MS:
                value = log1p(a / b / 1000.0) if b > 0.0 else NEVER
            else:
                value = a / DAY_MS
            out[q, f] = value
