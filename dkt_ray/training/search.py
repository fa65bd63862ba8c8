"""(Ray) How the trials of several families share one Tune experiment: whose turn it is, and what is tried.

Tune asks one searcher for the whole experiment; scores of different families say nothing about each other's settings,
so it keeps a book per family.
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
from ray.tune.search import Searcher

from dkt_ray.models.base import Between, Choice, Space
from dkt_ray.training.spaces import within

METRIC: Final = "auc"  # best validation AUC of a trial so far, in every report
CURVE: Final = "curve"  # the METRIC of every report of the trial so far
REPORTS: Final = "reports"  # how many there were: the clock of the successive halving
ITERATION: Final = "iteration"  # epoch or round of a report
REASON: Final = "reason"  # why a trial failed
REFUSED: Final = "refused"  # why the store did not take a trial's checkpoint
SCHEDULE: Final = "schedule"  # [[reports before it, settings in force from then on], ...], where a trial changed some

_AGAIN: Final = 4  # one trial in so many repeats a good one of an earlier sweep
_STARTUP: Final = 8  # trials at random before Optuna's TPE has something to learn from

SearcherName = Literal["optuna", "random"]
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
    known: tuple[Attempt, ...] = ()  # finished trials of earlier sweeps inside the space, the best first


@dataclass
class Attempt:
    """One trial as the searcher sees it."""

    params: dict[str, Any]
    status: Status = "running"
    auc: float | None = None
    seconds: float = 0.0


def propose(
    space: Space,
    default: Mapping[str, Any],
    past: Sequence[Attempt],
    seed: int,
    known: Sequence[Attempt] = (),
    searcher: SearcherName = "optuna",
) -> dict[str, Any]:
    """The next values to try: first the default, then those of Optuna or of chance.

    Optuna's tree-structured Parzen estimator: Bergstra et al. 2011.

    Args:
        space: what may vary.
        default: values of the first trial; they may lie outside the space.
        past: all earlier trials; running ones count as bad, so that parallel trials differ.
        seed: the same past and seed give the same values; with `random`, the same seed.
        known: finished trials of earlier sweeps.
        searcher: optuna, or random: a list that is drawn before anything is known.
    """
    if not past or not space:
        return dict(default)
    distributions = {name: _distribution(domain) for name, domain in space.items()}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if searcher == "random":
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        return study.ask(distributions).params
    sampler = optuna.samplers.TPESampler(n_startup_trials=_STARTUP, constant_liar=True, seed=seed)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    seen = [attempt for attempt in (*known, *past) if within(space, attempt.params)]
    study.add_trials([_frozen(attempt, distributions) for attempt in seen])
    return study.ask(distributions).params


def spent(seconds: Mapping[str, float], demands: Mapping[str, Mapping[str, float]]) -> float:
    """Compute that families have used: seconds times GPUs where a family takes some, else times CPUs.

    Args:
        seconds: of all trials, per family.
        demands: resources of a trial, per family, in Ray's names.
    """
    return sum(total * (demands[family].get("GPU") or demands[family]["CPU"]) for family, total in seconds.items())


def _distribution(domain: Between | Choice) -> BaseDistribution:
    if isinstance(domain, Choice):
        return CategoricalDistribution(domain.values)
    if domain.integer:
        return IntDistribution(int(domain.low), int(domain.high), log=domain.log)
    return FloatDistribution(domain.low, domain.high, log=domain.log)


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
        searcher: SearcherName = "optuna",
        compute_budget_s: float | None = None,
    ) -> None:
        """A fresh book.

        Args:
            families: what varies in each.
            demands: resources of a trial of each, in Ray's names.
            trials: number of trials per family.
            seed: of the proposals.
            capacity: gives what the cluster has in all; it is asked each time, since clusters grow and shrink.
            concurrency: trials of all families at the same time.
            searcher: what proposes values.
            compute_budget_s: of all trials (see `spent`); where it is used up, none begins.
        """
        super().__init__(metric=METRIC, mode="max")
        self._families = dict(families)
        self._demands = dict(demands)
        self._capacity = capacity
        self._trials = trials
        self._seed = seed
        self._concurrency = concurrency
        self._searcher = searcher
        self._compute_budget_s = math.inf if compute_budget_s is None else compute_budget_s
        self._attempts: dict[str, dict[str, Attempt]] = {family: {} for family in families}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next trial: {"family", "settings"}; None: not now; FINISHED: all trials, or the budget, are used up."""
        open_ = [family for family, attempts in self._attempts.items() if len(attempts) < self._trials]
        if not open_ or self._spent() >= self._compute_budget_s:
            return Searcher.FINISHED  # type: ignore[return-value]  # Tune's own signature has no room for it
        family = min(open_, key=lambda name: (not self._has_room(name), len(self._attempts[name])))
        if not self._has_room(family):
            return None
        return {"family": family, "settings": self._next(family, trial_id)}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Book what a trial has used so far."""
        attempt = self._attempt(trial_id)
        attempt.seconds = max(attempt.seconds, result.get("time_total_s", 0.0))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Book a trial's end; a trial without a finite AUC has failed."""
        attempt = self._attempt(trial_id)
        attempt.seconds = max(attempt.seconds, (result or {}).get("time_total_s", 0.0))
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

    def _attempt(self, trial_id: str) -> Attempt:
        return next(attempts[trial_id] for attempts in self._attempts.values() if trial_id in attempts)

    def _spent(self) -> float:
        seconds = {
            family: sum(attempt.seconds for attempt in attempts.values()) for family, attempts in self._attempts.items()
        }
        return spent(seconds, self._demands)

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
        earlier = [attempt for attempt in search.known if attempt.params != dict(search.default)]
        again = earlier[: self._trials // _AGAIN]
        if 0 < len(attempts) <= len(again):
            params = dict(again[len(attempts) - 1].params)
        else:
            past = list(attempts.values())
            params = propose(search.space, search.default, past, seed, search.known, self._searcher)
        attempts[trial_id] = Attempt(params)
        return {**params, **search.fixed}
