"""The reference system's row features and aggregates by its own formulas, over each row's past, against our columns."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from dkt_ray.data.history import Coded, Histories
from dkt_ray.features.encoder import EncoderConfig, encode, fit_histories
from dkt_ray.features.restated import AGGREGATES, ROW_FEATURES
from tests.builders import START_MS

Table = pd.DataFrame
DAY_S = 86_400
SIZE = 4  # questions of a test


@pytest.fixture(scope="module")
def log() -> Table:
    """One student who passes through tests of 4 questions, some more than once or half way; nothing is hidden.

    One test is crammed, 120 rows in a day.
    """
    rng = np.random.default_rng(2)
    rows = []
    now = START_MS // 1000
    for step in range(60):
        crammed = step >= 30
        test = 6 if crammed else int(rng.integers(6))
        now += 20 if crammed and step > 30 else int(rng.choice([2_000, 40_000, 200_000]))
        for number in rng.permutation(SIZE)[: SIZE if crammed else rng.choice([SIZE, SIZE, SIZE, 2])]:
            now += int(rng.integers(0, 200))
            head = test % 3 + 1
            question, paper = f"A{head:02d}0{test:03d}{number + 1:03d}", f"A{head:02d}0000{test:03d}"
            rows.append((question, paper, f"{head}0", str(rng.integers(4)), now, int(rng.integers(2)), number + 1))
    table = pd.DataFrame(rows, columns=["question", "test", "head", "tag", "time", "correct", "number"])
    return table.assign(cycle=(table["time"] // DAY_S).astype(str) + table["test"])


@pytest.fixture(scope="module")
def columns(log: Table) -> Table:
    """Our columns of the student's rows."""
    histories = Histories(
        np.array(["u"], object), np.array([0, len(log)]), Coded.of(log["question"].tolist()),
        Coded.of(log["test"].tolist()), Coded.of(log["tag"].tolist()), log["correct"].to_numpy(np.int8),
        1000 * log["time"].to_numpy(np.int64),
    )  # fmt: skip
    state = fit_histories(histories, np.zeros(1, np.int8), EncoderConfig(min_count=1, timestamp_is="shown"))
    numbers = encode(histories, None, state).past.numbers.astype(np.float64)
    return pd.DataFrame(numbers, columns=list(state.number_names)).assign(rate=state.base_rate)


def number_of(columns: Table, name: str) -> np.ndarray:
    """A count or a time back from its logarithm."""
    return np.expm1(columns[name].to_numpy())


def smoothed(columns: Table, right: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """What a mean of answers became: log-odds from two pseudo-answers at the overall rate."""
    rate = columns["rate"].to_numpy()
    return np.log((right + 2 * rate) / (rows - right + 2 * (1 - rate)))


def over_past(log: Table, key: str | None, value: Callable[[Table], float]) -> np.ndarray:
    """A value of each row's earlier rows, of those that share a key with it where there is one."""
    past = (
        log.iloc[:i] if key is None else log.iloc[:i][log[key].iloc[:i] == log[key].iloc[i]] for i in range(len(log))
    )
    return np.array([value(rows) for rows in past], float)


def answers(rows: Table) -> float:
    return float(rows["correct"].sum())


KEYS = {"User": None, "UserTag": "tag", "UserTest": "test"}


@pytest.mark.parametrize("level", KEYS)
def test_running_counts_and_rates(level: str, log: Table, columns: Table) -> None:
    rows, right = over_past(log, KEYS[level], len), over_past(log, KEYS[level], answers)
    count, number, per = (ROW_FEATURES[f"{level}Cum{what}"][0] for what in ("testnum", "correctnum", "correctper"))
    np.testing.assert_allclose(number_of(columns, count), rows, atol=1e-4)
    np.testing.assert_allclose(number_of(columns, number), right, atol=1e-4)
    np.testing.assert_allclose(columns[per], smoothed(columns, right, rows), atol=1e-5)


def test_passes_of_a_test(log: Table, columns: Table) -> None:
    count = over_past(log, "test", len)
    assert (columns["test_size"] == SIZE).all()
    np.testing.assert_array_equal(columns["pass_number"], count // SIZE)
    np.testing.assert_array_equal(columns["pass_place"], count % SIZE)
    right = over_past(log, "test", lambda rows: answers(rows.iloc[len(rows) // SIZE * SIZE :]))
    np.testing.assert_array_equal(columns["pass_right"], right)
    np.testing.assert_allclose(columns["pass_log_odds"], smoothed(columns, right, count % SIZE), atol=1e-5)


def test_number_and_time_of_a_row(log: Table, columns: Table) -> None:
    np.testing.assert_array_equal(columns["question_number"], log["number"])
    np.testing.assert_allclose(number_of(columns, "lag_log")[1:], log["time"].diff()[1:], rtol=1e-5, atol=1e-4)


LEVELS = {"user": None, "user and head": "head"}
LAST_LEVEL = 2  # the cycle


@pytest.mark.parametrize("level", LEVELS)
def test_aggregates_of_the_student_and_of_a_head(level: str, log: Table, columns: Table) -> None:
    def ours(name: str) -> str:
        found = AGGREGATES[name][list(LEVELS).index(level)]
        assert found is not None
        return found

    def over(value: Callable[[Table], float]) -> np.ndarray:
        return over_past(log, LEVELS[level], value)

    cycles = over(lambda rows: rows["cycle"].nunique())
    rows, right = over(len), over(answers)
    np.testing.assert_allclose(number_of(columns, ours("QuesCnt")), rows, atol=1e-4)
    np.testing.assert_allclose(number_of(columns, ours("CorrectCnt")), right, atol=1e-4)
    np.testing.assert_allclose(columns[ours("CorrectPer")], smoothed(columns, right, rows), atol=1e-5)
    np.testing.assert_allclose(number_of(columns, ours("CycleCnt")), cycles, atol=1e-4)
    np.testing.assert_allclose(columns[ours("QuesPerCycle")], rows / np.maximum(cycles, 1), rtol=1e-6)
    days = over(lambda past: (past["time"].max() - past["time"].min()) / DAY_S if len(past) else 0)
    np.testing.assert_allclose(columns[ours("Max-MinTimestampDay")], days, rtol=1e-6)
    for last in (10, 30, 50, 100):
        right, rows = over(lambda past, n=last: answers(past.tail(n))), over(lambda past, n=last: min(len(past), n))
        np.testing.assert_allclose(columns[ours(f"Top{last}CorrectPer")], smoothed(columns, right, rows), atol=1e-5)
    np.testing.assert_allclose(number_of(columns, ours("MeanCycleIntervalDay")), over(mean_interval), rtol=1e-4)
    np.testing.assert_allclose(number_of(columns, ours("MeanTimeDiffinCycle")), over(mean_gap), rtol=1e-4, atol=1e-4)


def mean_interval(past: Table) -> float:
    """Mean seconds from the end of a cycle to the start of the next."""
    ends = past.groupby("cycle", sort=False)["time"].agg(["first", "last"])
    return float((ends["first"] - ends["last"].shift()).mean()) if len(ends) > 1 else 0.0


def mean_gap(past: Table) -> float:
    """Mean over cycles of the mean seconds between their rows, 0 for a cycle of one row."""
    return (
        float(past.groupby("cycle")["time"].apply(lambda time: time.diff().mean()).fillna(0).mean()) if len(past) else 0
    )


def test_aggregates_of_the_running_cycle(log: Table, columns: Table) -> None:
    def ours(name: str) -> str:
        return AGGREGATES[name][LAST_LEVEL]

    assert log.groupby("cycle").size().max() > 100, "or the last 100 rows of a cycle are all of them"
    for last in (10, 30, 50, 100):
        right = over_past(log, "cycle", lambda past, n=last: answers(past.tail(n)))
        rows = over_past(log, "cycle", lambda past, n=last: min(len(past), n))
        np.testing.assert_allclose(columns[ours(f"Top{last}CorrectPer")], smoothed(columns, right, rows), atol=1e-5)
    gap = over_past(log, "cycle", mean_gap)
    np.testing.assert_allclose(number_of(columns, ours("MeanTimeDiffinCycle")), gap, rtol=1e-5, atol=1e-4)
    rows, right = over_past(log, "cycle", len), over_past(log, "cycle", answers)
    seconds = over_past(log, "cycle", lambda past: past["time"].max() - past["time"].min() if len(past) else 0)
    for name in ("QuesCnt", "QuesPerCycle"):
        np.testing.assert_allclose(number_of(columns, ours(name)), rows, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(number_of(columns, ours("CorrectCnt")), right, rtol=1e-6, atol=1e-5)
    for name in ("CorrectPer", "LastCycleCorrectPer"):
        np.testing.assert_allclose(columns[ours(name)], smoothed(columns, right, rows), atol=1e-5)
    np.testing.assert_allclose(number_of(columns, ours("Max-MinTimestampDay")), seconds, rtol=1e-5, atol=1e-4)
    papers = over_past(log, "test", answers), over_past(log, "test", len)
    np.testing.assert_allclose(columns[AGGREGATES["LastCycleCorrectPer"][0]], smoothed(columns, *papers), atol=1e-5)


def test_statistics_of_all_students_are_sums_and_smoothed_rates(log: Table, columns: Table) -> None:
    """TagCorrectSum and its like are counts over the students that the state was fitted on."""
    for name, key in (("TagCorrectSum", "tag"), ("TestCorrectSum", "test"), ("AssessmentCorrectSum", "question")):
        right = log.groupby(key)["correct"].transform("sum")
        np.testing.assert_allclose(number_of(columns, ROW_FEATURES[name][0]), right, rtol=1e-4)
    rate = columns["rate"]
    for name, key in (("head_log_odds", "head"), ("TagCorrectPer", "tag"), ("TestCorrectPer", "test")):
        group = log.groupby(key)["correct"]
        rate = (group.transform("sum") + 10 * rate) / (group.transform("size") + 10)
        np.testing.assert_allclose(columns[ROW_FEATURES.get(name, (name,))[0]], np.log(rate / (1 - rate)), atol=1e-5)
