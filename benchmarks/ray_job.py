"""Part (b): `dkt prepare` through Ray, its start included, at several sizes, and plain pandas on the same CSV."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import polars as pl

from benchmarks import pandas_baseline as baseline
from benchmarks.environment import GIB
from benchmarks.process_tree import Ran, drop_from_cache, run
from dkt_ray.data.simulate import SimulateConfig, simulate
from dkt_ray.schema import RAW_COLUMNS
from dkt_ray.session import EVERYWHERE, ON_THIS_MACHINE

COHORT: Final = 7442  # users of one file: 2.5 million rows
ROWS: Final = 2_500_000
ENVIRONMENT: Final = os.environ | EVERYWHERE | ON_THIS_MACHINE | {"OMP_NUM_THREADS": "1"}
BASELINE: Final = "import sys; from benchmarks import ray_job; ray_job.pandas_on(sys.argv[1])"


def logs(folder: Path, rows: int) -> list[Path]:
    """CSV files of simulated cohorts, one for each 2.5 million rows; those that are there are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    users = round(COHORT * min(rows / ROWS, 1.0))
    files = [folder / f"cohort-{number:03d}.csv" for number in range(max(1, round(rows / ROWS)))]
    for number, path in enumerate(files):
        if not path.exists():
            _write_cohort(path, users, number)
    return files


def _write_cohort(path: Path, users: int, number: int) -> None:
    """One cohort with a seed and user ids of its own."""
    histories = simulate(SimulateConfig(users=users, seed=number)).histories(hide=True)
    frame = pl.DataFrame(
        {
            "user": np.repeat(np.arange(users), histories.lengths) + number * COHORT,
            "question": pl.from_arrow(histories.question.arrow()),
            "test": pl.from_arrow(histories.test.arrow()),
            "correct": histories.correct,
            "timestamp": pl.Series(histories.timestamp).cast(pl.Datetime("ms")),
            "concepts": pl.from_arrow(histories.concepts.arrow()),
        }
    ).rename(RAW_COLUMNS)
    part = path.with_suffix(".part")
    frame.write_csv(part, datetime_format="%Y-%m-%d %H:%M:%S")
    part.rename(path)


def pandas_on(path: str) -> None:
    """The baseline from a CSV file to columns and windows; nothing is validated or written."""
    names = {raw: name for name, raw in RAW_COLUMNS.items()} | {RAW_COLUMNS["concepts"]: "concept"}
    kinds = dict.fromkeys((RAW_COLUMNS[name] for name in ("user", "question", "test", "concepts")), "category")
    raw = pd.read_csv(path, dtype=kinds, parse_dates=[RAW_COLUMNS["timestamp"]]).rename(columns=names)
    raw["time"] = raw.pop("timestamp").astype("datetime64[ms]").astype(np.int64)
    rows = baseline.arrange(raw)
    baseline.columns(rows, baseline.fit(rows))
    baseline.windows(rows)


def prepare(path: str, store: str, environment: Mapping[str, str]) -> tuple[Ran, dict[str, Any]]:
    """Run the job with all features; gives its result line too."""
    settings = {"data.path": path, "store": store, "engine": "ray", "force": "true"}
    sets = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    ran = run([sys.executable, "-m", "dkt_ray.cli", "prepare", *sets], environment)
    return ran, json.loads(ran.stdout.splitlines()[-1])


def measure(folder: Path, sizes: Sequence[int], repeats: int) -> dict[str, Any]:
    """The job at every size; at the smallest one also plain pandas.

    Args:
        folder: for logs (kept) and stores (deleted).
        sizes: rows, about.
        repeats: at the smallest size.
    """
    runs: dict[str, Any] = {}
    smallest = min(sizes)
    for size in sorted(sizes):
        files = logs(folder / f"logs-{size}", size)
        found = [_once(files, folder / "store") for _ in range(repeats if size == smallest else 1)]
        runs[_name(size)] = sorted(found, key=lambda each: each["seconds"])[len(found) // 2]
    figures: dict[str, Any] = {"ray": runs, "peak_gib": max(each["peak_gib"] for each in runs.values())}
    for size in sorted(sizes)[1:]:
        ratio = runs[_name(size)]["us_per_row"] / runs[_name(smallest)]["us_per_row"]
        figures[f"row_time_ratio_{_name(size)}"] = round(ratio, 3)
    files = logs(folder / f"logs-{smallest}", smallest)
    pandas = sorted(_pandas(files[0]) for _ in range(repeats))[repeats // 2]
    job = runs[_name(smallest)]["seconds"]
    return figures | {"pandas_csv_s": round(pandas, 2), "ray_speedup": round(pandas / job, 2)}


def _once(files: Sequence[Path], store: Path) -> dict[str, Any]:
    drop_from_cache(files)
    ran, result = prepare(str(files[0].parent / "*.csv"), str(store), ENVIRONMENT)
    stored = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    shutil.rmtree(store)
    return figures_of(ran, result) | {"cache": "input files dropped", "stored_bytes_per_row": _ratio(stored, result)}


def figures_of(ran: Ran, result: dict[str, Any]) -> dict[str, Any]:
    """What a run of the job says of speed, memory and bytes written (`bytes_per_row` are those that stay)."""
    largest = max(ran.peak, key=lambda name: ran.peak[name])
    return {
        "rows": result["rows"],
        "seconds": round(ran.seconds, 1),
        "stages_s": result["stages"],
        "rows_per_s": round(result["rows"] / ran.seconds),
        "us_per_row": round(1e6 * ran.seconds / result["rows"], 3),
        "buckets": result["buckets"],
        "bytes_per_row": result["bytes_per_row"],
        "written_bytes_per_row": _ratio(ran.written, result),
        "peak_gib": round(ran.peak[largest] / GIB, 2),
        "peak_process": largest,
        "peak_all_gib": round(ran.peak_total / GIB, 2),
        "peaks_gib": {name: round(held / GIB, 2) for name, held in sorted(ran.peak.items())},
    }


def _pandas(path: Path) -> float:
    drop_from_cache([path])
    return run([sys.executable, "-c", BASELINE, str(path)], ENVIRONMENT).seconds


def _ratio(stored: int, result: dict[str, Any]) -> float:
    return round(stored / result["rows"], 1)


def _name(rows: int) -> str:
    return f"{rows / 1e6:g}m"
