"""How chosen features are evaluated: which sources run, which column goes through which function.

Legend: Q query rows, P quantities, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from dkt_ray.features import kernels
from dkt_ray.features.quantities import FITTED, Floats, Past, Source, measure, used
from dkt_ray.features.student import FEATURE, PRIOR

SMALL: Final = 4096  # counts below this have their logarithms in a table


class Plan(NamedTuple):
    """How chosen features are evaluated, and what else is read from the quantities."""

    sources: tuple[Source, ...]
    column: Mapping[str, int]  # quantity -> column; -1 - k is column k of the items' fitted values
    code: npt.NDArray[np.int64]  # [F]
    inputs: npt.NDArray[np.int64]  # [F, 2]


@cache
def plan(names: tuple[str, ...], others: tuple[str, ...] = ()) -> Plan:
    """The plan for the given features, and for other quantities that a caller wants to read."""
    features = [FEATURE[name] for name in names]
    sources, column = used([*others, *(quantity for feature in features for quantity in feature.inputs)])
    column |= {f"item.{name}": -1 - place for place, name in enumerate(FITTED)}
    inputs = [[column[quantity] for quantity in feature.inputs] for feature in features]
    padded = np.array([[*each, *[each[0]] * (2 - len(each))] for each in inputs], np.int64).reshape(len(features), 2)
    return Plan(sources, column, np.array([feature.function for feature in features], np.int64), padded)


def numbers(past: Past, plan: Plan) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """The planned features of the query rows, float32 [Q, F], and the quantities that they were made from, [Q, P]."""
    quantities = measure(past, plan.sources)
    out = np.empty((past.queries, len(plan.code)), np.float32)
    kernels.evaluate(
        quantities,
        past.fitted,
        past.query_items,
        plan.code,
        plan.inputs,
        past.base_rate,
        PRIOR,
        *_logarithms(past.base_rate),
        out,
    )
    return out, quantities


@cache
def _logarithms(base_rate: float) -> tuple[Floats, Floats, Floats]:
    """log(1 + n), and log(n + PRIOR's right answers) and (n + its wrong ones), of all small counts n."""
    counts = np.arange(SMALL)
    return np.log1p(counts), np.log(counts + PRIOR * base_rate), np.log(counts + PRIOR * (1.0 - base_rate))
