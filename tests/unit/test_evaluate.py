"""What a final evaluation scores: held-out answers only, also of users whose earlier rows train."""

import numpy as np
import pytest

from dkt_ray.features.dataset import held_out
from dkt_ray.training.protocol import scored_rows
from tests.builders import random_histories
from tests.datasets import opened, run
from tests.runs import write_log


@pytest.mark.parametrize(
    "split",
    [{"split": "last_answer", "test_fraction": 0.5}, {"split": "temporal", "split_time": "2020-01-04 00:00:00"}],
)
def test_rows_that_train_are_not_scored(split, tmp_path):
    log = write_log(tmp_path / "log.csv", random_histories(np.random.default_rng(2), 30))
    run(log, tmp_path / "store", data=split)
    vault = opened(tmp_path / "store").open_vault("a test")
    rows = held_out(vault.rows, vault.first)
    scored = scored_rows(rows, vault.users, vault.fold, np.full(rows.rows, 0.5))
    place = {name: index for index, name in enumerate(vault.users)}
    first = vault.first[[place[name] for name in scored.user.strings()]]
    assert len(first) > 5
    assert (scored.position >= np.maximum(first, 1)).all()
    everything = scored_rows(vault.rows, vault.users, vault.fold, np.full(rows.rows, 0.5))
    assert len(everything.position) > len(scored.position), "some of these users train too, or this proves nothing"
