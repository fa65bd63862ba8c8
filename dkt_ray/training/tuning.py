"""(Ray) One Ray Tune experiment over several families: parallel trials, live progress, resumable after a kill."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

import pyarrow.fs as pafs
import ray
from pydantic import Field, model_validator
from ray import tune
from ray.tune import TuneError
from ray.tune.experiment import Trial

from dkt_ray.config import Config
from dkt_ray.errors import StorageError
from dkt_ray.models.base import Space
from dkt_ray.models.catalog import CATALOG
from dkt_ray.storage import Store
from dkt_ray.storage.whole import whole
from dkt_ray.training.folds import TrainingUsers
from dkt_ray.training.live import ENDING, ProgressLines, why
from dkt_ray.training.resources import Resources, environment
from dkt_ray.training.schedulers import Early, FamilyScheduler, SchedulerName
from dkt_ray.training.search import (
    CURVE,
    ITERATION,
    METRIC,
    REASON,
    SCHEDULE,
    FamilySearch,
    FamilySpace,
    SearcherName,
)
from dkt_ray.training.trial import BEST, Care, run_trial

logger = logging.getLogger(__name__)

_SNAPSHOT_S: Final = 2  # how much of the book of trials a killed driver may lose
_TO_CLONE: Final = 20  # checkpoints of a trial: another one that is to go on from one starts when there is room
_LAG_S: Final = 20.0  # how old the last written book of trials may be on a busy machine
_MOST: Final = 100  # checkpoints of a trial that are kept for a book so old
_THREAD_S: Final = ("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")  # how long a worker may take to let go of a trial
_LINE: Final = re.compile(r"(?:^|\n)\s*(?:[\w.]+\.)?(?:OSError|PermissionError|StorageError): ([^\n]+)")

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
    scheduler: SchedulerName = "asha"
    """What stops trials early: asha (successive halving), median (worse than half of the others), none; or pbt: the
    worst of those that run go on from the best one's checkpoint, with other settings. Always within a family."""
    searcher: SearcherName = "optuna"
    """What proposes settings: optuna, or random, a list drawn beforehand."""
    max_reports: int = Field(default=200, ge=1)
    """Longest trial, in reports: a report is an epoch of a network or some rounds of a booster."""
    grace_period: int = Field(default=2, ge=1)
    """Reports before a trial may be stopped for being behind."""
    reduction_factor: float = Field(default=3, gt=1)
    """asha: of the trials that reach a rung, about one in this many goes on."""
    perturbation_reports: int = Field(default=2, ge=1)
    """pbt: reports between two comparisons."""
    seed: int = 0
    """Seed of the search and of every fit."""
    concurrency: int | None = Field(default=None, ge=1)
    """Trials at the same time; unset: as many as the cluster has room for. A search that is resumed keeps its own, and
    its retries and resources."""
    autoscale: bool = False
    """The cluster adds nodes on demand, so wait for resources that no node has yet; needs `concurrency`."""
    retries: int = Field(default=1, ge=0)
    """Times that a trial is started again, from its last checkpoint, after its worker died."""
    checkpoint_s: float = Field(default=10.0, ge=0)
    """Seconds of training between a trial's checkpoints."""
    time_budget_s: float | None = Field(default=None, gt=0)
    """Stop the search after this time and go on with the best so far; a search that is resumed gets it anew."""
    compute_budget_s: float | None = Field(default=None, gt=0)
    """Start no trial once all have used this much: seconds times GPUs where a trial takes some, else times CPUs."""
    hang_s: float | None = Field(default=1800, gt=0)
    """Longest time without a report: a worker that is silent for longer is ended, and its trial tried again (retries).
    It must be more than an epoch takes; unset: wait for ever."""

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
    schedule: list[Any] | None = None  # [[reports before it, settings in force from then on], ...], if some changed


TrialFunction = Callable[[Mapping[str, Any], TrainingUsers, Resources, Care], None]


def search(
    families: Mapping[str, FamilySpace],
    resources: Mapping[str, Resources],
    users: ray.ObjectRef[TrainingUsers],
    config: SearchConfig,
    folder: Store,
    name: str,
    run: TrialFunction = run_trial,
) -> list[TrialResult]:
    """Run the trials of all families, or those that are left of an experiment of the same name.

    Args:
        families: what varies, per family.
        resources: what a trial takes, per family; the cluster must have it.
        users: a `TrainingUsers` in the object store; trials are validated on fold 0.
        config: how to search.
        folder: Ray Tune's own place: nothing else may write there (it restores its state by pickle).
        name: the experiment.
        run: what a trial does, in a Ray worker.

    Raises:
        StorageError: the store refuses writes, or is full.
    """
    filesystem, root = _place(folder)
    path = f"{root}/{name}"
    care = Care(config.checkpoint_s, config.hang_s, config.perturbation_reports if config.scheduler == "pbt" else None)

    def trial(sample: dict[str, Any]) -> None:
        os.environ.setdefault(*_THREAD_S)  # read by Ray Tune in the worker, when it gets another trial
        run(sample, ray.get(users), resources[sample["family"]], care)

    trainable = tune.with_resources(trial, lambda sample: _request(resources[sample["family"]]))
    with environment(ENVIRONMENT), quiet(), _refusals(path):
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
        trials = tune.ExperimentAnalysis(path, storage_filesystem=filesystem).trials
        return [_result(trial) for trial in sorted(trials, key=_began)]  # a restored experiment has another order


def _place(folder: Store) -> tuple[pafs.FileSystem, str]:
    """Where Ray Tune writes: it copies its book in place, and a driver that is killed must leave the one before."""
    filesystem, root = folder.filesystem()
    return whole(filesystem), root


def _began(trial: Trial) -> float:
    return trial.run_metadata.start_time or math.inf


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
        search_alg=FamilySearch(
            families,
            demands,
            config.trials,
            config.seed,
            capacity,
            config.concurrency,
            config.searcher,
            config.compute_budget_s,
        ),
        scheduler=FamilyScheduler(
            Early(
                config.scheduler,
                config.max_reports,
                config.grace_period,
                config.reduction_factor,
                config.perturbation_reports,
            ),
            {family: mutable(family, search) for family, search in families.items()},
        ),
        time_budget_s=config.time_budget_s,
        reuse_actors=True,
        trial_dirname_creator=_trial_folder,
    )


def mutable(family: str, search: FamilySpace) -> Space:
    """The part of a family's space that a running fit can follow."""
    return {name: domain for name, domain in search.space.items() if name in CATALOG[family].follows}


def _run_config(trials: int, config: SearchConfig, folder: Store, name: str) -> tune.RunConfig:
    filesystem, root = _place(folder)
    return tune.RunConfig(
        name=name,
        storage_path=root,
        storage_filesystem=filesystem,
        verbose=0,
        callbacks=[ProgressLines(trials, hang_s=config.hang_s)],
        failure_config=tune.FailureConfig(max_failures=config.retries),
        checkpoint_config=tune.CheckpointConfig(num_to_keep=_kept(config)),
    )


def _kept(config: SearchConfig) -> int:
    """Checkpoints of a trial that are kept: a driver that is killed leaves a book that may name an older one."""
    lag = min(_MOST, math.ceil(_LAG_S / max(config.checkpoint_s, _LAG_S / _MOST)))
    return max(2 + lag, _TO_CLONE if config.scheduler == "pbt" else 0)


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
        auc=None if failed or not math.isfinite(auc) else auc,
        iterations=metrics.get(ITERATION, 0),
        best_iteration=metrics.get(BEST, 0),
        seconds=metrics.get("time_total_s", 0.0),
        curve=list(metrics.get(CURVE, ())),
        reason=(metrics.get(REASON) or why(str(trial.get_error() or ""))) if failed else "",
        schedule=metrics.get(SCHEDULE),
    )


@contextmanager
def _refusals(path: str) -> Iterator[None]:
    """Say in one line that the store does not take what the sweep writes; what is there stays, to be resumed."""
    try:
        yield
    except (TuneError, OSError) as error:
        found = refusal(error)
        if found is None:
            raise
        raise StorageError(
            f"{path}: the store refuses the sweep's state ({found}); free some space or allow writing there, and run "
            "the same command again: it goes on where it stopped"
        ) from error


def refusal(error: BaseException) -> str | None:
    """Why the operating system or the store did not take a write; None: this is another error."""
    if isinstance(error, ConnectionError | TimeoutError):
        return None
    if isinstance(error, OSError):
        return error.strerror or str(error)
    lines = _LINE.findall(str(error))
    return lines[-1] if lines else None


@contextmanager
def quiet() -> Iterator[None]:
    """Without the lines of Ray Tune that say nothing to a reader."""
    names = ("analysis.experiment_analysis", "execution.tune_controller", "schedulers.pbt")
    libraries = [logging.getLogger(f"ray.tune.{name}") for name in names]
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
        or record.name.endswith("schedulers.pbt")  # `live` says where a trial goes on
        or "Failed to fetch metrics" in record.msg  # from the files of the loggers that we switched off
    )
