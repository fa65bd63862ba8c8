"""What a trial of a sweep leaves behind, on disk and in the driver's memory: no-op trials through the real searcher,
scheduler and callbacks, in two halves, the second of which should cost no more than the first."""

from __future__ import annotations

import argparse
import gc
import json
import os
import tempfile
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import psutil
import ray
from ray import tune

from benchmarks.environment import environment
from dkt_ray.config import build
from dkt_ray.models.base import Between
from dkt_ray.session import EVERYWHERE, ON_THIS_MACHINE
from dkt_ray.storage import open_store
from dkt_ray.training import tuning
from dkt_ray.training.folds import TrainingUsers
from dkt_ray.training.live import ProgressLines
from dkt_ray.training.resources import Resources
from dkt_ray.training.search import CURVE, ITERATION, METRIC, REPORTS, FamilySpace
from dkt_ray.training.trial import Care

FAMILY: Final = "lightgbm"  # by name only: nothing is fitted
SPACE: Final = {"x": Between(0.0, 1.0), "y": Between(1e-3, 1.0, log=True)}


class Marks(ProgressLines):
    """Our lines, and a measurement at every half of the trials."""

    taken: Final[list[dict[str, float]]] = []

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Measure after the first trial, half of them, and all."""
        super().on_trial_complete(iteration, trials, trial, **info)
        done = sum(other.is_finished() for other in trials) + 1
        if done >= (1, self._total // 2, self._total)[min(len(self.taken), 2)] and len(self.taken) < 3:
            folder = Path(trial.local_experiment_path)
            self.taken.append({"trials": done, "seconds": time.monotonic(), "memory": _memory()} | _stored(folder))


def main(argv: list[str] | None = None) -> None:
    """Run the trials and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--searcher", choices=["optuna", "random"], default="random", help="optuna keeps a study")
    options = parser.parse_args(argv)
    os.environ |= EVERYWHERE | ON_THIS_MACHINE
    Marks.taken.clear()
    tuning.ProgressLines = Marks  # type: ignore[misc]
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="dkt-growth-") as name:
        ours = not ray.is_initialized()
        if ours:
            ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
        try:
            run(Path(name), options.trials, options.searcher)
            files = sum(path.is_file() for path in Path(name).rglob("*"))
        finally:
            tuning.ProgressLines = ProgressLines  # type: ignore[misc]
            if ours:
                ray.shutdown()
    wall = time.monotonic() - started
    print(json.dumps({**figures(Marks.taken), "files": files, "wall_s": round(wall, 1), "environment": environment()}))


def run(folder: Path, trials: int, searcher: str) -> None:
    """A sweep of one family whose trials report once."""
    config = build(tuning.SearchConfig, {"trials": trials, "searcher": searcher, "hang_s": None})
    families = {FAMILY: FamilySpace(SPACE, {"x": 0.5, "y": 0.1}, {})}
    nobody: Any = ray.put(None)
    results = tuning.search(families, {FAMILY: Resources()}, nobody, config, open_store(folder), "growth", no_op)
    assert len(results) == trials


def no_op(sample: Mapping[str, Any], users: TrainingUsers, resources: Resources, care: Care) -> None:
    """One report, and the end."""
    auc = 0.5 + sample["settings"]["x"] / 10
    tune.report({METRIC: auc, REPORTS: 1, CURVE: [auc], ITERATION: 1, "best_iteration": 1})


def figures(taken: list[dict[str, float]]) -> dict[str, Any]:
    """Cost per trial, in each half, from three measurements."""
    halves = list(pairwise(taken))
    per_trial = {
        name: [(after[name] - before[name]) / (after["trials"] - before["trials"]) for before, after in halves]
        for name in ("disk", "memory", "seconds")
    }
    return {
        "trials": taken[-1]["trials"],
        **{f"{name}_per_trial": [round(value, 3) for value in values] for name, values in per_trial.items()},
        **{f"{name}_ratio": round(values[1] / max(values[0], 1e-9), 2) for name, values in per_trial.items()},
    }


def _memory() -> float:
    """Bytes that the driver holds by itself."""
    gc.collect()
    return float(psutil.Process().memory_full_info().uss)


def _stored(folder: Path) -> dict[str, float]:
    """Bytes of an experiment's files."""
    return {"disk": float(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))}


if __name__ == "__main__":
    main()
