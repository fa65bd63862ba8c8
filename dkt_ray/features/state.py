"""The encoder's fitted state: counts of training users per item and fold, vocabularies, and the scale of the numbers.

Legend: J items, i.e. distinct triples (question, test, concepts); C concepts per item; F numeric columns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from dkt_ray.config import Config, build
from dkt_ray.data.history import Coded, Int32, Int64, Strings
from dkt_ray.errors import BundleError, InputError
from dkt_ray.features.batch import UNKNOWN_ID, Rows
from dkt_ray.features.difficulty import ITEM, Counts, Floats, Sums, merge
from dkt_ray.features.structure import decompose, implied_test
from dkt_ray.features.student import NUMBER_NAMES, VERSIONS
from dkt_ray.schema import CONCEPT_SEPARATOR

STATE_VERSION: Final = 1
PARTS: Final = ("head", "mid", "tail", "mid_tail")
VOCABULARIES: Final = ("question", "test", *PARTS, "concepts")
ID_COLUMNS: Final = ("question", "test", *PARTS, "previous_correct", "lag", "previous_elapsed")

# Upper edges in seconds: 1 s bins where answers are fast, then roughly geometric up to a month. Fixed, hence versioned.
SECOND_EDGES: Final = np.array(
    [*range(1, 31), 35, 40, 45, 50, 60, 75, 90, 120, 150, 200, 250, 300, 400, 600, 900, 1800]
    + [hours * 3600 for hours in (1, 2, 6, 12, 24, 48, 72, 120, 168, 336, 720)],
    dtype=np.float64,
)
FIRST_ID: Final = 2  # 0 is padding, 1 is unknown


class EncoderConfig(Config):
    """What a row means and how statistics are smoothed; stored with the fitted state."""

    timestamp_is: Literal["shown", "submitted"] = "submitted"
    """Is Timestamp when the question was shown, or when its answer was submitted (then a row may not know its own)?"""
    bundle: Literal["none", "test_run"] = "none"
    """test_run: consecutive rows of one test were shown together and must not see each other's answers."""
    use_time: bool = True
    """Switch off for data whose timestamps only give the order."""
    min_count: int = 5
    """Ids that training users answered less often become the unknown id."""
    smoothing: float = 10.0
    """Pseudo-answers with which a difficulty starts from its parent: question, test, concept, head, overall."""
    max_concepts: int = 8
    """Concepts read per question, in canonical order."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, sum and sum of squares of the numeric columns in fixed point: they add up exactly in any order."""

    count: int
    sums: Int64  # [F]
    squares: Int64  # [F]

    UNIT = 1 << 12

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.sums + other.sums, self.squares + other.squares)


def moments(rows: Rows) -> Moments:
    """Moments of the numeric columns of the given rows."""
    fixed = np.rint(rows.numbers.astype(np.float64) * Moments.UNIT).astype(np.int64)
    return Moments(len(fixed), fixed.sum(0), (fixed * fixed).sum(0))


@dataclass(frozen=True, eq=False)
class EncoderState:
    """Everything that was fitted on training users: counts per item and fold, and the scale of the numeric columns."""

    config: EncoderConfig
    counts: Counts
    held_out: int | None = None  # a fold whose answers do not count (its ids stay known)
    mean: Floats | None = None  # [F]
    std: Floats | None = None  # [F]

    @property
    def number_names(self) -> tuple[str, ...]:
        """Names of the numeric columns, in order."""
        return NUMBER_NAMES

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Number of ids of each id column and of `concepts`, padding and unknown included."""
        bins = len(SECOND_EDGES) + 1 + FIRST_ID
        known = {name: len(vocabulary) + FIRST_ID for name, vocabulary in self.vocabularies.items()}
        return known | {"previous_correct": 4, "lag": bins, "previous_elapsed": bins}

    @cached_property
    def concepts_per_question(self) -> int:
        """C: the largest number of concepts of a known item, at most `max_concepts`."""
        most = max((len(split_concepts(s)) for s in _column(self.counts.table, "concepts")), default=1)
        return max(1, min(most, self.config.max_concepts))

    @cached_property
    def vocabularies(self) -> dict[str, dict[str, int]]:
        """Value -> id of each vocabulary; ids follow the sorted values of all folds."""
        columns = self._item_columns
        counts = columns["count"]
        return {
            name: _vocabulary(columns[name], counts, self.config.min_count)
            for name in VOCABULARIES
            if name != "concepts"
        } | {"concepts": _vocabulary(*_explode(columns["concepts"], counts), self.config.min_count)}

    @cached_property
    def questions(self) -> pa.Table:
        """Known questions: question, test and concepts (the most frequent ones), count, graded, right."""
        frame = pl.DataFrame(self.counts.table).group_by(ITEM).agg(pl.col("count", "graded", "right").sum())
        ordered = frame.sort(["question", "count", "test", "concepts"], descending=[False, True, False, False])
        return (
            ordered.group_by("question", maintain_order=True)
            .agg(pl.col("test", "concepts").first(), pl.col("count", "graded", "right").sum())
            .to_arrow()
            .cast(_QUESTIONS)
        )

    def excluding(self, fold: int) -> EncoderState:
        """The same ids, with statistics that leave out one fold's answers."""
        state = EncoderState(self.config, self.counts, fold, self.mean, self.std)
        for shared in (
            "vocabularies",
            "concepts_per_question",
        ):  # they do not depend on the fold: do not build them again
            state.__dict__[shared] = getattr(self, shared)
        return state

    def with_scaler(self, total: Moments) -> EncoderState:
        """The state with mean and standard deviation (at least 1e-6) of the numeric columns of training rows."""
        mean = total.sums / (max(total.count, 1) * Moments.UNIT)
        variance = total.squares / (max(total.count, 1) * float(Moments.UNIT) ** 2) - mean**2
        return EncoderState(self.config, self.counts, self.held_out, mean, np.sqrt(np.maximum(variance, 1e-12)))

    def collapsed(self) -> EncoderState:
        """The full state without the split into folds: what a bundle carries."""
        table = self.counts.table
        single = table.set_column(table.schema.get_field_index("fold"), "fold", pa.array(np.zeros(len(table), np.int8)))
        return EncoderState(self.config, merge([Counts(single)]), None, self.mean, self.std)

    @cached_property
    def digest(self) -> str:
        """Content hash of the state."""
        content = hashlib.sha256(json.dumps(self._facts(), sort_keys=True).encode())
        for name in self.counts.table.column_names:
            content.update("\x1f".join(map(str, self.counts.table[name].to_pylist())).encode())
        return content.hexdigest()

    def save(self, folder: Path) -> None:
        """Write `counts.parquet` and `state.json` into an existing folder."""
        assert self.held_out is None, "only the full state is stored"
        pq.write_table(self.counts.table, folder / "counts.parquet", compression="zstd")
        (folder / "state.json").write_text(json.dumps(self._facts(), indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> EncoderState:
        """Read back what `save` wrote.

        Raises:
            BundleError: the state was written by another version or for other numeric columns.
        """
        facts = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if facts.get("version") != STATE_VERSION:
            found = facts.get("version")
            raise BundleError(f"encoder state version is {found}, this package needs {STATE_VERSION}; prepare again")
        if facts["numbers"] != list(VERSIONS):
            changed = ", ".join(sorted(set(facts["numbers"]) ^ set(VERSIONS))) or "their order"
            raise BundleError(f"encoder state has other numeric features than this package ({changed}); prepare again")
        scaler = [None if facts[name] is None else np.array(facts[name]) for name in ("mean", "std")]
        counts = Counts.from_table(pq.read_table(folder / "counts.parquet"))
        return cls(build(EncoderConfig, facts["config"]), counts, None, *scaler)

    def describe(
        self, question: Coded, test: Coded | None = None, concepts: Coded | None = None
    ) -> tuple[Coded, Coded]:
        """Test and concepts of questions: as given where given, else as known, else from the id's form, else ""."""
        implied = implied_test(question.values)
        found = [self._known_items.get(value, ("", "")) for value in question.values]
        tests = np.array([known[0] or form for known, form in zip(found, implied, strict=True)], object)
        known_concepts = np.array([known[1] for known in found], object)
        return _fill(test, question, tests), _fill(concepts, question, known_concepts)

    def _facts(self) -> dict[str, Any]:
        return {
            "version": STATE_VERSION,
            "config": self.config.model_dump(mode="json"),
            "numbers": list(VERSIONS),
            "mean": None if self.mean is None else self.mean.tolist(),
            "std": None if self.std is None else self.std.tolist(),
        }

    @cached_property
    def _known_items(self) -> dict[str, tuple[str, str]]:
        columns = (self.questions[name].to_pylist() for name in ITEM)
        return {question: (test, concepts) for question, test, concepts in zip(*columns, strict=True)}

    @cached_property
    def _item_columns(self) -> dict[str, Any]:
        table = self.counts.table
        columns: dict[str, Any] = {name: _column(table, name) for name in ITEM}
        columns |= {name: table[name].to_numpy() for name in ("count", "graded", "right", "fold")}
        return columns | {name: part for name, part in decompose(columns["question"]).items() if name in PARTS}

    @cached_property
    def sums(self) -> dict[str, Sums]:
        """Graded and right answers per id of question, test, concepts and head, without the held-out fold."""
        columns = self._item_columns
        keep = np.ones(len(columns["fold"]), bool) if self.held_out is None else columns["fold"] != self.held_out
        known, answered = columns["graded"][keep], columns["right"][keep]
        sums = {
            name: Sums.of(ids_of(self.vocabularies[name], columns[name][keep]), known, answered, self.sizes[name])
            for name in ("question", "test", "head")
        }
        concepts = self.concept_ids(columns["concepts"][keep])
        width = concepts.shape[1]
        sums["concepts"] = Sums.of(
            concepts.ravel(), np.repeat(known, width), np.repeat(answered, width), self.sizes["concepts"]
        )
        return sums

    @cached_property
    def base_rate(self) -> float:
        """Overall rate of right answers, without the held-out fold; 0.5 from no answer at all."""
        columns = self._item_columns
        keep = slice(None) if self.held_out is None else columns["fold"] != self.held_out
        return float((columns["right"][keep].sum() + 1) / (columns["graded"][keep].sum() + 2))

    def concept_ids(self, concepts: Strings) -> Int32:
        """[J, C] ids of the concepts of each item, 0 where it has no further one."""
        width = self.concepts_per_question
        get = self.vocabularies["concepts"].get
        distinct = {value: [get(tag, UNKNOWN_ID) for tag in split_concepts(value)[:width]] for value in set(concepts)}
        padded = {value: ids + [0] * (width - len(ids)) for value, ids in distinct.items()}
        return np.array([padded[value] for value in concepts], np.int32).reshape(len(concepts), width)


_QUESTIONS: Final = pa.schema(
    [(name, pa.string()) for name in ITEM] + [(name, pa.int64()) for name in ("count", "graded", "right")]
)


def fit(counts: Sequence[Counts], config: EncoderConfig) -> EncoderState:
    """Make the state from the counts of all buckets (the scaler follows with `with_scaler`).

    Raises:
        InputError: no training user has a known answer.
    """
    merged = merge(counts)
    if not len(merged.table) or not merged.table["graded"].to_numpy().sum():
        raise InputError(
            "no known answer (answer code 0 or 1) among the training users: there is nothing to learn from"
        )
    return EncoderState(config, merged)


def ids_of(vocabulary: Mapping[str, int], values: Strings) -> Int32:
    """Ids of values; unknown ones get UNKNOWN_ID (callers pass distinct values or fitted tables, not rows)."""
    return np.fromiter((vocabulary.get(value, UNKNOWN_ID) for value in values), np.int32, len(values))


def _vocabulary(values: Strings, counts: Int64, min_count: int) -> dict[str, int]:
    frame = pl.DataFrame({"value": pl.Series(values.astype(object), dtype=pl.String), "count": counts})
    total = frame.filter(pl.col("value") != "").group_by("value").agg(pl.col("count").sum())
    kept = total.filter(pl.col("count") >= min_count)["value"].sort()
    return {value: FIRST_ID + index for index, value in enumerate(kept)}


def _explode(concepts: Strings, counts: Int64) -> tuple[Strings, Int64]:
    """One entry per concept of each item."""
    tags = [split_concepts(value) for value in concepts]
    flat = np.array([tag for several in tags for tag in several], object)
    return flat, np.repeat(counts, [len(several) for several in tags])


def split_concepts(concepts: str) -> list[str]:
    return concepts.split(CONCEPT_SEPARATOR) if concepts else []


def _column(table: pa.Table, name: str) -> Strings:
    return table[name].to_numpy().astype(object)


def _fill(given: Coded | None, question: Coded, fallback: Strings) -> Coded:
    known = Coded(question.codes, fallback)
    if given is None:
        return known
    mine = given.strings()
    return Coded.of(np.where(mine == "", known.strings(), mine).tolist())
