"""What a training run leaves behind: its settings, its environment, the figures of every epoch, TensorBoard files.

A run's folder in the store:
    config.json environment.json     written before the first epoch
    epochs.jsonl tensorboard/        one line and one point per report, after every epoch
    checkpoint/                      where an interrupted run goes on; removed when it is complete
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

from dkt_ray import __version__
from dkt_ray.errors import NotFoundError
from dkt_ray.log import duration
from dkt_ray.storage import Store
from dkt_ray.training.progress import Progress

logger = logging.getLogger(__name__)

CONFIG: Final = "config.json"
ENVIRONMENT: Final = "environment.json"
EPOCHS: Final = "epochs.jsonl"
EVENTS: Final = "tensorboard"
CHECKPOINT: Final = "checkpoint"
PACKAGES: Final = ("torch", "lightgbm", "numpy", "transformers", "pytorch_optimizer", "polars", "pyarrow")


class Tracker:
    """Follows one fit: call it with each `Progress`; it logs a line, writes the figures, and keeps the checkpoint."""

    def __init__(self, folder: Store, work: Path, name: str, longest: int, checkpoint_s: float) -> None:
        """Begin, or go on where an earlier process ended: its checkpoint is then in `checkpoint`.

        Args:
            folder: of the run, in the store.
            work: a local scratch folder.
            name: of the model, in the log.
            longest: most iterations of the fit.
            checkpoint_s: least seconds between two copies of the checkpoint to the store.
        """
        self.checkpoint = work / CHECKPOINT
        self._folder, self._events = folder, work / EVENTS
        self._name, self._longest, self._checkpoint_s = name, longest, checkpoint_s
        self._epochs = _read_epochs(folder)
        self._started = self._kept = time.monotonic()
        self._since: tuple[int, float] | None = None  # iteration and time from which the pace is known
        if folder.list(CHECKPOINT):
            folder.download(CHECKPOINT, self.checkpoint)

    def __enter__(self) -> Self:
        from tensorboardX import SummaryWriter  # half a second, and only where something is trained

        self._writer = SummaryWriter(str(self._events), flush_secs=3600)
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()  # what is not yet in the file, its thread writes now
        if self._events.is_dir():
            self._folder.upload(self._events, EVENTS)
        self._keep_checkpoint()

    def __call__(self, progress: Progress) -> None:
        """Note one report."""
        if self._since is None:  # the first report's own time is known to have been whole in a run from the start only
            now = time.monotonic()
            self._since = (0, self._started) if progress.iteration == 1 else (progress.iteration, now)
        self._epochs = [line for line in self._epochs if line["iteration"] < progress.iteration]
        aucs = [value for value in (*(line["auc"] for line in self._epochs), progress.auc) if value is not None]
        best = max(aucs, default=None)
        self._epochs.append(
            progress._asdict() | {"best": best, "ts": datetime.now(UTC).isoformat(timespec="milliseconds")}
        )
        self._folder.write(EPOCHS, "".join(f"{json.dumps(line)}\n" for line in self._epochs).encode())
        self._point(progress)
        if time.monotonic() - self._kept >= self._checkpoint_s:
            self._keep_checkpoint()
        logger.info("%s", self._line(progress, best), extra=progress._asdict() | {"model": self._name, "best": best})

    def _line(self, progress: Progress, best: float | None) -> str:
        shown = "" if progress.auc is None else f" auc {progress.auc:.4f} (best {best:.4f}),"
        assert self._since is not None
        done, left = progress.iteration - self._since[0], self._longest - progress.iteration
        taken = time.monotonic() - self._since[1]
        eta = f", eta {duration(taken / done * left)} at most" if left and done else ""
        return (
            f"{self._name} {progress.iteration}/{self._longest}:{shown} loss {progress.loss:.4f}, "
            f"{progress.rows_per_s:,.0f} questions/s{eta}"
        )

    def _point(self, progress: Progress) -> None:
        for name, value in (("validation/auc", progress.auc), ("train/loss", progress.loss)):
            if value is not None:
                self._writer.add_scalar(name, value, progress.iteration)
        self._writer.add_scalar("train/questions_per_s", progress.rows_per_s, progress.iteration)
        self._writer.flush()
        self._folder.upload(self._events, EVENTS)

    def _keep_checkpoint(self) -> None:
        if self.checkpoint.is_dir():
            self._folder.upload(self.checkpoint, CHECKPOINT)
        self._kept = time.monotonic()


def environment() -> dict[str, Any]:
    """Where and with what this process runs: versions, machine, source revision."""
    return {
        "dkt_ray": __version__,
        "revision": _revision(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "machine": platform.node(),
        "cores": len(os.sched_getaffinity(0)),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _revision() -> str | None:
    """The git revision of a checkout, with a plus sign where files differ from it; None elsewhere."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=12", "--dirty=+"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _read_epochs(folder: Store) -> list[dict[str, Any]]:
    try:
        text = folder.read(EPOCHS).decode()
    except NotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines()]
