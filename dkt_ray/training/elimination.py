"""Recursive feature elimination inside the folds: which columns LightGBM needs, and how many.

Guyon, Weston, Barnhill and Vapnik (2002, Gene selection for cancer classification using support vector machines,
section 2.3), with gain as the criterion: fit, drop the columns of least gain, fit again. In each fold the training
users alone decide what is dropped, and the held-out users score what is left.

Legend: C candidate columns, K folds, S steps.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dkt_ray.errors import ConfigError
from dkt_ray.metrics import auc
from dkt_ray.models.lgbm import Columns, LightGBM, LightGBMConfig
from dkt_ray.training.progress import TrainingData, scored
from dkt_ray.training.table import train

Floats = npt.NDArray[np.float64]


class Elimination(NamedTuple):
    """What an elimination found."""

    sizes: tuple[int, ...]  # [S] numbers of columns that were tried, falling
    auc: Floats  # [K, S] of held-out users
    size: int  # the best one: the highest mean over the folds, the fewest columns among equals
    columns: tuple[str, ...]  # so many, chosen on all training users
    dropped: tuple[str, ...]  # the other candidates, the first to go first
    nested_auc: float  # mean over the folds, each at the size that the other folds choose: not flattered by the choice

    @property
    def curve(self) -> dict[int, float]:
        """Mean AUC of held-out users by number of columns."""
        return dict(zip(self.sizes, self.auc.mean(0).tolist(), strict=True))


def eliminate(
    config: LightGBMConfig,
    folds: Iterable[TrainingData],
    everyone: TrainingData,
    share: float = 0.2,
    fold_s: float | None = None,
) -> Elimination:
    """Choose a number of columns by elimination in every fold, and the columns by one on all training users.

    Args:
        config: its columns are the candidates; every fit has `config.rounds` rounds, so that no held-out answer decides
            when it ends.
        folds: training users, and held-out ones as validation users; one fold is in memory at a time.
        everyone: all training users.
        share: of the columns that are left, how many a step drops (at least one).
        fold_s: after so many seconds a fold takes no further step; the sizes are then those that every fold reached,
            at least the first one.

    Raises:
        ConfigError: fewer than two folds, or a fold whose held-out answers have no AUC.
    """
    candidates = Columns(config, everyone.state.number_names).names
    sizes = step_sizes(len(candidates), share)
    reached = [_curve(config, fold, sizes, number, fold_s) for number, fold in enumerate(folds)]
    if len(reached) < 2:
        raise ConfigError(f"elimination got {len(reached)} folds; it needs at least 2 to choose a number of columns")
    sizes = sizes[: min(map(len, reached))]
    curves = np.array([curve[: len(sizes)] for curve in reached])
    best = _best(curves)
    *earlier, chosen = _steps(config, everyone, sizes[: best + 1])
    kept = chosen.columns.names
    order = {name: step for step, model in enumerate(earlier) for name in model.columns.names}  # its last step
    dropped = sorted((name for name in candidates if name not in kept), key=lambda name: order[name])
    return Elimination(sizes, curves, sizes[best], tuple(kept), tuple(dropped), _nested(curves))


def restricted(config: LightGBMConfig, numbers: Iterable[str], names: Iterable[str]) -> LightGBMConfig:
    """The settings that read the given columns only, in their own order.

    Args:
        numbers: numeric columns that they read now.
        names: the columns to keep, numbers and id columns.
    """
    kept = set(names)
    columns = {"number_names": numbers, "columns": config.columns, "categorical": config.categorical}
    return config.model_copy(update={field: tuple(n for n in of if n in kept) for field, of in columns.items()})


def step_sizes(candidates: int, share: float) -> tuple[int, ...]:
    """Numbers of columns from all candidates down to one.

    >>> step_sizes(10, 0.3)
    (10, 7, 5, 4, 3, 2, 1)
    """
    sizes = [candidates]
    while sizes[-1] > 1:
        sizes.append(sizes[-1] - max(1, int(share * sizes[-1])))
    return tuple(sizes)


def _steps(config: LightGBMConfig, data: TrainingData, sizes: Iterable[int]) -> Iterator[LightGBM]:
    """A model of each size, fitted on the training users; each reads the columns of most gain of the one before."""
    taught = replace(data, valid=None)
    reads = Columns(config, data.state.number_names)
    names = reads.names
    for size in sizes:
        names = names[:size]
        fitted = train(LightGBM, restricted(config, reads.numbers, names), taught, iterations=config.rounds).model
        assert isinstance(fitted, LightGBM)
        yield fitted
        gain = fitted.importance()
        names = sorted(gain, key=lambda name: -gain[name])


def _curve(
    config: LightGBMConfig, fold: TrainingData, sizes: Iterable[int], number: int, seconds: float | None
) -> list[float]:
    """AUC of the held-out users at each size that is reached in time."""
    assert fold.valid is not None
    started = time.monotonic()
    counted = scored(fold.valid)
    curve = []
    for model in _steps(config, fold, sizes):
        found = auc(fold.valid.correct[counted], model.score(fold.valid, fold.valid)[counted])
        if found is None:
            raise ConfigError(f"fold {number} holds out {int(counted.sum())} answers, right or wrong ones only: no AUC")
        curve.append(found)
        if seconds is not None and time.monotonic() - started >= seconds:
            break
    return curve


def _best(curves: Floats) -> int:
    """Step of the highest mean AUC, the last one among equals."""
    mean = curves.mean(0)
    return int(np.flatnonzero(mean == mean.max())[-1])


def _nested(curves: Floats) -> float:
    """Mean AUC over the folds, each taken at the step that is best in the others."""
    return float(np.mean([curve[_best(np.delete(curves, fold, 0))] for fold, curve in enumerate(curves)]))
