"""The shift form of a network: the mean of what it says after the whole past and without the oldest rows of it.

Reference 8.1, in the version without its leak: there the rows were rolled, and two of three averaged probabilities had
read the answer. Here nothing is rolled or copied. The network reads a target's past from one row on, the start that the
context rule gives it; shift s moves that start s rows on, the target and all that stands between stay where they are.

Legend: M targets, K shifts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from dkt_ray.data.history import Int64
from dkt_ray.ensemble.blend import Floats, blend
from dkt_ray.ensemble.families import load_family, read_form, save_family
from dkt_ray.errors import ConfigError
from dkt_ray.features.batch import Rows
from dkt_ray.features.collate import segments
from dkt_ray.models.base import Model, Probabilities
from dkt_ray.models.network import Network


@dataclass(frozen=True, eq=False)
class Shifted(Model):
    """A network read K times, without the s oldest rows of what it reads for a target, s < K; the weighted mean."""

    network: Network
    weights: Floats  # [K], on the simplex

    @classmethod
    def of(cls, model: Model, shifts: int, weights: Sequence[float] | None = None) -> Self:
        """The shift form of a model.

        Args:
            model: a network.
            shifts: K; 1: the network itself.
            weights: of the K probabilities, scaled to sum 1; None: equal ones.

        Raises:
            ConfigError: no network, no shift, or weights that are none.
        """
        if not isinstance(model, Network):
            raise ConfigError(
                f"{type(model).__name__} reads no rows of the past one by one, so none can be dropped; shifts are for "
                "networks: take its family out of shifts"
            )
        if shifts < 1:
            raise ConfigError(f"shifts is {shifts}; 1 is the network itself, 3 drops none, one and two rows")
        given = np.ones(shifts) if weights is None else np.array(weights, np.float64)
        if given.shape != (shifts,) or not (np.isfinite(given).all() and (given >= 0).all() and given.sum() > 0):
            raise ConfigError(f"weights {given.tolist()} of {shifts} shifts; give {shifts} numbers >= 0, not all 0")
        return cls(model, given / given.sum())

    def score(self, past: Rows, targets: Rows) -> Probabilities:
        """Probability of a right answer for each target row; see `Model.score`."""
        parts = segments(past, targets, self.network.config.context)
        each = [self.network.score_segments(past, targets, shortened(parts, s)) for s in range(len(self.weights))]
        return blend(np.stack(each, axis=1), self.weights)

    @property
    def contexts(self) -> frozenset[int]:
        """The network's; see `Model.contexts`."""
        return self.network.contexts

    def check(self, numbers: Sequence[str]) -> None:
        """Refuse an encoder that the network does not know; see `Model.check`."""
        self.network.check(numbers)

    @property
    def form(self) -> dict[str, Any]:
        """What the form.json of the member holds."""
        equal = bool((self.weights == self.weights[0]).all())
        return {"shift": len(self.weights)} | ({} if equal else {"weights": self.weights.tolist()})

    def save(self, folder: Path) -> None:
        """Write the network into the folder 0."""
        (folder / "0").mkdir()
        save_family(self.network, folder / "0")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what `save` wrote."""
        form = read_form(folder)
        return cls.of(load_family(folder / "0"), form["shift"], form.get("weights"))


def shortened(parts: Int64, rows: int) -> Int64:
    """The segments, [S, 4], without the oldest rows of the past that each reads; a shorter past becomes empty.

    >>> shortened(np.array([[0, 9, 9, 12], [20, 21, 21, 22]]), 2).tolist()
    [[2, 9, 9, 12], [21, 21, 21, 22]]
    """
    later = parts.copy()
    later[:, 0] = np.minimum(parts[:, 0] + rows, parts[:, 1])
    return later
