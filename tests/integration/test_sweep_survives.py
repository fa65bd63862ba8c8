"""A sweep on a real Ray cluster, and what may befall it: a hanging worker, a full disk, every rule, scarce GPUs."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import tune
from ray.tune.execution.tune_controller import TuneController
from ray.tune.stopper import timeout

from dkt_ray.config import build
from dkt_ray.errors import StorageError
from dkt_ray.features.dataset import Dataset
from dkt_ray.models.base import Between
from dkt_ray.schema import UNKNOWN
from dkt_ray.storage import open_store
from dkt_ray.training import tuning
from dkt_ray.training.folds import TrainingUsers
from dkt_ray.training.resources import Resources
from dkt_ray.training.search import CURVE, ITERATION, METRIC, REPORTS, FamilySpace
from dkt_ray.training.trial import Care, Watchdog
from tests.integration.test_sweep import trials_of
from tests.integration.test_sweep import tune as swept
from tests.sweep_data import prepared

__all__ = ["prepared"]  # a fixture

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 120
BEHAVIOUR = {"x": Between(0.0, 1.0)}


def tell(reports: int, auc: float) -> None:
    curve = [auc] * reports
    tune.report({METRIC: auc, REPORTS: reports, CURVE: curve, ITERATION: reports, "best_iteration": 1})


def hangs_once(sample: Mapping[str, Any], users: TrainingUsers, resources: Resources, care: Care) -> None:
    """`stuck` hangs for ever each time, `slow` the first time only, `fine` never."""
    folder = Path(sample["settings"]["folder"])
    with Watchdog(care.hang_s) as watchdog:
        with watchdog.resting():
            tell(1, 0.6)
        mark = folder / f"{sample['family']}-was-here"
        hang = sample["family"] == "stuck" or (sample["family"] == "slow" and not mark.exists())
        with mark.open("a") as file:
            file.write("x")
        while hang:
            time.sleep(60)
        with watchdog.resting():
            tell(2, 0.7)


def search(tmp_path: Path, families: dict[str, Resources], run: Any, **settings: Any) -> list[tuning.TrialResult]:
    config = build(tuning.SearchConfig, {"scheduler": "none", "checkpoint_s": 0} | settings)
    spaces = {family: FamilySpace(BEHAVIOUR, {"x": 0.5}, {"folder": str(tmp_path)}) for family in families}
    nobody: Any = ray.put(None)
    return tuning.search(spaces, families, nobody, config, open_store(tmp_path / "store"), "experiment", run)


@pytest.fixture
def without_families_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The families here are none of the catalog."""
    monkeypatch.setattr(tuning, "mutable", lambda family, search: {})


@pytest.mark.usefixtures("ray_cluster", "without_families_of_our_own")
def test_a_trial_that_hangs_is_ended_tried_again_and_failed_with_the_reason(tmp_path: Path) -> None:
    families = dict.fromkeys(("stuck", "slow", "fine"), Resources())
    results = search(tmp_path, families, hangs_once, trials=1, hang_s=8, retries=1)
    found = {result.family: result for result in results}
    assert {family: result.status for family, result in found.items()} == {
        "stuck": "failed",
        "slow": "finished",
        "fine": "finished",
    }
    assert "no report for 8 s (hang_s), so its worker was ended" in found["stuck"].reason
    assert found["stuck"].auc is None  # though it had reported one: it is not to be chosen
    tries = {family: (tmp_path / f"{family}-was-here").read_text() for family in ("stuck", "slow")}
    assert tries == {"stuck": "xx", "slow": "xx"}


def steady(sample: Mapping[str, Any], users: TrainingUsers, resources: Resources, care: Care) -> None:
    """Says who ran, and reports twice."""
    with (Path(sample["settings"]["folder"]) / "ran").open("a") as file:
        file.write(f"{sample['settings']['x']}\n")
    for reports in (1, 2):
        tell(reports, 0.5 + sample["settings"]["x"] / 10)


@pytest.mark.usefixtures("ray_cluster", "without_families_of_our_own")
def test_a_full_disk_ends_the_sweep_with_one_error_and_the_next_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = TuneController.checkpoint
    ended: set[str] = set()

    def fill_up(self: TuneController, *options: Any, **more: Any) -> None:
        ended.update(trial.trial_id for trial in self.get_trials() if trial.is_finished())
        if len(ended) >= 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, *options, **more)

    settings = {"trials": 5, "concurrency": 1, "seed": 4}
    with monkeypatch.context() as patched:
        patched.setattr(TuneController, "checkpoint", fill_up)
        with pytest.raises(StorageError, match=r"refuses the sweep's state \(.*No space left.*run the same command"):
            search(tmp_path, {"a": Resources()}, steady, **settings)
    assert len(ended) == 3
    results = search(tmp_path, {"a": Resources()}, steady, **settings)
    assert [result.status for result in results] == ["finished"] * 5
    assert len(ended & {result.trial for result in results}) >= 2
    undisturbed = search(tmp_path / "other", {"a": Resources()}, steady_elsewhere, **settings)
    assert sorted(result.settings["x"] for result in results) == sorted(r.settings["x"] for r in undisturbed)
    ran = [float(line) for line in (tmp_path / "ran").read_text().split()]
    assert len(ran) <= 6  # the trial whose end could not be kept may have run again, no other
    assert len(set(ran)) == 5


def endless(sample: Mapping[str, Any], users: TrainingUsers, resources: Resources, care: Care) -> None:
    """The default ends; the others report until the budget ends them."""
    folder, reports = Path(sample["settings"]["folder"]), 1
    (folder / f"began-{sample['settings']['x']}").touch()
    give_up = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up:
        tell(reports, 0.6 + 0.1 * (reports > 1))
        if sample["settings"]["x"] == 0.5:
            return
        if reports == 2:
            (folder / "spent").touch()
        reports += 1
        time.sleep(0.05)


@pytest.mark.usefixtures("ray_cluster", "without_families_of_our_own")
def test_a_budget_of_time_ends_what_runs_and_starts_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tune's clock stands still until the second of five trials has reported twice; then the budget is over."""
    now = SimpleNamespace(time=lambda: 1e9 if (tmp_path / "spent").exists() else 1.0)
    monkeypatch.setattr(timeout, "time", now)
    settings = {"trials": 5, "concurrency": 1, "time_budget_s": 3600}
    results = search(tmp_path, {"a": Resources()}, endless, **settings)
    found = {result.settings["x"] == 0.5: result for result in results}
    assert (len(results), found[True].status, found[False].status) == (2, "finished", "stopped")
    assert (found[True].auc, found[False].auc) == (0.6, 0.7)  # the best so far counts
    assert len(list(tmp_path.glob("began-*"))) == 2
    again = search(tmp_path, {"a": Resources()}, endless, **settings)
    assert again == results  # and it is over: nothing waits for the trial that was cut short


def steady_elsewhere(sample: Mapping[str, Any], users: TrainingUsers, resources: Resources, care: Care) -> None:
    tell(1, 0.5 + sample["settings"]["x"] / 10)


def test_a_sweep_by_pbt_on_a_sample_ends_in_members_fitted_on_everyone(prepared: str) -> None:
    """One family can be changed on the way, the other cannot: its trials run without pbt."""
    result = swept(
        prepared,
        run="pbt",
        scheduler="pbt",
        sample=0.6,
        trials=3,
        checkpoint_s=0,
        grace_period=1,
        perturbation_reports=1,
        overrides={"lstm_attention": {"epochs": 6, "patience": 6}},
    )
    trials = trials_of(prepared, "pbt")
    assert [trial["reason"] for trial in trials if trial["status"] == "failed"] == []
    assert len(trials) == 6
    for trial in trials:
        settings = json.loads(trial["config"])
        schedule = json.loads(trial["schedule"] or "null")
        assert schedule is None or trial["family"] == "lstm_attention"
        if schedule:  # what is told is what was in force at the end
            assert {name: settings[name] for name in schedule[-1][1]} == schedule[-1][1]
            assert [after for after, _ in schedule] == sorted({after for after, _ in schedule})
    rows = Dataset.open(open_store(prepared), "default").load().rows
    for family in result["families"]:
        scored = open_store(prepared).read_table(f"runs/pbt/members/{family}/oof.parquet")
        assert scored.num_rows == (rows.correct != UNKNOWN).sum()  # whatever the trials read


PACKED = """
import json, sys, time
from pathlib import Path
from typing import Any
import ray
from ray import tune
from ray.tune.execution.tune_controller import TuneController
from dkt_ray.config import build
from dkt_ray.models.base import Between
from dkt_ray.storage import open_store
from dkt_ray.training import tuning
from dkt_ray.training.resources import Resources
from dkt_ray.training.search import CURVE, ITERATION, METRIC, REPORTS, FamilySpace

FOLDER, PATIENCE_S = Path(sys.argv[1]), float(sys.argv[2])
WANTED = {"cpu": Resources(cpus=1), "half": Resources(cpus=1, gpus=0.5), "whole": Resources(cpus=1, gpus=1)}
tuning.mutable = lambda family, search: {}

def trial(sample, users, resources, care):
    family, folder = sample["family"], Path(sample["settings"]["folder"])
    began = time.time()
    (folder / f"met-{family}").touch()
    other = folder / ("met-half" if family == "cpu" else "met-cpu")
    while not other.exists():  # a family that had to wait for the others to end would wait here for ever
        if time.time() - began > PATIENCE_S:
            raise RuntimeError(f"{family} never met {other.name}")
        time.sleep(0.02)
    gpus = ray.get_gpu_ids()
    tune.report({METRIC: 0.5, REPORTS: 1, CURVE: [0.5], ITERATION: 1, "best_iteration": 1})
    line = json.dumps({"family": family, "began": began, "ended": time.time(), "gpus": len(gpus)})
    (folder / f"trial-{family}-{sample['settings']['x']}").write_text(line)

if __name__ == "__main__":
    ray.init(num_cpus=8, num_gpus=2, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
    spaces = {family: FamilySpace({"x": Between(0, 1)}, {"x": 0.5}, {"folder": str(FOLDER)}) for family in WANTED}
    config = build(tuning.SearchConfig, {"trials": 4, "searcher": "random", "scheduler": "none"})
    results = tuning.search(spaces, WANTED, ray.put(None), config, open_store(FOLDER / "store"), "e", trial)
    print(json.dumps([[result.family, result.status, result.reason] for result in results]))
    ray.shutdown()
"""


def test_trials_are_packed_by_their_own_resources_beside_each_other(tmp_path: Path) -> None:
    """A cluster of two logical GPUs: CPU-only trials run beside GPU ones, and GPUs are never shared out twice."""
    (tmp_path / "packed.py").write_text(PACKED)
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "packed.py"), str(tmp_path), str(PATIENCE_S)],
        env=environment | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ended = json.loads(done.stdout.splitlines()[-1])
    assert [(status, reason) for _, status, reason in ended] == [("finished", "")] * 12
    trials = [json.loads(path.read_text()) for path in tmp_path.glob("trial-*")]
    assert len(trials) == 12
    share = {"cpu": 0.0, "half": 0.5, "whole": 1.0}
    assert {trial["family"]: trial["gpus"] for trial in trials} == {"cpu": 0, "half": 1, "whole": 1}
    for trial in trials:
        beside = [other for other in trials if other["began"] <= trial["began"] < other["ended"]]
        assert sum(share[other["family"]] for other in beside) <= 2
    cpu, half = ([t for t in trials if t["family"] == family] for family in ("cpu", "half"))
    assert any(a["began"] < b["ended"] and b["began"] < a["ended"] for a in cpu for b in half)
