"""The questions that a bundle knows, and the few that probe each concept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import polars as pl
import pyarrow as pa

from dkt_ray.features.encoder import EncoderState
from dkt_ray.features.structure import decompose
from dkt_ray.schema import CONCEPT_SEPARATOR

FILE: Final = "questions.parquet"
PROBES: Final = 3  # questions that stand for a concept
PRIOR: Final = 10.0  # pseudo-answers at the overall rate in a question's difficulty


def table(state: EncoderState) -> pa.Table:
    """The encoder's questions, the most answered first, with a flag on those that probe a concept."""
    frame = pl.DataFrame(state.questions).sort(["count", "question"], descending=[True, False])
    probing = _exploded(frame).group_by("concept", maintain_order=True).head(PROBES)["question"]
    return frame.with_columns(pl.col("question").is_in(probing.unique().to_list()).alias("probe")).to_arrow()


@dataclass(frozen=True, eq=False)
class Catalogue:
    """What `table` made, to be asked."""

    content: pa.Table

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """question, test, concepts (list), count and difficulty, the most answered question first.

        Difficulty is the share of wrong answers, smoothed by `PRIOR` answers at the overall share.
        """
        graded = pl.col("graded")
        wrong = graded - pl.col("right")
        overall = (wrong.sum() + 1) / (graded.sum() + 2)
        return self._frame.select(
            "question",
            "test",
            _concepts(),
            "count",
            ((wrong + PRIOR * overall) / (graded + PRIOR)).alias("difficulty"),
        ).to_dicts()

    @cached_property
    def concepts(self) -> list[str]:
        """All concepts, the most answered first."""
        return list(self._probes)

    @cached_property
    def concepts_of(self) -> dict[str, list[str]]:
        """Concepts of each question."""
        return {row["question"]: row["concepts"] for row in self.rows}

    def probes(self, concepts: Iterable[str]) -> dict[str, list[str]]:
        """Up to `PROBES` questions for each known concept of the given ones."""
        return {concept: self._probes[concept] for concept in concepts if concept in self._probes}

    @cached_property
    def heads(self) -> list[str]:
        """All heads of question ids, the most answered first."""
        return list(self._head_probes)

    def head_probes(self, heads: Iterable[str]) -> dict[str, list[str]]:
        """Up to `PROBES` questions for each known head of the given ones."""
        return {head: self._head_probes[head] for head in heads if head in self._head_probes}

    @cached_property
    def _probes(self) -> dict[str, list[str]]:
        return _ranked(_exploded(self._frame), "concept")

    @cached_property
    def _head_probes(self) -> dict[str, list[str]]:
        head = pl.Series("head", decompose(self._frame["question"].to_numpy())["head"], pl.String)
        return _ranked(self._frame.with_columns(head).filter(pl.col("head") != ""), "head")

    @cached_property
    def _frame(self) -> pl.DataFrame:
        return pl.DataFrame(self.content)


def _ranked(frame: pl.DataFrame, key: str) -> dict[str, list[str]]:
    """The first `PROBES` questions of each value of a column, the value with the most answers first."""
    ranked = (
        frame.group_by(key, maintain_order=True)
        .agg(pl.col("question").head(PROBES), pl.col("count").sum())
        .sort(["count", key], descending=[True, False])
    )
    return dict(zip(ranked[key], ranked["question"].to_list(), strict=True))


def _exploded(frame: pl.DataFrame) -> pl.DataFrame:
    """One row per question and concept."""
    rows = frame.filter(pl.col("concepts") != "").with_columns(_concepts()).explode("concepts")
    return rows.rename({"concepts": "concept"})


def _concepts() -> pl.Expr:
    """The canonical string as a list, empty where there is none."""
    listed = pl.col("concepts").str.split(CONCEPT_SEPARATOR)
    return pl.when(pl.col("concepts") == "").then(pl.lit([], pl.List(pl.String))).otherwise(listed).alias("concepts")
