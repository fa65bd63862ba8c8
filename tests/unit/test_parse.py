"""Validation of raw tables: what is accepted, what is rejected and why."""

from datetime import UTC, date, datetime

import numpy as np
import polars as pl
import pytest

from dkt_ray.data import parse as p
from dkt_ray.data.parse import canonical_concepts, locate, parse
from dkt_ray.errors import InputError
from dkt_ray.schema import RAW_COLUMNS

NEW_YEAR = 1_577_836_800_000  # 2020-01-01 00:00:00 UTC in ms


def table(**columns: list) -> pl.DataFrame:
    rows = max(map(len, columns.values()))
    defaults = {"user": ["1"] * rows, "question": ["q"] * rows, "correct": ["1"] * rows}
    return pl.DataFrame(defaults | columns, strict=False)


def read(raw: pl.DataFrame) -> p.Parsed:
    return parse(raw, "log.csv", np.arange(len(raw)))


@pytest.mark.parametrize(
    ("text", "meaning"),
    [("1", 1), ("0", 0), ("-1", -1), ("1.0", 1), ("-1.0", -1), ("true", 1), ("False", 0), (" 1 ", 1)],
)
def test_answer_codes_that_are_known(text, meaning):
    assert read(table(correct=[text])).good["correct"].to_list() == [meaning]


@pytest.mark.parametrize("text", ["2", "-2", "0.5", "", "yes", "nan", "inf", None])
def test_other_answer_codes_are_rejected_with_the_line(text):
    parsed = read(table(user=["7"], correct=[text]))
    assert len(parsed.good) == 0
    assert parsed.rejected.to_dicts() == [
        {"file": "log.csv", "row": 0, "reason": p.UNKNOWN_ANSWER, "raw": f"7,q,{text or ''}"}
    ]


@pytest.mark.parametrize("codes", [[True, False], [1, 0], [1.0, 0.0]])
def test_typed_answer_codes(codes):
    assert read(table(correct=codes)).good["correct"].to_list() == [1, 0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2020-01-01 00:00:00", NEW_YEAR),
        ("2020-01-01 00:00:00.5", NEW_YEAR + 500),
        ("2020-01-01 00:00:00.123456", NEW_YEAR + 123),
        ("2020-01-01T00:00:01", NEW_YEAR + 1000),
        ("2020-01-01T00:00:00Z", NEW_YEAR),
        ("2020-01-01 00:00:00 UTC", NEW_YEAR),
        ("2020-01-01 09:00:00+09:00", NEW_YEAR),
        ("2020-01-01T09:00:00.250+0900", NEW_YEAR + 250),
        ("1577836800", NEW_YEAR),
        ("1577836800.25", NEW_YEAR + 250),
        ("1577836800000", NEW_YEAR),
        ("0", 0),
    ],
)
def test_timestamps_become_milliseconds_utc(text, expected):
    assert read(table(timestamp=[text])).good["timestamp"].to_list() == [expected]


def test_every_row_may_have_its_own_form_of_time():
    times = ["2020-01-01 00:00:00", "1577836800", "soon", "2020-01-01T00:00:00Z", "", "2020-02-30 00:00:00"]
    parsed = read(table(timestamp=times))
    assert parsed.good["timestamp"].to_list() == [NEW_YEAR] * 3
    assert parsed.rejected["row"].to_list() == [2, 4, 5]
    assert parsed.rejected["reason"].to_list() == [p.UNPARSABLE_TIME, p.MISSING_TIME, p.UNPARSABLE_TIME]


@pytest.mark.parametrize(
    "times",
    [
        [datetime(2020, 1, 1)],
        [datetime(2020, 1, 1, tzinfo=UTC)],
        [date(2020, 1, 1)],
        [1_577_836_800],
        [1_577_836_800_000],
        [1_577_836_800.0],
    ],
)
def test_typed_timestamps(times):
    assert read(table(timestamp=times)).good["timestamp"].to_list() == [NEW_YEAR]


def test_a_number_that_is_no_time_is_rejected():
    assert read(table(timestamp=[1e15, float("nan")])).rejected["reason"].to_list() == [
        p.UNPARSABLE_TIME,
        p.UNPARSABLE_TIME,
    ]


def test_missing_ids_are_rejected_with_their_own_row_numbers():
    raw = table(user=["1", "", None, "4"], question=["q", "q", "q", " "])
    parsed = parse(raw, "log.csv", np.array([10, 11, 14, 15]))
    assert parsed.good["row"].to_list() == [10]
    assert parsed.rejected.select("row", "reason").rows() == [
        (11, p.MISSING_USER),
        (14, p.MISSING_USER),
        (15, p.MISSING_QUESTION),
    ]


def test_an_open_quotation_mark_hides_no_line():
    parsed = read(table(user=["1", "2"], question=["q", "q,1\n3,q,0\n4,q,1\n"]))
    assert len(parsed.good) == 1
    assert parsed.rejected["reason"].to_list() == [p.LINE_BREAK] * len(parsed.rejected)
    assert len(parsed.rejected) >= 3


def test_ids_are_text_and_whole_floats_lose_their_fraction():
    raw = table(user=pl.Series([12.0, None, 3.0]).to_list(), question=[5, 6, 7])
    parsed = read(raw)
    assert parsed.good["user"].to_list() == ["12", "3"]
    assert parsed.good["question"].to_list() == ["5", "7"]


def test_a_list_column_is_refused_by_name():
    with pytest.raises(InputError, match=r"log.csv: the concepts column has type List"):
        read(table(concepts=[["a"], ["b"]]))


def test_absent_columns_one_test_no_concepts_and_no_time():
    good = read(table(user=["1", "2"])).good
    assert good["test"].to_list() == [p.ONE_TEST] * 2
    assert good["concepts"].to_list() == ["", ""]
    assert "timestamp" not in good.columns


def test_concepts_are_canonical():
    found = canonical_concepts(pl.Series(["9_7_9", "7_9", "", "_", " a _b", "b_a", "74"]))
    assert found.to_list() == ["7_9", "7_9", "", "", "a_b", "a_b", "74"]


def test_an_empty_table_is_fine():
    parsed = read(table(user=["1"], timestamp=["x"], concepts=["c"]).clear())
    assert len(parsed.good) == len(parsed.rejected) == 0


def test_a_missing_column_says_which_and_how_to_map_it():
    header = ["student_id", "assessmentItemID", "answerCode"]
    with pytest.raises(InputError, match=r"no column 'userID' for the user.*'student_id'.*--set data.columns.user="):
        locate(header, {}, "log.csv")
    assert locate(header, {"user": "student_id"}, "log.csv") == {
        "user": "student_id",
        "question": "assessmentItemID",
        "correct": "answerCode",
    }


def test_a_mapped_optional_column_must_be_there():
    with pytest.raises(InputError, match=r"no column 'when' for the timestamp"):
        locate(list(RAW_COLUMNS.values()), {"timestamp": "when"}, "log.csv")


def test_mapping_an_unknown_name_lists_the_known_ones():
    with pytest.raises(InputError, match=r"data.columns has 'student'; expected some of user, question, correct"):
        locate(list(RAW_COLUMNS.values()), {"student": "userID"}, "log.csv")


def test_a_column_that_occurs_twice_is_refused():
    with pytest.raises(InputError, match="two columns are called 'userID'"):
        locate([*RAW_COLUMNS.values(), "userID"], {}, "log.csv")
