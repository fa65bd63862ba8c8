"""The side-by-side with pyKT: every question is scored once, from the rows before it; both sides train on the same."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import polars as pl
import pytest

from benchmarks import throughput_data, train_throughput
from benchmarks.pykt_side import layout
from benchmarks.pykt_side.layout import MAXLEN, History
from benchmarks.train_throughput import PAIRS
from benchmarks.turns import Side
from dkt_ray.config import build
from dkt_ray.models.catalog import CATALOG


def history(questions: int, seed: int) -> History:
    """Questions of one to four concepts."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 5, size=questions)
    rows = int(sizes.sum())
    row = {
        "user": str(seed),
        "questions": np.repeat(rng.integers(1000, size=questions), sizes),
        "concepts": rng.integers(50, size=rows),
        "responses": np.repeat(rng.integers(2, size=questions), sizes),
        "is_repeat": np.concatenate([np.arange(size) > 0 for size in sizes]).astype(int),
    }
    return layout.histories(pd.DataFrame([row]))[0]


@pytest.mark.parametrize("stride", [1, 50, 120])
@pytest.mark.parametrize("questions", [1, 2, 60, 83, 300])
def test_every_concept_is_a_target_once_and_reads_the_rows_before_its_question(questions, stride):
    found = history(questions, seed=questions)
    windows = layout.windows(found, stride)
    targets = [row for window in windows for row in range(window.first_target, window.last_target)]
    assert targets == np.flatnonzero(found.position > 0).tolist()
    for window in windows:
        for row in range(window.first_target, window.last_target):
            past = found.first[row] - window.start
            assert 0 < past < MAXLEN
            assert past == found.first[row] or past >= MAXLEN - stride  # all of it, or as much as is promised


def test_with_a_stride_of_1_a_target_reads_what_pykt_shows():
    found = history(300, seed=1)
    for window in layout.windows(found, 1):
        first = found.first[window.first_target : window.last_target]
        if window.start:
            assert set(first - window.start) == {MAXLEN - 1}
        else:
            assert first.max() < MAXLEN


def test_a_batch_holds_no_row_of_the_question_or_after_it():
    histories = [history(questions, seed) for seed, questions in enumerate((2, 40, 90, 130))]
    windows = [window for each in histories for window in layout.windows(each, 50)]
    seen = 0
    for batch in layout.batches(windows, cells=200_000):
        for b, window in enumerate(batch.windows):
            whole, targets = window.history, window.last_target - window.first_target
            for m in range(targets):
                row = window.first_target + m
                past = slice(window.start, window.start + int(batch.place[b, m]))
                assert past.stop == whole.first[row]
                assert batch.concept[b, : batch.place[b, m]].tolist() == whole.concept[past].tolist()
                assert batch.correct[b, : batch.place[b, m]].tolist() == whole.correct[past].tolist()
                assert batch.target_concept[b, m] == whole.concept[row]
                assert batch.target_question[b, m] == whole.question[row]
            assert batch.rows[b] >= batch.place[b, :targets].max()
            seen += targets
    assert seen == sum((each.position > 0).sum() for each in histories)


def test_a_part_of_the_logs_keeps_whole_users_of_all_lengths():
    lengths = np.arange(1, 101)
    logs = pl.DataFrame({throughput_data.USER: np.repeat(np.arange(100), lengths)})
    part = throughput_data.part(logs, 500)
    kept = part.group_by(throughput_data.USER).len()
    assert (kept["len"] == kept[throughput_data.USER] + 1).all()
    assert kept["len"].sort().to_list() == [6, 16, 26, 36, 46, 56, 66, 76, 86, 96]


def test_full_windows_pad_nothing():
    logs = throughput_data.full_windows(6, 20)
    assert logs.group_by(throughput_data.USER).len()["len"].to_list() == [20] * 6
    assert logs.group_by("assessmentItemID").agg(pl.col("KnowledgeTag").n_unique())["KnowledgeTag"].max() == 1


def test_sides_take_turns():
    echo = (
        "import json, sys\n"
        "print(json.dumps({'questions': 3}), flush=True)\n"
        "for number, line in enumerate(sys.stdin): print(json.dumps({'seconds': number + 0.5}), flush=True)"
    )
    side = Side([sys.executable, "-c", echo], {})
    side.turn()
    side.turn()
    assert side.close() >= 0
    assert (side.facts, side.turns) == ({"questions": 3}, [{"seconds": 0.5}, {"seconds": 1.5}])
    assert side.median("seconds") == 1.0


def test_a_side_that_fails_is_named():
    with pytest.raises(subprocess.CalledProcessError, match="status 3"):
        Side([sys.executable, "-c", "raise SystemExit(3)"], {})


def test_throughput_runs_without_pykt(monkeypatch, capsys):
    monkeypatch.delenv("DKT_PYKT_PYTHON", raising=False)
    train_throughput.main(["--quick", "--families", "lstm_attention,no_such_family"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["missing"] == ["no_such_family"]
    assert figures["lstm_attention"] is None  # no peer, no ratio
    part, full = (figures["details"]["lstm_attention"][name]["ours"] for name in ("part", "full"))
    assert full["questions"] == 4 * 4 * 200  # four steps of four windows
    for side in (part, full):
        assert side["questions_per_s"] > 0
        assert side["peak_mib"] > 0


@pytest.mark.parametrize("family", sorted(PAIRS.keys() & CATALOG.keys()))
def test_the_families_have_the_settings_that_make_them_as_large_as_their_peers(family):
    config = build(CATALOG[family].config, PAIRS[family].ids_only)
    assert not config.numbers
    assert config.width == 64
