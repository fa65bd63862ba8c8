"""A member of an ensemble as one folder: a model of a family, a form of it, or the mean of several (seeds, folds).

form.json    {"family": "lstm"}: the folder holds what the family's model saved
             {"shift": 3}: the folder 0 below it holds a network, which is read three times; see ensemble/shift.py
             {"mean": 3}: the folders 0, 1 and 2 below it hold one member each
             {"stacked": ["lstm"]}: the folder 0 below it holds a member, whose log-odds the LightGBM in `booster` reads
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np

from dkt_ray.ensemble.chain import logit
from dkt_ray.ensemble.families import FORM, family_of, load_family, read_form, save_family, write_form
from dkt_ray.ensemble.shift import Shifted
from dkt_ray.features.batch import Rows
from dkt_ray.models.base import Model, Probabilities
from dkt_ray.models.lgbm import LightGBM

__all__ = ["FORM", "Mean", "Stacked", "columns_of", "family_of", "load", "mean_form", "save", "with_log_odds"]


@dataclass(frozen=True, eq=False)
class Mean(Model):
    """The plain mean of several models' probabilities (reference 8.3: folds and seeds)."""

    parts: tuple[Model, ...]

    def score(self, past: Rows, targets: Rows) -> Probabilities:
        """Probability of a right answer for each target row; see `Model.score`."""
        total = np.zeros(targets.rows)
        for part in self.parts:  # one after another: a row's result does not depend on the memory layout
            total += part.score(past, targets)
        return total / len(self.parts)

    @property
    def contexts(self) -> frozenset[int]:
        """Those of all parts; see `Model.contexts`."""
        return frozenset().union(*(part.contexts for part in self.parts))

    def check(self, numbers: Sequence[str]) -> None:
        """Refuse an encoder that one of the models does not know; see `Model.check`."""
        for part in self.parts:
            part.check(numbers)

    def importance(self) -> Mapping[str, float] | None:
        """Mean share of each column; None where a family cannot tell."""
        shares = [part.importance() for part in self.parts]
        known = [share for share in shares if share is not None]
        if len(known) < len(shares):
            return None
        names = dict.fromkeys(chain(*known))
        return {name: sum(share.get(name, 0.0) for share in known) / len(known) for name in names}

    @property
    def form(self) -> dict[str, Any]:
        """What the form.json of the member holds."""
        return mean_form(len(self.parts))

    def save(self, folder: Path) -> None:
        """Write each part into a folder of its own."""
        for number, part in enumerate(self.parts):
            (folder / str(number)).mkdir()
            save(part, folder / str(number))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what `save` wrote."""
        return cls(tuple(load(folder / str(number)) for number in range(read_form(folder)["mean"])))


@dataclass(frozen=True, eq=False)
class Stacked(Model):
    """A LightGBM that reads the encoder's columns and, behind them, the log-odds that other members give a row.

    Stacked generalisation with the inputs passed through (Wolpert 1992, Neural Networks 5): it is fitted on log-odds
    that are out of fold, so that it learns how far the others can be trusted with students they do not know.
    """

    names: tuple[str, ...]
    parts: tuple[Model, ...]
    booster: LightGBM

    def score(self, past: Rows, targets: Rows) -> Probabilities:
        """Probability of a right answer for each target row; see `Model.score`."""
        return self.booster.score(past, with_log_odds(targets, [part.score(past, targets) for part in self.parts]))

    def check(self, numbers: Sequence[str]) -> None:
        """Refuse an encoder that one of the models does not know; see `Model.check`."""
        for part in self.parts:
            part.check(numbers)
        self.booster.check((*numbers, *columns_of(self.names)))

    def importance(self) -> Mapping[str, float]:
        """Share of each column in what the booster learned."""
        return self.booster.importance()

    @property
    def form(self) -> dict[str, Any]:
        """What the form.json of the member holds."""
        return {"stacked": list(self.names)}

    def save(self, folder: Path) -> None:
        """Write each part and the booster into a folder of its own."""
        for place, part in [*zip(map(str, range(len(self.parts))), self.parts, strict=True), ("booster", self.booster)]:
            (folder / place).mkdir()
            save(part, folder / place)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what `save` wrote."""
        names = tuple(read_form(folder)["stacked"])
        booster = load(folder / "booster")
        assert isinstance(booster, LightGBM)
        return cls(names, tuple(load(folder / str(number)) for number in range(len(names))), booster)


def columns_of(names: Sequence[str]) -> tuple[str, ...]:
    """Names of the numeric columns that hold the log-odds of these members."""
    return tuple(f"log_odds_{name}" for name in names)


def with_log_odds(rows: Rows, probabilities: Sequence[Probabilities]) -> Rows:
    """The rows with further numeric columns: log-odds of probabilities, each [rows.rows]; nan (unknown) stays nan."""
    columns = np.stack([logit(column) for column in probabilities], axis=1).astype(np.float32)
    return replace(rows, numbers=np.concatenate([rows.numbers, columns], axis=1))


def save(model: Model, folder: Path) -> None:
    """Write a member into an existing, empty folder."""
    if isinstance(model, Mean | Shifted | Stacked):
        write_form(model.form, folder)
        model.save(folder)
    else:
        save_family(model, folder)


def mean_form(parts: int) -> dict[str, Any]:
    """What the form.json of a mean holds, for those who put its folder together part by part."""
    return {"mean": parts}


def load(folder: Path) -> Model:
    """Read back what `save` wrote.

    Raises:
        ConfigError: no member is there, or one of a form or family that this package does not have.
    """
    form = read_form(folder)
    if "mean" in form:
        return Mean.load(folder)
    if "shift" in form:
        return Shifted.load(folder)
    if "stacked" in form:
        return Stacked.load(folder)
    return load_family(folder)
