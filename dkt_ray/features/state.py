"""The encoder's fitted state: what training users answered per item and fold, vocabularies, the scale of the numbers.

Legend: J items, i.e. distinct triples (question, test, concepts); C concepts per item; F numeric columns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, field_validator

from dkt_ray.config import Config, build
from dkt_ray.data.history import Coded, Int32, Int64, Strings
from dkt_ray.errors import BundleError, InputError
from dkt_ray.features.batch import UNKNOWN_ID, Rows
from dkt_ray.features.difficulty import ITEM, Counts, Floats, Sums, merge
from dkt_ray.features.items import Items, Statistics
from dkt_ray.features.kernels import NGRAM
from dkt_ray.features.profile import Profile, merge_profiles
from dkt_ray.features.structure import decompose, implied_test
from dkt_ray.features.student import GROUPS, choose, versions
from dkt_ray.schema import CONCEPT_SEPARATOR

STATE_VERSION: Final = 2
PARTS: Final = ("head", "mid", "tail", "mid_tail")
VOCABULARIES: Final = ("question", "test", *PARTS, "concepts")
ID_COLUMNS: Final = ("question", "test", *PARTS, "previous_correct", "lag", "previous_elapsed", "ngram", "hour")
HOURS: Final = 24

# Upper edges in seconds: 1 s bins where answers are fast, then roughly geometric up to a month. Fixed, hence versioned.
SECOND_EDGES: Final = np.array(
    [*range(1, 31), 35, 40, 45, 50, 60, 75, 90, 120, 150, 200, 250, 300, 400, 600, 900, 1800]
    + [hours * 3600 for hours in (1, 2, 6, 12, 24, 48, 72, 120, 168, 336, 720)],
    dtype=np.float64,
)
FIRST_ID: Final = 2  # 0 is padding, 1 is unknown
LARGEST: Final = 1e4  # of a number, when the scale is measured
MOMENT_ROWS: Final = 1 << 15  # whose squares add up in 64 bits

Totals = npt.NDArray[np.object_]


class BinningConfig(Config):
    """How the time between two rows becomes a category; the edges are fixed when the encoder is fitted."""

    kind: Literal["log", "cap", "cut", "qcut", "edges"] = "log"
    """log: 1 s bins up to 30 s, then wider ones to 30 days; cap: 1 s bins up to `cap_s`; cut: `bins` equal bins up to
    `cap_s`; qcut: `bins` bins with equally many rows (of training users, capped); edges: bins made by hand, `edges_s`.
    """
    edges_s: tuple[float, ...] = (50, 100, 200, 300, 400, 500, 600)
    """With kind=edges: upper edges of the bins, ascending; longer times share a last bin."""
    bins: int = Field(20, ge=2, le=600)
    """Bins of cut and qcut."""
    cap_s: int = Field(600, ge=1, le=600)
    """Longer times count as this one (cap, cut and qcut)."""
    first_row: Literal["unknown", "zero"] = "unknown"
    """What a row without an earlier one has: a bin of its own, or no time at all."""

    @field_validator("edges_s")
    @classmethod
    def _ascending(cls, edges: tuple[float, ...]) -> tuple[float, ...]:
        if not edges or edges[0] <= 0 or any(high <= low for low, high in pairwise(edges)):
            raise ValueError(f"{list(edges)} are no upper edges of bins; expected ascending seconds above 0")
        return edges


class EncoderConfig(Config):
    """What a row means, which features there are, and how statistics are smoothed; stored with the fitted state."""

    timestamp_is: Literal["shown", "submitted"] = "submitted"
    """Is Timestamp when the question was shown, or when its answer was submitted (then a row may not know its own)?"""
    bundle: Literal["none", "test_run"] = "none"
    """test_run: consecutive rows of one test were shown together and must not see each other's answers."""
    use_time: bool = True
    """Switch off for data whose timestamps only give the order."""
    features: tuple[str, ...] = GROUPS
    """Feature groups that are on (`core` always is); groups that the data cannot feed switch themselves off."""
    binning: BinningConfig = BinningConfig()
    scaling: Literal["standard", "min_max"] = "standard"
    """Numbers reach networks as (x - mean) / standard deviation, or as (x - minimum) / range, of training rows."""
    min_count: int = 5
    """Ids that training users answered less often become the unknown id."""
    smoothing: float = 10.0
    """Pseudo-answers with which a difficulty starts from its parent: question, test, concept, head, overall."""
    max_concepts: int = 8
    """Concepts read per question, in canonical order."""

    @field_validator("features")
    @classmethod
    def _known(cls, features: tuple[str, ...]) -> tuple[str, ...]:
        for group in features:
            if group not in GROUPS:
                raise ValueError(f"no feature group {group!r}; expected some of {', '.join(GROUPS)}")
        return features


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, sum, sum of squares and range of the numeric columns in fixed point: they add up exactly in any order.

    Sums are Python's integers: they hold any number of rows.
    """

    count: int
    sums: Totals  # [F] in 1 / UNIT
    squares: Totals  # [F] in 1 / SQUARE_UNIT
    lowest: Int64  # [F] in 1 / UNIT
    highest: Int64  # [F]

    UNIT = 1 << 12
    SQUARE_UNIT = 1 << 20

    @classmethod
    def nothing(cls, columns: int) -> Moments:
        """The moments of no row."""
        ends, zero = np.iinfo(np.int64), np.zeros(columns, object)
        return cls(0, zero, zero, np.full(columns, ends.max), np.full(columns, ends.min))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists; totals as text, as they may pass 64 bits."""
        totals = {name: [str(value) for value in getattr(self, name)] for name in ("sums", "squares")}
        return {"count": self.count, "lowest": self.lowest.tolist(), "highest": self.highest.tolist()} | totals

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Moments:
        """Read back what `to_dict` gave."""
        totals = (np.array([int(value) for value in found[name]], object) for name in ("sums", "squares"))
        ends = (np.array(found[name], np.int64) for name in ("lowest", "highest"))
        return cls(found["count"], *totals, *ends)

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.count + other.count,
            self.sums + other.sums,
            self.squares + other.squares,
            np.minimum(self.lowest, other.lowest),
            np.maximum(self.highest, other.highest),
        )


def moments(rows: Rows) -> Moments:
    """Moments of the numeric columns of the given rows; numbers beyond LARGEST count as that."""
    total = Moments.nothing(rows.numbers.shape[1])
    for start in range(0, len(rows.numbers), MOMENT_ROWS):
        some = np.clip(rows.numbers[start : start + MOMENT_ROWS].astype(np.float64), -LARGEST, LARGEST)
        fixed = np.rint(some * Moments.UNIT).astype(np.int64)
        squares = np.rint(some * some * Moments.SQUARE_UNIT).astype(np.int64).sum(0).astype(object)
        total += Moments(len(some), fixed.sum(0).astype(object), squares, fixed.min(0), fixed.max(0))
    return total


@dataclass(frozen=True, eq=False)
class EncoderState:
    """Everything that was fitted on training users, and the scale of the numeric columns."""

    config: EncoderConfig
    counts: Counts
    profile: Profile
    timed: bool  # the data have timestamps
    held_out: int | None = None  # a fold whose users do not count (their ids stay known)
    mean: Floats | None = None  # [F] what is taken from a number before it is divided by
    std: Floats | None = None  # [F]

    @property
    def number_names(self) -> tuple[str, ...]:
        """Names of the numeric columns, in order."""
        return self._chosen[0]

    @property
    def switched_off(self) -> Mapping[str, str]:
        """Features that are off, and why."""
        return self._chosen[1]

    @cached_property
    def facts(self) -> frozenset[str]:
        """What the data have: some of time, shown, test, concepts, head."""
        columns = self._item_columns
        timed = self.timed and self.config.use_time
        have = {
            "time": timed,
            "shown": timed and self.config.timestamp_is == "shown",
            "test": len(set(columns["test"]) - {""}) > 1,
            "concepts": bool((columns["concepts"] != "").any()),
            "head": bool((columns["head"] != "").any()),
        }
        return frozenset(name for name, there in have.items() if there)

    @cached_property
    def _chosen(self) -> tuple[tuple[str, ...], Mapping[str, str]]:
        return choose(self.config.features, self.facts)

    @cached_property
    def edges(self) -> Floats:
        """Upper edges of the bins of a duration, in seconds."""
        binning = self.config.binning
        if binning.kind == "log":
            return SECOND_EDGES
        if binning.kind == "edges":
            return np.array(binning.edges_s)
        if binning.kind == "cap":
            return np.arange(1.0, binning.cap_s + 1)
        if binning.kind == "cut":
            return np.linspace(0, binning.cap_s, binning.bins + 1)[1:]
        lags = self.profile.lags[: binning.cap_s + 1].copy()
        lags[-1] += self.profile.lags[binning.cap_s + 1 :].sum()
        share = np.cumsum(lags) / max(lags.sum(), 1)
        inner = np.searchsorted(share, np.arange(1, binning.bins) / binning.bins)
        return np.unique(inner + 1.0)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Number of ids of each id column and of `concepts`, padding and unknown included."""
        bins = len(self.edges) + 1 + FIRST_ID
        known = {name: len(vocabulary) + FIRST_ID for name, vocabulary in self.vocabularies.items()}
        others = {"previous_correct": 4, "lag": bins, "previous_elapsed": bins}
        return known | others | {"ngram": 3**NGRAM + FIRST_ID, "hour": HOURS + FIRST_ID}

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
        """Known questions: question, test and concepts (the most frequent ones), count, graded, right.

        Without those of the held-out fold, so that neither its answers nor what it was asked reaches its rows.
        """
        counts = self.counts if self.held_out is None else self.counts.without(self.held_out)
        frame = pl.DataFrame(counts.table).group_by(ITEM).agg(pl.col("count", "graded", "right").sum())
        ordered = frame.sort(["question", "count", "test", "concepts"], descending=[False, True, False, False])
        return (
            ordered.group_by("question", maintain_order=True)
            .agg(pl.col("test", "concepts").first(), pl.col("count", "graded", "right").sum())
            .to_arrow()
            .cast(_QUESTIONS)
        )

    def excluding(self, fold: int) -> EncoderState:
        """The same ids, edges and scale, with statistics that leave out one fold's users; made once per fold."""
        if fold not in self._excluding:
            self._excluding[fold] = self._without(fold)
        return self._excluding[fold]

    @cached_property
    def _excluding(self) -> dict[int, EncoderState]:
        return {}

    def _without(self, fold: int) -> EncoderState:
        state = replace(self, held_out=fold)
        # what does not depend on the fold is not built again
        for shared in ("vocabularies", "concepts_per_question", "_chosen", "_item_columns", "tags", "edges"):
            state.__dict__[shared] = getattr(self, shared)
        return state

    def with_scaler(self, total: Moments) -> EncoderState:
        """The state with the scale of the numeric columns of training rows; no divisor is below 1e-6."""
        rows, unit = max(total.count, 1), float(Moments.UNIT)
        if self.config.scaling == "min_max" and total.count:
            return replace(self, mean=total.lowest / unit, std=np.maximum((total.highest - total.lowest) / unit, 1e-6))
        mean = (total.sums / (rows * unit)).astype(np.float64)
        variance = (total.squares / (rows * float(Moments.SQUARE_UNIT))).astype(np.float64) - mean**2
        return replace(self, mean=mean, std=np.sqrt(np.maximum(variance, 1e-12)))

    def collapsed(self) -> EncoderState:
        """The full state without the split into folds: what a bundle carries."""
        table = self.counts.table
        single = table.set_column(table.schema.get_field_index("fold"), "fold", pa.array(np.zeros(len(table), np.int8)))
        return replace(self, counts=merge([Counts(single)]), profile=self.profile.collapsed(), held_out=None)

    @cached_property
    def digest(self) -> str:
        """Content hash of the state."""
        content = hashlib.sha256(json.dumps(self._facts(), sort_keys=True).encode())
        for name in self.counts.table.column_names:
            content.update("\x1f".join(map(str, self.counts.table[name].to_pylist())).encode())
        content.update("\x1f".join(self.profile.question).encode())
        for array in (self.profile.fold, self.profile.values, self.profile.lags):
            content.update(np.ascontiguousarray(array).tobytes())
        return content.hexdigest()

    def save(self, folder: Path) -> None:
        """Write `counts.parquet`, `profile.parquet` and `state.json` into an existing folder."""
        assert self.held_out is None, "only the full state is stored"
        pq.write_table(self.counts.table, folder / "counts.parquet", compression="zstd")
        pq.write_table(self.profile.to_table(), folder / "profile.parquet", compression="zstd")
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
        scaler = [None if facts[name] is None else np.array(facts[name]) for name in ("mean", "std")]
        try:
            counts = Counts.from_table(pq.read_table(folder / "counts.parquet"))
            profile = Profile.from_table(pq.read_table(folder / "profile.parquet"))
        except KeyError as error:
            raise BundleError(f"encoder state has other columns ({error.args[0]}); prepare again") from None
        state = cls(build(EncoderConfig, facts["config"]), counts, profile, facts["timed"], None, *scaler)
        if facts["numbers"] != list(versions(state.number_names)):
            changed = ", ".join(sorted(set(facts["numbers"]) ^ set(versions(state.number_names)))) or "their order"
            raise BundleError(f"encoder state has other numeric features than this package ({changed}); prepare again")
        return state

    def describe(
        self, question: Coded, test: Coded | None = None, concepts: Coded | None = None
    ) -> tuple[Coded, Coded]:
        """Test and concepts of questions: as given where given, else as known, else from the id's form, else ""."""
        found = [self._known_items.get(value, ("", "")) for value in question.values]
        tests = np.array([known[0] for known in found], object)
        unknown = np.flatnonzero(tests == "")
        if len(unknown):
            tests[unknown] = implied_test(question.values[unknown])
        known_concepts = np.array([known[1] for known in found], object)
        return _fill(test, question, tests), _fill(concepts, question, known_concepts)

    def items(self, question: Strings, test: Strings, concepts: Strings) -> Items:
        """What is known of items, [J]; those that training users never answered back off."""
        index, known = self._known
        rows = np.fromiter((index.get(triple, -1) for triple in zip(question, test, concepts, strict=True)), np.int64)
        new = np.flatnonzero(rows < 0)
        if not len(new):
            return known.take(rows)
        made = self._make(question[new], test[new], concepts[new])
        rows[new] = len(index) + np.arange(len(new))
        return (known + made).take(rows)

    @cached_property
    def tags(self) -> dict[str, int]:
        """Every concept of a known item -> a number."""
        found = sorted({tag for value in set(self._item_columns["concepts"]) for tag in split_concepts(value)})
        return {tag: number for number, tag in enumerate(found)}

    @cached_property
    def base_rate(self) -> float:
        """Overall rate of right answers, without the held-out fold; 0.5 from no answer at all."""
        columns, keep = self._item_columns, self._kept
        return float((columns["right"][keep].sum() + 1) / (columns["graded"][keep].sum() + 2))

    @cached_property
    def statistics(self) -> Statistics:
        """What was fitted per id, without the held-out fold."""
        profile = self.profile if self.held_out is None else self.profile.without(self.held_out)
        known = [self._known_items.get(question, ("", "")) for question in profile.question]
        tests, concepts = (np.array([pair[side] for pair in known], object) for side in (0, 1))
        values = {"question": profile.question, "test": tests, "head": decompose(profile.question)["head"]}
        levels = {name: ids_of(self.vocabularies[name], each) for name, each in values.items()}
        levels["concepts"] = self.concept_ids(concepts)
        sizes = self.sizes
        size = np.zeros(sizes["test"], np.int64)
        tests_of = ids_of(self.vocabularies["test"], _column(self.questions, "test"))
        np.add.at(size, tests_of[tests_of >= FIRST_ID], 1)
        return Statistics.of(self.base_rate, self.config.smoothing, self._sums, profile, levels, sizes, size)

    def concept_ids(self, concepts: Strings) -> Int32:
        """[J, C] ids of the concepts of each item, 0 where it has no further one."""
        get = self.vocabularies["concepts"].get
        return self._per_concept(concepts, lambda tag: get(tag, UNKNOWN_ID), 0)

    def _per_concept(self, concepts: Strings, number: Callable[[str], int], padding: int) -> Int32:
        width = self.concepts_per_question
        distinct = {value: [number(tag) for tag in split_concepts(value)[:width]] for value in dict.fromkeys(concepts)}
        padded = {value: found + [padding] * (width - len(found)) for value, found in distinct.items()}
        return np.array([padded[value] for value in concepts], np.int32).reshape(len(concepts), width)

    def _make(self, question: Strings, test: Strings, concepts: Strings) -> Items:
        parts = decompose(question)
        values = {"question": question, "test": test} | {name: parts[name] for name in PARTS}
        ids = {name: ids_of(self.vocabularies[name], column) for name, column in values.items()}
        concept_ids = self.concept_ids(concepts)
        new = dict(self.tags)
        head, tail = (
            np.array([int(part) if part else -1 for part in parts[name]], np.int32) for name in ("head", "tail")
        )
        fitted, expected = self.statistics.values(ids, concept_ids, tail)
        return Items(
            ids=ids,
            concepts=concept_ids,
            tags=self._per_concept(concepts, lambda tag: new.setdefault(tag, len(new)), -1),
            head=head,
            tail=tail,
            values=fitted,
            sketch=self.statistics.sketches[ids["question"]],
            expected=expected,
        )

    @cached_property
    def _known(self) -> tuple[dict[tuple[str, str, str], int], Items]:
        """The items that training users answered: triple -> row, and the rows."""
        columns = self._item_columns
        triples = list(dict.fromkeys(zip(*(columns[name] for name in ITEM), strict=True)))
        arrays = [np.array([triple[side] for triple in triples], object) for side in range(len(ITEM))]
        return {triple: row for row, triple in enumerate(triples)}, self._make(*arrays)

    def _facts(self) -> dict[str, Any]:
        return {
            "version": STATE_VERSION,
            "config": self.config.model_dump(mode="json"),
            "timed": self.timed,
            "numbers": list(versions(self.number_names)),
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

    @property
    def _kept(self) -> Any:
        return slice(None) if self.held_out is None else self._item_columns["fold"] != self.held_out

    @property
    def _sums(self) -> dict[str, Sums]:
        """Graded and right answers per id of each level, without the held-out fold."""
        columns, keep = self._item_columns, self._kept
        known, answered = columns["graded"][keep], columns["right"][keep]
        sums = {
            name: Sums.of(ids_of(self.vocabularies[name], columns[name][keep]), known, answered, self.sizes[name])
            for name in ("question", "test", "head", "tail")
        }
        concepts = self.concept_ids(columns["concepts"][keep])
        width = concepts.shape[1]
        sums["concepts"] = Sums.of(
            concepts.ravel(), np.repeat(known, width), np.repeat(answered, width), self.sizes["concepts"]
        )
        return sums


_QUESTIONS: Final = pa.schema(
    [(name, pa.string()) for name in ITEM] + [(name, pa.int64()) for name in ("count", "graded", "right")]
)


def fit(
    counts: Sequence[Counts], config: EncoderConfig, profiles: Sequence[Profile] = (), timed: bool = True
) -> EncoderState:
    """Make the state from the counts and profiles of all buckets (the scaler follows with `with_scaler`).

    Args:
        profiles: of the second pass; without them what they tell backs off to overall values.
        timed: the data have timestamps.

    Raises:
        InputError: no training user has a known answer.
    """
    merged = merge(counts)
    if not len(merged.table) or not merged.table["graded"].to_numpy().sum():
        raise InputError(
            "no known answer (answer code 0 or 1) among the training users: there is nothing to learn from"
        )
    return EncoderState(config, merged, merge_profiles([*profiles, Profile.empty()]), timed)


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
