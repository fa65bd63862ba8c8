"""What goes into a fit, what it reports on the way, and what comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dkt_ray.features.batch import Rows
from dkt_ray.features.encoder import EncoderState
from dkt_ray.models.base import Model
from dkt_ray.schema import UNKNOWN


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Encoded rows of training users, of validation users (if any), and the state that carries sizes and scale."""

    train: Rows
    valid: Rows | None
    state: EncoderState
    further: tuple[str, ...] = ()  # numeric columns behind the encoder's: see ensemble.member.Stacked

    @property
    def number_names(self) -> tuple[str, ...]:
        """Names of the rows' numeric columns, in order."""
        return (*self.state.number_names, *self.further)


class Progress(NamedTuple):
    """One report of a running fit."""

    iteration: int  # epochs of a network, rounds of a booster, from 1
    auc: float | None  # on the validation users, positions >= 1; None where it does not exist
    loss: float  # mean log-loss on the training rows
    rows_per_s: float  # answers trained on per second


Report = Callable[[Progress], None]


@dataclass(frozen=True, eq=False)
class FitResult:
    """A fitted model, at its best iteration."""

    model: Model
    best_iteration: int
    auc: float | None
    curve: list[Progress]


def improves(now: Progress, best: Progress | None) -> bool:
    """Whether the validation AUC is the best so far; where there is none, later is better."""
    return best is None or best.auc is None or now.auc is None or now.auc > best.auc


def scored(rows: Rows) -> npt.NDArray[np.bool_]:
    """Rows that validation counts: the answer is known, and it is not the user's first."""
    return (rows.correct != UNKNOWN) & (rows.position >= 1)
