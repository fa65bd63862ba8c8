"""The encoder: the only place where features are made, for a bucket of students and for a batch of one alike.

`fit` turns additive counts of training users into an `EncoderState` (features/state.py); `encode` makes ids, numbers
and `visible` of histories and targets. Rows used for training are encoded with `state.excluding(fold)`.

Legend: U users, N rows, Q query rows, J distinct items (question, test, concepts) of one call, C concepts per item.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from dkt_ray.data.history import Coded, Histories, Int8, Int32, Int64, Strings, Targets
from dkt_ray.features.batch import NO_ANSWER, UNKNOWN_ID, WAS_HIDDEN, WAS_RIGHT, WAS_WRONG, Encoded, Rows
from dkt_ray.features.difficulty import ITEM, Counts, Floats, count
from dkt_ray.features.items import HEADS, Items
from dkt_ray.features.plan import Plan, numbers, plan
from dkt_ray.features.profile import Profile, profile
from dkt_ray.features.quantities import HOUR_MS, MICRO, Past
from dkt_ray.features.state import FIRST_ID, HOURS, ID_COLUMNS, EncoderConfig, EncoderState, Moments, fit, moments
from dkt_ray.schema import UNKNOWN

__all__ = [
    "ID_COLUMNS", "Counts", "EncoderConfig", "EncoderState", "Moments", "Profile", "count", "encode", "fit",
    "fit_histories", "moments", "profile",
]  # fmt: skip

READ: Final = ("user.last_answer", "user.seen", "trace.lag", "trace.elapsed_0", "trace.ngram", "row.now")


def fit_histories(histories: Histories, fold: Int8, config: EncoderConfig) -> EncoderState:
    """Both fitting passes over histories in memory.

    Args:
        fold: [U] fold of each user, -1 for those who are not counted.

    Raises:
        InputError: no training user has a known answer.
    """
    counts = count(histories, fold)
    seen = profile(histories, fold, counts, config.timestamp_is == "submitted")
    return fit([counts], config, [seen], histories.timestamp is not None)


def encode(histories: Histories, targets: Targets | None, state: EncoderState) -> Encoded:
    """Encode histories, and targets that stand after each user's last row, or after the first `seen` of them.

    Args:
        histories: U users with N rows.
        targets: questions asked for the same U users, in the same order.
        state: fitted state; `state.excluding(k)` for training users of fold k.

    Returns:
        The past (N rows) and the targets; every row reads only its `visible` earlier rows of the same user.
    """
    items = _Items.of(histories, targets, state)
    position = _within(histories.offsets)
    visible = _visible(items, histories, position, state.config)
    queries = _Queries(histories.offsets, np.arange(histories.rows), position, visible, histories.timestamp)
    if targets is None:
        rows, numbers = _encoded(items, histories, queries, state)
        return Encoded(_rows(items, queries, rows, numbers, histories.correct))
    lengths = np.repeat(histories.lengths, np.diff(targets.offsets)) if targets.seen is None else targets.seen
    asked = _Queries(
        targets.offsets,
        histories.rows + np.arange(targets.rows),
        lengths.astype(np.int32),
        _target_visible(items, histories, targets, visible, lengths.astype(np.int32), state.config),
        targets.timestamp,
    )
    both, place = _interleaved(queries, asked)
    ids, numbers = _encoded(items, histories, both, state)
    parts = []
    for part, correct in ((queries, histories.correct), (asked, np.full(targets.rows, UNKNOWN, np.int8))):
        at = place[: len(part.rows)] if part is queries else place[len(queries.rows) :]
        mine = {name: column[at] for name, column in ids.items()}
        parts.append(_rows(items, part, mine, numbers[at], correct))
    return Encoded(*parts)


@dataclass(frozen=True, eq=False)
class _Queries:
    """Rows that ask about the past: history rows (0 to N - 1) and targets (N to N + M - 1)."""

    offsets: Int64  # [U + 1]
    rows: Int64  # [Q] which row of histories and targets together
    position: Int32  # [Q]
    visible: Int32  # [Q]
    timestamp: Int64 | None  # [Q]


def _interleaved(first: _Queries, second: _Queries) -> tuple[_Queries, Int64]:
    """Each user's queries of both, one after the other, and where each of them went."""
    lengths = np.diff(first.offsets), np.diff(second.offsets)
    offsets = np.concatenate([[0], np.cumsum(lengths[0] + lengths[1])]).astype(np.int64)
    place = np.concatenate(
        [
            np.arange(len(first.rows)) + np.repeat(second.offsets[:-1], lengths[0]),
            np.arange(len(second.rows)) + np.repeat(first.offsets[1:], lengths[1]),
        ]
    )

    def mixed(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[Any]:
        out = np.empty(len(place), one.dtype)
        out[place] = np.concatenate([one, other])
        return out

    timed = first.timestamp is not None and second.timestamp is not None
    return _Queries(
        offsets,
        mixed(first.rows, second.rows),
        mixed(first.position, second.position),
        mixed(first.visible, second.visible),
        mixed(_times(first), _times(second)) if timed or first.timestamp is not None else None,
    ), place


def _times(queries: _Queries) -> Int64:
    """Timestamps, -1 where a query has none."""
    return np.full(len(queries.rows), -1, np.int64) if queries.timestamp is None else queries.timestamp


@dataclass(frozen=True, eq=False)
class _Items:
    """The distinct (question, test, concepts) of one call; per-item work is done once and gathered to rows."""

    of_row: Int64  # [N + M] item of each history row, then of each target
    known: Items  # [J]
    question: Int32  # [J] keys local to this call
    test: Int32  # [J]
    test_in_head: Int32  # [J] a test is another one in another head
    sizes: Mapping[str, int]

    @classmethod
    def of(cls, histories: Histories, targets: Targets | None, state: EncoderState) -> _Items:
        columns = [_joined(getattr(histories, name), getattr(targets, name, None)) for name in ITEM]
        shape = tuple(max(1, len(values)) for _, values in columns)
        combined = (
            np.ravel_multi_index([codes for codes, _ in columns], shape) if columns[0][0].size else np.empty(0, int)
        )
        distinct, item = _factorize(combined)
        question, test, concepts = np.unravel_index(distinct, shape)
        known = state.items(
            *(values[key] for (_, values), key in zip(columns, (question, test, concepts), strict=True))
        )
        pairs, test_in_head = _factorize(test * (HEADS + 1) + known.head)
        sizes = {"user": 1, "question": shape[0], "test": shape[1], "head": HEADS, "position": HEADS}
        sizes |= {"test_in_head": max(1, len(pairs))}
        return cls(
            of_row=item,
            known=known,
            question=question.astype(np.int32),
            test=test.astype(np.int32),
            test_in_head=test_in_head.astype(np.int32),
            sizes=sizes | {"concept": max(len(state.tags), int(known.tags.max(initial=-1)) + 1, 1)},
        )

    def keys(self) -> dict[str, Int32]:
        """[J, 1] or [J, C] key of each item under each of `quantities.KEYS` and in `test_in_head`, -1 = none."""
        single = {"question": self.question, "test": self.test, "test_in_head": self.test_in_head}
        single |= {"head": self.known.head, "position": self.known.tail}
        keys = {name: column[:, None] for name, column in single.items()}
        return keys | {"user": np.zeros((len(self.question), 1), np.int32), "concept": self.known.tags}


def _encoded(
    items: _Items, histories: Histories, queries: _Queries, state: EncoderState
) -> tuple[dict[str, Int32], npt.NDArray[np.float32]]:
    """The id columns that depend on the past, and the numbers, of all queries."""
    config = state.config
    source = items.of_row[: histories.rows]
    known = histories.correct != UNKNOWN
    surplus = np.where(known, histories.correct * np.int64(MICRO) - items.known.expected[source], 0)
    shown = config.use_time and config.timestamp_is == "shown"
    asked = items.of_row[queries.rows]
    keys = items.keys()
    past = Past(
        offsets=histories.offsets,
        keys={name: key[source] for name, key in keys.items()},
        sizes=items.sizes,
        items=source,
        correct=histories.correct,
        surplus=surplus,
        timestamp=histories.timestamp if config.use_time else None,
        query_offsets=queries.offsets,
        query_keys={name: key[asked] for name, key in keys.items()},
        query_items=asked,
        query_visible=queries.visible,
        query_timestamp=queries.timestamp if shown else None,
        order=_by_sight(queries),
        fitted=items.known.values,
        sketch=items.known.sketch,
        submitted=config.timestamp_is == "submitted",
        base_rate=state.base_rate,
    )
    planned = plan(state.number_names, READ)
    numbers_, quantities = numbers(past, planned)
    return _past_ids(quantities, planned, state), numbers_


def _past_ids(quantities: Floats, planned: Plan, state: EncoderState) -> dict[str, Int32]:
    """Id columns that are read from the visible past: the last answer (the shift, made once), times, n-gram, hour."""
    answer, seen, lag, elapsed, ngram, now = (quantities[:, planned.column[name]] for name in READ)
    token = np.select([answer == 0, answer == 1], [WAS_WRONG, WAS_RIGHT], WAS_HIDDEN)
    timed = "time" in state.facts
    hour = (now.astype(np.int64) // HOUR_MS) % HOURS + FIRST_ID
    return {
        "previous_correct": np.where(seen > 0, token, NO_ANSWER).astype(np.int32),
        "lag": _bins(lag, state),
        "previous_elapsed": _bins(elapsed, state),
        "ngram": ngram.astype(np.int32) + FIRST_ID,
        "hour": np.where((now >= 0) & timed, hour, UNKNOWN_ID).astype(np.int32),
    }


def _bins(ms: Floats, state: EncoderState) -> Int32:
    """Fixed bins of a duration; where there is none, what `binning.first_row` says."""
    if "time" not in state.facts:
        return np.full(len(ms), UNKNOWN_ID, np.int32)
    binned = np.searchsorted(state.edges, np.maximum(ms, 0.0) / 1000.0, "right") + FIRST_ID
    absent = UNKNOWN_ID if state.config.binning.first_row == "unknown" else FIRST_ID
    return np.where(ms < 0, absent, binned).astype(np.int32)


def _by_sight(queries: _Queries) -> Int64:
    """The queries of each user, those that see less first."""
    if np.all(np.diff(queries.visible)[np.diff(_owners(queries.offsets)) == 0] >= 0):
        return np.arange(len(queries.rows))
    return np.lexsort((queries.visible, _owners(queries.offsets)))


def _owners(offsets: Int64) -> Int64:
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def _rows(
    items: _Items, queries: _Queries, past: Mapping[str, Int32], numbers: npt.NDArray[np.float32], correct: Int8
) -> Rows:
    of_row = items.of_row[queries.rows]
    ids = {name: column[of_row] for name, column in items.known.ids.items()} | dict(past)
    return Rows(
        offsets=queries.offsets,
        ids=ids,
        concepts=items.known.concepts[of_row],
        numbers=numbers,
        correct=correct,
        position=queries.position,
        visible=queries.visible,
    )


def _visible(items: _Items, histories: Histories, position: Int32, config: EncoderConfig) -> Int32:
    """How many earlier rows each row may read: all of them, or those before its run of one test."""
    if config.bundle == "none" or not histories.rows:
        return position
    test = items.test[items.of_row[: histories.rows]]
    unnamed = histories.test.strings() == ""
    starts = np.ones(histories.rows, bool)
    starts[1:] = (test[1:] != test[:-1]) | unnamed[1:]
    starts[position == 0] = True
    row = np.arange(histories.rows)
    run_start = np.maximum.accumulate(np.where(starts, row, 0))
    return (position - (row - run_start)).astype(np.int32)


def _target_visible(
    items: _Items, histories: Histories, targets: Targets, visible: Int32, lengths: Int32, config: EncoderConfig
) -> Int32:
    """As if each target alone were appended to the rows that it stands after."""
    if config.bundle == "none" or not histories.rows:
        return lengths
    last = np.repeat(histories.offsets[:-1], np.diff(targets.offsets)) + lengths - 1
    same = items.test[items.of_row[np.maximum(last, 0)]] == items.test[items.of_row[histories.rows :]]
    together = (lengths > 0) & same & (targets.test.strings() != "")
    return np.where(together, visible[np.maximum(last, 0)], lengths).astype(np.int32)


def _within(offsets: Int64) -> Int32:
    """Position of each row in its user's history."""
    return (np.arange(offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets))).astype(np.int32)


def _joined(past: Coded, asked: Coded | None) -> tuple[Int64, Strings]:
    """One column of history and target rows under common codes."""
    if asked is None or not len(asked.codes):
        return past.codes.astype(np.int64), past.values
    values, code = _factorize(np.concatenate([past.values, asked.values]))
    recode = code.astype(np.int64)
    codes = np.concatenate([recode[past.codes], recode[len(past.values) :][asked.codes]])
    return codes, values


def _factorize(values: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], Int64]:
    """Distinct values in order of appearance, and the code of each value."""
    codes, distinct = pd.factorize(values)
    return np.asarray(distinct), codes.astype(np.int64)
