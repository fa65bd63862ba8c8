"""When trials stop early, or change their settings: a rule per family, and what a resumed sweep knows."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from dkt_ray.models.base import Between, Choice, Space
from dkt_ray.models.catalog import CATALOG
from dkt_ray.training.schedulers import Early, FamilyScheduler, SchedulerName
from dkt_ray.training.search import CURVE, METRIC, REPORTS, FamilySpace
from dkt_ray.training.tuning import mutable

MUTATIONS: Space = {
    "rate": Between(1e-3, 1e-2, log=True),
    "steps": Between(1, 4, integer=True),
    "kind": Choice(("p", "q")),
}
SETTINGS = {"rate": 9e-3, "steps": 4, "kind": "p", "width": 32}


class Trial(SimpleNamespace):
    """What a rule reads of a trial."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__

    def is_finished(self) -> bool:
        return self.status == "TERMINATED"

    def set_experiment_tag(self, tag: str) -> None:
        self.experiment_tag = tag

    def set_config(self, config: dict[str, Any]) -> None:
        self.config = config


class Controller:
    """What a rule asks of Tune: it pauses trials, and saves each as its name."""

    def __init__(self) -> None:
        self.paused: list[str] = []

    def pause_trial(self, trial: Any, should_checkpoint: bool) -> None:
        trial.status = "PAUSED"
        self.paused.append(trial.trial_id)

    def _schedule_trial_save(self, trial: Any, result: Any) -> Any:
        return f"checkpoint of {trial.trial_id}"


def trial_of(family: str, name: str, curve: tuple[float, ...] = (), settings: dict[str, Any] | None = None) -> Any:
    manager = SimpleNamespace(checkpoint_config=SimpleNamespace(num_to_keep=4), _latest_checkpoint_result=None)
    return Trial(
        trial_id=name,
        experiment_tag=name,
        status="RUNNING",
        config={"family": family, "settings": dict(settings or SETTINGS)},
        last_result={CURVE: list(curve), METRIC: curve[-1]} if curve else {},
        run_metadata=SimpleNamespace(checkpoint_manager=manager),
    )


def scheduler(name: SchedulerName, *families: str, mutations: Space = MUTATIONS, grace: int = 1) -> FamilyScheduler:
    return FamilyScheduler(Early(name, 9, grace, 3, 2), dict.fromkeys(families, mutations))


def report(rule: FamilyScheduler, trial: Any, reports: int, auc: float, controller: Any = None) -> str:
    return rule.on_trial_result(controller, trial, {REPORTS: reports, METRIC: auc})


def added(rule: FamilyScheduler, *trials: Any) -> None:
    for trial in trials:
        rule.on_trial_add(None, trial)


@pytest.mark.parametrize("name", ["asha", "median", "pbt", "none"])
def test_a_trial_without_a_number_or_with_all_its_reports_stops(name: SchedulerName) -> None:
    rule, trial, longest = scheduler(name, "a"), trial_of("a", "1"), trial_of("a", "2")
    added(rule, trial, longest)
    assert report(rule, trial, 1, math.nan) == TrialScheduler.STOP
    rule.on_trial_complete(None, trial, {REPORTS: 1, METRIC: math.nan})
    assert report(rule, longest, 1, 0.5) == TrialScheduler.CONTINUE  # the rule has not seen the NaN
    assert report(rule, longest, 9, 0.9) == TrialScheduler.STOP


def test_asha_stops_a_trial_for_being_behind_its_own_family_only() -> None:
    rule = scheduler("asha", "a", "b")
    good, poor, other = trial_of("a", "1"), trial_of("a", "2"), trial_of("b", "3")
    added(rule, good, poor, other)
    assert report(rule, good, 1, 0.8) == TrialScheduler.CONTINUE
    assert report(rule, poor, 1, 0.6) == TrialScheduler.STOP
    assert report(rule, other, 1, 0.5) == TrialScheduler.CONTINUE


@pytest.mark.parametrize("resumed", [False, True])
def test_median_stops_what_is_worse_than_half_of_its_own_family(resumed: bool) -> None:
    rule = scheduler("median", "a", "b", grace=2)
    curves = {"1": (0.7, 0.75, 0.8), "2": (0.6, 0.65, 0.7), "3": (0.5, 0.52, 0.54)}
    for name, curve in curves.items():
        trial = trial_of("a", name, curve if resumed else ())
        added(rule, trial)
        for reports, auc in enumerate(() if resumed else curve, start=1):
            assert report(rule, trial, reports, auc) == TrialScheduler.CONTINUE
    poor, fair, other = trial_of("a", "4"), trial_of("a", "5"), trial_of("b", "6")
    added(rule, poor, fair, other)
    assert report(rule, poor, 1, 0.1) == TrialScheduler.CONTINUE  # the grace period
    assert report(rule, poor, 2, 0.64) == TrialScheduler.STOP  # the median is 0.65
    assert report(rule, fair, 2, 0.66) == TrialScheduler.CONTINUE
    assert report(rule, other, 2, 0.1) == TrialScheduler.CONTINUE


def test_none_stops_nobody() -> None:
    rule, trials = scheduler("none", "a"), [trial_of("a", str(k)) for k in range(5)]
    added(rule, *trials)
    assert {report(rule, trial, 2, 0.9 - 0.1 * k) for k, trial in enumerate(trials)} == {TrialScheduler.CONTINUE}


def test_pbt_gives_the_worst_of_a_family_the_best_one_s_checkpoint_and_new_settings_inside_the_space() -> None:
    for seed in range(20):
        random.seed(seed)
        rule, controller = scheduler("pbt", "a", "b"), Controller()
        best, worst, other = (
            trial_of("a", "1"),
            trial_of("a", "2", settings=SETTINGS | {"width": 64}),
            trial_of("b", "3"),
        )
        added_to = [best, worst, other]
        for trial in added_to:
            rule.on_trial_add(controller, trial)
        assert report(rule, worst, 1, 0.4, controller) == TrialScheduler.CONTINUE  # between two comparisons
        assert report(rule, other, 2, 0.3, controller) == TrialScheduler.CONTINUE
        assert report(rule, best, 2, 0.8, controller) == TrialScheduler.CONTINUE
        assert report(rule, worst, 2, 0.5, controller) == TrialScheduler.CONTINUE  # the best has no checkpoint yet
        assert report(rule, best, 4, 0.82, controller) == TrialScheduler.CONTINUE
        assert report(rule, worst, 4, 0.6, controller) == TrialScheduler.NOOP
        assert controller.paused == ["2"]
        assert worst.run_metadata.checkpoint_manager._latest_checkpoint_result.checkpoint == "checkpoint of 1"
        settings = worst.config["settings"]
        assert settings["width"] == 32  # the weights are the other's, and so is what a checkpoint cannot change
        assert 1e-3 <= settings["rate"] <= 1e-2
        assert settings["steps"] in (1, 2, 3, 4)
        assert isinstance(settings["steps"], int)
        assert settings["kind"] in ("p", "q")
        assert best.config["settings"] == other.config["settings"] == SETTINGS


def test_pbt_leaves_families_alone_that_cannot_change_on_the_way(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        rule = scheduler("pbt", "lightgbm", mutations={})
    assert "lightgbm: no setting that varies can change on the way" in caplog.text
    trials = [trial_of("lightgbm", name) for name in "12"]
    added(rule, *trials)
    assert {report(rule, trial, 2, 0.5) for trial in trials} == {TrialScheduler.CONTINUE}


def test_only_what_a_family_follows_is_mutated() -> None:
    for family, spec in CATALOG.items():
        assert set(spec.follows) <= set(spec.config.model_fields)
        names = set(mutable(family, FamilySpace(spec.space, {}, {})))
        assert names == set(spec.space) & set(spec.follows)
        assert bool(names) == (spec.view == "sequence")


def test_after_a_resume_the_rungs_know_the_trials_of_the_earlier_driver() -> None:
    rule = scheduler("asha", "a")
    new = trial_of("a", "new")
    added(rule, trial_of("a", "old", curve=(0.8, 0.85)), new)
    assert report(rule, new, 1, 0.6) == TrialScheduler.STOP


def test_a_trial_s_end_is_written_down_before_the_next_one_starts() -> None:
    saved: list[tuple[bool, bool]] = []
    controller: Any = SimpleNamespace(checkpoint=lambda force, wait: saved.append((force, wait)), get_trials=list)
    rule, trial = scheduler("asha", "a"), trial_of("a", "1")
    rule.on_trial_add(controller, trial)
    rule.choose_trial_to_run(controller)
    assert saved == []
    rule.on_trial_complete(controller, trial, {REPORTS: 3, METRIC: 0.7})
    for _ in range(2):
        rule.choose_trial_to_run(controller)
    assert saved == [(True, True)]  # also where the last one was a moment ago, and it is in the store by now
    marked: list[str] = []
    controller._mark_trial_to_checkpoint = lambda failed: marked.append(failed.trial_id)
    rule.on_trial_error(controller, trial)
    rule.choose_trial_to_run(controller)
    assert (saved, marked) == ([(True, True)] * 2, ["1"])


def test_a_rule_keeps_little_of_a_trial(tmp_path: Path) -> None:
    """Reports hold the whole curve: a rule that kept them would grow with the square of a trial's length."""
    rule, trial = scheduler("median", "a"), trial_of("a", "1")
    added(rule, trial)
    for reports in range(1, 9):
        rule.on_trial_result(None, trial, {REPORTS: reports, METRIC: 0.5, CURVE: [0.5] * reports})
    kept = [seen for held in rule._rules["a"]._results.values() for seen in held]  # type: ignore[attr-defined]
    assert json.dumps(kept).count(CURVE) == 0
