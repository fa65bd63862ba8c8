"""What the features are computed from: named quantities of each row's visible past, made by a few sources.

A source is one recursion of features/kernels.py (or a gather of fitted values) and fills a block of columns. Only the
sources that the chosen features need are run.

Legend: U users, N source rows, Q query rows, C concepts per row, P quantities, D sketch width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from dkt_ray.data.history import Int8, Int32, Int64
from dkt_ray.features import cycles, kernels, repeats
from dkt_ray.features.kernels import BY_KEY, DAY_MS, MICRO, NEVER

Floats = npt.NDArray[np.float64]

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 60 * MINUTE_MS
SESSION_MS: Final = 30 * MINUTE_MS  # a longer pause starts a new session
PAUSE_MS: Final = 10 * MINUTE_MS  # a longer time between two rows is a pause, not the time spent on a question
DECAY: Final = 0.9  # of RPFA's recency weights (Galyardt and Goldin 2015)
ELO_RATE, ELO_SLOWING = 0.4, 0.05
RECENT_IN_CYCLE: Final = (10, 30, 50, 100)
RECENT: Final = {"user": (5, 10, 20, 30, 50, 100), "head": (10, 30, 50, 100), "concept": (5,)}
WINDOWS_MS: Final = {
    "user": {"10min": 10 * MINUTE_MS, "hour": HOUR_MS, "day": DAY_MS, "week": 7 * DAY_MS, "month": 30 * DAY_MS},
    "concept": {"hour": HOUR_MS, "day": DAY_MS, "week": 7 * DAY_MS, "month": 30 * DAY_MS},
}
DAY_CYCLES: Final = ("cycles", "interval", "gap", "seen", "graded", "right", "span", "pace")
KEYS: Final = ("user", "question", "test", "concept", "head", "position")
# fitted per item, in the order of `ItemTable.values`
FITTED: Final = (
    *(f"{level}_log_odds" for level in ("question", "test", "concept", "head", "position")),
    *(f"{level}_graded" for level in ("question", "test", "concept")),
    *(f"{level}_right" for level in ("question", "test", "concept")),
    *("test_size", "number", "easiness", "easiness_2pl", "discrimination", "expected_ms"),
)


@dataclass(frozen=True, eq=False)
class Past:
    """Source rows, and the query rows that ask about them."""

    offsets: Int64  # [U + 1] of the source rows
    keys: Mapping[
        str, Int32
    ]  # [N, 1] or [N, C] call-local keys of the source rows, -1 = none; see KEYS (and test_in_head)
    sizes: Mapping[str, int]  # number of distinct keys
    items: Int64  # [N] row of the item's fitted values
    correct: Int8  # [N]
    surplus: Int64  # [N] answer - expected rate in 1e-6, 0 where hidden
    timestamp: Int64 | None  # [N] ms

    query_offsets: Int64  # [U + 1]
    query_keys: Mapping[str, Int32]  # [Q, 1] or [Q, C]
    query_items: Int64  # [Q]
    query_visible: Int32  # [Q]
    query_timestamp: Int64 | None  # [Q] ms: set only where a row may know its own time
    order: Int64  # [Q] the queries of each user by what they see

    fitted: Floats  # [items, len(FITTED)] values of the encoder's state
    sketch: Floats  # [items, D]
    submitted: bool  # timestamps are those of submission
    base_rate: float  # overall rate of right answers among training users

    @property
    def queries(self) -> int:
        """Q."""
        return len(self.query_visible)

    @cached_property
    def time(self) -> Int64:
        """[N] timestamps, 0 where there are none."""
        return np.zeros(len(self.correct), np.int64) if self.timestamp is None else self.timestamp

    @cached_property
    def own(self) -> Int64:
        """[Q] the query's own time, -1 where it may not be known."""
        return np.full(self.queries, -1, np.int64) if self.query_timestamp is None else self.query_timestamp

    @cached_property
    def now(self) -> Int64:
        """[Q] the query's own time where it may be known, but not before its last visible row; -1 without either."""
        if not len(self.correct):
            return self.own
        start = np.repeat(self.offsets[:-1], np.diff(self.query_offsets))
        last = start + np.maximum(self.query_visible - 1, 0)
        latest = np.where(self.query_visible > 0, self.time[np.minimum(last, len(self.time) - 1)], -1)
        return latest if self.query_timestamp is None else np.maximum(self.own, latest)


class Source(NamedTuple):
    """One recursion and the names of the columns that it fills."""

    name: str
    columns: tuple[str, ...]
    fill: Callable[[Past, Floats], None]


def _row(past: Past, out: Floats) -> None:
    now = past.now
    out[:, 0] = past.query_visible
    out[:, 1] = now
    angle = (now % DAY_MS) * (2 * np.pi / DAY_MS)
    known = now >= 0
    out[:, 2] = np.where(known, np.sin(angle), 0.0)
    out[:, 3] = np.where(known, np.cos(angle), 0.0)
    out[:, 4] = np.where(known, (now // DAY_MS + 3) % 7 >= 5, 0.0)  # 1970-01-01 was a Thursday


def _by_key(key: str, recents: tuple[int, ...], windows: tuple[int, ...], past: Past, out: Floats) -> None:
    kernels.by_key(
        past.keys[key],
        past.correct,
        past.surplus,
        past.time,
        past.offsets,
        past.query_keys[key],
        past.query_visible,
        past.now,
        past.query_offsets,
        past.order,
        past.sizes[key],
        DECAY,
        _numbers(recents),
        _numbers(windows),
        out,
    )


def _trace(past: Past, out: Floats) -> None:
    expected = past.fitted[past.items, FITTED.index("expected_ms")] if len(past.items) else np.empty(0)
    kernels.trace(
        past.correct,
        past.time,
        expected,
        0 if past.submitted else 1,
        past.offsets,
        past.query_visible,
        past.own,
        past.query_offsets,
        past.order,
        SESSION_MS,
        PAUSE_MS,
        out,
    )


def _passes(past: Past, out: Floats) -> None:
    size = past.fitted[:, FITTED.index("test_size")].astype(np.int64)
    cycles.passes(
        past.keys["test"][:, 0],
        size[past.items],
        past.correct,
        past.offsets,
        past.query_keys["test"][:, 0],
        size[past.query_items],
        past.query_visible,
        past.query_offsets,
        past.order,
        past.sizes["test"],
        out,
    )


def _day_cycles(paper: str, group: str, past: Past, out: Floats) -> None:
    cycles.day_cycles(
        past.keys[paper][:, 0],
        past.keys[group][:, 0],
        past.correct,
        past.time,
        past.offsets,
        past.query_keys[paper][:, 0],
        past.query_keys[group][:, 0],
        past.query_visible,
        past.now,
        past.query_offsets,
        past.order,
        past.sizes[paper],
        past.sizes[group],
        out,
    )


def _recent_in_cycle(past: Past, out: Floats) -> None:
    cycles.recent_in_cycle(
        past.keys["test"][:, 0],
        past.correct,
        past.time,
        past.offsets,
        past.query_keys["test"][:, 0],
        past.query_visible,
        past.now,
        past.query_offsets,
        past.order,
        past.sizes["test"],
        _numbers(RECENT_IN_CYCLE),
        out,
    )


def _repeats(past: Past, out: Floats) -> None:
    repeats.repeats(
        past.keys["question"][:, 0],
        past.correct,
        past.offsets,
        past.query_keys["question"][:, 0],
        past.query_visible,
        past.query_offsets,
        past.order,
        past.sizes["question"],
        out,
    )


def _elo(past: Past, out: Floats) -> None:
    easiness = past.fitted[:, FITTED.index("easiness")]
    kernels.elo(
        past.keys["concept"],
        easiness[past.items],
        past.correct,
        past.offsets,
        past.query_keys["concept"],
        easiness[past.query_items],
        past.query_visible,
        past.query_offsets,
        past.order,
        past.sizes["concept"],
        ELO_RATE,
        ELO_SLOWING,
        out,
    )


def _similar(past: Past, out: Floats) -> None:
    kernels.similar(
        past.items,
        past.sketch,
        past.correct,
        past.surplus,
        past.offsets,
        past.query_items,
        past.query_visible,
        past.query_offsets,
        past.order,
        out,
    )


def _of_key(key: str, columns: frozenset[str] | None = None) -> Source:
    """The recursion of one key, with the lists of last rows and time windows that the given columns need (or all)."""

    def needed(name: str) -> bool:
        return columns is None or any(column.startswith(f"{name}_") for column in columns)

    recents = tuple(n for n in RECENT.get(key, ()) if needed(f"recent_{n}"))
    windows = {name: ms for name, ms in WINDOWS_MS.get(key, {}).items() if needed(name)}
    names = [f"recent_{n}_{what}" for n in recents for what in ("graded", "right", "surplus")]
    names += [f"{name}_{what}" for name in windows for what in ("seen", "graded", "right")]
    return Source(key, (*BY_KEY, *names), partial(_by_key, key, recents, tuple(windows.values())))


SOURCES: Final = (
    Source("row", ("visible", "now", "hour_sin", "hour_cos", "weekend"), _row),
    *(_of_key(key) for key in KEYS),
    Source(
        "trace",
        (
            *("lag", "elapsed_0", "elapsed_1", "elapsed_2", "ngram", "run", "session_seen", "session_graded"),
            *("session_right", "session_ms", "sessions", "timed", "tempo", "last_tempo"),
        ),
        _trace,
    ),
    Source("pass", ("number", "place", "graded", "right"), _passes),
    Source("day", DAY_CYCLES, partial(_day_cycles, "test", "user")),
    Source("head_day", DAY_CYCLES, partial(_day_cycles, "test_in_head", "head")),
    Source(
        "day_recent", tuple(f"{n}_{what}" for n in RECENT_IN_CYCLE for what in ("graded", "right")), _recent_in_cycle
    ),
    Source("repeat", repeats.REPEATS, _repeats),
    Source("elo", ("user", "concept", "logit"), _elo),
    Source("similar", ("likeness", "record"), _similar),
)
# What a quantity needs of the data: of a whole source, or of a single column.
_TIMED: Final = (
    "now",
    "hour",
    "weekend",
    "lag",
    "elapsed",
    "session",
    "timed",
    "tempo",
    "last_ms",
    "span_ms",
    "last_tempo",
)
NEEDS: Final = {
    "test": {"test"},
    "pass": {"test"},
    "day": {"test", "time"},
    "day_recent": {"test", "time"},
    "head_day": {"head", "test", "time"},
    "concept": {"concepts"},
    "head": {"head"},
    "position": {"head"},
    "item.test": {"test"},
    "item.concept": {"concepts"},
    "item.head": {"head"},
    "item.position": {"head"},
    "item.number": {"head"},
    "item.expected": {"time"},
    "trace.lag": {"shown"},
    "elo.concept": {"concepts"},
}


def needs(quantity: str) -> frozenset[str]:
    """What the data must have for a quantity to mean something: some of time, shown, test, concepts, head."""
    source, _, column = quantity.partition(".")
    level = column.partition("_")[0]
    windows = {name for names in WINDOWS_MS.values() for name in names}
    timed = {"time"} if column.startswith(_TIMED) or level in windows else set()
    return frozenset(NEEDS.get(source, set()) | NEEDS.get(f"{source}.{level}", set()) | timed)


def used(quantities: Iterable[str]) -> tuple[tuple[Source, ...], dict[str, int]]:
    """The sources that make the given quantities, and the column of every quantity of these sources."""
    wanted: dict[str, set[str]] = {}
    for quantity in quantities:
        source, _, column = quantity.partition(".")
        wanted.setdefault(source, set()).add(column)
    chosen = [source for source in SOURCES if source.name in wanted]
    sources = tuple(_of_key(each.name, frozenset(wanted[each.name])) if each.name in KEYS else each for each in chosen)
    names = [f"{source.name}.{column}" for source in sources for column in source.columns]
    return sources, {name: place for place, name in enumerate(names)}


def measure(past: Past, sources: tuple[Source, ...]) -> Floats:
    """The quantities of all query rows, [Q, P]."""
    out = np.empty((past.queries, sum(len(source.columns) for source in sources)))
    place = 0
    for source in sources:
        stop = place + len(source.columns)
        source.fill(past, out[:, place:stop])
        place = stop
    return out


@cache
def _frozen(values: tuple[int, ...]) -> Int64:
    return np.array(values, np.int64)


def _numbers(values: Iterable[int]) -> Int64:
    return _frozen(tuple(values))


__all__ = [
    "FITTED",
    "HOUR_MS",
    "KEYS",
    "MICRO",
    "NEEDS",
    "NEVER",
    "SOURCES",
    "Past",
    "Source",
    "measure",
    "needs",
    "used",
]
