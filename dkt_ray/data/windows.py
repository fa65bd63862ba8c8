"""Windows over histories: an index into the one stored copy of the rows, never a copy of them.

A window is a run of `order`, a list of flat row indices; grouping permutes the list, cutting makes the runs.

Legend: U users, N rows, R rows of the index, S windows, L greatest length of a window.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field

from dkt_ray.config import Config
from dkt_ray.data.history import Int8, Int32, Int64, graded
from dkt_ray.errors import ConfigError

LENGTH_STEP, LENGTH_LABELS = 50, 25  # length-balanced sampling: label = min(rows // 50, 24)

StrategyName = Literal[
    "context",
    "last",
    "sliding",
    "user_head_mid",
    "user_head",
    "user_test",
    "chunk_tests",
    "chunk_rows",
    "random",
]


class WindowConfig(Config):
    """How histories are cut into the windows that training reads; scoring always follows the context rule."""

    strategy: StrategyName = "context"
    """context (as in scoring), last, sliding, user_head_mid, user_head, user_test, chunk_tests, chunk_rows, random."""
    length: int | None = Field(default=None, gt=0)
    """L, the most rows of a window: of a longer one the last L are read (random: any L); null: the context."""
    stride: int | None = Field(default=None, gt=0)
    """sliding: rows from the start of a window to the start of the next, at most L; null: half of L."""
    tests: int = Field(default=3, gt=0)
    """chunk_tests: tests in a chunk."""
    rows: int = Field(default=20, gt=0)
    """chunk_rows: rows in a chunk."""
    balanced: bool = False
    """Draw as many windows as there are, with replacement, so that all lengths (in steps of 50 rows) are as likely."""
    test_users: bool = True
    """Whether users with a hidden answer join with their other rows; hidden answers never train."""

    @property
    def redrawn(self) -> bool:
        """Whether each epoch has windows of its own."""
        return self.strategy == "random" or self.balanced


class Interactions(NamedTuple):
    """What the strategies read; codes are any non-negative integers, equal where the value is."""

    offsets: Int64  # [U + 1]
    correct: Int8  # [N], -1 where hidden
    test: Int32  # [N]
    head: Int32  # [N]
    mid: Int32  # [N]
    test_size: Int32  # [N] number of distinct questions in the row's test; see `sizes_of_tests`


class Windows(NamedTuple):
    """S windows; window w holds rows `order[start[w]:stop[w]]`, of one user and ascending."""

    order: Int64  # [R] flat row indices
    user: Int64  # [S] index of the user
    start: Int64  # [S] into `order`
    stop: Int64  # [S]
    score_from: Int64  # [S], start <= score_from < stop: rows before it are context only

    def take(self, chosen: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Windows:
        """Some of the windows, over the same rows."""
        return Windows(self.order, *(column[chosen] for column in self[1:]))


class Segments(NamedTuple):
    """Slices of histories; positions count within the user. Rows `start` to `score_from` are context only."""

    user: Int64  # [S] index of the user
    start: Int64  # [S]
    stop: Int64  # [S]
    score_from: Int64  # [S], start <= score_from < stop


def context_blocks(user: Int64, position: Int64, context: int) -> tuple[Int64, Int64]:
    """Cut rows by the context rule: position t sees rows from (floor(t / C) - 1) * C to t.

    Rows of one block of C positions see their past from the same row on: the start of the block before theirs.

    Args:
        user: [N] user of each row, in runs.
        position: [N] index in the user's history, ascending in a run.
        context: C, the block size.

    Returns:
        [S] index of the first row of each block, and [S] the first position that the block sees.
    """
    assert context > 0
    block = position // context
    changes = np.flatnonzero((user[1:] != user[:-1]) | (block[1:] != block[:-1])) + 1
    first = np.concatenate([np.zeros(min(len(user), 1), np.int64), changes])
    return first, sees_from(position[first], context)


def sees_from(position: Int64, context: int) -> Int64:
    """First position that rows at the given ones see under the context rule.

    >>> sees_from(np.array([0, 199, 200, 350]), 100)
    array([  0,   0, 100, 200])
    """
    return np.maximum(position // context - 1, 0) * context


def context_segments(lengths: Int64, context: int) -> Segments:
    """Cut whole histories by the context rule, so that every position is scored exactly once and one pass costs O(T C).

    >>> context_segments(np.array([5]), 2)[1:]
    (array([0, 0, 2]), array([2, 4, 5]), array([0, 2, 4]))

    Args:
        lengths: [U] number of rows of each user.
        context: C, the block size.
    """
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    owner = _owner(offsets)
    first, start = context_blocks(owner, np.arange(len(owner)) - offsets[owner], context)
    user = owner[first]
    return Segments(user, start, np.append(first[1:], len(owner))[: len(first)] - offsets[user], first - offsets[user])


def sizes_of_tests(question: Int32, test: Int32) -> Int32:
    """Number of distinct questions in the test of each row, [N].

    Args:
        question: [N] codes.
        test: [N] codes.
    """
    pairs = pd.unique(_combine(test, question))
    return np.bincount(pairs // (int(question.max(initial=0)) + 1), minlength=1).astype(np.int32)[test]


def draw(rows: Interactions, config: WindowConfig, context: int, seed: int = 0, epoch: int = 0) -> Windows:
    """The windows of one epoch.

    Args:
        rows: of U users.
        config: strategy and numbers.
        context: C of the context rule, and L where the config has none.
        seed: of random strategies, with `epoch`; the order in which batches read the windows plays no part.
        epoch: another epoch is another draw.

    Raises:
        ConfigError: a stride that leaves rows out.
    """
    numbers = config.model_copy(update={"length": config.length or context})
    cut, crop = STRATEGIES[config.strategy]
    windows = cut(rows, numbers)
    if not config.test_users:
        hidden = np.bincount(_owner(rows.offsets)[~graded(rows.correct)], minlength=len(rows.offsets) - 1)
        windows = windows.take(hidden[windows.user] == 0)
    if config.balanced:
        windows = resample(windows, _generator(seed, epoch, 0))
    return crop(windows, numbers.length or context, _generator(seed, epoch, 1))


def length_weights(lengths: Int64) -> npt.NDArray[np.float64]:
    """Chance of each window in length-balanced sampling, [S]: 1 / (windows of its label), normalised.

    Args:
        lengths: [S] rows of each window; the label is min(rows // 50, 24).
    """
    label = np.minimum(lengths // LENGTH_STEP, LENGTH_LABELS - 1)
    weight = 1.0 / np.bincount(label)[label]
    return weight / weight.sum()


def resample(windows: Windows, generator: np.random.Generator) -> Windows:
    """As many windows, drawn with replacement by `length_weights`."""
    count = len(windows.user)
    if not count:
        return windows
    return windows.take(generator.choice(count, count, p=length_weights(windows.stop - windows.start)))


def _context(rows: Interactions, config: WindowConfig) -> Windows:
    """The windows of the context rule, each row scored once."""
    assert config.length is not None
    user, *within = context_segments(np.diff(rows.offsets), config.length)
    start, stop, score_from = (rows.offsets[user] + column for column in within)
    return Windows(np.arange(rows.offsets[-1]), user, start, stop, score_from)


def _histories(rows: Interactions, config: WindowConfig) -> Windows:
    """Whole histories."""
    return _known(rows, np.arange(rows.offsets[-1]), rows.offsets[:-1], rows.offsets[1:])


def _sliding(rows: Interactions, config: WindowConfig) -> Windows:
    """Windows of L rows every `stride` rows; the last one ends at the history's end, so every row is in one."""
    assert config.length is not None
    stride = config.stride or max(config.length // 2, 1)
    if stride > config.length:
        raise ConfigError(
            f"windows.stride is {stride}, more than the {config.length} rows of a window: rows in between would never "
            f"train; give at most {config.length}, or a greater windows.length"
        )
    lengths = np.diff(rows.offsets)
    last = np.maximum(lengths - config.length, 0)  # start of the last window
    count = np.where(lengths > 0, 1 - (-last // stride), 0)
    user = np.repeat(np.arange(len(lengths)), count)
    step = np.arange(len(user)) - np.repeat(np.cumsum(count) - count, count)
    start = rows.offsets[user] + np.minimum(step * stride, last[user])
    return _known(rows, np.arange(rows.offsets[-1]), start, np.minimum(start + config.length, rows.offsets[user + 1]))


def _first_passes(rows: Interactions, config: WindowConfig) -> Windows:
    """One window per user, head and mid, first passes only.

    A row's pass is floor(rows of the same user and test before it / questions in the test), from 0.
    """
    kept = _in_first_pass(rows.offsets, rows.test, rows.test_size)
    return _grouped(rows, _combine(rows.head, rows.mid), kept)


def _by_head(rows: Interactions, config: WindowConfig) -> Windows:
    """One window per user and head."""
    return _grouped(rows, rows.head, np.ones(len(rows.head), bool))


def _by_test(rows: Interactions, config: WindowConfig) -> Windows:
    """One window per user and test, all passes."""
    return _grouped(rows, rows.test, np.ones(len(rows.test), bool))


def _chunks_of_tests(rows: Interactions, config: WindowConfig) -> Windows:
    """Consecutive rows with at most `tests` distinct tests: the row whose test would be one more starts a new chunk.

    That row's test counts in the new chunk. (The reference's slip was to clear its set there without adding it, so that
    a chunk could hold one test more than asked for.)
    """
    first = np.flatnonzero(_starts_of_tests(rows.offsets, rows.test, config.tests))
    return _known(rows, np.arange(rows.offsets[-1]), first, np.append(first[1:], rows.offsets[-1])[: len(first)])


def _chunks_of_rows(rows: Interactions, config: WindowConfig) -> Windows:
    """Consecutive blocks of `rows` rows; a history's last one may be shorter."""
    count = -(-np.diff(rows.offsets) // config.rows)
    user = np.repeat(np.arange(len(count)), count)
    step = np.arange(len(user)) - np.repeat(np.cumsum(count) - count, count)
    start = rows.offsets[user] + step * config.rows
    return _known(rows, np.arange(rows.offsets[-1]), start, np.minimum(start + config.rows, rows.offsets[user + 1]))


def _whole(windows: Windows, length: int, generator: np.random.Generator) -> Windows:
    return windows


def _last_rows(windows: Windows, length: int, generator: np.random.Generator) -> Windows:
    """The last L rows of longer windows."""
    start = np.maximum(windows.start, windows.stop - length)
    return windows._replace(start=start, score_from=start)


def _random_rows(windows: Windows, length: int, generator: np.random.Generator) -> Windows:
    """Any L rows of longer windows: the start is uniform over 0 to len - L."""
    spare = np.maximum(windows.stop - windows.start - length, 0)
    start = windows.start + generator.integers(0, spare + 1)
    return windows._replace(start=start, stop=np.minimum(start + length, windows.stop), score_from=start)


class Strategy(NamedTuple):
    """How rows are grouped into windows, and what is read of a window that is longer than L."""

    cut: Callable[[Interactions, WindowConfig], Windows]
    crop: Callable[[Windows, int, np.random.Generator], Windows]


STRATEGIES: Final[dict[StrategyName, Strategy]] = {
    "context": Strategy(_context, _whole),
    "last": Strategy(_histories, _last_rows),
    "sliding": Strategy(_sliding, _whole),
    "user_head_mid": Strategy(_first_passes, _last_rows),
    "user_head": Strategy(_by_head, _last_rows),
    "user_test": Strategy(_by_test, _last_rows),
    "chunk_tests": Strategy(_chunks_of_tests, _last_rows),
    "chunk_rows": Strategy(_chunks_of_rows, _last_rows),
    "random": Strategy(_histories, _random_rows),
}


def _generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    """A counter-based generator: its numbers depend on nothing but the key."""
    key = np.array([seed % 2**64, epoch], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, 0, stream], np.uint64)))


def _owner(offsets: Int64) -> Int64:
    """The user of each row, [N]."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def _combine(one: npt.NDArray[np.integer], other: npt.NDArray[np.integer]) -> Int64:
    """One code for two."""
    return one.astype(np.int64) * (int(other.max(initial=0)) + 1) + other


def _grouped(rows: Interactions, code: npt.NDArray[np.integer], kept: npt.NDArray[np.bool_]) -> Windows:
    """One window per user and code, in the order of their first rows, over the rows that are kept."""
    if code.max(initial=0) > len(code):  # two codes in one: as many as there are
        code, _ = pd.factorize(code)
    order, stop = _by_user_and_code(rows.offsets, code.astype(np.int64), kept)
    return _known(rows, order, np.append(0, stop)[: len(stop)], stop)


def _known(rows: Interactions, order: Int64, start: Int64, stop: Int64) -> Windows:
    """The windows that hold a known answer: without one there is nothing to train on."""
    known = graded(rows.correct)
    before = np.arange(len(order) + 1) if known.all() else np.concatenate([[0], np.cumsum(known[order])])
    kept = before[stop] > before[start]
    start, stop = start[kept], stop[kept]
    user = np.searchsorted(rows.offsets, order[start], "right") - 1
    return Windows(order, user, start, stop, start)


@numba.njit(cache=True)
def _by_user_and_code(offsets: Int64, code: Int64, kept: npt.NDArray[np.bool_]) -> tuple[Int64, Int64]:
    """The kept rows grouped by user and code, groups by their first rows, and where each group stops."""
    group_of = np.full(code.max() + 1 if len(code) else 1, -1)
    order = np.empty(kept.sum(), np.int64)
    stop = np.zeros(len(order), np.int64)  # of each group; at first its rows, then where its next row goes
    groups, placed = 0, 0
    for user in range(len(offsets) - 1):
        first = groups
        for row in range(offsets[user], offsets[user + 1]):
            if kept[row]:
                if group_of[code[row]] < first:
                    group_of[code[row]] = groups
                    groups += 1
                stop[group_of[code[row]]] += 1
        for group in range(first, groups):
            rows = stop[group]
            stop[group] = placed
            placed += rows
        for row in range(offsets[user], offsets[user + 1]):
            if kept[row]:
                group = group_of[code[row]]
                order[stop[group]] = row
                stop[group] += 1
    return order, stop[:groups]


@numba.njit(cache=True)
def _in_first_pass(offsets: Int64, test: Int32, test_size: Int32) -> npt.NDArray[np.bool_]:
    """Rows before which the user has fewer rows of their test than it has questions, [N]."""
    before = np.zeros(test.max() + 1 if len(test) else 1, np.int64)
    first = np.empty(len(test), np.bool_)
    for user in range(len(offsets) - 1):
        for row in range(offsets[user], offsets[user + 1]):
            first[row] = before[test[row]] < test_size[row]
            before[test[row]] += 1
        for row in range(offsets[user], offsets[user + 1]):
            before[test[row]] = 0
    return first


@numba.njit(cache=True)
def _starts_of_tests(offsets: Int64, test: Int32, tests: int) -> npt.NDArray[np.bool_]:
    """Where a new chunk of at most `tests` distinct tests starts, [N]."""
    starts = np.zeros(len(test), np.bool_)
    chunk_of = np.full(test.max() + 1 if len(test) else 1, -1)  # the last chunk that each test was in
    chunk = -1
    for user in range(len(offsets) - 1):
        distinct = 0
        for row in range(offsets[user], offsets[user + 1]):
            if row == offsets[user] or (chunk_of[test[row]] != chunk and distinct == tests):
                starts[row] = True
                chunk += 1
                distinct = 0
            if chunk_of[test[row]] != chunk:
                chunk_of[test[row]] = chunk
                distinct += 1
    return starts
