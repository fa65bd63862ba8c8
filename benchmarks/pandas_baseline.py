"""The baseline: the reference's restated columns and the windows, in plain pandas.

Written once, the fastest plain way: rows are sorted once; group keys are integers, factorised once and used by all
columns that need them; "before this row" is an inclusive cumulative sum minus the row's own value, or a shift; the last
n rows are a difference of two cumulative sums; fitted statistics are worked out on the table of questions and gathered.
Only chunks of tests, a recursion over distinct values, need a loop of Python (over runs of one test, not over rows).
No numba, no polars. Leave it alone: it is what the ratio of docs/benchmarks.md is measured against.

The columns are those of docs/features.md with `timestamp_is: submitted`, `bundle: none`, one concept per question, ids
of the competition's form, and a fitted state that leaves nobody out.

Legend: N rows, S windows.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

Int64 = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

DAY_MS: Final = 86_400_000
PRIOR, SMOOTHING = 2.0, 10.0  # pseudo-answers of a student's rates, and of fitted rates
RECENT: Final = (10, 30, 50, 100)
LENGTH, TESTS, ROWS = 100, 3, 20  # most rows of a window; tests and rows of a chunk


class Record(NamedTuple):
    """A student's rows before each row under one key, [N] each."""

    key: pd.Series
    rows: Any  # groupby of the columns time, known, right
    seen: pd.Series
    graded: pd.Series
    right: pd.Series


class Rows(NamedTuple):
    """Ordered rows, and the student's past of each under every key."""

    frame: pd.DataFrame  # user, question, test, head, mid, concept: codes; time, known, right
    questions: pd.DataFrame  # per question code: test, head, mid, concept (codes), tail
    records: dict[str, Record]  # user, test, concept, head


class Fitted(NamedTuple):
    """What is gathered per question."""

    base_rate: float
    values: pd.DataFrame  # per question code


class Index(NamedTuple):
    """S windows: window w holds rows `order[start[w]:stop[w]]`."""

    order: Int64
    start: Int64
    stop: Int64


def arrange(raw: pd.DataFrame) -> Rows:
    """Sort the rows, drop duplicates, and count each student's past under every key.

    Args:
        raw: user, question, test, concept (strings), correct (1, 0, -1 hidden), time (ms).
    """
    names = ("user", "question", "test", "concept")
    raw = raw.astype(dict.fromkeys(names, "category"))
    ids = pd.Series(raw["question"].cat.categories)
    raw = raw.assign(**{name: raw[name].cat.codes.astype(np.int64) for name in names})
    ordered = raw.sort_values(["user", "time"], kind="stable").drop_duplicates(ignore_index=True)
    codes = {name: ordered[name].to_numpy() for name in names}
    parts = {"head": ids.str[1:4], "mid": ids.str[4:7]}
    questions = pd.DataFrame({name: pd.factorize(part, sort=True)[0] for name, part in parts.items()})
    questions["tail"] = ids.str[7:10].astype(np.int64)
    first = pd.DataFrame(codes).drop_duplicates("question").set_index("question")
    questions[["test", "concept"]] = first[["test", "concept"]]
    codes |= {name: questions[name].to_numpy()[codes["question"]] for name in parts}
    correct = ordered["correct"].to_numpy()
    frame = pd.DataFrame(codes | {"time": ordered["time"], "known": correct >= 0, "right": correct == 1}, copy=False)
    frame[["known", "right"]] = frame[["known", "right"]].astype(np.int64)
    user = frame["user"]
    keys = {name: user * (frame[name].max() + 1) + frame[name] for name in ("test", "concept", "head")}
    return Rows(frame, questions, {name: _record(frame, key) for name, key in ({"user": user} | keys).items()})


def fit(rows: Rows) -> Fitted:
    """Rates of right answers, each smoothed towards its parent: question, test, concept, head, overall."""
    answers = rows.frame.groupby("question")[["known", "right"]].sum()
    table = rows.questions.assign(known=answers["known"], right=answers["right"])
    base_rate = (table["right"].sum() + 1) / (table["known"].sum() + 2)
    values = pd.DataFrame(index=table.index)
    rate: float | pd.Series = base_rate
    for level in ("head", "concept", "test"):
        sums = table.groupby(level)[["known", "right"]].transform("sum")
        rate = (sums["right"] + SMOOTHING * rate) / (sums["known"] + SMOOTHING)
        if level != "head":
            values[f"{level}_log_odds"] = np.log(rate / (1 - rate))
            values[f"{level}_right"] = np.log1p(sums["right"])
    rate = (table["right"] + SMOOTHING * rate) / (table["known"] + SMOOTHING)
    values["question_log_odds"] = np.log(rate / (1 - rate))
    values["question_right"] = np.log1p(table["right"])
    values["test_size"] = table.groupby("test")["tail"].transform("size")
    values["question_number"] = table["tail"]
    return Fitted(base_rate, values)


def columns(rows: Rows, fitted: Fitted) -> pd.DataFrame:
    """The restated columns, float32 [N, 52]."""
    question = rows.frame["question"].to_numpy()
    found: dict[str, pd.Series | Floats] = {name: values.to_numpy()[question] for name, values in fitted.values.items()}
    for name, record in rows.records.items():
        prefix = "user" if name == "user" else f"user_{name}"
        found[f"{prefix}_count"] = np.log1p(record.seen)
        found[f"{prefix}_right"] = np.log1p(record.right)
        found[f"{prefix}_log_odds"] = _log_odds(record.right, record.graded, fitted)
    found |= _recent(rows.records["user"], "recent", fitted) | _recent(rows.records["head"], "head_recent", fitted)
    found |= _passes(rows, found["test_size"], fitted)
    found |= _day_cycles(rows, fitted)
    times = rows.records["user"].rows["time"]
    found["previous_elapsed_log"] = np.log1p((times.shift(1) - times.shift(2)) / 1000).fillna(-1.0)
    return pd.DataFrame({name: np.asarray(column, np.float32) for name, column in found.items()}, copy=False)


def windows(rows: Rows) -> dict[str, Index]:
    """The windows of seven strategies, without those that hold no known answer."""
    frame, records = rows.frame, rows.records
    size = frame["user"].value_counts(sort=False).sort_index().to_numpy()
    stop = np.cumsum(size)
    start = stop - size
    everything = np.arange(len(frame))
    of_test = rows.questions.groupby("test")["tail"].size().reindex(range(rows.questions["test"].max() + 1))
    first_pass = records["test"].seen.to_numpy() < of_test.to_numpy()[frame["test"].to_numpy()]
    firsts = frame[first_pass].groupby(["user", "head", "mid"], sort=False)
    chunks = _chunks_of_tests(frame)
    blocks = np.flatnonzero(records["user"].seen.to_numpy() % ROWS == 0)
    index = {
        "user_head_mid": _grouped(firsts, np.flatnonzero(first_pass)),
        "user_head": _grouped(records["head"].rows, everything),
        "user_test": _grouped(records["test"].rows, everything),
        "chunk_tests": Index(everything, chunks, np.append(chunks[1:], len(frame))),
        "chunk_rows": Index(everything, blocks, np.append(blocks[1:], len(frame))),
        "last": Index(everything, start, stop),
        "sliding": Index(everything, *_sliding(start, stop)),
    }
    return {name: _last(_with_answers(each, frame)) for name, each in index.items()}


def _record(frame: pd.DataFrame, key: pd.Series) -> Record:
    rows = frame[["time", "known", "right"]].groupby(key, sort=False)
    seen = rows.cumcount()
    graded = rows["known"].cumsum() - frame["known"] if _hidden(frame) else seen
    return Record(key, rows, seen, graded, rows["right"].cumsum() - frame["right"])


def _hidden(frame: pd.DataFrame) -> bool:
    return not frame["known"].all()


def _log_odds(right: pd.Series, graded: pd.Series, fitted: Fitted) -> pd.Series:
    rate = fitted.base_rate
    return np.log((right + PRIOR * rate) / (graded - right + PRIOR * (1 - rate)))


def _log_seconds(ms: pd.Series | Floats) -> pd.Series | Floats:
    return np.log1p(ms / 1000)


def _recent(record: Record, name: str, fitted: Fitted) -> dict[str, pd.Series]:
    """The last n rows of a key: what was before the row, without what was before the row n rows earlier."""
    before = pd.DataFrame({"right": record.right, "graded": record.graded}, copy=False)
    if record.graded is record.seen:
        before = before[["right"]]
    grouped = before.groupby(record.key, sort=False)
    found = {}
    for rows in RECENT:
        last = before - grouped.shift(rows, fill_value=0)
        graded = last["graded"] if "graded" in last else record.seen.clip(upper=rows)
        found[f"{name}_{rows}_log_odds"] = _log_odds(last["right"], graded, fitted)
    return found


def _passes(rows: Rows, test_size: Floats, fitted: Fitted) -> dict[str, pd.Series]:
    """Cycles by the first definition: passes of as many rows as the test has questions."""
    test = rows.records["test"]
    number, place = test.seen // test_size, test.seen % test_size
    pass_key = test.key * (int(number.max()) + 1) + number.astype(np.int64)
    answers = rows.frame[["known", "right"]]
    before = answers.groupby(pass_key, sort=False)
    right = before["right"].cumsum() - answers["right"]
    graded = before["known"].cumsum() - answers["known"] if _hidden(rows.frame) else place
    odds = _log_odds(right, graded, fitted)
    return {"pass_number": number, "pass_place": place, "pass_right": right, "pass_log_odds": odds}


def _day_cycles(rows: Rows, fitted: Fitted) -> dict[str, pd.Series | Floats]:
    """Cycles by the second definition, (user, UTC day, test)."""
    frame, test = rows.frame, rows.records["test"]
    time = frame["time"]
    day = time // DAY_MS
    cycle_key = test.key * (day.max() - day.min() + 1) + (day - day.min())
    cycle = frame[["time", "known", "right"]].groupby(cycle_key, sort=False)
    place = cycle.cumcount()
    span = time - cycle["time"].transform("first")
    state = pd.DataFrame({"day": day, "rows": place + 1, "right": cycle["right"].cumsum(), "span": span}, copy=False)
    state["graded"] = cycle["known"].cumsum() if _hidden(frame) else state["rows"]
    fresh = place == 0
    gap = (span / place).where(~fresh, 0.0)  # mean time between the rows of the cycle so far
    state["gap"] = gap
    answers = state[["right", "graded"]] if _hidden(frame) else state[["right"]]
    for n in RECENT:
        earlier = answers.groupby(cycle_key, sort=False).shift(n, fill_value=0)
        state[[f"{name}_{n}" for name in answers]] = answers - earlier
    last = state.groupby(test.key, sort=False).shift(1, fill_value=-1)
    today = (rows.records["user"].rows["time"].shift(1) // DAY_MS) == last["day"]
    last = last.where(today, 0)
    found: dict[str, pd.Series | Floats] = {
        "day_cycle_count": np.log1p(last["rows"]),
        "day_cycle_right": np.log1p(last["right"]),
        "day_cycle_log_odds": _log_odds(last["right"], last["graded"], fitted),
        "day_cycle_time": _log_seconds(last["span"]),
        "day_cycle_gap": _log_seconds(last["gap"]),
    }
    for n in RECENT:
        graded = last[f"graded_{n}"] if _hidden(frame) else last["rows"].clip(upper=n)
        found[f"day_cycle_recent_{n}_log_odds"] = _log_odds(last[f"right_{n}"], graded, fitted)
    change = gap - gap.groupby(cycle_key, sort=False).shift(1, fill_value=0.0)
    for name, prefix in (("user", "user"), ("head", "user_head")):
        found |= _aggregates(rows.records[name], prefix, time, fresh, change)
    return found


def _aggregates(
    record: Record, prefix: str, time: pd.Series, fresh: pd.Series, change: pd.Series
) -> dict[str, pd.Series | Floats]:
    """What a student's cycles say before each row, over all of them or over those of a head."""
    previous = record.rows["time"].shift(1)
    interval = (time - previous).where(fresh, 0.0).fillna(0.0)
    mine = pd.DataFrame({"cycles": fresh.astype(np.int64), "interval": interval, "change": change}, copy=False)
    before = mine.groupby(record.key, sort=False).cumsum() - mine
    cycles = before["cycles"]
    span = previous - record.rows["time"].transform("first")
    return {
        f"{prefix}_cycles": np.log1p(cycles),
        f"{prefix}_rows_per_cycle": (record.seen / cycles).fillna(0.0),
        f"{prefix}_span_days": (span / DAY_MS).fillna(0.0),
        f"{prefix}_cycle_interval": _log_seconds((before["interval"] / (cycles - 1)).where(cycles > 1, 0.0)),
        f"{prefix}_cycle_gap": _log_seconds((before["change"] / cycles).fillna(0.0)),
    }


def _grouped(grouped: Any, rows: Int64) -> Index:
    """One window per group, in the order of their first rows."""
    number = grouped.ngroup().to_numpy()
    stop = np.cumsum(np.bincount(number))
    return Index(rows[np.argsort(number, kind="stable")], np.append(0, stop[:-1]), stop)


def _chunks_of_tests(frame: pd.DataFrame) -> Int64:
    """Starts of consecutive rows with at most three distinct tests: a recursion, looped over runs of one test."""
    changes = (frame["user"] != frame["user"].shift()) | (frame["test"] != frame["test"].shift())
    runs = frame.loc[changes, ["user", "test"]]
    starts, user, tests = [], -1, set[int]()
    for row, owner, test in zip(runs.index.tolist(), runs["user"].tolist(), runs["test"].tolist(), strict=True):
        if owner != user or (test not in tests and len(tests) == TESTS):
            starts.append(row)
            user, tests = owner, {test}
        else:
            tests.add(test)
    return np.array(starts, np.int64)


def _sliding(start: Int64, stop: Int64) -> tuple[Int64, Int64]:
    """Windows of LENGTH rows every half of it; the last one ends where the history ends."""
    last = np.maximum(stop - LENGTH, start)
    count = 1 - (start - last) // (LENGTH // 2)
    step = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    first = np.minimum(np.repeat(start, count) + step * (LENGTH // 2), np.repeat(last, count))
    return first, np.minimum(first + LENGTH, np.repeat(stop, count))


def _last(index: Index) -> Index:
    return index._replace(start=np.maximum(index.start, index.stop - LENGTH))


def _with_answers(index: Index, frame: pd.DataFrame) -> Index:
    """Without the windows that hold no known answer."""
    if not _hidden(frame):
        return index
    known = np.concatenate([[0], np.cumsum(frame["known"].to_numpy()[index.order])])
    kept = known[index.stop] > known[index.start]
    return Index(index.order, index.start[kept], index.stop[kept])
