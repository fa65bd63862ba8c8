"""What a model family is: a config, a fitted `Model` that scores rows, and one `ModelSpec` line in the catalog."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from dkt_ray.config import Config
from dkt_ray.errors import ConfigError
from dkt_ray.features.batch import Rows

Probabilities = npt.NDArray[np.float64]


class ModelConfig(Config):
    """Settings that every family has; a family's own config extends it."""

    seed: int = 0

    @property
    def longest(self) -> int:
        """Most iterations of a fit: epochs of a network, rounds of a booster."""
        raise NotImplementedError


class Model(ABC):
    """A fitted model: pure, deterministic, reads nothing but its arguments."""

    config: ModelConfig
    fitted_on: tuple[str, ...] | None = None  # the encoder's numeric columns at the fit, where the family keeps them

    @abstractmethod
    def score(self, past: Rows, targets: Rows) -> Probabilities:
        """Probability of a right answer for each target row.

        Args:
            past: encoded histories of U users.
            targets: rows of the same U users; each reads its `visible` past rows, never another target. Pass `past`
                itself to score every row of the histories.

        Returns:
            [targets.rows] probabilities, equal to scoring each target alone.
        """

    @property
    def contexts(self) -> frozenset[int]:
        """C of the networks in it, which read past rows one by one under the context rule; empty: there is none."""
        return frozenset()

    def check(self, numbers: Sequence[str]) -> None:
        """Refuse an encoder whose numeric columns are not those of the fit.

        Args:
            numbers: `EncoderState.number_names` of the rows that are to be scored.

        Raises:
            ConfigError: they differ; both lists are named.
        """
        if self.fitted_on is not None and tuple(numbers) != self.fitted_on:
            raise ConfigError(
                f"the model was fitted on the numeric columns {', '.join(self.fitted_on)}; the encoder has "
                f"{', '.join(numbers)}; fit the model again, or prepare the features that it knows"
            )

    def importance(self) -> Mapping[str, float] | None:
        """Share of each column in what the model learned; None where the family cannot tell."""
        return None

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the model into an existing, empty folder (safetensors, JSON, LightGBM text; never pickle)."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> Self:
        """Read back what `save` wrote; scores are bit-equal."""


# A search space is plain data; training/tuning.py translates it to Optuna.
@dataclass(frozen=True)
class Between:
    """A number between two bounds (both included)."""

    low: float
    high: float
    log: bool = False
    integer: bool = False


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: tuple[Any, ...]


Space = Mapping[str, Between | Choice]


@dataclass(frozen=True)
class ModelSpec:
    """One line of the catalog: everything that the rest of the system needs to know of a family."""

    view: Literal["table", "sequence", "memory"]  # which trainer fits it
    config: type[ModelConfig]
    model: type[Model]
    space: Space
    follows: tuple[str, ...] = ()  # settings that may change at a checkpoint while the fit goes on
