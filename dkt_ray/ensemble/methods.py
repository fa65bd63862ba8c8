"""The ways of combining members, each fitted on out-of-fold probabilities, and the calibrators that may follow.

Every fit reads at most `FIT_ROWS` rows, evenly spread: weights of a few members are known to four digits by then.

Legend: N rows, K members.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import lightgbm as lgb
import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from sklearn.isotonic import IsotonicRegression

from dkt_ray.data.history import Int8, Int32
from dkt_ray.ensemble.blend import EDGE, Floats, blend, equal, fit_simplex, lowest_on_simplex
from dkt_ray.ensemble.chain import (
    Boosted,
    Isotonic,
    Logistic,
    Temperature,
    Weighted,
    logit,
    sigmoid,
    stack_columns,
    tree_columns,
)
from dkt_ray.ranking import binned_auc, mid_ranks

Ints = npt.NDArray[np.int64]
Fit = Callable[[Floats, Int8, Int32], Weighted | Logistic | Boosted]

FIT_ROWS: Final = 200_000
_RIDGE: Final = 10.0  # of the logistic stack: its half times the squares of the coefficients, beside the sum of losses
_NEWTON_STEPS: Final = 25
_GREEDY_ROWS: Final = 40_000
_GREEDY_STEPS: Final = 20
_START: Final = 2  # members that a bag starts from
_BAGS: Final = 5
_BEST_OF_ROWS: Final = 100_000
_BOOSTED_ROWS: Final = 100_000
_ROUNDS: Final = 60
_LEAST: Final = 2_000  # rows in a leaf of the boosted stack, at most a twentieth of all
_STEPS: Final = 100  # of an isotonic calibrator, before equal ones are joined


def simplex(p: Floats, y: Int8, length: Int32) -> Weighted:
    """Weights with the lowest log-loss; see `fit_simplex`."""
    rows = spread(len(p), FIT_ROWS)
    return mean_of(fit_simplex(p[rows], y[rows]))


def logits(p: Floats, y: Int8, length: Int32) -> Weighted:
    """The weighted mean of the members' log-odds with the lowest log-loss: convex, as that of `simplex`."""
    rows, members = spread(len(p), FIT_ROWS), p.shape[1]
    if members == 1 or not len(p):
        return Weighted(kind="logit", weights=tuple(equal(members).tolist()))
    z, answers = logit(p[rows]), y[rows]

    def loss(weights: Floats) -> tuple[float, Floats]:
        mixed = z @ weights
        against = np.exp(-np.abs(mixed))
        wrong = np.where(answers == 1, -mixed, mixed)
        value = (np.maximum(wrong, 0.0) + np.log(1.0 + against)).mean()  # of ln(1 + exp(wrong))
        right = np.where(mixed < 0, against, 1.0) / (1.0 + against)
        return float(value), (right - answers) @ z / len(mixed)

    return Weighted(kind="logit", weights=tuple(lowest_on_simplex(loss, members).tolist()))


def plain(p: Floats, y: Int8, length: Int32) -> Weighted:
    """The plain mean of the members' probabilities."""
    return mean_of(equal(p.shape[1]))


def greedy(p: Floats, y: Int8, length: Int32) -> Weighted:
    """Ensemble selection by AUROC (Caruana et al., 2004, sections 2.1 to 2.3).

    Each bag draws half the members, starts from its best two, and adds the one that helps most, again and again, with
    replacement; the best point of its path counts, and the bags are averaged.
    """
    rows, members = spread(len(p), _GREEDY_ROWS), p.shape[1]
    columns, answers = np.asfortranarray(p[rows]), y[rows]
    alone = np.array([binned_auc(answers, columns[:, member]) for member in range(members)])
    random, counts = np.random.default_rng(0), np.zeros(members)
    for _ in range(_BAGS if members > _START else 1):
        bag = np.sort(random.permutation(members)[: max((members + 1) // 2, min(_START, members))])
        counts += _selected(columns, answers, bag[np.argsort(-alone[bag], kind="stable")])
    return mean_of(counts / counts.sum())


def best_of(weights: Floats) -> Fit:
    """A fit that takes, of some weights [T, K], those with the highest AUROC on the rows at hand."""

    def fit(p: Floats, y: Int8, length: Int32) -> Weighted:
        rows = spread(len(p), _BEST_OF_ROWS)
        found = [binned_auc(y[rows], blend(p[rows], each)) for each in weights]
        return mean_of(weights[int(np.argmax(found))])

    return fit


def logistic(p: Floats, y: Int8, length: Int32) -> Logistic:
    """Stacking by logistic regression (Wolpert, 1992); the penalty draws it to the plain mean of log-odds."""
    rows, members = spread(len(p), FIT_ROWS), p.shape[1]
    columns = np.column_stack([stack_columns(p[rows], length[rows]), np.ones(len(rows))])
    start = np.concatenate([equal(members), np.zeros(members + 2)])
    penalty = np.append(np.full(2 * members + 1, _RIDGE), 1e-6)
    found = _newton(columns, y[rows], start, penalty)
    return Logistic(intercept=float(found[-1]), coefficients=tuple(found[:-1].tolist()))


def _newton(columns: Floats, y: Int8, start: Floats, penalty: Floats) -> Floats:
    """Coefficients with the lowest penalised loss; the penalty is of the distance from the start."""
    found = start.copy()
    for _ in range(_NEWTON_STEPS):
        p = sigmoid(columns @ found)
        gradient = (p - y) @ columns + penalty * (found - start)
        curvature = (columns * (p * (1.0 - p))[:, None]).T @ columns + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        found -= step
        if np.abs(step).max() < 1e-8:
            break
    return found


def boosted(p: Floats, y: Int8, length: Int32) -> Boosted:
    """Stacking by boosted trees, which can weigh members by the length of the history; rises with every member."""
    rows, members = spread(len(p), _BOOSTED_ROWS), p.shape[1]
    settings = {
        "objective": "binary",
        "num_leaves": 15,
        "learning_rate": 0.08,
        "max_bin": 127,
        "min_data_in_leaf": max(1, min(_LEAST, len(rows) // 20)),
        "monotone_constraints": [1] * members + [0],
        "num_threads": 1,
        "seed": 0,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }
    data = lgb.Dataset(tree_columns(p[rows], length[rows]), y[rows].astype(np.float64), params={"verbosity": -1})
    return Boosted(model=lgb.train(settings, data, _ROUNDS).model_to_string(), members=members)


METHODS: Final[Mapping[str, Fit]] = {  # from the simplest
    "equal": plain,
    "simplex": simplex,
    "greedy": greedy,
    "logit": logits,
    "logistic": logistic,
    "boosted": boosted,
}


def rank_mean(p: Floats) -> Floats:
    """Mean of the members' ranks among all rows, as parts of 1: for a comparison only, one request has no ranks."""
    total = np.zeros(len(p))
    for column in p.T:
        total += mid_ranks(column)
    return total / p.size


def nested(fit: Fit, p: Floats, y: Int8, length: Int32, fold: Int8) -> Floats:
    """Each fold's rows combined by what was fitted on the other folds, [N]: no row sees its own label.

    A fold that has no others to learn from gets the plain mean.
    """
    combined = np.empty(len(p))
    for held_out in np.unique(fold):
        rows, others = np.flatnonzero(fold == held_out), np.flatnonzero(fold != held_out)
        chosen = fit if len(others) else plain
        combined[rows] = chosen(p[others], y[others], length[others]).apply(p[rows], length[rows])
    return combined


def temperature(p: Floats, y: Int8) -> Temperature:
    """The temperature with the lowest log-loss."""
    rows = spread(len(p), FIT_ROWS)
    z, right = logit(p[rows]), y[rows] == 1

    def loss(log_temperature: float) -> float:
        scaled = sigmoid(z / np.exp(log_temperature))
        return float(-np.log(np.maximum(np.where(right, scaled, 1.0 - scaled), EDGE)).mean())

    found = minimize_scalar(loss, bounds=(-2.0, 2.0), method="bounded")
    return Temperature(temperature=float(np.exp(found.x)))


def isotonic(p: Floats, y: Int8) -> Isotonic:
    """Isotonic regression on equally full bins, its steps joined by lines (Oron and Flournoy, 2017)."""
    values, score = np.unique(p, return_inverse=True)
    count, answered_right = np.bincount(score).astype(np.float64), np.bincount(score, y)
    bins = np.unique(((np.cumsum(count) - count) * _STEPS // len(p)), return_inverse=True)[1]  # equal scores share one
    rows = np.bincount(bins, count)
    mean, right = np.bincount(bins, count * values) / rows, (np.bincount(bins, answered_right) + 0.5) / (rows + 1.0)
    level = IsotonicRegression().fit_transform(np.arange(len(rows)), right, sample_weight=rows)
    step = np.unique(level.round(9), return_inverse=True)[1]  # steps that differ by rounding only are one
    weight = np.bincount(step, rows)
    at, becomes = np.bincount(step, rows * mean) / weight, np.bincount(step, rows * level) / weight
    inside = (at > 0) & (at < 1) & (becomes > 0) & (becomes < 1)
    ends = [np.concatenate([[0.0], values[inside], [1.0]]) for values in (at, becomes)]
    rising = np.concatenate([[True], (np.diff(ends[0]) > 0) & (np.diff(ends[1]) > 0)])
    return Isotonic(at=tuple(ends[0][rising].tolist()), becomes=tuple(ends[1][rising].tolist()))


CALIBRATORS: Final[Mapping[str, Callable[[Floats, Int8], Temperature | Isotonic]]] = {
    "temperature": temperature,
    "isotonic": isotonic,
}


def mean_of(weights: Floats) -> Weighted:
    """Soft voting with the given weights."""
    return Weighted(kind="probability", weights=tuple(weights.tolist()))


def spread(rows: int, most: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """At most `most` of the rows 0 to `rows`, evenly spread."""
    return np.arange(rows) if rows <= most else np.linspace(0, rows - 1, most).astype(np.int64)


def _selected(p: Floats, y: Int8, bag: Ints) -> Floats:
    """Share of each member at the best point of one bag's path, [K].

    Args:
        bag: members that may be added, the best first.
    """
    picked = [int(member) for member in bag[:_START]]
    total = p[:, picked].sum(axis=1)
    best, at = binned_auc(y, total / len(picked)), len(picked)
    for _ in range(_GREEDY_STEPS):
        found = [binned_auc(y, (total + p[:, member]) / (len(picked) + 1)) for member in bag]
        chosen = int(np.argmax(found))
        picked.append(int(bag[chosen]))
        total += p[:, picked[-1]]
        if found[chosen] > best:
            best, at = found[chosen], len(picked)
    return np.bincount(picked[:at], minlength=p.shape[1]) / at
