"""Which combination is served: chosen by nested log-loss, without members of no use, calibrated where that helps.

Legend: N rows, K members, F folds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from dkt_ray import metrics
from dkt_ray.data.history import Int8, Int32
from dkt_ray.ensemble.blend import Floats
from dkt_ray.ensemble.chain import Boosted, Chain, Isotonic, Logistic, Temperature, Weighted, shares
from dkt_ray.ensemble.methods import CALIBRATORS, Fit, nested, spread
from dkt_ray.metrics import Estimate

Calibration = Literal["none", "temperature", "isotonic", "best"]

_TRIAL_ROWS: Final = 200_000  # on which the removal of a member is tried
_STABILITY_ROWS: Final = 100_000
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

    def fitted(self, fit: Fit) -> Weighted | Logistic | Boosted:
        """What is fitted on all rows."""
        return fit(self.p, self.y, self.length)


class Way(NamedTuple):
    """One way of combining the members."""

    combination: Weighted | Logistic | Boosted  # fitted on all rows
    nested: Floats  # [N], each row by what was fitted on the other folds


class Removal(NamedTuple):
    """A member that was taken out for a trial."""

    member: str
    cost: float  # AUROC with it minus AUROC without it
    dropped: bool


@dataclass(frozen=True, eq=False)
class Served:
    """What is served, and how it came about."""

    chain: Chain
    nested: Floats  # [N]
    uncalibrated: Floats  # [N]
    removals: list[Removal] = field(default_factory=list)


def choose(ways: Mapping[str, Way], members: Members) -> tuple[str, Floats]:
    """The way with the lowest nested log-loss, and the honest score of choosing like that.

    Returns:
        its name, and [N] each fold's rows by the way that was best on the other folds.
    """
    folds = np.unique(members.fold)
    surprise = {name: _surprise(way.nested, members.y) for name, way in ways.items()}
    sums = {name: [lost[members.fold == fold].sum() for fold in folds] for name, lost in surprise.items()}
    best = min(sums, key=lambda name: sum(sums[name]))
    column = np.empty(len(members.y))
    for index, fold in enumerate(folds):
        elsewhere = min(sums, key=lambda name: sum(sums[name]) - sums[name][index]) if len(folds) > 1 else best
        rows = members.fold == fold
        column[rows] = ways[elsewhere].nested[rows]
    return best, column


def drop(fit: Fit, members: Members, below: float, at_least: int) -> tuple[Members, list[Removal]]:
    """Take out members whose removal costs less than `below` AUROC, the cheapest first, until none is left.

    Each trial is fitted on some folds and judged on the others, on at most 200,000 rows; `fit` is fitted anew for it.
    """
    trial = members.at(spread(len(members.y), _TRIAL_ROWS))
    halves = (trial.fold - trial.fold.min()) % 2
    trial = Members(trial.names, trial.p, trial.y, trial.length, halves.astype(np.int8), trial.user)
    tried: dict[str, Removal] = {}
    while len(trial.names) > max(at_least, 1):
        whole = metrics.auc(trial.y, trial.nested(fit)) or 0.0
        costs = {name: whole - (metrics.auc(trial.y, trial.without(name).nested(fit)) or 0.0) for name in trial.names}
        cheapest = min(costs, key=lambda name: costs[name])
        dropped = costs[cheapest] < below
        tried |= {name: Removal(name, cost, dropped and name == cheapest) for name, cost in costs.items()}
        if not dropped:
            break
        trial = trial.without(cheapest)
    order = sorted(tried.values(), key=lambda removal: (not removal.dropped, removal.cost))
    return members.of(trial.names), order


def finish(way: Way, members: Members, calibrator: Calibration) -> Served:
    """Put the calibrator that lowers the nested log-loss, if one does, behind a combination."""
    chain = Chain.of(members.names, way.combination)
    wanted = () if calibrator == "none" else tuple(CALIBRATORS) if calibrator == "best" else (calibrator,)
    best, loss, column = None, _surprise(way.nested, members.y).mean(), way.nested
    for name in wanted:
        calibrated = _calibrated_elsewhere(name, way.nested, members)
        if (found := _surprise(calibrated, members.y).mean()) < loss:
            best, loss, column = name, found, calibrated
    last: Temperature | Isotonic | None = None if best is None else CALIBRATORS[best](way.nested, members.y)
    return Served(chain.model_copy(update={"calibrator": last}), column, way.nested)


def stability(fit: Fit, members: Members, seed: int) -> dict[str, Estimate]:
    """Each member's share, with its 95 % interval over resamples of the users, on at most 100,000 rows."""
    sample = members.at(spread(len(members.y), _STABILITY_ROWS))
    user = np.unique(sample.user, return_inverse=True)[1]
    by_user, random = np.argsort(user, kind="stable"), np.random.default_rng(seed)
    ends = np.cumsum(np.bincount(user))
    parts = np.split(by_user, ends[:-1])
    drawn = []
    for _ in range(_RESAMPLES):
        rows = np.concatenate([parts[u] for u in random.integers(0, len(parts), len(parts))])
        drawn.append(shares(sample.at(rows).fitted(fit)))
    value = shares(members.fitted(fit))
    return {
        name: metrics.estimate(value[column], np.array(drawn)[:, column]) for column, name in enumerate(members.names)
    }


def _calibrated_elsewhere(name: str, p: Floats, members: Members) -> Floats:
    calibrated = p.copy()
    for held_out in np.unique(members.fold):
        rows = members.fold == held_out
        if not rows.all():
            calibrated[rows] = CALIBRATORS[name](p[~rows], members.y[~rows]).apply(p[rows])
    return calibrated


def _surprise(p: Floats, y: Int8) -> Floats:
    """[N] negative log-likelihood of each answer."""
    likelihood = np.where(y == 1, p, 1.0 - p)
    return -np.log(np.maximum(likelihood, np.finfo(np.float64).eps))
