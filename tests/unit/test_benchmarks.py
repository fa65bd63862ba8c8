"""The benchmark compares like with like: the pandas baseline makes our columns and our windows."""

import json
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from benchmarks import (
    core,
    data_plane,
    encode_latency,
    ensemble_step,
    evaluate,
    process_tree,
    train_memory,
    tune_growth,
    yardstick,
)
from benchmarks.core import COLUMNS, STRATEGIES, Made
from dkt_ray.data.simulate import SimulateConfig, simulate
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


@pytest.mark.parametrize("path", sorted(Path("benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_it_imports_what_there_is(path):
    import_module(f"benchmarks.{path.stem}")


def test_the_rows_are_the_simulated_ones(rows):
    assert pc.count_distinct(rows["user"]).as_py() == 40
    assert rows["correct"].to_numpy().min() == 0


def test_one_pass_equals_each_position_alone(capsys):
    evaluate.main(["--quick", "--repeats", "1"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["max_abs_diff"] <= evaluate.TOLERANCE
    assert figures["positions_alone"] == 500
    assert figures["speedup"] > 0


def test_the_ensemble_step_drops_members_of_no_use(capsys):
    ensemble_step.main(["--rows", "4000", "--members", "4"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["rows"] == 4000
    assert figures["members"] == 4
    assert 1 <= len(figures["kept"]) <= 4
    assert figures["seconds"] > 0


def test_what_the_filter_knows_is_worth_something(capsys):
    yardstick.main(["--quick"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["learned_no_seconds"] < figures["filter"] < figures["oracle"]
    assert abs(figures["twice_the_particles"] - figures["filter"]) < 0.003


def test_questions_are_learned_from_the_answers_to_them():
    simulation = simulate(SimulateConfig(users=300, bank_fraction=0.05))
    everybody = np.ones(simulation.rows, bool)
    bank, nobody = simulation.bank, yardstick.learned(simulation, ~everybody)
    learned = yardstick.learned(simulation, everybody)

    def error(other, name):
        return np.sqrt(np.mean((getattr(other, name) - getattr(bank, name)) ** 2))

    for name, share in {"difficulty": 0.5, "guess": 0.95, "discrimination": 0.9}.items():
        assert error(learned, name) < share * error(nobody, name), name


def test_the_last_line_has_every_figure_that_is_asked_for(monkeypatch, capsys):
    for name, value in {"CLASS": 8, "REPEATS": 1, "REPEAT_S": 0}.items():
        monkeypatch.setattr(encode_latency, name, value)
    data_plane.main(["--quick", "--parts", "encode"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    missing = dict.fromkeys(("core_speedup", "ray_speedup", "row_time_ratio_20m", "peak_gib"))
    assert missing.items() <= figures.items()
    assert min(figures["encode_ms_340x1"], figures["encode_ms_340x1000"]) > 0


def test_what_a_trial_leaves_behind_is_told_for_each_half_of_the_trials():
    marks = [
        {"trials": 1, "disk": 100.0, "memory": 1e6, "seconds": 0.0},
        {"trials": 5, "disk": 500.0, "memory": 2e6, "seconds": 8.0},
        {"trials": 10, "disk": 1500.0, "memory": 2e6, "seconds": 13.0},
    ]
    found = tune_growth.figures(marks)
    assert (found["trials"], found["disk_per_trial"], found["disk_ratio"]) == (10, [100, 200], 2)
    assert (found["memory_ratio"], found["seconds_ratio"]) == (0, 0.5)


def test_a_part_that_is_none_is_refused(capsys):
    with pytest.raises(SystemExit):
        data_plane.main(["--parts", "core,rays"])
    assert "expected some of core,ray,encode" in capsys.readouterr().err


WRITES = """
import pathlib, subprocess, sys
pathlib.Path(sys.argv[1]).write_bytes(bytes(8_000_000))
if sys.argv[3:]:
    subprocess.run([sys.executable, "-c", *sys.argv[2:4], ""], check=True)
print(pathlib.Path("/proc/self/io").read_text())
"""


def test_what_a_process_and_its_children_wrote_is_counted(tmp_path):
    """Also where they ended between two samples; the child's bytes are in the parent's own count when it has ended."""
    paths = [str(tmp_path / name) for name in ("one", "two")]
    ran = process_tree.run([sys.executable, "-c", WRITES, paths[0], WRITES, paths[1]], {})
    *_, told = (int(line.split()[1]) for line in ran.stdout.splitlines() if line.startswith("write_bytes"))
    assert ran.written >= told
    assert told == 0 or told >= 16_000_000, "0: the folder is not on a disk"


def test_memory_that_a_process_holds_by_itself_is_counted():
    before = train_memory.held()
    block = np.ones(64 << 20, np.uint8)
    assert 60 < train_memory.held() - before < 80
    del block
    assert train_memory.held() - before < 20
