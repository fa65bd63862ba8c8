"""(Ray) When the trials of several families stop early or change their settings: one rule of Ray Tune per family.

A rule compares trials; those of different families say nothing about each other, so each family has a rule of its own.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final, Literal

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search.sample import Domain

from dkt_ray.models.base import Between, Choice, Space
from dkt_ray.training.search import CURVE, METRIC, REPORTS

logger = logging.getLogger(__name__)

SchedulerName = Literal["asha", "median", "pbt", "none"]
_ENOUGH: Final = 3  # other trials, before their median says anything
_ALONE: Final[Any] = SimpleNamespace(get_live_trials=tuple)  # nobody waits: no trial is paused for another's sake


@dataclass(frozen=True)
class Early:
    """When a trial may end before its time."""

    name: SchedulerName
    max_reports: int  # longest trial
    grace_period: int  # reports before a trial may be stopped for being behind
    reduction_factor: float  # asha: of the trials at a rung, one in so many goes on
    perturbation_reports: int  # pbt: reports between two comparisons


class FamilyScheduler(FIFOScheduler):
    """One rule per family; a trial whose AUC is not finite stops, and so does one that has had its reports."""

    def __init__(self, early: Early, mutations: Mapping[str, Space]) -> None:
        """A fresh rule for each family.

        Args:
            early: the kind of rule.
            mutations: per family, the settings that a checkpoint can follow (pbt).
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._unsaved: Any = None  # the controller, after a trial's end
        self._max_reports = early.max_reports
        self._rules = {family: _rule(family, early, space) for family, space in mutations.items()}

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Enter a trial; one that an earlier driver ran brings its curve, so that the rule knows it."""
        rule = self._of(trial)
        family: Any = _Family(tune_controller)
        rule.on_trial_add(family, trial)
        for reports, auc in enumerate((trial.last_result or {}).get(CURVE, ()), start=1):
            seen = {REPORTS: reports, METRIC: auc}
            if isinstance(rule, MedianStoppingRule):
                rule.on_trial_complete(_ALONE, trial, seen)  # books it, and decides nothing
            elif not isinstance(rule, PopulationBasedTraining):
                rule.on_trial_result(_ALONE, trial, seen)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Continue, stop, or, where the rule has made the trial another one, nothing."""
        if not math.isfinite(result[METRIC]) or result[REPORTS] >= self._max_reports:
            return TrialScheduler.STOP
        rule = self._of(trial)
        if isinstance(rule, PopulationBasedTraining):
            family: Any = _Family(tune_controller)
            return rule.on_trial_result(family, trial, result)
        return rule.on_trial_result(_ALONE, trial, {REPORTS: result[REPORTS], METRIC: result[METRIC]})

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Record the last report of a trial that ended, unless it diverged."""
        self._unsaved = tune_controller
        if math.isfinite(result.get(METRIC, math.nan)):
            self._of(trial).on_trial_complete(
                tune_controller, trial, {REPORTS: result[REPORTS], METRIC: result[METRIC]}
            )

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Forget a trial that failed, and have it written down: Tune forgets to, where its worker has died."""
        self._unsaved = tune_controller
        tune_controller._mark_trial_to_checkpoint(trial)
        self._of(trial).on_trial_error(tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """The next in the queue, once what has ended is written down: a killed driver repeats no finished trial."""
        ended, self._unsaved = self._unsaved, None
        if ended is not None:
            ended.checkpoint(force=True, wait=True)
        return super().choose_trial_to_run(tune_controller)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Forget a trial that never ran."""
        self._of(trial).on_trial_remove(tune_controller, trial)

    def _of(self, trial: Trial) -> TrialScheduler:
        return self._rules[trial.config["family"]]


class _Family:
    """Tune's controller as population based training may see it: nobody else waits, and we propose the trials."""

    search_alg = None

    def __init__(self, controller: Any) -> None:
        self._controller = controller

    def get_trials(self) -> list[Trial]:
        return []

    def pause_trial(self, trial: Trial, should_checkpoint: bool) -> None:
        self._controller.pause_trial(trial, should_checkpoint=should_checkpoint)

    def _schedule_trial_save(self, trial: Trial, result: Any) -> Any:
        return self._controller._schedule_trial_save(trial, result=result)


def _rule(family: str, early: Early, mutations: Space) -> TrialScheduler:
    clock: dict[str, Any] = {"time_attr": REPORTS, "metric": METRIC, "mode": "max"}
    grace = min(early.grace_period, early.max_reports)
    if early.name == "asha":
        longest: dict[str, Any] = {
            "max_t": early.max_reports,
            "grace_period": grace,
            "reduction_factor": early.reduction_factor,
        }
        return AsyncHyperBandScheduler(**clock, **longest)
    if early.name == "median":
        return MedianStoppingRule(**clock, grace_period=grace, min_samples_required=_ENOUGH)
    if early.name == "pbt" and mutations:
        return PopulationBasedTraining(
            **clock,
            perturbation_interval=early.perturbation_reports,
            burn_in_period=grace,
            hyperparam_mutations={"settings": {name: _drawn(domain) for name, domain in mutations.items()}},
            custom_explore_fn=_kept_within(mutations),
            log_config=False,
        )
    if early.name == "pbt":
        logger.info("%s: no setting that varies can change on the way, so its trials run without pbt", family)
    return FIFOScheduler()


def _drawn(domain: Between | Choice) -> Domain | list[Any]:
    """How a mutation draws a setting anew."""
    if isinstance(domain, Choice):
        return list(domain.values)
    return tune.loguniform(domain.low, domain.high) if domain.log else tune.uniform(domain.low, domain.high)


def _kept_within(mutations: Space) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Bring mutated settings back into the space."""

    def keep(sample: dict[str, Any]) -> dict[str, Any]:
        settings = dict(sample["settings"])
        for name, domain in mutations.items():
            if isinstance(domain, Between):
                value = min(max(settings[name], domain.low), domain.high)
                settings[name] = round(value) if domain.integer else value
        return sample | {"settings": settings}

    return keep
