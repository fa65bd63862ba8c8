"""A member of an ensemble as one folder: a model of a family, a form of it, or the mean of several (seeds, folds).

form.json    {"family": "lstm"}: the folder holds what the family's model saved
             {"shift": 3}: the folder 0 below it holds a network, which is read three times; see ensemble/shift.py
             {"mean": 3}: the folders 0, 1 and 2 below it hold one member each
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np

from dkt_ray.ensemble.families import FORM, family_of, load_family, read_form, save_family, write_form
from dkt_ray.ensemble.shift import Shifted
from dkt_ray.features.batch import Rows
from dkt_ray.models.base import Model, Probabilities

__all__ = ["FORM", "Mean", "family_of", "load", "mean_form", "save"]


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

    def save(self, folder: Path) -> None:
        """Write each part into a folder of its own."""
        for number, part in enumerate(self.parts):
            (folder / str(number)).mkdir()
            save(part, folder / str(number))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what `save` wrote."""
        return cls(tuple(load(folder / str(number)) for number in range(read_form(folder)["mean"])))


def save(model: Model, folder: Path) -> None:
    """Write a member into an existing, empty folder."""
    if isinstance(model, Mean | Shifted):
        write_form(mean_form(len(model.parts)) if isinstance(model, Mean) else model.form, folder)
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
    return load_family(folder)
