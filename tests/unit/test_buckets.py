"""Dealing rows to buckets and merging the shards of a bucket."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dkt_ray.data.buckets import deal, merge

ROWS = pl.DataFrame(
    {
        "user": ["b", "a", "b", "a", "a", "c"],
        "question": ["q1", "q2", "q3", "q2", "q2", "q4"],
        "test": ["t"] * 6,
        "correct": pl.Series([1, 0, 1, 0, 0, -1], dtype=pl.Int8),
        "concepts": ["x", "", "y", "", "", "x_y"],
        "timestamp": [30, 20, 10, 20, 25, 5],
        "row": [0, 1, 2, 3, 4, 5],
    }
)


def test_every_row_goes_to_one_bucket_and_a_user_to_one_bucket():
    many = pl.concat([ROWS.with_columns(pl.col("user") + str(n)) for n in range(50)])
    shards = deal(many, 7, 8)
    assert sum(len(shard) for shard in shards.values()) == len(many)
    assert set(shards) == set(range(8))
    owners = [set(shard["user"].to_pylist()) for shard in shards.values()]
    assert len(set.union(*owners)) == sum(map(len, owners)) == 150
    assert all(shard["source"].unique().to_pylist() == [7] for shard in shards.values())


def test_merge_orders_by_user_time_source_and_row_and_drops_duplicates():
    (shard,) = deal(ROWS, 0, 1).values()
    histories, duplicates = merge([shard], timed=True)
    assert histories.users.tolist() == ["a", "b", "c"]
    assert histories.offsets.tolist() == [0, 2, 4, 5]
    assert histories.question.strings().tolist() == ["q2", "q2", "q3", "q1", "q4"]
    assert histories.timestamp.tolist() == [20, 25, 10, 30, 5]
    assert histories.correct.tolist() == [0, 0, 1, 1, -1]
    assert duplicates == 1


@pytest.mark.parametrize("column", ["question", "test", "correct", "concepts"])
def test_rows_that_differ_in_one_column_are_no_duplicates(column):
    other = {"question": "z", "test": "z", "correct": 1, "concepts": "z"}[column]
    pair = pl.concat([ROWS[1], ROWS[1].with_columns(pl.lit(other).cast(ROWS.schema[column]).alias(column))])
    (shard,) = deal(pair, 0, 1).values()
    assert merge([shard], timed=True).duplicates == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 1)] * 5), max_size=12))
def test_duplicates_are_those_of_a_plain_count(drawn):
    """Equal rows need not follow each other: rows of one user and time stand in the order of the file."""
    rows = [(f"u{user}", f"q{question}", "t", correct, f"{tag}", time) for user, question, correct, tag, time in drawn]
    columns = ["user", "question", "test", "correct", "concepts", "timestamp"]
    types = dict(zip(columns, (pl.String, pl.String, pl.String, pl.Int8, pl.String, pl.Int64), strict=True))
    frame = pl.DataFrame(rows, types, orient="row").with_columns(row=pl.int_range(pl.len()))
    histories, duplicates = merge(list(deal(frame, 0, 1).values()), timed=True)
    kept = sorted(dict.fromkeys(rows), key=lambda row: (row[0], row[5]))  # stable: the file's order
    owners = np.repeat(histories.users, histories.lengths)
    strings = [column.strings() for column in (histories.question, histories.test, histories.concepts)]
    found = zip(
        owners, strings[0], strings[1], histories.correct.tolist(), strings[2], histories.timestamp, strict=True
    )
    assert list(found) == kept
    assert duplicates == len(rows) - len(kept)


def test_without_time_the_order_of_the_files_holds_and_nothing_is_a_duplicate():
    untimed = ROWS.drop("timestamp")
    (first,), (second,) = deal(untimed, 0, 1).values(), deal(untimed, 1, 1).values()
    histories, duplicates = merge([second, first], timed=False)
    assert duplicates == 0
    assert histories.timestamp is None
    assert histories.question.strings().tolist()[:6] == ["q2"] * 6
    assert histories.lengths.tolist() == [6, 4, 2]


def test_equal_times_keep_the_order_of_source_and_row():
    same = ROWS.with_columns(pl.lit(0, pl.Int64).alias("timestamp"), pl.lit("u").alias("user")).with_columns(
        pl.format("q{}", pl.col("row")).alias("question")
    )
    (late,), (early,) = deal(same[:2], 1, 1).values(), deal(same[2:], 0, 1).values()
    histories, _ = merge([late, early], timed=True)
    assert histories.question.strings().tolist() == ["q2", "q3", "q4", "q5", "q0", "q1"]


def test_shards_arrive_in_any_order():
    (whole,) = deal(ROWS, 0, 1).values()
    parts = [whole.slice(i, 1) for i in np.random.default_rng(0).permutation(len(whole))]
    assert merge(parts, timed=True)[0].to_table().equals(merge([whole], timed=True)[0].to_table())


@pytest.mark.parametrize("timed", [True, False])
def test_a_bucket_without_users(timed):
    histories, duplicates = merge([], timed)
    assert (histories.rows, len(histories.users), duplicates) == (0, 0, 0)
    assert (histories.timestamp is not None) == timed
