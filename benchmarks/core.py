"""Part (a): the reference's restated columns and the windows, our core against plain pandas, from one table in memory.

Both sides get the same rows and give the same float32 columns and the same windows; `verify` compares all of them.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from benchmarks import pandas_baseline as baseline
from benchmarks.environment import seconds_of
from dkt_ray.data.buckets import merge
from dkt_ray.data.history import Histories, Int8
from dkt_ray.data.simulate import SimulateConfig, simulate
from dkt_ray.data.splits import TEST
from dkt_ray.data.windows import StrategyName, WindowConfig, Windows, draw
from dkt_ray.errors import DktError
from dkt_ray.features.chunks import encode_users
from dkt_ray.features.difficulty import count
from dkt_ray.features.encoder import EncoderConfig, EncoderState, fit
from dkt_ray.features.restated import AGGREGATES, ROW_FEATURES
from dkt_ray.features.student import CORE, FEATURE
from dkt_ray.pipelines.windows import interactions

USERS: Final = 6698  # of the reference's training file: 2.27 million rows
STRATEGIES: Final[tuple[StrategyName, ...]] = (
    *("user_head_mid", "user_head", "user_test", "chunk_tests", "chunk_rows", "last", "sliding"),
)
STAGES: Final = ("order", "fit", "columns", "windows")
COLUMNS: Final = tuple(
    dict.fromkeys(
        column
        for columns in (*ROW_FEATURES.values(), *AGGREGATES.values())
        for column in columns
        if column and "shown" not in FEATURE[column].needs
    )
)
GROUPS: Final = tuple(dict.fromkeys(group for column in COLUMNS if (group := FEATURE[column].group) != CORE))
CONFIG: Final = EncoderConfig(features=GROUPS, min_count=1)


class Restated(EncoderState):
    """A fitted state that encodes the restated columns only, not all columns of their groups."""

    @property
    def number_names(self) -> tuple[str, ...]:
        """Names of the numeric columns."""
        return COLUMNS

    @classmethod
    def of(cls, state: EncoderState) -> Restated:
        """The same fitted state."""
        return cls(state.config, state.counts, state.profile, state.timed)


class Made(NamedTuple):
    """What one side made of the rows, and the seconds of each stage."""

    numbers: Mapping[str, npt.NDArray[np.float32]]  # [N] each
    windows: Mapping[str, Windows | baseline.Index]
    seconds: dict[str, float]


def shard(users: int, seed: int = 0, bank_fraction: float = 1.0, hidden: float = 0.0) -> pa.Table:
    """Rows of a simulated class, as the reading of one file leaves them.

    Args:
        hidden: share of the users whose last answer is hidden.
    """
    config = SimulateConfig(users=users, seed=seed, bank_fraction=bank_fraction, test_fraction=hidden)
    histories = simulate(config).histories(hide=True)
    owner = np.repeat(np.arange(users), histories.lengths)
    return pa.table(
        {
            "user": pa.array(histories.users, pa.string()).take(pa.array(owner)),
            "question": histories.question.arrow().cast(pa.string()),
            "test": histories.test.arrow().cast(pa.string()),
            "concepts": histories.concepts.arrow().cast(pa.string()),
            "correct": histories.correct,
            "timestamp": histories.timestamp,
            "source": np.zeros(histories.rows, np.int32),
            "row": np.arange(histories.rows),
        }
    )


def frame(rows: pa.Table) -> pd.DataFrame:
    """The same rows as a DataFrame."""
    return (
        rows.drop(["source", "row"])
        .rename_columns(["user", "question", "test", "concept", "correct", "time"])
        .to_pandas()
    )


def ours(rows: pa.Table) -> Made:
    """Order, fit, encode and draw with the package."""
    seconds: dict[str, float] = {}
    seconds["order"], (histories, _) = seconds_of(lambda: merge([rows], timed=True))
    nobody_left_out: Int8 = np.zeros(len(histories.users), np.int8)
    seconds["fit"], state = seconds_of(lambda: Restated.of(fit([count(histories, nobody_left_out)], CONFIG)))
    seconds["columns"], numbers = seconds_of(lambda: _numbers(histories, state))
    seconds["windows"], windows = seconds_of(lambda: _drawn(histories))
    return Made(dict(zip(state.number_names, numbers.T, strict=True)), windows, seconds)


def theirs(rows: pd.DataFrame) -> Made:
    """The same with plain pandas."""
    seconds: dict[str, float] = {}
    seconds["order"], arranged = seconds_of(lambda: baseline.arrange(rows))
    seconds["fit"], fitted = seconds_of(lambda: baseline.fit(arranged))
    seconds["columns"], columns = seconds_of(lambda: baseline.columns(arranged, fitted))
    seconds["windows"], windows = seconds_of(lambda: baseline.windows(arranged))
    return Made({name: column.to_numpy() for name, column in columns.items()}, windows, seconds)


def verify(mine: Made, pandas: Made) -> None:
    """All columns agree to 1e-5 and all windows exactly.

    Raises:
        DktError: they do not; names the first column or strategy that differs.
    """
    for name in COLUMNS:
        left, right = mine.numbers[name], pandas.numbers[name]
        away = np.flatnonzero(~np.isclose(left, right, rtol=1e-5, atol=1e-5))
        if len(away):
            row = away[0]
            raise DktError(f"column {name}: {len(away)} rows differ, row {row}: {left[row]} and {right[row]}")
    for name in STRATEGIES:
        if not _same_windows(mine.windows[name], pandas.windows[name]):
            raise DktError(f"windows of {name} differ")


def measure(users: int, repeats: int) -> dict[str, Any]:
    """Verify both sides against each other, then time them in turns.

    Args:
        users: of the simulated class, 338 rows each on average.
        repeats: of each side.
    """
    rows = shard(users)
    table = frame(rows)
    compile_s, mine = seconds_of(lambda: ours(rows))
    verify(mine, theirs(table))
    runs: dict[str, list[dict[str, float]]] = {"core": [], "pandas": []}
    sides: tuple[tuple[str, Callable[[], Made]], ...] = (
        ("core", lambda: ours(rows)),
        ("pandas", lambda: theirs(table)),
    )
    for _ in range(repeats):
        for name, side in sides:
            runs[name].append(side().seconds)
    stages = {
        name: {stage: round(statistics.median(run[stage] for run in each), 3) for stage in STAGES}
        for name, each in runs.items()
    }
    total = {name: statistics.median(sum(run.values()) for run in each) for name, each in runs.items()}
    return {
        "core_rows": len(rows),
        "core_columns": len(COLUMNS),
        "core_repeats": repeats,
        "core_first_run_s": round(compile_s, 2),
        "core_s": round(total["core"], 3),
        "pandas_s": round(total["pandas"], 3),
        "core_stages_s": stages,
        "core_speedup": round(total["pandas"] / total["core"], 2),
    }


def _numbers(histories: Histories, state: EncoderState) -> npt.NDArray[np.float32]:
    """Encode as a dataset is loaded, on all cores; the state leaves nobody out."""
    nobody: Int8 = np.full(len(histories.users), TEST, np.int8)
    return encode_users(histories, nobody, state, threads=os.cpu_count() or 1).numbers


def _drawn(histories: Histories) -> dict[str, Windows]:
    rows = interactions(histories)
    return {name: draw(rows, WindowConfig(strategy=name), baseline.LENGTH) for name in STRATEGIES}


def _same_windows(one: Windows | baseline.Index, other: Windows | baseline.Index) -> bool:
    """Whether both hold the same rows, window by window, in the same order."""
    lengths = one.stop - one.start
    return np.array_equal(lengths, other.stop - other.start) and np.array_equal(_rows_of(one), _rows_of(other))


def _rows_of(windows: Windows | baseline.Index) -> npt.NDArray[np.int64]:
    lengths = windows.stop - windows.start
    ends = np.cumsum(lengths)
    return windows.order[np.arange(ends[-1]) + np.repeat(windows.start - (ends - lengths), lengths)]
