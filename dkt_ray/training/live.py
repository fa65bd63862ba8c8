"""(Ray) A sweep as it runs: one readable line per update and per finished trial, through logging."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ray import tune
from ray.tune.experiment import Trial

from dkt_ray.training.search import ITERATION, METRIC, REASON

ENDING: Final = "ending"  # in a trial's last result: finished, or stopped by the scheduler; absent: cut short

logger = logging.getLogger(__name__)


class ProgressLines(tune.Callback):
    """Family, trial, iteration, AUC, the family's best so far, trials done and left, and when the rest may be done."""

    def __init__(self, total: int, every_s: float = 2.0) -> None:
        """Lines for a sweep of `total` trials; updates at most every `every_s` seconds, a trial's end always."""
        self._total = total
        self._every_s = every_s
        self._started: float | None = None
        self._logged = 0.0
        self._before = 0  # trials that an earlier driver finished

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Start the clock."""
        if self._started is None:
            self._started = self._logged = time.monotonic()
            self._before = sum(trial.is_finished() for trial in trials)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Log where a trial goes on that was interrupted."""
        checkpoint = trial.latest_checkpoint_result
        if checkpoint is not None:
            self._log(trials, trial, checkpoint.metrics, f"goes on after iteration {checkpoint.metrics[ITERATION]}")

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Log an update, unless there was one a moment ago."""
        if result.get("done"):  # set by now if the scheduler has decided to stop the trial
            result[ENDING] = "stopped"
        elif time.monotonic() - self._logged >= self._every_s:
            self._log(trials, trial, result, f"iteration {result.get(ITERATION, 0)}")

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Log a trial's end, and note it in the result, which Tune keeps."""
        result = trial.run_metadata.last_result
        result.setdefault(ENDING, "finished")
        trial.run_metadata.invalidate_cache()
        ending = f"{result[ENDING]} at iteration {result.get(ITERATION, 0)}"
        self._log(trials, trial, result, f"failed: {result[REASON]}" if result.get(REASON) else ending)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Log a trial's failure."""
        trace = Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else ""
        self._log(trials, trial, trial.last_result or {}, f"failed: {last_line(trace)}")

    def _log(self, trials: list[Trial], trial: Trial, result: Mapping[str, Any], event: str) -> None:
        self._logged = time.monotonic()
        family, auc = trial.config["family"], result.get(METRIC, math.nan)
        relatives = [other.last_result or {} for other in trials if other.config["family"] == family]
        best = max(
            filter(math.isfinite, [auc, *(other.get(METRIC, math.nan) for other in relatives)]), default=math.nan
        )
        done = sum(other.is_finished() or (other is trial and bool(result.get("done"))) for other in trials)
        fields = {
            "family": family,
            "trial": trial.trial_id,
            "auc": auc,
            "best": best,
            "done": done,
            "total": self._total,
        }
        logger.info(
            "tune %s %s: %s, auc %.4f (best %.4f), %d of %d trials done%s",
            *(family, trial.trial_id, event, auc, best, done, self._total, self._eta(done)),
            extra=fields,
        )

    def _eta(self, done: int) -> str:
        here = done - self._before
        if self._started is None or here <= 0 or done >= self._total:
            return ""
        return f", eta {(time.monotonic() - self._started) / here * (self._total - done):.0f} s"


def last_line(trace: str) -> str:
    """What a Python traceback ends with: the error itself."""
    return (trace.strip().splitlines() or ["no reason is known"])[-1]
