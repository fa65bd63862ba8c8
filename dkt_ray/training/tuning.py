"""(Ray) One Ray Tune experiment over several families: parallel trials, live progress, resumable after a kill."""

from __future__ import annotations

import bisect
import json
import logging
import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

import numpy as np
import ray
from pydantic import Field, model_validator
from ray import tune
from ray.tune.experiment import Trial

from dkt_ray.config import Config, build
from dkt_ray.errors import DktError
from dkt_ray.models.catalog import CATALOG
from dkt_ray.storage import Store
from dkt_ray.training.fit import fit
from dkt_ray.training.folds import TrainingUsers
from dkt_ray.training.live import ENDING, ProgressLines, last_line
from dkt_ray.training.progress import Progress
from dkt_ray.training.resources import Resources, claimed, environment
from dkt_ray.training.search import CURVE, ITERATION, METRIC, REASON, REPORTS, FamilyHalving, FamilySearch, FamilySpace

logger = logging.getLogger(__name__)

_SNAPSHOT_S: Final = 2  # how much of the book of trials a killed driver may lose
_BEST: Final = "best_iteration"

VALIDATION_FOLD: Final = 0  # trials are compared on the users of this fold

# Settings that Ray Tune reads from the environment only.
ENVIRONMENT: Final = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON and TensorBoard files per trial
    "TUNE_GLOBAL_CHECKPOINT_S": str(_SNAPSHOT_S),
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # with verbose=0: no tables, `live` has our lines
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the job: it must not go on to fit members of a partial sweep
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # one line per failure, ours
    "TUNE_MAX_PENDING_TRIALS_PG": "200",  # `FamilySearch` decides when a trial may come
}


class SearchConfig(Config):
    """How a sweep searches."""

    trials: int = Field(default=4, ge=1)
    """Trials per family; the first is the family's default."""
    max_reports: int = Field(default=200, ge=1)
    """Longest trial, in reports: a report is an epoch of a network or some rounds of a booster."""
    grace_period: int = Field(default=2, ge=1)
    """Reports before a trial may be stopped for being behind."""
    reduction_factor: float = Field(default=3, gt=1)
    """Of the trials that reach a rung of the successive halving, about one in this many goes on."""
    seed: int = 0
    """Seed of the search and of every fit."""
    concurrency: int | None = Field(default=None, ge=1)
    """Trials at the same time; unset: as many as the cluster has room for."""
    autoscale: bool = False
    """The cluster adds nodes on demand, so wait for resources that no node has yet; needs `concurrency`."""
    retries: int = Field(default=1, ge=0)
    """Times that a trial is started again, from its last checkpoint, after its worker died."""
    checkpoint_s: float = Field(default=10.0, ge=0)
    """Seconds of training between a trial's checkpoints."""
    time_budget_s: float | None = Field(default=None, gt=0)
    """Stop the search after this time and go on with the best so far."""

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.autoscale and self.concurrency is None:
            raise ValueError("autoscale=true needs concurrency: how many trials the cluster may grow to run at once")
        return self


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended."""

    family: str
    trial: str
    status: Literal["finished", "stopped", "failed"]  # stopped: by successive halving or the time budget
    settings: dict[str, Any]
    auc: float | None  # best on the validation fold
    iterations: int  # the last that it reported
    best_iteration: int
    seconds: float
    curve: list[float]  # best AUC so far, per report
    reason: str  # why it failed


def search(
    families: Mapping[str, FamilySpace],
    resources: Mapping[str, Resources],
    users: ray.ObjectRef[TrainingUsers],
    config: SearchConfig,
    folder: Store,
    name: str,
) -> list[TrialResult]:
    """Run the trials of all families, or those that are left of an experiment of the same name.

    Args:
        families: what varies, per family.
        resources: what a trial takes, per family; the cluster must have it.
        users: a `TrainingUsers` in the object store; trials are validated on fold 0.
        config: how to search.
        folder: Ray Tune's own place: nothing else may write there (it restores its state by pickle).
        name: the experiment.
    """
    filesystem, root = folder.filesystem()
    path = f"{root}/{name}"

    def trial(sample: dict[str, Any]) -> None:
        run_trial(sample, ray.get(users), resources[sample["family"]], config.checkpoint_s)

    trainable = tune.with_resources(trial, lambda sample: _request(resources[sample["family"]]))
    with environment(ENVIRONMENT), _quiet():
        if tune.Tuner.can_restore(path, storage_filesystem=filesystem):
            logger.info("the sweep goes on where an earlier one ended")
            tuner = tune.Tuner.restore(
                path,
                trainable,
                resume_unfinished=True,
                resume_errored=True,
                param_space={},
                storage_filesystem=filesystem,
            )
        else:
            tuner = tune.Tuner(
                trainable,
                param_space={},
                tune_config=_tune_config(families, resources, config),
                run_config=_run_config(len(families) * config.trials, config, folder, name),
            )
        tuner.fit()
        return [_result(trial) for trial in tune.ExperimentAnalysis(path, storage_filesystem=filesystem).trials]


def run_trial(sample: Mapping[str, Any], users: TrainingUsers, resources: Resources, checkpoint_s: float) -> None:
    """One trial (runs in a Ray worker): fit a family, from its last checkpoint if there is one, and report the AUC.

    Args:
        sample: {"family", "settings"}.
        users: shared by all trials, read-only.
        resources: what this trial may use.
        checkpoint_s: least seconds between two checkpoints.
    """
    family = sample["family"]
    with tempfile.TemporaryDirectory() as name, claimed(resources):
        reports = Reports(Path(name), checkpoint_s)
        data, _ = users.holding_out(VALIDATION_FOLD)
        try:
            fit(family, build(CATALOG[family].config, sample["settings"]), data, reports, Path(name))
        except DktError as error:  # it would come again: no retry
            tune.report({METRIC: math.nan, REPORTS: len(reports.curve) + 1, CURVE: reports.curve, REASON: str(error)})


class Reports:
    """Passes a fit's progress on to Tune, with a checkpoint of the fit now and then."""

    _FILE: Final = "reports.json"

    def __init__(self, folder: Path, checkpoint_s: float) -> None:
        """Begin, or go on from the checkpoint that Tune has for this trial, which is then copied into the folder."""
        self.curve: list[float] = []  # best AUC so far
        self.iterations: list[int] = []
        self._folder = folder
        self._checkpoint_s = checkpoint_s
        self._saved = time.monotonic()
        if (checkpoint := tune.get_checkpoint()) is not None:
            checkpoint.to_directory(folder)
            state = json.loads((folder / self._FILE).read_text(encoding="utf-8"))
            self.curve, self.iterations = state["curve"], state["iterations"]

    def __call__(self, progress: Progress) -> None:
        """Report the best AUC so far; the trial ends here when the scheduler has seen enough."""
        earlier = bisect.bisect_left(self.iterations, progress.iteration)  # a fit that cannot resume begins again
        del self.curve[earlier:], self.iterations[earlier:]
        auc = math.nan if progress.auc is None else progress.auc
        self.curve.append(float(np.fmax(auc, self.curve[-1])) if self.curve else auc)
        self.iterations.append(progress.iteration)
        metrics = {
            METRIC: self.curve[-1],
            REPORTS: len(self.curve),
            CURVE: self.curve,
            ITERATION: progress.iteration,
            _BEST: self.iterations[self.curve.index(self.curve[-1])],
        }
        tune.report(metrics, checkpoint=self._checkpoint())

    def _checkpoint(self) -> tune.Checkpoint | None:
        if time.monotonic() - self._saved < self._checkpoint_s:
            return None
        state = {"curve": self.curve, "iterations": self.iterations}
        (self._folder / self._FILE).write_text(json.dumps(state), encoding="utf-8")
        self._saved = time.monotonic()
        return tune.Checkpoint(self._folder)


def nodes() -> list[dict[str, float]]:
    """What each live node of the cluster has in all, in Ray's names."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _tune_config(
    families: Mapping[str, FamilySpace], resources: Mapping[str, Resources], config: SearchConfig
) -> tune.TuneConfig:
    demands = {family: resources[family].bundle() for family in families}
    capacity = unlimited if config.autoscale else ray.cluster_resources
    return tune.TuneConfig(
        num_samples=len(families) * config.trials,
        search_alg=FamilySearch(families, demands, config.trials, config.seed, capacity, config.concurrency),
        scheduler=FamilyHalving(list(families), config.max_reports, config.grace_period, config.reduction_factor),
        time_budget_s=config.time_budget_s,
        reuse_actors=True,
        trial_dirname_creator=_trial_folder,
    )


def _run_config(trials: int, config: SearchConfig, folder: Store, name: str) -> tune.RunConfig:
    filesystem, root = folder.filesystem()
    return tune.RunConfig(
        name=name,
        storage_path=root,
        storage_filesystem=filesystem,
        verbose=0,
        callbacks=[ProgressLines(trials)],
        failure_config=tune.FailureConfig(max_failures=config.retries),
        checkpoint_config=tune.CheckpointConfig(num_to_keep=2),
    )


def unlimited() -> Mapping[str, float]:
    """Capacity of a cluster that grows on demand."""
    return {"CPU": math.inf, "GPU": math.inf}


def _trial_folder(trial: Trial) -> str:
    return f"{trial.config['family']}-{trial.trial_id}"


def _request(resources: Resources) -> tune.PlacementGroupFactory:
    return tune.PlacementGroupFactory([resources.bundle()])


def _result(trial: Trial) -> TrialResult:
    metrics = trial.run_metadata.last_result  # empty if the trial ended before its first report
    auc = metrics.get(METRIC, math.nan)
    failed = trial.status == Trial.ERROR or REASON in metrics or (METRIC in metrics and not math.isfinite(auc))
    return TrialResult(
        family=trial.config["family"],
        trial=trial.trial_id,
        status="failed" if failed else metrics.get(ENDING, "stopped"),
        settings=trial.config["settings"],
        auc=auc if math.isfinite(auc) else None,
        iterations=metrics.get(ITERATION, 0),
        best_iteration=metrics.get(_BEST, 0),
        seconds=metrics.get("time_total_s", 0.0),
        curve=list(metrics.get(CURVE, ())),
        reason=(metrics.get(REASON) or last_line(str(trial.get_error() or ""))) if failed else "",
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Ray Tune's lines that say nothing to a reader."""
    libraries = [
        logging.getLogger(f"ray.tune.{name}") for name in ("analysis.experiment_analysis", "execution.tune_controller")
    ]
    for library in libraries:
        library.addFilter(_says_something)
    try:
        yield
    finally:
        for library in libraries:
            library.removeFilter(_says_something)


def _says_something(record: logging.LogRecord) -> bool:
    """Whether Ray Tune's log line is of use to a reader."""
    absent = record.exc_info is not None and isinstance(record.exc_info[1], FileNotFoundError)
    return not (
        (absent and "Error handling checkpoint" in record.msg)  # to delete one that a killed driver had deleted already
        or "Failed to fetch metrics" in record.msg  # from the files of the loggers that we switched off
    )
