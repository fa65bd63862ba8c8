"""What the members of an ensemble say of M targets, and who asks them.

Legend: M targets.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # who deploys a service imports this, without numba and torch
    from dkt_ray.features.batch import Rows
    from dkt_ray.models.base import Probabilities

Mask = npt.NDArray[np.bool_]


class Member(Protocol):
    """What is asked for an opinion."""

    def score(self, past: Rows, targets: Rows) -> Probabilities:
        """As `Model.score`."""


Members = Mapping[str, Member]


class Opinions(NamedTuple):
    """What the members that answered said of M targets."""

    given: dict[str, Probabilities]  # [M] of each
    missing: dict[str, Mask]  # [M] of those that answered for some students only: for whom not

    def alike(self, targets: int) -> Iterator[tuple[tuple[str, ...], slice | Mask]]:
        """Which of them did not answer, and the targets for which just those did not; each target is told of once."""
        if not self.missing:
            yield (), slice(0, targets)
            return
        table = np.stack(list(self.missing.values()), axis=1)
        for pattern in np.unique(table, axis=0):
            yield tuple(itertools.compress(self.missing, pattern.tolist())), (table == pattern).all(axis=1)


Ask = Callable[[Members, "Rows", "Rows"], Opinions]  # members, past, targets


def ask_all(members: Members, past: Rows, targets: Rows) -> Opinions:
    """Every member's probabilities: whoever trains, evaluates or verifies wants to hear of a member that fails."""
    return Opinions({name: model.score(past, targets) for name, model in members.items()}, {})
