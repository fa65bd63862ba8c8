"""What a bundle's training data looked like, as small histograms: what later requests are compared with.

One value per answer and quantity, as if each answer of a training user had been asked for just before it was given. No
user can be made out in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from dkt_ray.config import Config
from dkt_ray.data.history import Histories, graded, right
from dkt_ray.registry.catalogue import Catalogue

FILE: Final = "profile.json"
RECENT: Final = 20  # answers whose share of right ones is taken
HOUR_MS: Final = 3_600_000
TENTHS: Final = tuple(step / 10 for step in range(1, 10))
EDGES: Final[Mapping[str, tuple[float, ...]]] = {
    "history_length": (1, 2, 3, 6, 11, 21, 51, 101, 201, 501, 1001),
    "recent_right": TENTHS,  # share of right ones among the last 20 answers
    "difficulty": TENTHS,  # of the question asked, as the catalogue says; known questions only
    "gap_s": (1, 5, 15, 60, 300, 3600, 86_400, 604_800, 2_592_000),  # since the answer before
    "hour": tuple(range(1, 24)),  # of the day, UTC
    "unknown": (1,),  # 1: the question asked is not known
    "score": TENTHS,  # the ensemble's probability
}

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Histogram(Config):
    """Counts between edges, and below the first and from the last one on."""

    edges: tuple[float, ...] = Field(min_length=1)
    counts: tuple[int, ...]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.counts) != len(self.edges) + 1:
            raise ValueError(f"{len(self.counts)} counts, expected one more than the {len(self.edges)} edges")
        if list(self.edges) != sorted(set(self.edges)):
            raise ValueError("edges must rise")
        return self


class Profile(Config):
    """Histograms by quantity; those that the data cannot tell are missing."""

    quantities: dict[str, Histogram]


def counted(values: npt.NDArray[Any], edges: npt.ArrayLike) -> Ints:
    """Counts of values between edges; a value equal to an edge is above it, nan is left out."""
    places = np.searchsorted(np.asarray(edges, np.float64), values[~np.isnan(values)], "right")
    return np.bincount(places, minlength=np.size(edges) + 1).astype(np.int64)


def difficulties(catalogue: Catalogue) -> dict[str, float]:
    """Question -> share of wrong answers, smoothed."""
    return {row["question"]: row["difficulty"] for row in catalogue.rows}


def of_training(histories: Histories, catalogue: Catalogue, scores: Floats | None = None) -> Profile:
    """The profile of training users.

    Args:
        histories: theirs, or those of a sample of them.
        scores: what the ensemble says of held-out rows; None: not at hand.
    """
    values = _of_rows(histories, difficulties(catalogue))
    if scores is not None:
        values["score"] = scores
    found = {name: counted(column, EDGES[name]) for name, column in values.items()}
    return Profile(
        quantities={
            name: Histogram(edges=EDGES[name], counts=tuple(counts.tolist()))
            for name, counts in found.items()
            if counts.any()
        }
    )


def _of_rows(histories: Histories, difficulty: Mapping[str, float]) -> dict[str, Floats]:
    """[N] values of each row; nan where there is none."""
    start = np.repeat(histories.offsets[:-1], histories.lengths)
    row = np.arange(histories.rows)
    first = np.maximum(start, row - RECENT)
    known, hits = (np.concatenate([[0], np.cumsum(of(histories.correct))]) for of in (graded, right))
    answered, correct = known[row] - known[first], hits[row] - hits[first]
    by_question = np.array([difficulty.get(name, np.nan) for name in histories.question.values], np.float64)
    asked = by_question[histories.question.codes]
    values = {
        "history_length": (row - start).astype(np.float64),
        "recent_right": np.divide(correct, answered, out=np.full(len(row), np.nan), where=answered > 0),
        "difficulty": asked,
        "unknown": np.zeros(len(row)),  # rare questions too: they were trained on
    }
    if histories.timestamp is not None:
        since = np.diff(histories.timestamp, prepend=0) / 1000
        values["gap_s"] = np.where(row > start, since, np.nan)
        values["hour"] = (histories.timestamp // HOUR_MS % 24).astype(np.float64)
    return values
