"""The recursions of cycles, as in features/kernels.py: passes of a test, and the rows of one day and test.

Legend: Q query rows; `out` is [Q, one column per quantity].
"""

from __future__ import annotations

import numba
import numpy as np

from dkt_ray.features.kernels import DAY_MS, Floats, Int8, Int32, Int64


@numba.njit(cache=True, nogil=True)
def passes(
    tests: Int32,
    sizes: Int64,
    correct: Int8,
    offsets: Int64,
    query_tests: Int32,
    query_sizes: Int64,
    visible: Int32,
    query_offsets: Int64,
    order: Int64,
    size: int,
    out: Floats,
) -> None:
    """Cycles by the first definition: after n rows of a test of s questions, pass n // s and place n % s in it.

    Columns: pass, place, graded and right answers of the pass so far.
    """
    seen = np.zeros(size, np.int64)
    answers = np.zeros((size, 2), np.int64)
    for user in range(len(offsets) - 1):
        start = offsets[user]
        row = start
        for i in range(query_offsets[user], query_offsets[user + 1]):
            query = order[i]
            while row < start + visible[query]:
                test = tests[row]
                if sizes[row] > 0 and seen[test] % sizes[row] == 0:
                    answers[test, :] = 0
                seen[test] += 1
                if correct[row] >= 0:
                    answers[test, 0] += 1
                    answers[test, 1] += correct[row]
                row += 1
            test = query_tests[query]
            questions = query_sizes[query]
            place = seen[test] % questions if questions > 0 else seen[test]
            out[query, 0] = seen[test] // questions if questions > 0 else 0
            out[query, 1] = place
            out[query, 2] = answers[test, 0] if place > 0 else 0
            out[query, 3] = answers[test, 1] if place > 0 else 0
        for done in range(start, row):
            seen[tests[done]] = 0
            answers[tests[done], :] = 0


@numba.njit(cache=True, nogil=True)
def day_cycles(
    papers: Int32,
    groups: Int32,
    correct: Int8,
    time: Int64,
    offsets: Int64,
    query_papers: Int32,
    query_groups: Int32,
    visible: Int32,
    now: Int64,
    query_offsets: Int64,
    order: Int64,
    n_papers: int,
    n_groups: int,
    out: Floats,
) -> None:
    """Cycles by the second definition, the rows of one UTC day and paper, and their totals per group of rows.

    A paper's rows all stand in one group (the user's rows, or those in one head); rows of group -1 are left out.

    Columns: of the query's group: cycles, mean time from the row before a cycle to its first row (ms), mean over cycles
    of the mean time between their rows (ms); of the query's own cycle, that of its paper today: rows, graded, right, ms
    from its first to its last row, mean ms between its rows.
    """
    cycles = np.zeros(n_groups, np.int64)
    interval = np.zeros(n_groups, np.int64)
    tempo = np.zeros(n_groups, np.float64)
    latest = np.zeros(n_groups, np.int64)
    day = np.full(n_papers, -1, np.int64)
    rows = np.zeros((n_papers, 3), np.int64)
    span = np.zeros((n_papers, 2), np.int64)
    for user in range(len(offsets) - 1):
        start = offsets[user]
        row = start
        for i in range(query_offsets[user], query_offsets[user + 1]):
            query = order[i]
            while row < start + visible[query]:
                paper, group, at = papers[row], groups[row], time[row]
                row += 1
                if group < 0:
                    continue
                if day[paper] != at // DAY_MS:
                    day[paper] = at // DAY_MS
                    rows[paper, :] = 0
                    span[paper, :] = at
                    interval[group] += max(at - latest[group], 0) if cycles[group] > 0 else 0
                    cycles[group] += 1
                tempo[group] -= _mean_gap(span[paper], rows[paper, 0])
                span[paper, 1] = at
                rows[paper, 0] += 1
                tempo[group] += _mean_gap(span[paper], rows[paper, 0])
                latest[group] = at
                if correct[row - 1] >= 0:
                    rows[paper, 1] += 1
                    rows[paper, 2] += correct[row - 1]
            out[query, :] = 0.0
            group = query_groups[query]
            if group >= 0 and cycles[group] > 0:
                out[query, 0] = cycles[group]
                out[query, 1] = interval[group] / max(cycles[group] - 1, 1)
                out[query, 2] = tempo[group] / cycles[group]
            paper = query_papers[query]
            if group >= 0 and rows[paper, 0] > 0 and day[paper] == now[query] // DAY_MS:
                for k in range(3):
                    out[query, 3 + k] = rows[paper, k]
                out[query, 6] = max(span[paper, 1] - span[paper, 0], 0)
                out[query, 7] = _mean_gap(span[paper], rows[paper, 0])
        for done in range(start, row):
            day[papers[done]] = -1
            rows[papers[done], :] = 0
            if groups[done] >= 0:
                cycles[groups[done]] = 0
                interval[groups[done]] = 0
                tempo[groups[done]] = 0.0


@numba.njit(cache=True, nogil=True)
def _mean_gap(span: Int64, rows: int) -> float:
    """Mean time between a cycle's rows, 0 below two."""
    return max(span[1] - span[0], 0) / (rows - 1) if rows > 1 else 0.0


@numba.njit(cache=True, nogil=True)
def recent_in_cycle(
    papers: Int32,
    correct: Int8,
    time: Int64,
    offsets: Int64,
    query_papers: Int32,
    visible: Int32,
    now: Int64,
    query_offsets: Int64,
    order: Int64,
    n_papers: int,
    recents: Int64,
    out: Floats,
) -> None:
    """The last n rows of the query's own cycle, that of its paper today, for each n of `recents`.

    A ring per paper keeps the counters before each of its latest rows, as many as the largest n.

    Columns: graded and right answers of the last n rows, for each n.
    """
    most = recents.max()
    ring = np.empty((n_papers, most, 2), np.int64)
    count = np.zeros((n_papers, 2), np.int64)
    seen = np.zeros(n_papers, np.int64)
    began = np.zeros(n_papers, np.int64)
    day = np.full(n_papers, -1, np.int64)
    for user in range(len(offsets) - 1):
        start = offsets[user]
        row = start
        for i in range(query_offsets[user], query_offsets[user + 1]):
            query = order[i]
            while row < start + visible[query]:
                paper = papers[row]
                if day[paper] != time[row] // DAY_MS:
                    day[paper] = time[row] // DAY_MS
                    began[paper] = seen[paper]
                for k in range(2):
                    ring[paper, seen[paper] % most, k] = count[paper, k]
                seen[paper] += 1
                if correct[row] >= 0:
                    count[paper, 0] += 1
                    count[paper, 1] += correct[row]
                row += 1
            out[query, :] = 0.0
            paper = query_papers[query]
            if seen[paper] > 0 and day[paper] == now[query] // DAY_MS:
                for n in range(len(recents)):
                    first = max(seen[paper] - recents[n], began[paper])
                    for k in range(2):
                        out[query, 2 * n + k] = count[paper, k] - ring[paper, first % most, k]
        for done in range(start, row):
            seen[papers[done]] = 0
            count[papers[done], :] = 0
            day[papers[done]] = -1
