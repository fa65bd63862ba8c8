"""The features equal a slow reference in plain Python (tests/reference.py), on random histories and under every switch."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from dkt_ray.data.history import Coded, Histories, Targets
from dkt_ray.features.batch import Rows
from dkt_ray.features.encoder import EncoderConfig, EncoderState, encode, fit_histories
from dkt_ray.features.quantities import FITTED
from dkt_ray.features.structure import decompose
from dkt_ray.schema import UNKNOWN
from tests import reference
from tests.builders import random_histories

USERS, TRAINING = 30, 22
UNSEEN = [("new-1", "", ""), ("new-2", "", "7_9"), ("A030009004", "A030000009", "1_7"), ("A010004001", "", "0")]


def rows_of(histories: Histories | Targets, state: EncoderState, user: int, correct: np.ndarray, timed: bool) -> list:
    """The rows of one user as plain dicts."""
    span = slice(histories.offsets[user], histories.offsets[user + 1])
    question, test, concepts = (getattr(histories, n).strings()[span] for n in ("question", "test", "concepts"))
    items = state.items(question, test, concepts)
    parts = decompose(question)
    rows = []
    for i in range(len(question)):
        item: dict[str, Any] = dict(zip(FITTED, items.values[i].tolist(), strict=True))
        rows.append(
            {
                "place": i,
                "question": question[i],
                "test": test[i],
                "concepts": concepts[i].split("_") if concepts[i] else [],
                "head": parts["head"][i],
                "tail": parts["tail"][i],
                "correct": int(correct[span][i]),
                "time": int(histories.timestamp[span][i]) if timed and histories.timestamp is not None else None,
                "item": item | {"expected": items.expected[i] / 1e6, "sketch": items.sketch[i].tolist()},
            }
        )
    return rows


def expected(past: list, asked: list, state: EncoderState) -> tuple[list[dict], list[dict]]:
    """The slow features of one user's rows and targets."""
    submitted, bundled = state.config.timestamp_is == "submitted", state.config.bundle == "test_run"

    def slow(rows: list, place: int) -> dict[str, float]:
        row = rows[place] | ({"time": None} if submitted else {})
        return reference.features(row, reference.visible(rows, place, bundled), state.base_rate, submitted)

    return [slow(past, i) for i in range(len(past))], [slow([*past, target], len(past)) for target in asked]


def check(found: Rows, wanted: list[dict], state: EncoderState) -> None:
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
    known = list(
        dict.fromkeys(zip(*(getattr(histories, n).strings() for n in ("question", "test", "concepts")), strict=True))
    )
    many = rng.integers(0, 7, len(histories.users))
    offsets = np.concatenate([[0], np.cumsum(many)]).astype(np.int64)
    pool = known + UNSEEN * 3
    triples = [pool[i] for i in rng.integers(0, len(pool), offsets[-1])]
    last = np.repeat(histories.timestamp[histories.offsets[1:] - 1], many)
    late = last + rng.choice([-90_000_000, -5_000, 0, 4_000, 2_000_000, 90_000_000], offsets[-1])
    columns = (Coded.of([triple[side] for triple in triples]) for side in range(3))
    return Targets(offsets, *columns, late if timed else None)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("timestamp_is", "bundle"), list(itertools.product(("shown", "submitted"), ("none", "test_run")))
)
def test_every_feature_equals_the_slow_reference(timestamp_is: str, bundle: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    histories = random_histories(rng, USERS, longest=60, questions=24, tests=3, hidden=0.15)
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
            wanted = expected(past, asked, state)
            for part, offsets, mine in (
                (found.past, probe.offsets, wanted[0]),
                (found.targets, targets.offsets, wanted[1]),
            ):
                span = np.arange(offsets[user], offsets[user + 1])
                check(part.take(span, np.array([0, len(span)])), mine, state)
