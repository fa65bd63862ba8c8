"""The encoder: the only place where features are made, for a bucket of students and for a batch of one alike.

`fit` turns additive counts of training users into an `EncoderState` (features/state.py); `encode` makes ids, numbers
and `visible` of histories and targets. Rows used for training are encoded with `state.excluding(fold)`.

Legend: U users, N rows, Q query rows, J distinct items (question, test, concepts) of one call, C concepts per item.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dkt_ray.data.history import Coded, Histories, Int8, Int32, Int64, Strings, Targets
from dkt_ray.features.batch import NO_ANSWER, UNKNOWN_ID, WAS_HIDDEN, WAS_RIGHT, WAS_WRONG, Encoded, Rows
from dkt_ray.features.difficulty import ITEM, Counts, Floats, count, log_odds
from dkt_ray.features.state import (
    FIRST_ID,
    ID_COLUMNS,
    PARTS,
    SECOND_EDGES,
    EncoderConfig,
    EncoderState,
    Moments,
    fit,
    ids_of,
    moments,
    split_concepts,
)
from dkt_ray.features.structure import decompose
from dkt_ray.features.student import MICRO, Past, numbers
from dkt_ray.schema import UNKNOWN

__all__ = ["ID_COLUMNS", "Counts", "EncoderConfig", "EncoderState", "Moments", "count", "encode", "fit", "moments"]


def encode(histories: Histories, targets: Targets | None, state: EncoderState) -> Encoded:
    """Encode histories, and targets that stand after each user's last row.

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
    source = _Queries(histories.offsets, items.past, position, visible, histories.timestamp)
    past = _rows(items, histories, source, source, histories.correct, state)
    if targets is None:
        return Encoded(past)
    lengths = np.repeat(histories.lengths, np.diff(targets.offsets)).astype(np.int32)
    queries = _Queries(
        targets.offsets,
        items.asked,
        lengths,
        _target_visible(items, histories, targets, visible, lengths, state.config),
        targets.timestamp,
    )
    hidden = np.full(targets.rows, UNKNOWN, np.int8)
    return Encoded(past, _rows(items, histories, source, queries, hidden, state))


@dataclass(frozen=True, eq=False)
class _Queries:
    """Rows that ask about the past."""

    offsets: Int64  # [U + 1]
    items: Int64  # [Q] index of the row's item
    position: Int32  # [Q]
    visible: Int32  # [Q]
    timestamp: Int64 | None  # [Q]


@dataclass(frozen=True, eq=False)
class _Items:
    """The distinct (question, test, concepts) of one call; per-item work is done once and gathered to rows."""

    past: Int64  # [N] item of each history row
    asked: Int64  # [M] item of each target
    ids: Mapping[str, Int32]  # [J] each
    concepts: Int32  # [J, C]
    keys: Mapping[str, Int32]  # [J, 1] or [J, C] keys local to this call
    sizes: Mapping[str, int]
    fitted: Mapping[str, Floats]  # [J] log-odds of question, test, concept, and log-count
    expected: Int64  # [J] expected rate in 1e-6

    @classmethod
    def of(cls, histories: Histories, targets: Targets | None, state: EncoderState) -> _Items:
        columns = [_joined(getattr(histories, name), getattr(targets, name, None)) for name in ITEM]
        shape = tuple(max(1, len(values)) for _, values in columns)
        combined = (
            np.ravel_multi_index([codes for codes, _ in columns], shape) if columns[0][0].size else np.empty(0, int)
        )
        distinct, item = _factorize(combined)
        parts = np.unravel_index(distinct, shape)
        keys = {name: codes.astype(np.int32) for name, codes in zip(ITEM, parts, strict=True)}
        values = {name: column[1][keys[name]] for name, column in zip(ITEM, columns, strict=True)}
        values |= {name: part for name, part in decompose(values["question"]).items() if name in PARTS}
        ids = {name: ids_of(state.vocabularies[name], values[name]) for name in ("question", "test", *PARTS)}
        concepts = state.concept_ids(values["concepts"])
        heads, head_key = _factorize(values["head"])
        concept_keys, tags = _concept_keys(values["concepts"], state.concepts_per_question)
        fitted, rate = _difficulty(ids, concepts, state)
        return cls(
            past=item[: histories.rows],
            asked=item[histories.rows :],
            ids=ids,
            concepts=concepts,
            keys={
                "user": np.zeros((len(distinct), 1), np.int32),
                "question": keys["question"][:, None],
                "test": keys["test"][:, None],
                "head": head_key.astype(np.int32)[:, None],
                "concept": concept_keys,
            },
            sizes={"user": 1, "question": shape[0], "test": shape[1], "head": len(heads) + 1, "concept": tags},
            fitted=fitted,
            expected=np.rint(rate * MICRO).astype(np.int64),
        )


def _difficulty(ids: Mapping[str, Int32], concepts: Int32, state: EncoderState) -> tuple[dict[str, Floats], Floats]:
    """Log-odds of question, test and concept, each smoothed towards its parent, and the question's rate, [J] each."""
    weight = state.config.smoothing
    sums = state.sums
    head = sums["head"].smoothed(ids["head"], np.full(len(concepts), state.base_rate), weight)
    known = concepts > UNKNOWN_ID
    each = sums["concepts"].smoothed(concepts, np.repeat(head[:, None], concepts.shape[1], 1), weight)
    concept = np.where(known.any(1), (each * known).sum(1) / np.maximum(known.sum(1), 1), head)
    test = sums["test"].smoothed(ids["test"], concept, weight)
    question = sums["question"].smoothed(ids["question"], test, weight)
    fitted = {name: log_odds(rate) for name, rate in (("question", question), ("test", test), ("concept", concept))}
    return fitted | {"count": np.log1p(sums["question"].graded[ids["question"]])}, question


def _rows(
    items: _Items, histories: Histories, source: _Queries, queries: _Queries, correct: Int8, state: EncoderState
) -> Rows:
    config = state.config
    known = histories.correct != UNKNOWN
    surplus = np.where(known, histories.correct * np.int64(MICRO) - items.expected[source.items], 0)
    shown = config.use_time and config.timestamp_is == "shown"
    past = Past(
        offsets=histories.offsets,
        keys={name: key[source.items] for name, key in items.keys.items()},
        sizes=dict(items.sizes),
        correct=histories.correct,
        surplus=surplus,
        timestamp=histories.timestamp if config.use_time else None,
        query_offsets=queries.offsets,
        query_keys={name: key[queries.items] for name, key in items.keys.items()},
        query_visible=queries.visible,
        query_timestamp=queries.timestamp if shown else None,
        fitted={name: column[queries.items] for name, column in items.fitted.items()},
        base_rate=state.base_rate,
    )
    ids = {name: column[queries.items] for name, column in items.ids.items()}
    ids["previous_correct"] = _previous_correct(past)
    ids["lag"] = _bins(past.lag())
    ids["previous_elapsed"] = _bins(past.elapsed(0))
    return Rows(
        offsets=queries.offsets,
        ids=ids,
        concepts=items.concepts[queries.items],
        numbers=numbers(past),
        correct=correct,
        position=queries.position,
        visible=queries.visible,
    )


def _previous_correct(past: Past) -> Int32:
    """The answer of the last visible row: the shift, made once."""
    if not len(past.correct):
        return np.full(len(past.query_visible), NO_ANSWER, np.int32)
    last = past.query_start + np.maximum(past.query_visible - 1, 0)
    answer = past.correct[np.minimum(last, len(past.correct) - 1)]
    token = np.select([answer == 0, answer == 1], [WAS_WRONG, WAS_RIGHT], WAS_HIDDEN)
    return np.where(past.query_visible > 0, token, NO_ANSWER).astype(np.int32)


def _bins(seconds: Floats) -> Int32:
    """Fixed bins of a duration; the unknown id where it is not known (negative)."""
    return np.where(seconds < 0, UNKNOWN_ID, np.searchsorted(SECOND_EDGES, seconds, "right") + FIRST_ID).astype(
        np.int32
    )


def _visible(items: _Items, histories: Histories, position: Int32, config: EncoderConfig) -> Int32:
    """How many earlier rows each row may read: all of them, or those before its run of one test."""
    if config.bundle == "none" or not histories.rows:
        return position
    test = items.keys["test"][items.past, 0]
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
    """As if each target alone were appended to its user's history."""
    if config.bundle == "none" or not histories.rows:
        return lengths
    last = np.repeat(histories.offsets[1:], np.diff(targets.offsets)) - 1
    same = items.keys["test"][items.past[np.maximum(last, 0)], 0] == items.keys["test"][items.asked, 0]
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


def _concept_keys(concepts: Strings, width: int) -> tuple[Int32, int]:
    """[J, C] call-local keys of the concepts of each item (-1 = none), and their number."""
    local: dict[str, int] = {}
    sets = {
        value: [local.setdefault(tag, len(local)) for tag in split_concepts(value)[:width]]
        for value in dict.fromkeys(concepts)
    }
    padded = {value: keys + [-1] * (width - len(keys)) for value, keys in sets.items()}
    keys = np.array([padded[value] for value in concepts], np.int32).reshape(len(concepts), width)
    return keys, len(local) + 1
