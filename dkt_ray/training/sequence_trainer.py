"""(Ray) Several workers train one network: Ray Train starts them, shares each step's windows, and restarts them.

A worker that dies ends the others; all begin again from the last checkpoint, which Ray Train keeps in the run's folder.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any, Final

from ray import train
from ray.train.torch import TorchTrainer
from ray.util.queue import Queue

from dkt_ray.config import build
from dkt_ray.errors import DktError, TrainingError
from dkt_ray.features.dataset import Dataset
from dkt_ray.models.catalog import CATALOG
from dkt_ray.models.network import Network
from dkt_ray.storage import Store
from dkt_ray.training import loop
from dkt_ray.training.progress import Progress, Report, TrainingData
from dkt_ray.training.resources import Resources, claimed
from dkt_ray.training.team import Team

logger = logging.getLogger(__name__)

RETRIES: Final = 3  # times that the workers are started again after one of them died
_RAY: Final = "ray"  # Ray Train's own folder below the model's
_OUTCOME: Final = "ray.json"
_POLL_S: Final = 0.5


@dataclass(frozen=True)
class SharedFit:
    """One fit, as a worker must know it."""

    family: str  # a network
    settings: dict[str, Any]
    store: Store  # the store's root
    dataset: str
    train_folds: Collection[int]
    valid_folds: Collection[int]  # empty: exactly `iterations` epochs
    iterations: int | None
    resources: Resources  # of one worker
    folder: Store  # the fitted network goes to `model/` below it


def fit_shared(shared: SharedFit, workers: int, report: Report) -> tuple[int, float | None]:
    """Fit a network by several workers, and store it.

    Args:
        workers: processes; each takes a share of every step's windows.
        report: called here after every epoch.

    Returns:
        The best epoch, and its validation AUC.

    Raises:
        TrainingError: the loss diverged, memory is short, or workers died more often than RETRIES.
    """
    filesystem, root = shared.folder.filesystem()
    lines: Queue = Queue()
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"shared": shared, "lines": lines},
        scaling_config=train.ScalingConfig(
            num_workers=workers,
            use_gpu=bool(shared.resources.gpus),
            resources_per_worker=shared.resources.bundle(),
        ),
        run_config=train.RunConfig(
            name=_RAY,
            storage_path=root,
            storage_filesystem=filesystem,
            failure_config=train.FailureConfig(max_failures=RETRIES),
            checkpoint_config=train.CheckpointConfig(num_to_keep=2),
        ),
    )
    shared.folder.delete(_OUTCOME)
    try:
        with _passed_on(lines, report):
            trainer.fit()
    except train.TrainingFailedError as error:
        raise TrainingError(f"{shared.family}: the workers died {RETRIES + 1} times; the last time: {error}") from error
    finally:
        lines.shutdown()
    outcome = shared.folder.read_json(_OUTCOME)
    shared.folder.delete_prefix(_RAY)
    if "error" in outcome:
        raise TrainingError(outcome["error"])
    return outcome["best_epoch"], outcome["auc"]


def _worker(config: dict[str, Any]) -> None:
    """One worker (runs in a Ray Train worker, which has joined the process group).

    An error of ours would come again: it is written down for the driver, and the workers that are started next end.
    """
    shared: SharedFit = config["shared"]
    if shared.folder.exists(_OUTCOME):
        return
    try:
        _fit(shared, Team.here(), config["lines"])
    except DktError as error:
        shared.folder.write_json(_OUTCOME, {"error": str(error)})
        raise


def _fit(shared: SharedFit, team: Team, lines: Queue) -> None:
    dataset = Dataset.open(shared.store, shared.dataset)
    valid = dataset.load(shared.valid_folds).rows if shared.valid_folds else None
    data = TrainingData(dataset.load(shared.train_folds).rows, valid, dataset.state)
    spec = CATALOG[shared.family]
    assert issubclass(spec.model, Network), f"{shared.family} is no network"
    with claimed(shared.resources), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if (checkpoint := train.get_checkpoint()) is not None:
            checkpoint.to_directory(folder)

        def report(progress: Progress) -> None:
            if team.first:
                lines.put(tuple(progress))
            train.report({"epoch": progress.iteration}, train.Checkpoint(folder) if team.first else None)

        settings = build(spec.config, shared.settings)
        result = loop.train(spec.model, settings, data, report, folder, shared.iterations, team)
    if team.first:
        with tempfile.TemporaryDirectory() as local:
            result.model.save(Path(local))
            shared.folder.upload(Path(local), "model")
        shared.folder.write_json(_OUTCOME, {"best_epoch": result.best_iteration, "auc": result.auc})


@contextmanager
def _passed_on(lines: Queue, report: Report) -> Iterator[None]:
    """Call `report` here for each line that a worker sends, while the block runs and until the queue is empty."""
    over = threading.Event()

    def pass_on() -> None:
        while True:
            ended = over.is_set()
            try:
                report(Progress(*lines.get(timeout=_POLL_S)))
            except Empty:
                if ended:
                    return

    thread = threading.Thread(target=pass_on, name="progress of the workers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
