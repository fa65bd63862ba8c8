"""Counts of right answers, additive over buckets and folds, and the difficulties made from them.

Legend: J distinct items, a triple (question, test, concepts); C concepts per item; V ids of a vocabulary; K folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from dkt_ray.data.history import Histories, Int8, Int64, graded, right
from dkt_ray.features.batch import UNKNOWN_ID

Floats = npt.NDArray[np.float64]

ITEM: Final = ("question", "test", "concepts")
SUMS: Final = ("count", "graded", "right")


@dataclass(frozen=True, eq=False)
class Counts:
    """How often each item was answered, graded and right in each fold; counts of disjoint users add up."""

    table: pa.Table  # question, test, concepts: string; fold: int8; count, graded, right: int64

    def to_table(self) -> pa.Table:
        """The counts as an Arrow table."""
        return self.table

    @classmethod
    def from_table(cls, table: pa.Table) -> Counts:
        """Read back what `to_table` gave."""
        return cls(table.select([*ITEM, "fold", *SUMS]))

    def without(self, fold: int) -> Counts:
        """The counts of all other folds."""
        return Counts(_arrow(pl.DataFrame(self.table).filter(pl.col("fold") != fold)))


def count(histories: Histories, fold: Int8) -> Counts:
    """Count the answers of training users (`fold >= 0`).

    Args:
        fold: [U] fold of each user, -1 for test users, who are never counted.
    """
    frame = pl.DataFrame(
        {
            "question": histories.question.codes,
            "test": histories.test.codes,
            "concepts": histories.concepts.codes,
            "fold": np.repeat(fold, histories.lengths),
            "graded": graded(histories.correct),
            "right": right(histories.correct),
        }
    )
    grouped = (
        frame.lazy()
        .filter(pl.col("fold") >= 0)
        .group_by([*ITEM, "fold"])
        .agg(pl.len().cast(pl.Int64).alias("count"), pl.col("graded", "right").cast(pl.Int64).sum())
        .collect()
    )
    named = grouped.with_columns(
        pl.Series(name, getattr(histories, name).values[grouped[name].to_numpy()].astype(object), pl.String)
        for name in ITEM
    )
    return merge([Counts(_arrow(named))])


def merge(counts: Sequence[Counts]) -> Counts:
    """Add counts; the result does not depend on their order."""
    frame = pl.concat([pl.DataFrame(c.table) for c in counts])
    summed = frame.group_by([*ITEM, "fold"]).agg(pl.col(*SUMS).sum()).sort([*ITEM, "fold"])
    return Counts(_arrow(summed))


def _arrow(frame: pl.DataFrame) -> pa.Table:
    table = frame.select([*ITEM, "fold", *SUMS]).to_arrow()
    strings = {name: pa.string() for name in ITEM}
    types = strings | {"fold": pa.int8()} | dict.fromkeys(SUMS, pa.int64())
    return table.cast(pa.schema([(name, types[name]) for name in table.column_names]))


@dataclass(frozen=True, eq=False)
class Sums:
    """Graded and right answers per id of one vocabulary (padding and unknown stay zero), [V] each."""

    graded: Int64
    right: Int64

    @classmethod
    def of(cls, ids: npt.NDArray[np.int32], graded: Int64, right: Int64, size: int) -> Sums:
        """Add up the rows of each id; rows of the unknown id are left out, so that it backs off."""
        known = ids > UNKNOWN_ID

        def add(values: Int64) -> Int64:
            total = np.zeros(size, np.int64)
            np.add.at(total, ids[known], values[known])
            return total

        return cls(add(graded), add(right))

    def smoothed(self, ids: npt.NDArray[np.int32], prior: Floats, weight: float) -> Floats:
        """(right + weight * prior) / (graded + weight) of each id: an unknown id returns its prior."""
        return (self.right[ids] + weight * prior) / (self.graded[ids] + weight)


def log_odds(rate: Floats) -> Floats:
    """log(p / (1 - p)) of a rate strictly between 0 and 1."""
    return np.log(rate / (1.0 - rate))
