"""The chain that ends an ensemble: members' probabilities, one combination of them, and at most one calibrator.

A chain is data: it validates as JSON, is applied row by row, and gives a row the same result whatever stands beside it.

Legend: N rows, K members.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Annotated, Final, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, FiniteFloat, model_validator

from dkt_ray.config import Config
from dkt_ray.data.history import Int32
from dkt_ray.ensemble.blend import blend
from dkt_ray.errors import ConfigError, UnavailableError
from dkt_ray.models.trees import Trees

Floats = npt.NDArray[np.float64]
Share = Annotated[FiniteFloat, Field(ge=0)]

TOLERANCE: Final = 1e-9  # of the sum of weights
_NOT_FINITE: Final = re.compile(r"^leaf_value=.*(?:[=\s]-?(?:nan|inf))", re.IGNORECASE | re.MULTILINE)
MANY_ROWS: Final = 1 << 16  # whose columns are made at one time
NEAREST: Final = 1e-6  # probabilities are kept this far from 0 and 1 before their logit is taken


def logit(p: Floats) -> Floats:
    """Log-odds of probabilities, which are kept away from 0 and 1."""
    kept = np.clip(p, NEAREST, 1.0 - NEAREST)
    return np.log(kept) - np.log1p(-kept)


def sigmoid(z: Floats) -> Floats:
    """Probability of log-odds."""
    return np.asarray(1.0 / (1.0 + np.exp(-z)), np.float64)


class Weighted(Config):
    """Weighted mean of the members' probabilities (soft voting), or of their log-odds."""

    kind: Literal["probability", "logit"]
    weights: tuple[Share, ...]
    """[K], on the simplex."""

    @model_validator(mode="after")
    def _on_the_simplex(self) -> Self:
        if not abs(sum(self.weights) - 1.0) <= TOLERANCE:
            raise ValueError(f"weights are {self.weights} and add up to {sum(self.weights):g}; expected 1")
        return self

    @property
    def members(self) -> int:
        """K."""
        return len(self.weights)

    def apply(self, p: Floats, length: Int32) -> Floats:
        """The combined probability, [N]."""
        weights = np.array(self.weights)
        return blend(p, weights) if self.kind == "probability" else sigmoid(_added(logit(p), weights))


class Logistic(Config):
    """Logistic regression on the members' log-odds, log(1 + length of the history), and their products."""

    kind: Literal["logistic"] = "logistic"
    intercept: FiniteFloat
    coefficients: tuple[FiniteFloat, ...]
    """[2 K + 1], in the order of `stack_columns`."""

    @model_validator(mode="after")
    def _odd(self) -> Self:
        if len(self.coefficients) % 2 == 0:
            raise ValueError(f"coefficients are {len(self.coefficients)}, expected two per member and one more")
        return self

    @property
    def members(self) -> int:
        """K."""
        return len(self.coefficients) // 2

    def apply(self, p: Floats, length: Int32) -> Floats:
        """The combined probability, [N]."""
        return sigmoid(self.intercept + _added(stack_columns(p, length), np.array(self.coefficients)))


class Boosted(Config):
    """Boosted trees on the members' log-odds and log(1 + length of the history)."""

    kind: Literal["boosted"] = "boosted"
    model: str
    """LightGBM's text."""
    members: int = Field(gt=0)
    """K."""

    @model_validator(mode="after")
    def _readable(self) -> Self:
        if found := _NOT_FINITE.search(self.model):
            raise ValueError(f"model holds leaf values that are not finite: {found.group(0)[:80]}")
        try:
            columns = _booster(self.model).columns
        except ConfigError as error:
            raise ValueError(f"model is not LightGBM's text: {error}") from None
        if columns != self.members + 1:
            raise ValueError(f"model reads {columns} columns, expected {self.members + 1}: the members and the length")
        return self

    def apply(self, p: Floats, length: Int32) -> Floats:
        """The combined probability, [N]."""
        parts = [np.empty(0)]
        for first in range(0, len(p), MANY_ROWS):
            columns = tree_columns(p[first : first + MANY_ROWS], length[first : first + MANY_ROWS])
            threads = 0 if len(p) > MANY_ROWS else 1  # 0: as many as there are
            parts.append(_booster(self.model).predict(columns, threads))
        return np.concatenate(parts)


class Temperature(Config):
    """Log-odds divided by a temperature (Guo et al., 2017, section 4.2)."""

    kind: Literal["temperature"] = "temperature"
    temperature: Annotated[FiniteFloat, Field(gt=0)]

    def apply(self, p: Floats) -> Floats:
        """The calibrated probability, [N]."""
        return sigmoid(logit(p) / self.temperature)


class Isotonic(Config):
    """Straight lines between the centres of the steps of an isotonic regression (centred isotonic regression)."""

    kind: Literal["isotonic"] = "isotonic"
    at: tuple[FiniteFloat, ...]
    """Ascending probabilities before."""
    becomes: tuple[FiniteFloat, ...]
    """The probabilities that they become; ascending, so that no two rows change their order."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if len(self.at) != len(self.becomes) or len(self.at) < 2:
            raise ValueError(f"at has {len(self.at)} values, becomes {len(self.becomes)}; expected as many, at least 2")
        if (np.diff(self.at) <= 0).any() or (np.diff(self.becomes) <= 0).any():
            raise ValueError("at and becomes must ascend")
        return self

    def apply(self, p: Floats) -> Floats:
        """The calibrated probability, [N]."""
        return np.clip(np.interp(p, self.at, self.becomes), 0.0, 1.0)


Combination = Annotated[Weighted | Logistic | Boosted, Field(discriminator="kind")]
Calibrator = Annotated[Temperature | Isotonic, Field(discriminator="kind")]


class Chain(Config):
    """What makes one probability of the members'."""

    members: tuple[str, ...] = Field(min_length=1)
    """Their names, in the order of the combination."""
    combination: Combination
    calibrator: Calibrator | None = None
    shares: dict[str, Share]
    """How much each member counts, for people to read: weights, or for a stack its share of the change."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(set(self.members)) < len(self.members):
            raise ValueError(f"members are {self.members}; expected each once")
        if self.combination.members != len(self.members):
            raise ValueError(f"combination is of {self.combination.members} members, there are {len(self.members)}")
        if set(self.shares) != set(self.members):
            raise ValueError(f"shares name {sorted(self.shares)}, the members are {sorted(self.members)}")
        return self

    @classmethod
    def of(cls, members: Sequence[str], combination: Weighted | Logistic | Boosted) -> Chain:
        """A chain without a calibrator, whose shares are read from its combination."""
        return cls(members=tuple(members), combination=combination, shares=shares_of(combination, members))

    @classmethod
    def weighted(cls, weights: dict[str, float]) -> Chain:
        """Plain soft voting."""
        return cls.of(tuple(weights), Weighted(kind="probability", weights=tuple(weights.values())))

    def without(self, left_out: Collection[str]) -> Chain:
        """The chain of the other members, for when some do not answer.

        A mean keeps its kind, with weights made 1 again; a stack, which knows nothing of missing members, becomes the
        mean of their log-odds by its shares. The calibrator stays: it corrects the combination as a whole.

        Raises:
            UnavailableError: no member is left.
        """
        kept = [name for name in self.members if name not in left_out]
        if not kept:
            raise UnavailableError(f"none of the members {', '.join(self.members)} answers; try again later")
        kind = self.combination.kind if isinstance(self.combination, Weighted) else "logit"
        shares = shares_of(self.combination, self.members)  # a mean's weights
        parts = np.array([shares[name] for name in kept])
        parts = parts / parts.sum() if parts.sum() > 0 else np.full(len(kept), 1.0 / len(kept))
        rest = Weighted(kind=kind, weights=tuple(parts.tolist()))
        return Chain.of(kept, rest).model_copy(update={"calibrator": self.calibrator})

    def apply(self, p: Floats, length: Int32) -> Floats:
        """The ensemble's probability, [N].

        Args:
            p: [N, K] probabilities of the members.
            length: [N] number of earlier rows that each row may read.
        """
        assert p.shape[1] == len(self.members)
        combined = self.combination.apply(p, length)
        return combined if self.calibrator is None else self.calibrator.apply(combined)


def stack_columns(p: Floats, length: Int32) -> Floats:
    """[N, 2 K + 1] log-odds of the members, log(1 + length), and the products of both."""
    z, rows = logit(p), np.log1p(length)[:, None]
    return np.concatenate([z, rows, z * rows], axis=1)


def tree_columns(p: Floats, length: Int32) -> Floats:
    """[N, K + 1] log-odds of the members and log(1 + length)."""
    return np.concatenate([logit(p), np.log1p(length)[:, None]], axis=1)


def shares(combination: Weighted | Logistic | Boosted) -> list[float]:
    """[K] parts of 1: a mean's weights, a regression's absolute coefficients at 50 earlier rows, a booster's gain."""
    members = combination.members
    if isinstance(combination, Weighted):
        found = np.array(combination.weights)
    elif isinstance(combination, Logistic):
        coefficients = np.array(combination.coefficients)
        found = np.abs(coefficients[:members] + np.log1p(50.0) * coefficients[members + 1 :])
    else:
        found = _booster(combination.model).importance("gain")[:members]
    return (found / found.sum() if found.sum() > 0 else np.full(members, 1.0 / members)).tolist()


def shares_of(combination: Weighted | Logistic | Boosted, members: Sequence[str]) -> dict[str, float]:
    """The same by name."""
    return dict(zip(members, shares(combination), strict=True))


def _added(columns: Floats, weights: Floats) -> Floats:
    """Weighted sum of columns, one after another: a row's result depends on neither the other rows nor the layout."""
    total = np.zeros(len(columns))
    for column, weight in enumerate(weights):
        total += weight * columns[:, column]
    return total


@lru_cache(maxsize=8)
def _booster(model: str) -> Trees:
    return Trees(model)
