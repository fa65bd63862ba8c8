"""The benchmark compares like with like: the pandas baseline makes our columns and our windows."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from benchmarks import core, evaluate
from benchmarks.core import COLUMNS, STRATEGIES, Made
from dkt_ray.errors import DktError
from dkt_ray.features.restated import AGGREGATES, ROW_FEATURES


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    return core.shard(users=40, seed=3, bank_fraction=0.1)


@pytest.fixture(scope="module")
def mine(rows: pa.Table) -> Made:
    return core.ours(rows)


def test_the_columns_are_all_that_restate_the_reference():
    named = {column for columns in (*ROW_FEATURES.values(), *AGGREGATES.values()) for column in columns if column}
    assert set(COLUMNS) == named - {"lag_log"}  # a submitted row's own time is not known before its answer
    assert len(ROW_FEATURES) == 33
    assert len(AGGREGATES) == 13


def test_the_baseline_equals_the_core(rows, mine):
    core.verify(mine, core.theirs(core.frame(rows)))
    assert tuple(mine.numbers) == COLUMNS


def test_so_it_does_with_hidden_answers_duplicates_and_rows_in_any_order(rows):
    rng = np.random.default_rng(5)
    hidden = rng.random(len(rows)) < 0.2
    correct = pa.array(np.where(hidden, -1, rows["correct"].to_numpy()).astype(np.int8))
    masked = rows.set_column(rows.schema.get_field_index("correct"), "correct", correct)
    twice = pa.concat_tables([masked, masked.slice(100, 300)])
    order = rng.permutation(len(twice))
    place = twice.schema.get_field_index("row")
    shuffled = twice.take(pa.array(order)).set_column(place, "row", pa.array(np.arange(len(twice))))
    made = core.ours(shuffled)
    assert len(made.numbers["user_count"]) == len(rows)
    core.verify(made, core.theirs(core.frame(shuffled)))


@pytest.mark.parametrize(
    "name",
    [
        "user_test_log_odds",
        "head_recent_50_log_odds",
        "user_cycle_gap",
        "question_right",
        "day_cycle_recent_10_log_odds",
    ],
)
def test_a_planted_difference_is_found(rows, mine, name):
    other = core.theirs(core.frame(rows))
    planted = other.numbers[name].copy()
    planted[7] += 0.001
    other.numbers[name] = planted
    with pytest.raises(DktError, match=f"column {name}: 1 rows differ, row 7"):
        core.verify(mine, other)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_planted_window_is_found(rows, mine, name):
    other = core.theirs(core.frame(rows))
    stop = other.windows[name].stop.copy()
    stop[-1] -= 1
    other.windows[name] = other.windows[name]._replace(stop=stop)
    with pytest.raises(DktError, match=f"windows of {name} differ"):
        core.verify(mine, other)


def test_the_rows_are_the_simulated_ones(rows):
    assert pc.count_distinct(rows["user"]).as_py() == 40
    assert rows["correct"].to_numpy().min() == 0


def test_one_pass_equals_each_position_alone(capsys):
    evaluate.main(["--quick", "--repeats", "1"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["max_abs_diff"] <= evaluate.TOLERANCE
    assert figures["positions_alone"] == 500
    assert figures["speedup"] > 0
