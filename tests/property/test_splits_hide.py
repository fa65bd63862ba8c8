"""What a split holds out reaches neither the encoder's state nor a training row: exact, for every kind of split."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from dkt_ray.data.history import Coded, Histories
from dkt_ray.schema import UNKNOWN
from tests.builders import random_histories
from tests.datasets import opened, run
from tests.runs import write_log

KINDS = {
    "hash": {"test_fraction": 0.3},
    "file": {},
    "population": {},
    "balanced": {"test_fraction": 0.3},
    "temporal": {"split_time": "2020-01-04 00:00:00"},
    "last_answer": {"test_fraction": 0.5},
}


def settings_of(kind: str, histories: Histories, folder) -> dict[str, object]:
    """What `data.*` must say for a kind of split."""
    if kind != "file":
        return KINDS[kind] | {"split": kind}
    path = folder / "split.csv"
    names = ["test" if index % 4 == 0 else f"fold{index % 3 + 1}" for index in range(len(histories.users))]
    pl.DataFrame({"userID": histories.users.tolist(), "split": names}).write_csv(path)
    return {"split_file": str(path)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("what", "seed"), [("answers", 1), ("everything", 2)])
def test_held_out_rows_reach_nothing_that_trains(kind, seed, what, tmp_path):
    rng = np.random.default_rng(seed)
    histories = random_histories(rng, 40, hidden=0.0)
    correct = histories.correct.copy()
    if kind == "population":
        correct[histories.offsets[1::3] - 1] = UNKNOWN
    position = np.arange(histories.rows) - np.repeat(histories.offsets[:-1], histories.lengths)
    apart = histories.timestamp + 1000 * position  # no row is a duplicate of another, whatever its answer
    histories = replace(histories, correct=correct, timestamp=apart)
    data = settings_of(kind, histories, tmp_path) | {"folds": 3}
    run(write_log(tmp_path / "log.csv", histories), tmp_path / "before", data=data)
    before = opened(tmp_path / "before")
    order = {name: index for index, name in enumerate(histories.users)}
    place = [order[name] for name in before.split.names]
    cut = np.empty(len(place), np.int64)
    cut[place] = before.split.cut
    held_out = position >= np.repeat(cut, histories.lengths)
    assert held_out.any()
    assert not held_out.all()
    changed = (
        answered_otherwise(histories, held_out) if what == "answers" else lived_otherwise(histories, held_out, rng)
    )
    run(write_log(tmp_path / "changed.csv", changed), tmp_path / "after", data=data)
    after = opened(tmp_path / "after")
    assert after.state.digest == before.state.digest
    one, other = before.load().rows, after.load().rows
    np.testing.assert_array_equal(other.numbers, one.numbers)
    for name in one.ids:
        np.testing.assert_array_equal(other.ids[name], one.ids[name], err_msg=name)
    np.testing.assert_array_equal(other.concepts, one.concepts)
    np.testing.assert_array_equal(other.correct, one.correct)
    assert after.manifest.content != before.manifest.content, (
        "the other answers are in the data, or this proves nothing"
    )


def answered_otherwise(histories: Histories, held_out: np.ndarray) -> Histories:
    """Every known answer that is held out is the other one."""
    flipped = np.where(held_out & (histories.correct != UNKNOWN), 1 - histories.correct, histories.correct)
    return replace(histories, correct=flipped.astype(np.int8))


def lived_otherwise(histories: Histories, held_out: np.ndarray, rng: np.random.Generator) -> Histories:
    """Rows that are held out have other answers, questions (known and new ones), tests, concepts and later times."""

    def other(column: Coded, new: list[str]) -> Coded:
        strings = column.strings()
        strings[held_out] = rng.choice([*column.values, *new], held_out.sum())
        return Coded.of(strings.tolist())

    assert histories.timestamp is not None
    return replace(
        answered_otherwise(histories, held_out),
        question=other(histories.question, ["A030009001", "new"]),
        test=other(histories.test, ["A030000009", "new"]),
        concepts=other(histories.concepts, ["99", "1_99"]),
        timestamp=histories.timestamp + held_out * 1000 * np.cumsum(rng.integers(1, 10**5, histories.rows)),
    )
