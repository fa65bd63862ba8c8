"""How chosen features are evaluated: which sources run, which column goes through which function.

Legend: Q query rows, P quantities, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dkt_ray.features import kernels
from dkt_ray.features.quantities import Past, Source, measure, used
from dkt_ray.features.student import FEATURE, PRIOR


class Plan(NamedTuple):
    """How chosen features are evaluated, and what else is read from the quantities."""

    sources: tuple[Source, ...]
    column: Mapping[str, int]  # quantity -> column
    code: npt.NDArray[np.int64]  # [F]
    inputs: npt.NDArray[np.int64]  # [F, 2]


@cache
def plan(names: tuple[str, ...], others: tuple[str, ...] = ()) -> Plan:
    """The plan for the given features, and for other quantities that a caller wants to read."""
    features = [FEATURE[name] for name in names]
    sources, column = used([*others, *(quantity for feature in features for quantity in feature.inputs)])
    inputs = [[column[quantity] for quantity in feature.inputs] for feature in features]
    padded = np.array([[*each, *[0] * (2 - len(each))] for each in inputs], np.int64).reshape(len(features), 2)
    return Plan(sources, column, np.array([feature.function for feature in features], np.int64), padded)


def numbers(past: Past, plan: Plan) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """The planned features of the query rows, float32 [Q, F], and the quantities that they were made from, [Q, P]."""
    quantities = measure(past, plan.sources)
    out = np.empty((past.queries, len(plan.code)), np.float32)
    kernels.evaluate(quantities, plan.code, plan.inputs, past.base_rate, PRIOR, out)
    return out, quantities
