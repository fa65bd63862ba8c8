"""Histories as one frame of coded columns: what every table of the analysis is computed from.

Codes are ranks of names, so a result does not depend on the order in which names were met.

Legend: U users, N interactions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from dkt_ray.data.history import Coded, Histories, Int32, Strings
from dkt_ray.features.structure import decompose
from dkt_ray.schema import CONCEPT_SEPARATOR, UNKNOWN

PARTS: Final = ("head", "mid", "tail")
SECOND_MS: Final = 1000
DAY_MS: Final = 86_400_000


@dataclass(frozen=True, eq=False)
class Interactions:
    """The rows of U users, ordered by user and time, and the names of their codes.

    `rows` has the columns user, position, question, test (null: none), correct (null: hidden), head, mid, tail (null:
    the question's id has another form) and, with timestamps, ms and elapsed (whole seconds since the user's previous
    row; null for the first). `tags` has one line per row and concept: row (index into rows), tag (code).
    """

    rows: pl.DataFrame
    tags: pl.DataFrame
    users: Strings  # [U]
    questions: Strings
    tests: Strings
    concepts: Strings

    @property
    def timed(self) -> bool:
        """Whether the rows have timestamps."""
        return "ms" in self.rows.columns

    @property
    def tested(self) -> bool:
        """Whether any row belongs to a test."""
        return len(self.tests) > 0

    @property
    def headed(self) -> bool:
        """Whether any question's id has the form `A` + head + mid + tail."""
        return bool(self.rows["head"].null_count() < len(self.rows))

    @property
    def known(self) -> pl.DataFrame:
        """The rows whose answer is known."""
        return self.rows.filter(pl.col("correct").is_not_null())

    def tagged(self, *columns: str) -> pl.DataFrame:
        """One line per concept of every row with a known answer: tag and the given columns of the row."""
        chosen = self.rows.select("correct", *columns)[self.tags["row"]].with_columns(self.tags["tag"])
        return chosen.filter(pl.col("correct").is_not_null())


def interactions(histories: Histories) -> Interactions:
    """Lay histories out as a frame; users are ordered by name."""
    order = np.argsort(histories.users.astype(str), kind="stable")
    if len(order) and (np.diff(order) < 0).any():
        histories = histories.select(order.astype(np.int64))
    question, questions = _ranked(histories.question)
    test, tests = _ranked(histories.test)
    sets, combinations = _ranked(histories.concepts)
    tags, concepts = _tags(sets, combinations)
    lengths = histories.lengths
    rows = pl.DataFrame(
        {
            "user": np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
            "position": (np.arange(histories.rows) - np.repeat(histories.offsets[:-1], lengths)).astype(np.int32),
            "question": question,
            "test": _codes(test),
            "correct": pl.Series(histories.correct).replace(UNKNOWN, None),
            **_parts(question, questions),
            **_time(histories),
        }
    )
    return Interactions(rows, tags, histories.users, questions, tests, concepts)


def _ranked(column: Coded) -> tuple[Int32, Strings]:
    """Codes by rank among the names that occur, and these names; -1 for the empty name."""
    used = np.unique(column.codes)
    names = sorted(str(name) for name in column.values[used] if name != "")
    rank = {name: number for number, name in enumerate(names)}
    of = np.array([rank.get(str(name), -1) for name in column.values], np.int32)
    return (of[column.codes] if len(of) else np.empty(0, np.int32)), np.array(names, object)


def _codes(codes: npt.NDArray[Any]) -> pl.Series:
    return pl.Series(codes, dtype=pl.Int32).replace(-1, None)


def _tags(sets: Int32, combinations: Strings) -> tuple[pl.DataFrame, Strings]:
    """One line per row and concept, and the concepts' names, sorted."""
    lists = pc.split_pattern(pa.array(combinations, pa.string()), CONCEPT_SEPARATOR)
    single = lists.flatten().to_numpy(zero_copy_only=False).astype(object)
    concepts, codes = np.unique(single.astype(str), return_inverse=True)
    sizes = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    rows = np.flatnonzero(sets >= 0)
    of = sets[rows]
    owners = np.repeat(rows, sizes[of])
    starts = np.repeat(first[of], sizes[of])
    inside = np.arange(len(owners)) - np.repeat(np.cumsum(sizes[of]) - sizes[of], sizes[of])
    tag = codes[starts + inside] if len(owners) else np.empty(0, np.int64)
    return pl.DataFrame({"row": owners.astype(np.uint32), "tag": tag.astype(np.int32)}), concepts.astype(object)


def _parts(question: Int32, questions: Strings) -> dict[str, pl.Series]:
    """Head, mid and tail of each row as numbers; null where the id has another form."""
    parts = decompose(questions)
    found = {}
    for name in PARTS:
        numbers = np.array([int(part) if part else -1 for part in parts[name]], np.int16)
        of_rows = numbers[question] if len(numbers) else np.empty(0, np.int16)
        found[name] = pl.Series(of_rows, dtype=pl.Int16).replace(-1, None)
    return found


def _time(histories: Histories) -> dict[str, pl.Series]:
    if histories.timestamp is None:
        return {}
    ms = histories.timestamp
    elapsed = np.zeros(len(ms), np.int64)
    elapsed[1:] = np.diff(ms) // SECOND_MS
    first = np.zeros(len(ms), bool)
    first[histories.offsets[:-1][histories.lengths > 0]] = True
    return {
        "ms": pl.Series(ms, dtype=pl.Int64),
        "elapsed": pl.DataFrame({"e": elapsed, "f": first}).select(pl.when(~pl.col("f")).then("e")).to_series(),
    }
