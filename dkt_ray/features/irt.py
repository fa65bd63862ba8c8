"""Item response theory from tables of answers by ability: 1PL and 2PL per question, with priors from its parents.

Legend: V entries of one level, B ability bins.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

SPREAD: Final = 0.7  # standard deviation of a question's easiness around its parent's
SLOPE_SPREAD: Final = 0.3  # standard deviation of a question's discrimination around its parent's
STEPS: Final = 60  # Newton steps at most: a few unless the prior is far from what the answers say
LONGEST: Final = np.array([1.0, 0.5])  # easiness and discrimination move by so much in a step, at most
ENOUGH: Final = 1e-9


class Curves(NamedTuple):
    """P(right | ability) = sigmoid(easiness + discrimination * ability), [V] each."""

    easiness: Floats
    discrimination: Floats


def fit_curves(graded: Floats, right: Floats, abilities: Floats, prior: Curves, slope: bool) -> Curves:
    """Maximum a posteriori curves, all at once.

    Newton steps on the binned likelihood with normal priors (Baker and Kim 2004, Item Response Theory, section 2.4).

    Args:
        graded: [V, B] graded answers.
        right: [V, B] right ones.
        abilities: [B].
        prior: [V] each, the means of the priors.
        slope: False keeps the prior's discrimination (1PL).
    """
    easiness, discrimination = prior.easiness.copy(), prior.discrimination.copy()
    for _ in range(STEPS):
        p = 1.0 / (1.0 + np.exp(-(easiness[:, None] + discrimination[:, None] * abilities)))
        surprise, weight = right - graded * p, graded * p * (1.0 - p)
        step = np.zeros((len(easiness), 2))
        g0 = surprise.sum(1) - (easiness - prior.easiness) / SPREAD**2
        h00 = weight.sum(1) + SPREAD**-2
        if slope:
            g1 = (surprise * abilities).sum(1) - (discrimination - prior.discrimination) / SLOPE_SPREAD**2
            h01 = (weight * abilities).sum(1)
            h11 = (weight * abilities**2).sum(1) + SLOPE_SPREAD**-2
            step[:] = np.stack([h11 * g0 - h01 * g1, h00 * g1 - h01 * g0], 1) / (h00 * h11 - h01**2)[:, None]
        else:
            step[:, 0] = g0 / h00
        step /= np.maximum(np.abs(step / LONGEST).max(1, keepdims=True, initial=1.0), 1.0)  # shorter, still uphill
        easiness += step[:, 0]
        discrimination += step[:, 1]
        if np.abs(step).max(initial=0.0) < ENOUGH:
            break
    return Curves(easiness, discrimination)
