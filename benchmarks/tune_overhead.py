"""What a sweep adds to its trials: seconds of trials over seconds of slots, with real LSTM and LightGBM trials."""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import ray

from benchmarks.environment import environment
from dkt_ray.config import build
from dkt_ray.data.ingest import DataConfig
from dkt_ray.data.simulate import SimulateConfig, simulate, write
from dkt_ray.features.dataset import Dataset
from dkt_ray.models.catalog import CATALOG
from dkt_ray.pipelines import prepare
from dkt_ray.session import EVERYWHERE, ON_THIS_MACHINE
from dkt_ray.storage import open_store
from dkt_ray.training import tuning
from dkt_ray.training.fit import fit
from dkt_ray.training.folds import TrainingUsers
from dkt_ray.training.resources import Resources
from dkt_ray.training.search import FamilySpace
from dkt_ray.training.trial import VALIDATION_FOLD, Care, run_trial

SLOTS: Final = 2
MARKS: Final = "marks"
PROBE: Final = {"lightgbm": 50, "lstm": 1}  # rounds and epochs, by whose time those of a trial are set


def main(argv: list[str] | None = None) -> None:
    """Prepare simulated data, size the trials, run them, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=90, help="about how long a trial takes")
    parser.add_argument("--trials", type=int, default=2, help="of each of the two families")
    parser.add_argument("--users", type=int, default=1500)
    options = parser.parse_args(argv)
    os.environ |= EVERYWHERE | ON_THIS_MACHINE
    with tempfile.TemporaryDirectory(prefix="dkt-overhead-") as name:
        users = _users(Path(name), options.users)
        settings = {family: _sized(family, users, options.seconds) for family in PROBE}
        ours = not ray.is_initialized()
        if ours:
            ray.init(num_cpus=SLOTS, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        try:
            measured = run(Path(name), users, settings, options.trials)
        finally:
            if ours:
                ray.shutdown()
    print(json.dumps({"settings": settings, "environment": environment()}))
    print(json.dumps(measured))


def run(folder: Path, users: TrainingUsers, settings: Mapping[str, Mapping[str, Any]], trials: int) -> dict[str, Any]:
    """The sweep: each family's trials all have its settings."""
    config = build(tuning.SearchConfig, {"trials": trials, "scheduler": "none", "concurrency": SLOTS})
    marks_folder = folder / MARKS
    marks_folder.mkdir()
    families = {name: FamilySpace({}, {}, {**fixed, MARKS: str(marks_folder)}) for name, fixed in settings.items()}
    shared, resources = ray.put(users), dict.fromkeys(families, Resources())
    started = time.time()
    results = tuning.search(families, resources, shared, config, open_store(folder / "store"), "overhead", marked)
    wall = time.time() - started
    assert {result.status for result in results} == {"finished"}, results
    marks = [json.loads(path.read_text()) for path in marks_folder.iterdir()]
    worked = sum(mark["ended"] - mark["began"] for mark in marks)
    longest = max(mark["ended"] - mark["began"] for mark in marks)
    print(json.dumps({"wall_s": round(wall, 1), "trials": len(marks), "longest_trial_s": round(longest, 1)}))
    slots = wall * SLOTS
    return {"efficiency": round(worked / slots, 3), "startup_s": round((slots - worked) / len(marks), 2)}


def marked(sample: Mapping[str, Any], users: TrainingUsers, resources: Resources, care: Care) -> None:
    """A trial that notes when it began and ended."""
    settings = dict(sample["settings"])
    folder = Path(settings.pop(MARKS))
    began = time.time()
    run_trial({**sample, "settings": settings}, users, resources, care)
    (folder / f"{sample['family']}-{time.time_ns()}").write_text(json.dumps({"began": began, "ended": time.time()}))


def _users(folder: Path, users: int) -> TrainingUsers:
    """Simulated students, prepared."""
    write(simulate(SimulateConfig(users=users, bank_fraction=0.2, out=str(folder))), open_store(folder))
    data = DataConfig(path=str(folder / "train_data.csv"), folds=5, test_fraction=0.1)
    prepare.run(prepare.PrepareConfig(store=str(folder / "data"), data=data, engine="local"))
    dataset = Dataset.open(open_store(folder / "data"), "default")
    return TrainingUsers(dataset.load(), dataset.state)


def _sized(family: str, users: TrainingUsers, seconds: float) -> dict[str, Any]:
    """Settings of a family with which a fit takes about so many seconds on this machine."""
    data, _ = users.holding_out(VALIDATION_FOLD)
    longest = "rounds" if family == "lightgbm" else "epochs"
    spec = CATALOG[family]
    config = build(spec.config, {longest: PROBE[family]})
    started = time.monotonic()
    fit(family, config, data)
    count = max(1, round(PROBE[family] * seconds / (time.monotonic() - started)))
    return build(spec.config, {longest: count, "patience": count}).model_dump(mode="json")


if __name__ == "__main__":
    main()
