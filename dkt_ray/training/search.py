"""(Ray) How the trials of several families share one Tune experiment: Optuna proposes, successive halving stops.

Tune asks one searcher and one scheduler for the whole experiment; scores of different families say nothing about each
other's settings, and their iterations are not comparable, so both keep a book per family.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from dkt_ray.models.base import Between, Choice, Space

METRIC: Final = "auc"  # best validation AUC of a trial so far, in every report
CURVE: Final = "curve"  # the METRIC of every report of the trial so far
REPORTS: Final = "reports"  # how many there were: the clock of the successive halving
ITERATION: Final = "iteration"  # epoch or round of a report
REASON: Final = "reason"  # why a trial failed

_STARTUP: Final = 8  # trials at random before Optuna's TPE has something to learn from

Status = Literal["running", "finished", "failed"]
_STATES: Final[dict[Status, TrialState]] = {
    "running": TrialState.RUNNING,
    "finished": TrialState.COMPLETE,
    "failed": TrialState.FAIL,
}


@dataclass(frozen=True)
class FamilySpace:
    """What a sweep varies in one family, and what it does not."""

    space: Space
    default: Mapping[str, Any]  # the first trial's values of the space
    fixed: Mapping[str, Any]  # settings of every trial


@dataclass
class Attempt:
    """One trial as the searcher sees it."""

    params: dict[str, Any]
    status: Status = "running"
    auc: float | None = None


def propose(space: Space, default: Mapping[str, Any], past: Sequence[Attempt], seed: int) -> dict[str, Any]:
    """The next values to try: first the default, then Optuna's tree-structured Parzen estimator (Bergstra et al. 2011).

    Args:
        space: what may vary.
        default: values of the first trial; they may lie outside the space.
        past: all earlier trials; running ones count as bad, so that parallel trials differ.
        seed: the same past and seed give the same values.
    """
    if not past or not space:
        return dict(default)
    distributions = {name: _distribution(domain) for name, domain in space.items()}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(n_startup_trials=_STARTUP, constant_liar=True, seed=seed)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.add_trials([_frozen(attempt, distributions) for attempt in past if _inside(attempt.params, distributions)])
    return study.ask(distributions).params


def _distribution(domain: Between | Choice) -> BaseDistribution:
    if isinstance(domain, Choice):
        return CategoricalDistribution(domain.values)
    if domain.integer:
        return IntDistribution(int(domain.low), int(domain.high), log=domain.log)
    return FloatDistribution(domain.low, domain.high, log=domain.log)


def _inside(params: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]) -> bool:
    return all(
        domain._contains(domain.to_internal_repr(params[name]))
        if not isinstance(domain, CategoricalDistribution)
        else params[name] in domain.choices
        for name, domain in distributions.items()
    )


def _frozen(attempt: Attempt, distributions: dict[str, BaseDistribution]) -> FrozenTrial:
    value = attempt.auc if attempt.status == "finished" else None
    return create_trial(state=_STATES[attempt.status], params=attempt.params, distributions=distributions, value=value)


class FamilySearch(Searcher):
    """Gives each family exactly `trials` trials, in turn, each when there are resources for it.

    A trial that had to wait in Tune's queue would be proposed before others have ended, and would hold back those
    behind it that need no GPU; its half-started worker would be thrown away for that of a trial that ends.
    """

    def __init__(
        self,
        families: Mapping[str, FamilySpace],
        demands: Mapping[str, Mapping[str, float]],
        trials: int,
        seed: int,
        capacity: Callable[[], Mapping[str, float]],
        concurrency: int | None = None,
    ) -> None:
        """A fresh book.

        Args:
            families: what varies in each.
            demands: resources of a trial of each, in Ray's names.
            trials: number of trials per family.
            seed: of the proposals.
            capacity: gives what the cluster has in all; it is asked each time, since clusters grow and shrink.
            concurrency: trials of all families at the same time.
        """
        super().__init__(metric=METRIC, mode="max")
        self._families = dict(families)
        self._demands = dict(demands)
        self._capacity = capacity
        self._trials = trials
        self._seed = seed
        self._concurrency = concurrency
        self._attempts: dict[str, dict[str, Attempt]] = {family: {} for family in families}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next trial: {"family", "settings"}; None: not now; FINISHED: every family has had its trials."""
        open_ = [family for family, attempts in self._attempts.items() if len(attempts) < self._trials]
        if not open_:
            return Searcher.FINISHED  # type: ignore[return-value]  # Tune's own signature has no room for it
        family = min(open_, key=lambda name: (not self._has_room(name), len(self._attempts[name])))
        if not self._has_room(family):
            return None
        return {"family": family, "settings": self._next(family, trial_id)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Book a trial's end; a trial without a finite AUC has failed."""
        attempt = next(attempts[trial_id] for attempts in self._attempts.values() if trial_id in attempts)
        auc = (result or {}).get(METRIC, math.nan)
        attempt.status = "failed" if error or not math.isfinite(auc) else "finished"
        attempt.auc = auc if attempt.status == "finished" else None

    def save(self, checkpoint_path: str) -> None:
        """Write the book as JSON."""
        book = {
            family: {trial_id: vars(attempt) for trial_id, attempt in attempts.items()}
            for family, attempts in self._attempts.items()
        }
        Path(checkpoint_path).write_text(json.dumps(book), encoding="utf-8")

    def restore(self, checkpoint_path: str) -> None:
        """Read back what `save` wrote."""
        book = json.loads(Path(checkpoint_path).read_text(encoding="utf-8"))
        self._attempts = {
            family: {trial_id: Attempt(**fields) for trial_id, fields in attempts.items()}
            for family, attempts in book.items()
        }

    def _has_room(self, family: str) -> bool:
        running = [
            self._demands[name]
            for name, attempts in self._attempts.items()
            for attempt in attempts.values()
            if attempt.status == "running"
        ]
        if not running:
            return True
        if self._concurrency is not None and len(running) >= self._concurrency:
            return False
        capacity = self._capacity()
        return all(
            need + sum(other.get(name, 0) for other in running) <= capacity.get(name, 0)
            for name, need in self._demands[family].items()
        )

    def _next(self, family: str, trial_id: str) -> dict[str, Any]:
        search, attempts = self._families[family], self._attempts[family]
        key = (self._seed, zlib.crc32(family.encode()), len(attempts))  # a family's trials do not depend on the others
        seed = int(np.random.SeedSequence(key).generate_state(1)[0])
        params = propose(search.space, search.default, list(attempts.values()), seed)
        attempts[trial_id] = Attempt(params)
        return {**params, **search.fixed}


class FamilyHalving(FIFOScheduler):
    """One asynchronous successive halving (ASHA, Li et al. 2020) per family; a trial whose AUC is not finite stops."""

    def __init__(self, families: Sequence[str], max_reports: int, grace_period: int, reduction_factor: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._unsaved: Any = None  # the controller, after a trial's end
        self._halving = {
            family: AsyncHyperBandScheduler(
                time_attr=REPORTS,
                metric=METRIC,
                mode="max",
                max_t=max_reports,
                grace_period=min(grace_period, max_reports),
                reduction_factor=reduction_factor,
            )
            for family in families
        }

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Enter a trial; one that an earlier driver ran brings its curve, so that the rungs know it."""
        halving = self._of(trial)
        halving.on_trial_add(tune_controller, trial)
        for reports, auc in enumerate((trial.last_result or {}).get(CURVE, ()), start=1):
            halving.on_trial_result(tune_controller, trial, {REPORTS: reports, METRIC: auc})

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Continue or stop."""
        if not math.isfinite(result[METRIC]):
            return TrialScheduler.STOP
        return self._of(trial).on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Record the last rung of a trial that ended, unless it diverged."""
        self._unsaved = tune_controller
        if math.isfinite(result.get(METRIC, math.nan)):
            self._of(trial).on_trial_complete(tune_controller, trial, result)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """The next in the queue, once what has ended is written down: a killed driver repeats no finished trial."""
        ended, self._unsaved = self._unsaved, None
        if ended is not None:
            ended.checkpoint(force=True)
        return super().choose_trial_to_run(tune_controller)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Forget a trial that never ran."""
        self._of(trial).on_trial_remove(tune_controller, trial)

    def _of(self, trial: Trial) -> AsyncHyperBandScheduler:
        return self._halving[trial.config["family"]]
