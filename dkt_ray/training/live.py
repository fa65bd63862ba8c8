"""(Ray) A sweep as it runs: one readable line per update and per finished trial, through logging."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from ray import tune
from ray.tune.experiment import Trial

from dkt_ray.errors import StorageError
from dkt_ray.training.resources import out_of_memory
from dkt_ray.training.search import ITERATION, METRIC, REASON, REFUSED

ENDING: Final = "ending"  # in a trial's last result: finished, or stopped by the scheduler; absent: cut short

_MEMORY: Final = re.compile(r"OutOfMemoryError|NODE_OUT_OF_MEMORY|running low on memory")  # Ray's words
_DIED: Final = re.compile(r"ActorDiedError|[Aa]ctor died|actor is dead")

logger = logging.getLogger(__name__)


class ProgressLines(tune.Callback):
    """Family, trial, iteration, AUC, the family's best so far, trials done and left, and when the rest may be done."""

    def __init__(
        self,
        total: int,
        every_s: float = 2.0,
        hang_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Lines for a sweep.

        Args:
            total: trials.
            every_s: seconds between updates; a trial's end is always told.
            hang_s: how long a worker may be silent before it ends itself.
            clock: seconds from any start.
        """
        self._total = total
        self._hang_s = math.inf if hang_s is None else hang_s
        self._clock = clock
        self._heard: dict[str, float] = {}  # when each running trial began or last reported
        self._every_s = every_s
        self._started: float | None = None
        self._logged = 0.0
        self._before = 0  # trials that an earlier driver finished

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Start the clock."""
        if self._started is None:
            self._started = self._logged = self._clock()
            self._before = sum(trial.is_finished() for trial in trials)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Log where a trial goes on that was interrupted."""
        self._heard[trial.trial_id] = self._clock()
        checkpoint = trial.latest_checkpoint_result
        if checkpoint is not None:
            self._log(trials, trial, checkpoint.metrics, f"goes on after iteration {checkpoint.metrics[ITERATION]}")

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Log an update, unless there was one a moment ago.

        Raises:
            StorageError: the store did not take the trial's checkpoint, so that no trial can be kept.
        """
        if REFUSED in result:
            raise StorageError(result[REFUSED])
        self._heard[trial.trial_id] = self._clock()
        if result.get("done"):  # set by now if the scheduler has decided to stop the trial
            result[ENDING] = "stopped"
        elif self._clock() - self._logged >= self._every_s:
            self._log(trials, trial, result, f"iteration {result.get(ITERATION, 0)}")

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Log a trial's end, and note it in the result, which Tune keeps."""
        result = trial.run_metadata.last_result
        result.setdefault(ENDING, "finished")
        trial.run_metadata.invalidate_cache()
        ending = f"{result[ENDING]} at iteration {result.get(ITERATION, 0)}"
        self._log(trials, trial, result, f"failed: {result[REASON]}" if result.get(REASON) else ending)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Log a trial's failure, and note why in the result, which Tune keeps."""
        reason = self._reason(trial)
        trial.run_metadata.last_result[REASON] = reason
        trial.run_metadata.invalidate_cache()
        self._log(trials, trial, trial.run_metadata.last_result, f"failed: {reason}")

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Log that a trial failed and is tried again."""
        self._log(trials, trial, trial.last_result or {}, f"tried again, it failed: {self._reason(trial)}")

    def _reason(self, trial: Trial) -> str:
        trace = Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else ""
        silent = self._clock() - self._heard.pop(trial.trial_id, math.inf)
        if silent >= self._hang_s and _DIED.search(_latest(trace)):
            return f"no report for {self._hang_s:g} s (hang_s), so its worker was ended; raise it if this is slow"
        return why(trace)

    def _log(self, trials: list[Trial], trial: Trial, result: Mapping[str, Any], event: str) -> None:
        self._logged = self._clock()
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
        return f", eta {(self._clock() - self._started) / here * (self._total - done):.0f} s"


def why(trace: str) -> str:
    """The reason of a failure, with what helps where we know it."""
    trace = _latest(trace)
    if _MEMORY.search(trace):
        return out_of_memory("Ray ended its worker, as the node's memory was full")
    if _DIED.search(trace):
        return "its worker died, and died again when the trial was tried again (retries)"
    return last_line(trace)


def _latest(trace: str) -> str:
    """Tune writes the failures of all tries into one file."""
    return trace.rpartition("Failure # ")[2]


def last_line(trace: str) -> str:
    """What a Python traceback ends with: the error itself."""
    return (trace.strip().splitlines() or ["no reason is known"])[-1]
