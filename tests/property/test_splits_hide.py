"""What a split holds out reaches neither the encoder's state nor a training row: exact, for every kind of split."""

import numpy as np
import polars as pl
import pytest

from dkt_ray.data.history import Histories
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


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_held_out_answers_reach_nothing_that_trains(kind, seed, tmp_path):
    rng = np.random.default_rng(seed)
    histories = random_histories(rng, 40, hidden=0.0)
    correct = histories.correct.copy()
    if kind == "population":
        correct[histories.offsets[1::3] - 1] = UNKNOWN
    position = np.arange(histories.rows) - np.repeat(histories.offsets[:-1], histories.lengths)
    apart = histories.timestamp + 1000 * position  # no row is a duplicate of another, whatever its answer
    histories = Histories(**vars(histories) | {"correct": correct, "timestamp": apart})
    data = settings_of(kind, histories, tmp_path) | {"folds": 3}
    run(write_log(tmp_path / "log.csv", histories), tmp_path / "before", data=data)
    before = opened(tmp_path / "before")
    order = {name: index for index, name in enumerate(histories.users)}
    place = [order[name] for name in before.split.names]
    cut = np.empty(len(place), np.int64)
    cut[place] = before.split.cut
    held_out = (position >= np.repeat(cut, histories.lengths)) & (correct != UNKNOWN)
    assert held_out.any()
    assert not held_out.all()
    flipped = np.where(held_out, 1 - correct, correct).astype(np.int8)
    changed = Histories(**vars(histories) | {"correct": flipped})
    run(write_log(tmp_path / "changed.csv", changed), tmp_path / "after", data=data)
    after = opened(tmp_path / "after")
    assert after.state.digest == before.state.digest
    np.testing.assert_array_equal(after.load().rows.numbers, before.load().rows.numbers)
    assert after.manifest.content != before.manifest.content, (
        "the flipped answers are in the data, or this proves nothing"
    )
