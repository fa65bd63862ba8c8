"""What a section of the data report is made from, and what it is: tables, and the figures drawn from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import polars as pl

from dkt_ray.analysis import aggregates, distributions
from dkt_ray.analysis.interactions import Interactions

Figure = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What the sections may be asked for."""

    support: int = 30  # users behind a pair of concepts, at least
    elapsed_support: int = 100  # answers behind a duration, more than
    tags: int = 1000  # most answered concepts that enter the prerequisite matrix
    curves: int = 10  # users with a learning curve
    window: int = 20  # rows of a random window
    context: int = 100  # rows of a context window
    map_users: int = 1500  # users of the t-SNE
    drawn: int = 2000  # points of a cloud that are drawn
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Material:
    """What all sections are made from."""

    log: Interactions
    vault: Interactions | None  # test users, without their answers
    settings: Settings

    @cached_property
    def units(self) -> distributions.Tables:
        """`distributions.units`."""
        return distributions.units(self.log)

    @cached_property
    def features(self) -> pl.DataFrame:
        """`aggregates.features`."""
        return aggregates.features(self.log)


@dataclass(frozen=True)
class Exhibit:
    """A figure with the sentence that says what to see in it."""

    caption: str
    figure: Figure


@dataclass(frozen=True)
class Section:
    """What one section of the page shows; `missing` says what the data do not have that it needs."""

    tables: dict[str, pl.DataFrame] = field(default_factory=dict)
    exhibits: Sequence[Exhibit] = ()
    missing: str = ""


Maker = Callable[[Material], Section]

NO_TIME: Final = "The logs have no timestamps: only the order of answers is known."
NO_TESTS: Final = "The logs name no tests."
NO_HEADS: Final = "The questions' ids do not have the form A + head + mid + tail (3 digits each)."
NO_USERS: Final = "There are no training users."
NO_CONCEPTS: Final = "The logs name no concepts."


def needs(material: Material, *wanted: str) -> str:
    """What is missing of `time`, `tests`, `heads`, `concepts`; "" where nothing is."""
    log = material.log
    have = {"time": log.timed, "tests": log.tested, "heads": log.headed, "concepts": len(log.concepts) > 0}
    words = {"time": NO_TIME, "tests": NO_TESTS, "heads": NO_HEADS, "concepts": NO_CONCEPTS}
    return " ".join(words[name] for name in wanted if not have[name])
