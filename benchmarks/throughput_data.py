"""What `train_throughput.py` trains on: a part of a log, and full windows, each for both sides."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import polars as pl

from dkt_ray.config import build
from dkt_ray.data.simulate import SimulateConfig
from dkt_ray.pipelines import prepare, simulate
from dkt_ray.schema import RAW_COLUMNS

USER: Final = RAW_COLUMNS["user"]
ROOT: Final = Path(__file__).parents[1]
WRITE: Final = (
    "import sys; from pathlib import Path; from benchmarks.pykt_side.sequences import write; "
    "write(*map(Path, sys.argv[1:]))"
)
FEWEST: Final = 3  # questions of a history that pyKT reads
START, SECOND = np.datetime64("2000-01-01", "ms"), np.timedelta64(1000, "ms")
BANK, CONCEPTS = 2_000, 150  # questions and concepts of the full windows


class Data(NamedTuple):
    """One part of the logs, as both sides read it."""

    store: Path  # ours: a dataset `default`
    sequences: Path  # pyKT's files


def simulated(folder: Path, users: int) -> Path:
    """Simulated logs, where there are no real ones."""
    simulate.run(SimulateConfig(users=users, test_fraction=0.0, out=str(folder)))
    return folder / "train_data.csv"


def part(logs: pl.DataFrame, questions: int) -> pl.DataFrame:
    """About so many interactions: whole users, evenly taken from all lengths of histories."""
    by_length = logs.group_by(USER).len().sort("len", USER)[USER]
    every = max(1, round(len(logs) / questions))
    return logs.filter(pl.col(USER).is_in(by_length[every // 2 :: every].to_list()))


def full_windows(windows: int, length: int) -> pl.DataFrame:
    """Histories of equal length, one concept per question: nothing is padded, no question is more than one row."""
    rng = np.random.default_rng(0)
    rows = windows * length
    question = rng.integers(BANK, size=rows)
    return pl.DataFrame(
        {
            "user": np.repeat(np.arange(windows), length),
            "question": question,
            "test": question,
            "correct": rng.integers(2, size=rows),
            "timestamp": START + np.tile(np.arange(length), windows) * SECOND,
            "concepts": question % CONCEPTS,
        }
    ).rename(RAW_COLUMNS)


def write(logs: pl.DataFrame, folder: Path, pykt: Sequence[str], environment: Mapping[str, str]) -> Data:
    """Write the logs for both sides.

    Args:
        logs: six columns.
        folder: to write to.
        pykt: how its interpreter is called; empty: there is none.
        environment: of that interpreter.
    """
    folder.mkdir()
    found = Data(folder / "store", folder / "sequences")
    logs.write_csv(folder / "logs.csv", datetime_format="%Y-%m-%d %H:%M:%S")
    data = {"path": str(folder / "logs.csv"), "test_fraction": 0.0}
    settings = {"store": str(found.store), "data": data, "encoder": {"use_time": False}, "engine": "local"}
    prepare.run(build(prepare.PrepareConfig, settings))
    if pykt:
        _split(logs).write_csv(folder / "split.csv")
        files = [str(folder / name) for name in ("logs.csv", "split.csv")]
        subprocess.run([*pykt, "-c", WRITE, *files, str(found.sequences)], env=dict(environment), check=True)
    return found


def _split(logs: pl.DataFrame) -> pl.DataFrame:
    """All users train; pyKT's loader wants some for validation and for test too: the two shortest histories."""
    by_length = logs.group_by(USER).len().filter(pl.col("len") >= FEWEST).sort("len", USER)[USER]
    held_out = {by_length[0]: "fold4", by_length[1]: "fold5"}
    users = logs[USER].unique(maintain_order=True)
    return pl.DataFrame({USER: users, "split": [held_out.get(user, "fold1") for user in users]})
