"""(Ray) One trial of a sweep, in a Ray worker: a fit that reports, keeps checkpoints, and does not hang for ever."""

from __future__ import annotations

import bisect
import faulthandler
import json
import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from ray import tune

from dkt_ray.config import build
from dkt_ray.errors import DktError
from dkt_ray.models.catalog import CATALOG
from dkt_ray.training.checkpoint import follow
from dkt_ray.training.fit import fit
from dkt_ray.training.folds import TrainingUsers
from dkt_ray.training.progress import Progress
from dkt_ray.training.resources import Resources, claimed, out_of_memory
from dkt_ray.training.search import CURVE, ITERATION, METRIC, REASON, REFUSED, REPORTS, SCHEDULE

BEST: Final = "best_iteration"
VALIDATION_FOLD: Final = 0  # trials are compared on the users of this fold


@dataclass(frozen=True)
class Care:
    """How a running trial is kept safe."""

    checkpoint_s: float  # least seconds between two checkpoints
    hang_s: float | None = None  # longest time without a report
    every: int | None = None  # reports between two checkpoints that are made in any case


def run_trial(sample: Mapping[str, Any], users: TrainingUsers, resources: Resources, care: Care) -> None:
    """One trial: fit a family, from its last checkpoint if there is one, and report the AUC.

    Args:
        sample: {"family", "settings"}.
        users: shared by all trials, read-only.
        resources: what this trial may use.
        care: of its checkpoints.
    """
    family, settings = sample["family"], sample["settings"]
    spec = CATALOG[family]
    with tempfile.TemporaryDirectory() as name, claimed(resources), Watchdog(care.hang_s) as watchdog:
        reports = Reports(Path(name), care, watchdog, {key: settings[key] for key in spec.follows if key in settings})
        data, _ = users.holding_out(VALIDATION_FOLD)
        try:
            config = build(spec.config, settings)
            follow(Path(name), config, spec.follows)
            fit(family, config, data, reports, Path(name))
        except DktError as error:  # it would come again: no retry
            reports.fail(str(error))
        except MemoryError as error:
            reports.fail(out_of_memory(str(error) or "MemoryError"))


class Watchdog:
    """Ends this process, hard, if there is no report for too long: also where a library holds Python's lock."""

    def __init__(self, limit_s: float | None) -> None:
        """Watch from the block's begin; None: do not."""
        self._limit_s = limit_s

    def __enter__(self) -> Watchdog:
        self._watch()
        return self

    def __exit__(self, *failure: object) -> None:
        faulthandler.cancel_dump_traceback_later()

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Do not watch while somebody else is waited for; then begin anew."""
        faulthandler.cancel_dump_traceback_later()
        yield
        self._watch()

    def _watch(self) -> None:
        if self._limit_s is not None:
            faulthandler.dump_traceback_later(self._limit_s, exit=True)


class Reports:
    """Passes a fit's progress on to Tune, with a checkpoint of the fit now and then."""

    _FILE: Final = "reports.json"

    def __init__(self, folder: Path, care: Care, watchdog: Watchdog, mutable: Mapping[str, Any]) -> None:
        """Begin, or go on from the checkpoint that Tune has for this trial, which is then copied into the folder.

        Args:
            folder: of the fit.
            care: when to make checkpoints.
            watchdog: rests while Tune has the word.
            mutable: the settings of this trial that may be changed on the way.
        """
        self.curve: list[float] = []  # best AUC so far
        self.iterations: list[int] = []
        self.schedule: list[tuple[int, Mapping[str, Any]]] = []  # reports before it, and what is in force from then on
        self._folder = folder
        self._care = care
        self._watchdog = watchdog
        self._saved = time.monotonic()
        if (checkpoint := tune.get_checkpoint()) is not None:
            checkpoint.to_directory(folder)
            state = json.loads((folder / self._FILE).read_text(encoding="utf-8"))
            self.curve, self.iterations = state["curve"], state["iterations"]
            self.schedule = [(after, values) for after, values in state["schedule"]]
        if not self.schedule or self.schedule[-1][1] != mutable:
            self.schedule.append((len(self.curve), mutable))

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
            BEST: self.iterations[self.curve.index(self.curve[-1])],
        }
        if len(self.schedule) > 1:
            metrics[SCHEDULE] = self.schedule
        with self._watchdog.resting():
            try:
                tune.report(metrics, checkpoint=self._checkpoint())
            except OSError as error:  # the store refused the checkpoint: of no use to any trial
                self._tell(REFUSED, f"{error.strerror or error}")

    def fail(self, reason: str) -> None:
        """Report that the trial has failed, for a reason that a retry would meet again."""
        self._tell(REASON, reason)

    def _tell(self, what: str, reason: str) -> None:
        tune.report({METRIC: math.nan, REPORTS: len(self.curve) + 1, CURVE: self.curve, what: reason})

    def _checkpoint(self) -> tune.Checkpoint | None:
        due = time.monotonic() - self._saved >= self._care.checkpoint_s
        if not due and not (self._care.every and len(self.curve) % self._care.every == 0):
            return None
        state = {"curve": self.curve, "iterations": self.iterations, "schedule": self.schedule}
        (self._folder / self._FILE).write_text(json.dumps(state), encoding="utf-8")
        self._saved = time.monotonic()
        return tune.Checkpoint(self._folder)
