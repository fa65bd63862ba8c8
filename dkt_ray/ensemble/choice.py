"""Which combination is served: chosen in nested folds of users, without members of no use, calibrated where it helps.

`Choice.chain(excluded)` is the whole procedure on the rows outside some folds: compare the methods there, fit the best,
calibrate it. A row's score of the ensemble comes from the chain that left its fold out: no answer takes part in its own
score. Only which members are kept is decided once, by all folds.

Legend: N rows, K members, F folds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from dkt_ray import metrics
from dkt_ray.data.history import Int8, Int32
from dkt_ray.ensemble.blend import Floats
from dkt_ray.ensemble.chain import Boosted, Chain, Isotonic, Logistic, Temperature, Weighted, shares
from dkt_ray.ensemble.methods import CALIBRATORS, Fit, nested, plain, spread
from dkt_ray.ranking import binned_auc

Calibration = Literal["none", "temperature", "isotonic", "best"]

SAMPLE_ROWS: Final = 200_000  # that chains are fitted on and chosen by
INDIFFERENT: Final = 1e-4  # a simpler method whose nested AUROC is at most this much lower is taken
NOBODY: Final[frozenset[int]] = frozenset()
_AT_ONCE: Final = 1 << 18  # rows that are scored at one time
_STABILITY_ROWS: Final = 50_000
_RESAMPLES: Final = 20  # of the users, for the weights' intervals


@dataclass(frozen=True, eq=False)
class Members:
    """Out-of-fold probabilities of K members for N rows, and what fits may know of the rows."""

    names: tuple[str, ...]
    p: Floats  # [N, K]
    y: Int8  # [N]
    length: Int32  # [N] earlier rows that each row may read
    fold: Int8  # [N]
    user: npt.NDArray[np.int32]  # [N] code

    def without(self, name: str) -> Members:
        """All but one member."""
        return self.of(tuple(other for other in self.names if other != name))

    def of(self, names: Sequence[str]) -> Members:
        """Some of the members."""
        columns = [self.names.index(name) for name in names]
        return Members(tuple(names), self.p[:, columns], self.y, self.length, self.fold, self.user)

    def at(self, rows: npt.NDArray[np.int64]) -> Members:
        """Some of the rows."""
        return Members(self.names, self.p[rows], self.y[rows], self.length[rows], self.fold[rows], self.user[rows])

    def nested(self, fit: Fit) -> Floats:
        """[N] every row combined by what was fitted on the other folds."""
        return nested(fit, self.p, self.y, self.length, self.fold)

    def scored(self, of: Callable[[int], Callable[[Floats, Int32], Floats]], names: Sequence[str]) -> Floats:
        """[N] every row's score, each fold's by what `of` gives for it, of some of the members."""
        columns, scored = [self.names.index(name) for name in names], np.empty(len(self.y))
        for fold in np.unique(self.fold).tolist():
            rows = np.flatnonzero(self.fold == fold)
            for first in range(0, len(rows), _AT_ONCE):
                own = rows[first : first + _AT_ONCE]
                scored[own] = of(fold)(self.p[own[:, None], columns], self.length[own])
        return scored

    def fitted(self, fit: Fit) -> Weighted | Logistic | Boosted:
        """What is fitted on all rows."""
        return fit(self.p, self.y, self.length)


class Way(NamedTuple):
    """One way of combining all members."""

    combination: Weighted | Logistic | Boosted  # fitted on all folds
    without: dict[int, Weighted | Logistic | Boosted]  # by fold: fitted on the others

    def nested(self, members: Members) -> Floats:
        """[N] scores, each fold's rows by what was fitted on the others."""
        return members.scored(lambda fold: self.without[fold].apply, members.names)


class Removal(NamedTuple):
    """A member that was taken out for a trial."""

    member: str
    cost: float  # AUROC with it minus AUROC without it
    dropped: bool


@dataclass(frozen=True, eq=False)
class Choice:
    """The procedure that makes a chain of out-of-fold rows."""

    members: Members
    fits: Mapping[str, Fit]  # methods to choose from, the simplest first
    calibration: Calibration
    _fitted: dict[tuple[str, frozenset[int]], Weighted | Logistic | Boosted] = field(default_factory=dict, repr=False)

    def only(self, method: str) -> Choice:
        """The same procedure without a choice of the method."""
        return Choice(self.members, {method: self.fits[method]}, self.calibration, self._fitted)

    def combination(self, method: str, excluded: frozenset[int] = NOBODY) -> Weighted | Logistic | Boosted:
        """A method fitted on the rows outside some folds; the plain mean where no rows are left."""
        key = (method, excluded)
        if key not in self._fitted:
            rows = self._outside(excluded)
            self._fitted[key] = (self.fits[method] if len(rows.y) else plain)(rows.p, rows.y, rows.length)
        return self._fitted[key]

    def chain(self, excluded: frozenset[int] = NOBODY) -> Chain:
        """What the rows outside some folds speak for."""
        rows = self._outside(excluded)
        if len(rows.y) and len(np.unique(rows.fold)) == 1:  # nothing to nest in: two halves of the users are folds
            halves = (rows.user > np.median(rows.user)).astype(np.int8)
            return Choice(replace(rows, fold=halves), self.fits, self.calibration)._made(NOBODY)
        return self._made(excluded)

    def method(self, excluded: frozenset[int] = NOBODY) -> str:
        """The method with the highest nested AUROC on the rows outside some folds; the simplest of those like it."""
        if len(self.fits) == 1:
            return next(iter(self.fits))
        y = self._outside(excluded).y
        found = {method: binned_auc(y, self.nested(method, excluded)) for method in self.fits}
        return next(method for method, value in found.items() if value >= max(found.values()) - INDIFFERENT)

    def nested(self, method: str, excluded: frozenset[int] = NOBODY) -> Floats:
        """Scores of the rows outside some folds by a method that was fitted without their own fold too."""
        rows = self._outside(excluded)
        return rows.scored(lambda fold: self.combination(method, excluded | {fold}).apply, rows.names)

    def _made(self, excluded: frozenset[int]) -> Chain:
        method, rows = self.method(excluded), self._outside(excluded)
        chain = Chain.of(self.members.names, self.combination(method, excluded))
        if not len(rows.y):
            return chain
        calibrator = calibrate(self.calibration, self.nested(method, excluded), rows.y, rows.fold)
        return chain.model_copy(update={"calibrator": calibrator})

    def _outside(self, excluded: frozenset[int]) -> Members:
        return (
            self.members.at(np.flatnonzero(~np.isin(self.members.fold, list(excluded)))) if excluded else self.members
        )


def calibrate(kind: Calibration, p: Floats, y: Int8, fold: Int8) -> Temperature | Isotonic | None:
    """The calibrator that lowers the log-loss out of fold, fitted on all rows; None where none does.

    Args:
        kind: the only one to try; `best`: each.
        p: [N] scores, each by what was fitted on the other folds.
    """
    found, lowest = None, float(_surprise(p, y).mean())
    for name, fit in CALIBRATORS.items():
        if kind in (name, "best") and (loss := float(_surprise(_elsewhere(fit, p, y, fold), y).mean())) < lowest:
            found, lowest = fit, loss
    return None if found is None else found(p, y)


def drop(fit: Fit, members: Members, below: float, at_least: int) -> tuple[Members, list[Removal]]:
    """Take out members whose removal costs less than `below` AUROC, one after another, the smallest share first.

    Each trial is fitted anew on half of the folds and judged on the others.

    Returns:
        The members that stay, and every removal that was tried.
    """
    halves = ((members.fold - members.fold.min()) % 2).astype(np.int8)
    trial, tried = replace(members, fold=halves), list[Removal]()
    whole, left = _auc(fit, trial), set(members.names)
    while left and len(trial.names) > 1:
        counted = dict(zip(trial.names, shares(trial.fitted(fit)), strict=True))
        name = min(left, key=lambda member: (counted[member], member))
        left.remove(name)
        others = trial.without(name)
        auc = _auc(fit, others)
        dropped = whole - auc < below and len(trial.names) > at_least
        tried.append(Removal(name, whole - auc, dropped))
        if dropped:
            trial, whole = others, auc
    return members.of(trial.names), tried


def _auc(fit: Fit, members: Members) -> float:
    return binned_auc(members.y, members.nested(fit))


def stability(fit: Fit, members: Members, seed: int) -> dict[str, dict[str, float | None]]:
    """Each member's share, its mean and its 95 % interval over resamples of the users, on at most 50,000 rows."""
    sample = members.at(spread(len(members.y), _STABILITY_ROWS))
    user = np.unique(sample.user, return_inverse=True)[1]
    by_user, random = np.argsort(user, kind="stable"), np.random.default_rng(seed)
    ends = np.cumsum(np.bincount(user))
    parts = np.split(by_user, ends[:-1])
    drawn = []
    for _ in range(_RESAMPLES):
        rows = np.concatenate([parts[u] for u in random.integers(0, len(parts), len(parts))])
        drawn.append(shares(sample.at(rows).fitted(fit)))
    value, several = shares(members.fitted(fit)), np.array(drawn)
    return {name: _estimate(value[k], several[:, k]) for k, name in enumerate(members.names)}


def _estimate(value: float, drawn: Floats) -> dict[str, float | None]:
    found = metrics.estimate(value, drawn)
    return {"value": found["value"], "mean": float(drawn.mean()), "low": found["low"], "high": found["high"]}


def _elsewhere(fit: Callable[[Floats, Int8], Temperature | Isotonic], p: Floats, y: Int8, fold: Int8) -> Floats:
    calibrated = p.copy()
    for held_out in np.unique(fold):
        own = fold == held_out
        if not own.all():
            calibrated[own] = fit(p[~own], y[~own]).apply(p[own])
    return calibrated


def _surprise(p: Floats, y: Int8) -> Floats:
    """[N] negative log-likelihood of each answer."""
    likelihood = np.where(y == 1, p, 1.0 - p)
    return -np.log(np.maximum(likelihood, np.finfo(np.float64).eps))
