"""The ways of combining members, each fitted on out-of-fold probabilities, and the calibrators that may follow.

Every fit reads at most `FIT_ROWS` rows, evenly spread: weights of a few members are known to four digits by then.

Legend: N rows, K members.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import lightgbm as lgb
import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import rankdata
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from dkt_ray.data.history import Int8, Int32
from dkt_ray.ensemble.blend import EDGE, Floats, equal, fit_simplex
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

Fit = Callable[[Floats, Int8, Int32], Weighted | Logistic | Boosted]

FIT_ROWS: Final = 300_000
_GREEDY_ROWS: Final = 100_000
_BOOSTED_ROWS: Final = 150_000
_GREEDY_STEPS: Final = 30
_BAGS: Final = 5
_ROUNDS: Final = 100
_LEAST: Final = 2_000  # rows in a leaf of the boosted stack, at most a twentieth of all
_STEPS: Final = 100  # of an isotonic calibrator, before equal ones are joined


def simplex(p: Floats, y: Int8, length: Int32) -> Weighted:
    """Weights with the lowest log-loss; see `fit_simplex`."""
    rows = spread(len(p), FIT_ROWS)
    return mean_of(fit_simplex(p[rows], y[rows]))


def logits(p: Floats, y: Int8, length: Int32) -> Weighted:
    """The plain mean of the members' log-odds."""
    return Weighted(kind="logit", weights=tuple(equal(p.shape[1])))


def plain(p: Floats, y: Int8, length: Int32) -> Weighted:
    """The plain mean of the members' probabilities."""
    return mean_of(equal(p.shape[1]))


def greedy(p: Floats, y: Int8, length: Int32) -> Weighted:
    """Ensemble selection with replacement by log-loss, in bags of members (Caruana et al., 2004, section 2)."""
    rows = spread(len(p), _GREEDY_ROWS)
    likelihood = np.where(y[rows, None] == 1, p[rows], 1.0 - p[rows])
    random, members = np.random.default_rng(0), p.shape[1]
    counts = np.zeros(members)
    for _ in range(_BAGS):
        bag = np.sort(random.permutation(members)[: max(1, (members + 1) // 2)]) if members > 2 else np.arange(members)
        counts[bag] += _selected(likelihood[:, bag])
    return mean_of(counts / counts.sum())


def logistic(p: Floats, y: Int8, length: Int32) -> Logistic:
    """Stacking by a regularised logistic regression (Wolpert, 1992)."""
    rows = spread(len(p), FIT_ROWS)
    columns = stack_columns(p[rows], length[rows])
    spreads = np.maximum(columns.std(axis=0), 1e-9)
    fitted = LogisticRegression(C=1.0, solver="newton-cholesky").fit(columns / spreads, y[rows])
    coefficients = fitted.coef_[0] / spreads
    return Logistic(intercept=float(fitted.intercept_[0]), coefficients=tuple(coefficients.tolist()))


def boosted(p: Floats, y: Int8, length: Int32) -> Boosted:
    """Stacking by boosted trees, which can weigh members by the length of the history; rises with every member."""
    rows, members = spread(len(p), _BOOSTED_ROWS), p.shape[1]
    settings = {
        "objective": "binary",
        "num_leaves": 15,
        "learning_rate": 0.05,
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


METHODS: Final[Mapping[str, Fit]] = {
    "equal": plain,
    "logit": logits,
    "simplex": simplex,
    "greedy": greedy,
    "logistic": logistic,
    "boosted": boosted,
}


def rank_mean(p: Floats) -> Floats:
    """Mean of the members' ranks among all rows, as parts of 1: for a comparison only, one request has no ranks."""
    return np.mean([rankdata(column) / len(column) for column in p.T], axis=0)


def nested(fit: Fit, p: Floats, y: Int8, length: Int32, fold: Int8) -> Floats:
    """Each fold's rows combined by what was fitted on the other folds, [N]: no row sees its own label.

    A fold that has no others to learn from gets the plain mean.
    """
    combined = np.empty(len(p))
    for held_out in np.unique(fold):
        rows, others = np.flatnonzero(fold == held_out), np.flatnonzero(fold != held_out)
        chosen = fit if len(others) else plain
        read = others[spread(len(others), FIT_ROWS)]
        combined[rows] = chosen(p[read], y[read], length[read]).apply(p[rows], length[rows])
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
    order = np.argsort(p, kind="stable")
    parts = [part for part in np.array_split(order, _STEPS) if len(part)]
    mean, rows = np.array([p[part].mean() for part in parts]), np.array([len(part) for part in parts], np.float64)
    right = np.array([(y[part].sum() + 0.5) / (len(part) + 1.0) for part in parts])
    level = IsotonicRegression().fit_transform(np.arange(len(parts)), right, sample_weight=rows)
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


def _selected(likelihood: Floats) -> Floats:
    """How often each member of a bag is chosen, the best first, then whichever helps the mean most."""
    rows, members = likelihood.shape
    counts, total = np.zeros(members), np.zeros(rows)
    for step in range(1, _GREEDY_STEPS + 1):
        losses = [-np.log(np.maximum((total + likelihood[:, k]) / step, EDGE)).mean() for k in range(members)]
        best = int(np.argmin(losses))
        counts[best] += 1
        total += likelihood[:, best]
    return counts
