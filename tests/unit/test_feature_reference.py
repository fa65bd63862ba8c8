"""Features and fitted values equal slow references (tests/reference.py, tests/reference_fit.py) on random histories."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest

from dkt_ray.data.history import Coded, Histories, Strings, Targets
from dkt_ray.features.batch import Rows
from dkt_ray.features.difficulty import ITEM
from dkt_ray.features.encoder import EncoderConfig, EncoderState, encode, fit_histories
from dkt_ray.features.quantities import FITTED
from dkt_ray.features.structure import decompose
from dkt_ray.schema import UNKNOWN
from tests import reference
from tests.builders import START_MS, random_histories
from tests.reference_fit import SlowFit

Row = dict[str, Any]
Slow = dict[str, float]
USERS, TRAINING = 30, 22
UNSEEN = [("new-1", "", ""), ("new-2", "", "7_9"), ("A030009004", "A030000009", "1_7"), ("A010004001", "", "0")]


def rows_of(
    histories: Histories | Targets, state: EncoderState, user: int, correct: np.ndarray, timed: bool
) -> list[Row]:
    """The rows of one user as plain dicts."""
    span = slice(histories.offsets[user], histories.offsets[user + 1])
    named = [getattr(histories, name).strings()[span] for name in ITEM]
    rows = described(*named)
    for i, (row, item) in enumerate(zip(rows, fitted_values(state, *named), strict=True)):
        time = int(histories.timestamp[span][i]) if timed and histories.timestamp is not None else None
        row |= {"place": i, "correct": int(correct[span][i]), "time": time, "item": item}
    return rows


def described(question: Strings, test: Strings, concepts: Strings) -> list[Row]:
    """What the ids say."""
    parts = decompose(question)
    return [
        {
            "question": question[i],
            "test": test[i],
            "concepts": concepts[i].split("_") if concepts[i] else [],
            "head": parts["head"][i],
            "tail": parts["tail"][i],
        }
        for i in range(len(question))
    ]


def fitted_values(state: EncoderState, question: Strings, test: Strings, concepts: Strings) -> list[dict[str, Any]]:
    """What the state says, by name."""
    items = state.items(question, test, concepts)
    return [
        dict(zip(FITTED, values.tolist(), strict=True)) | {"expected": expected / 1e6, "sketch": sketch.tolist()}
        for values, expected, sketch in zip(items.values, items.expected, items.sketch, strict=True)
    ]


def slow_features(past: list[Row], asked: list[Row], state: EncoderState) -> tuple[list[Slow], list[Slow]]:
    """The slow features of one user's rows and targets."""
    submitted, bundled = state.config.timestamp_is == "submitted", state.config.bundle == "test_run"

    def slow(rows: list[Row], place: int) -> Slow:
        row = rows[place] | ({"time": None} if submitted else {})
        return reference.features(row, reference.visible(rows, place, bundled), state.base_rate, submitted)

    return [slow(past, i) for i in range(len(past))], [slow([*past, target], len(past)) for target in asked]


def check(found: Rows, wanted: list[Slow], state: EncoderState) -> None:
    slow = np.array([[row[name] for name in state.number_names] for row in wanted]).reshape(found.numbers.shape)
    unequal = ~np.isclose(found.numbers, slow, rtol=1e-5, atol=2e-6)
    first = {state.number_names[column]: np.argmax(unequal[:, column]) for column in np.flatnonzero(unequal.any(0))}
    assert not first, {
        name: f"row {row}: {found.numbers[row, place]} instead of {slow[row, place]}"
        for name, row in first.items()
        for place in [state.number_names.index(name)]
    }


def some_targets(rng: np.random.Generator, histories: Histories, timed: bool) -> Targets:
    """Per user none to six targets, known and unknown questions, after the last row, and sometimes before it."""
    known = list(dict.fromkeys(zip(*(getattr(histories, name).strings() for name in ITEM), strict=True)))
    many = rng.integers(0, 7, len(histories.users))
    offsets = np.concatenate([[0], np.cumsum(many)]).astype(np.int64)
    pool = known + UNSEEN * 3
    triples = [pool[i] for i in rng.integers(0, len(pool), offsets[-1])]
    last = np.repeat(histories.timestamp[histories.offsets[1:] - 1], many)
    late = last + rng.choice([-90_000_000, -5_000, 0, 4_000, 2_000_000, 90_000_000], offsets[-1])
    columns = (Coded.of([triple[side] for triple in triples]) for side in range(3))
    return Targets(offsets, *columns, late if timed else None)


@pytest.mark.parametrize(("seed", "longest"), [(0, 40), (1, 160)])
@pytest.mark.parametrize(
    ("timestamp_is", "bundle"), list(itertools.product(("shown", "submitted"), ("none", "test_run")))
)
def test_every_feature_equals_the_slow_reference(timestamp_is: str, bundle: str, seed: int, longest: int) -> None:
    rng = np.random.default_rng(seed)
    histories = random_histories(rng, USERS, longest=longest, questions=24, tests=3, hidden=0.15)
    in_a_day = np.repeat(np.arange(USERS) % 2 == 1, histories.lengths)  # every other student: cycles of many rows
    time = np.where(in_a_day, START_MS + (histories.timestamp - START_MS) // 200, histories.timestamp)
    histories = dataclasses.replace(histories, timestamp=time)
    fold = (np.arange(USERS) % 3).astype(np.int8)
    fold[TRAINING:] = -1
    config = EncoderConfig(timestamp_is=timestamp_is, bundle=bundle, min_count=12)
    state = fit_histories(histories, fold, config).excluding(1)
    probe = histories.select(np.arange(TRAINING - 4, USERS))
    for timed in (True, False):
        targets = some_targets(rng, probe, timed)
        found = encode(probe, targets, state)
        assert found.targets is not None
        hidden = np.full(targets.rows, UNKNOWN, np.int8)
        for user in range(len(probe.users)):
            past = rows_of(probe, state, user, probe.correct, True)
            asked = rows_of(targets, state, user, hidden, timed)
            wanted = slow_features(past, asked, state)
            for part, offsets, mine in (
                (found.past, probe.offsets, wanted[0]),
                (found.targets, targets.offsets, wanted[1]),
            ):
                span = np.arange(offsets[user], offsets[user + 1])
                check(part.take(span, np.array([0, len(span)])), mine, state)


def training_rows(histories: Histories, fold: np.ndarray, without: int) -> list[Row]:
    """The rows of training users outside one fold."""
    rows = described(*(getattr(histories, name).strings() for name in ITEM))
    owner = np.repeat(np.arange(len(histories.users)), histories.lengths)
    assert histories.timestamp is not None
    for row, user, correct, time in zip(rows, owner, histories.correct, histories.timestamp, strict=True):
        row |= {"user": user, "fold": int(fold[user]), "correct": int(correct), "time": int(time)}
    return [row for row in rows if row["fold"] not in (-1, without)]


def differences(found: list[dict[str, Any]], wanted: list[dict[str, Any]], rtol: float, atol: float) -> dict[str, str]:
    """The values that are not equal, by name."""
    return {
        f"{name} of {place}": f"{mine[name]} instead of {value}"
        for place, (mine, theirs) in enumerate(zip(found, wanted, strict=True))
        for name, value in theirs.items()
        if not np.allclose(mine[name], value, rtol, atol)
    }


@pytest.mark.parametrize("timestamp_is", ["shown", "submitted"])
def test_every_fitted_value_equals_the_slow_reference(timestamp_is: str) -> None:
    histories = random_histories(np.random.default_rng(3), 16, longest=24, questions=18, tests=3, hidden=0.15)
    fold = (np.arange(16) % 4 - 1).astype(np.int8)
    state = fit_histories(histories, fold, EncoderConfig(timestamp_is=timestamp_is, min_count=1)).excluding(1)
    known = zip(*(getattr(histories, name).strings() for name in ITEM), strict=True)
    named = [np.array(column, object) for column in zip(*dict.fromkeys([*known, *UNSEEN]), strict=True)]
    slow = SlowFit(training_rows(histories, fold, without=1), timestamp_is == "submitted")
    assert state.base_rate == pytest.approx(slow.rate)
    wanted = [slow.item(row) for row in described(*named)]
    found = fitted_values(state, *named)
    assert not differences(found, wanted, rtol=1e-5, atol=1e-4)
    counted = {*FITTED, "expected", "sketch"} - {"easiness", "easiness_2pl", "discrimination"}
    exact = [{name: item[name] for name in counted} for item in wanted]
    assert not differences(found, exact, rtol=1e-9, atol=6e-7)  # the expected rate is kept in 1e-6
