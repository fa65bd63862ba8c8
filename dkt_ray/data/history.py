"""Histories and targets: the interactions of many students as flat columns and offsets.

Legend: U users, N interactions, M targets, V distinct values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dkt_ray.schema import RIGHT, UNKNOWN

Int8 = npt.NDArray[np.int8]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Strings = npt.NDArray[np.object_]


class Coded(NamedTuple):
    """A string column, dictionary-encoded: `values[codes[i]]` is row i; the values are distinct."""

    codes: Int32  # [N]
    values: Strings  # [V]

    @classmethod
    def of(cls, strings: Sequence[str] | pa.Array | pa.ChunkedArray) -> Coded:
        """Encode a plain string column (nulls become the empty string)."""
        array = strings if isinstance(strings, pa.Array | pa.ChunkedArray) else pa.array(strings, pa.string())
        if isinstance(array, pa.ChunkedArray):
            array = array.combine_chunks()
        if not pa.types.is_dictionary(array.type):
            array = pc.fill_null(array.cast(pa.string()), "").dictionary_encode()
        return cls(
            array.indices.to_numpy(zero_copy_only=False).astype(np.int32, copy=False),
            array.dictionary.to_numpy(zero_copy_only=False).astype(object, copy=False),
        )

    @classmethod
    def constant(cls, value: str, rows: int) -> Coded:
        """A column that holds one value."""
        return cls(np.zeros(rows, np.int32), np.array([value], object))

    def take(self, rows: Int64) -> Coded:
        """The same column at the given rows (the values are shared, not copied)."""
        return Coded(self.codes[rows], self.values)

    def strings(self) -> Strings:
        """The decoded column, [N]."""
        return self.values[self.codes] if len(self.codes) else np.empty(0, object)

    def arrow(self) -> pa.Array:
        """The column as an Arrow dictionary array."""
        return pa.DictionaryArray.from_arrays(pa.array(self.codes, pa.int32()), pa.array(self.values, pa.string()))


@dataclass(frozen=True, eq=False)
class Targets:
    """Questions to be scored: user u asks for targets `offsets[u]` to `offsets[u + 1]`."""

    offsets: Int64  # [U + 1]
    question: Coded  # [M]
    test: Coded  # [M], "" where unknown
    concepts: Coded  # [M], canonical, "" where none
    timestamp: Int64 | None = None  # [M], ms UTC: when the target is shown
    seen: Int64 | None = None  # [M], after how many of its user's rows the target stands; None: after all of them

    @property
    def rows(self) -> int:
        """Number of targets, M."""
        return int(self.offsets[-1])


@dataclass(frozen=True, eq=False)
class Histories:
    """The interactions of U users, flat; user u owns rows `offsets[u]` to `offsets[u + 1]`, oldest first."""

    users: Strings  # [U]
    offsets: Int64  # [U + 1]
    question: Coded  # [N]
    test: Coded  # [N], "" where unknown
    concepts: Coded  # [N], canonical: sorted, joined by "_"; "" where none
    correct: Int8  # [N], 1, 0 or -1 (hidden)
    timestamp: Int64 | None = None  # [N], ms UTC; None: only the order is known

    def __post_init__(self) -> None:
        rows = self.rows
        assert len(self.offsets) == len(self.users) + 1
        assert self.offsets[0] == 0
        assert all(len(c.codes) == rows for c in (self.question, self.test, self.concepts))
        assert len(self.correct) == rows
        assert self.timestamp is None or len(self.timestamp) == rows

    @property
    def rows(self) -> int:
        """Number of interactions, N."""
        return int(self.offsets[-1])

    @property
    def lengths(self) -> Int64:
        """Number of interactions of each user, [U]."""
        return np.diff(self.offsets)

    def select(self, chosen: Int64) -> Histories:
        """The histories of the users at the given indices, in that order."""
        rows, offsets = ranges(self.offsets[chosen], self.offsets[chosen + 1])
        return self._take(self.users[chosen], offsets, rows)

    def head(self, lengths: Int64) -> Histories:
        """Every user's first `lengths[u]` interactions, [U]."""
        rows, offsets = ranges(self.offsets[:-1], self.offsets[:-1] + lengths)
        return self._take(self.users, offsets, rows)

    def targets(self, rows: Int64) -> Targets:
        """The given rows (ascending) as targets of their users; their answers are left behind."""
        owner = np.searchsorted(self.offsets, rows, "right") - 1
        offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(self.users)))]).astype(np.int64)
        timestamp = None if self.timestamp is None else self.timestamp[rows]
        return Targets(offsets, self.question.take(rows), self.test.take(rows), self.concepts.take(rows), timestamp)

    def to_table(self) -> pa.Table:
        """One row per user with list columns: the form in which histories are stored."""

        def lists(values: pa.Array) -> pa.Array:
            return pa.LargeListArray.from_arrays(pa.array(self.offsets, pa.int64()), values)

        columns = {
            "user": pa.array(self.users, pa.string()),
            "question": lists(self.question.arrow()),
            "test": lists(self.test.arrow()),
            "concepts": lists(self.concepts.arrow()),
            "correct": lists(pa.array(self.correct, pa.int8())),
        }
        if self.timestamp is not None:
            columns["timestamp"] = lists(pa.array(self.timestamp, pa.int64()))
        return pa.table(columns)

    @classmethod
    def from_table(cls, table: pa.Table) -> Histories:
        """Read back what `to_table` made (other columns are ignored)."""
        table = table.combine_chunks()

        def flat(name: str) -> pa.Array:
            lists = table[name].combine_chunks()
            return lists.flatten() if isinstance(lists, pa.Array) else lists.chunk(0).flatten()

        lengths = pc.list_value_length(table["correct"]).to_numpy().astype(np.int64)
        return cls(
            users=table["user"].to_numpy().astype(object),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            question=Coded.of(flat("question")),
            test=Coded.of(flat("test")),
            concepts=Coded.of(flat("concepts")),
            correct=flat("correct").to_numpy(zero_copy_only=False).astype(np.int8),
            timestamp=flat("timestamp").to_numpy(zero_copy_only=False) if "timestamp" in table.column_names else None,
        )

    def _take(self, users: Strings, offsets: Int64, rows: Int64) -> Histories:
        return Histories(
            users,
            offsets,
            self.question.take(rows),
            self.test.take(rows),
            self.concepts.take(rows),
            self.correct[rows],
            None if self.timestamp is None else self.timestamp[rows],
        )


def ranges(starts: Int64, stops: Int64) -> tuple[Int64, Int64]:
    """All indices of the given half-open ranges, one after another, and the offsets of each range in them."""
    lengths = stops - starts
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return np.arange(offsets[-1], dtype=np.int64) + np.repeat(starts - offsets[:-1], lengths), offsets


def graded(correct: Int8) -> npt.NDArray[np.bool_]:
    """Where the answer is known."""
    return correct != UNKNOWN


def right(correct: Int8) -> npt.NDArray[np.bool_]:
    """Where the answer is right."""
    return correct == RIGHT
