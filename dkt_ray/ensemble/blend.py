"""Weighted soft voting: fixed ratios, and weights fitted on the simplex.

Legend: N rows, K members.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from dkt_ray.data.history import Int8
from dkt_ray.errors import ConfigError

Floats = npt.NDArray[np.float64]

EDGE: Final = 1e-12  # likelihoods are kept this far from 0 and 1
NOTHING: Final = 1e-9  # a fitted weight that is lower is 0


def blend(p: Floats, weights: Floats) -> Floats:
    """Weighted mean of the members' probabilities, [N].

    Members are added one after another: a row's result depends neither on the other rows nor on the memory layout.

    Args:
        p: [N, K] probabilities.
        weights: [K], on the simplex.
    """
    assert p.shape[1] == len(weights)
    total = np.zeros(len(p))
    for member, weight in enumerate(weights):
        total += weight * p[:, member]
    return np.clip(total, 0.0, 1.0)  # weights may sum to 1 + 1e-16


def fixed(ratio: Mapping[str, float], members: Sequence[str]) -> Floats:
    """Weights of the members from a ratio such as 8 : 1 : 0.5 : 0.5.

    >>> fixed({"bert": 8, "saint": 1, "lightgbm": 1}, ["lightgbm", "saint", "bert"])
    array([0.1, 0.1, 0.8])

    Returns:
        [K] in the order of `members`, summing to 1.

    Raises:
        ConfigError: the ratio does not name exactly the members, or is not a set of weights.
    """
    missing, extra = [m for m in members if m not in ratio], [m for m in ratio if m not in members]
    if missing or extra:
        raise ConfigError(
            f"ratio names {', '.join(ratio) or 'nobody'}, the members are {', '.join(members)}"
            + (f"; missing: {', '.join(missing)} (give 0 to leave a member out)" if missing else "")
            + (f"; not a member: {', '.join(extra)}" if extra else "")
        )
    parts = np.array([ratio[member] for member in members], np.float64)
    if not (np.isfinite(parts).all() and (parts >= 0).all() and parts.sum() > 0):
        raise ConfigError(f"ratio is {dict(ratio)}; expected numbers >= 0, at least one of them above 0")
    return parts / parts.sum()


def equal(members: int) -> Floats:
    """Plain soft voting: the same weight for each member."""
    return np.full(members, 1.0 / members)


def fit_simplex(p: Floats, y: Int8) -> Floats:
    """The weights on the simplex with the lowest log-loss of the blend, [K].

    The blend's likelihood is that of a mixture with known components: the problem is convex, and SLSQP (Kraft, 1988)
    with the exact gradient solves it to within 1e-6 nats per row, as `optimality_gap` certifies.

    Args:
        p: [N, K] probabilities.
        y: [N] answers, 1 or 0.
    """
    members = p.shape[1]
    if members == 1 or not len(p):
        return equal(members)
    likelihood = _likelihood(p, y)

    def loss(weights: Floats) -> tuple[float, Floats]:
        mixed = likelihood @ weights
        return float(-np.log(mixed).mean()), -((1.0 / mixed) @ likelihood) / len(mixed)

    return lowest_on_simplex(loss, members)


def lowest_on_simplex(loss: Callable[[Floats], tuple[float, Floats]], members: int) -> Floats:
    """The weights >= 0 that add up to 1 at which a convex loss is lowest, [K].

    Args:
        loss: weights -> its value and gradient.
    """
    found = minimize(
        loss,
        equal(members),
        jac=True,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * members,
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1.0, "jac": np.ones_like},
        options={"maxiter": 300, "ftol": 1e-13},
    )
    weights = np.where(found.x > NOTHING, found.x, 0.0)
    return weights / weights.sum()


def optimality_gap(p: Floats, y: Int8, weights: Floats) -> float:
    """Upper bound in nats per row on what better weights could gain.

    It is max_k mean(L_k / L) - 1, where L_k is the probability that member k gave to the answer, and L the blend's
    (Lindsay, 1983, section 3).
    """
    likelihood = _likelihood(p, y)
    return float((likelihood / (likelihood @ weights)[:, None]).mean(0).max() - 1.0)


def _likelihood(p: Floats, y: Int8) -> Floats:
    """[N, K] probability that each member gave to the answer, kept away from 0."""
    return np.clip(np.where(y[:, None] == 1, p, 1.0 - p), EDGE, 1.0 - EDGE)
