"""How often answers are right, by head, mid, tail, hour and pace (F07, F13); months (F09), order and repeats (F14)."""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl

from dkt_ray.analysis.interactions import PARTS, Interactions
from dkt_ray.analysis.measures import accuracy_by

BAND_ENDS: Final = (0, 2, 5, 10, 20, 30, 60, 120, 300, 600, 3600, 86_400)  # seconds, inclusive
BANDS: Final = (
    *("0", "1-2", "3-5", "6-10", "11-20", "21-30", "31-60", "61-120", "121-300", "301-600"),
    *("601-3600", "1 h - 1 day", "> 1 day"),
)


def by_part(log: Interactions) -> dict[str, pl.DataFrame]:
    """Accuracy by head, mid and tail."""
    return {part: accuracy_by(log.rows, part) for part in PARTS}


def by_hour(log: Interactions) -> pl.DataFrame:
    """Accuracy by hour of the day (UTC)."""
    hour = pl.from_epoch("ms", "ms").dt.hour().alias("hour")
    return accuracy_by(log.rows.select(hour, "correct"), "hour")


def of_ends(log: Interactions) -> pl.DataFrame:
    """Accuracy of all answers beside that of the last answer of a user, of a (user, head), and of a (user, test).

    A group whose last row is hidden is left out: its end is not known.
    """
    ends = {"all answers": accuracy_by(log.rows.with_columns(pl.lit(0).alias("all")), "all")}
    groups = {"last of a user": ["user"], "last of a (user, head)": ["user", "head"]}
    for name, keys in (groups | {"last of a (user, test)": ["user", "test"]}).items():
        ends[name] = accuracy_by(last_rows(log.rows, *keys).with_columns(pl.lit(0).alias("all")), "all")
    return pl.concat([table.select(pl.lit(name).alias("answers"), pl.exclude("all")) for name, table in ends.items()])


def last_rows(rows: pl.DataFrame, *keys: str) -> pl.DataFrame:
    """The last row of every group (rows in order), groups with a null key left out."""
    return rows.drop_nulls([*keys]).unique([*keys], keep="last", maintain_order=True)


def by_month(log: Interactions) -> pl.DataFrame:
    """Interactions per month (UTC) and head; without heads only per month. Columns: month, one per head, all."""
    month = pl.from_epoch("ms", "ms").dt.strftime("%Y-%m").alias("month")
    known = log.known.select(month, "head")
    total = known.group_by("month").agg(pl.len().cast(pl.Int64).alias("all")).sort("month")
    of_head = known.drop_nulls("head").group_by("month", "head").agg(pl.len().cast(pl.Int64).alias("n"))
    if not len(of_head):
        return total
    names = [str(head) for head in sorted(of_head["head"].unique().to_list())]
    wide = of_head.with_columns(pl.col("head").cast(pl.String)).pivot("head", index="month", values="n")
    return (
        total.select("month")
        .join(wide.select("month", *names), "month", "left")
        .fill_null(0)
        .join(total, "month")
        .sort("month")
    )


def by_attempt(log: Interactions, most: int = 10) -> pl.DataFrame:
    """Accuracy by the user's number of attempts at the same question (1 is the first), up to `most`."""
    number = pl.col("position").cum_count().over("user", "question").alias("attempt")
    return accuracy_by(log.rows.select("correct", number).filter(pl.col("attempt") <= most), "attempt")


def by_elapsed(log: Interactions, support: int) -> pl.DataFrame:
    """Accuracy by whole seconds since the user's previous row, durations with more than `support` answers (E19).

    A user's first row has no duration and is left out.
    """
    return accuracy_by(log.rows, "elapsed").filter(pl.col("n") > support)


def by_elapsed_band(log: Interactions) -> pl.DataFrame:
    """Accuracy by broad bands of the seconds since the user's previous row: every row counts."""
    timed = log.rows.select("elapsed", "correct").drop_nulls()
    band = np.searchsorted(BAND_ENDS, timed["elapsed"].to_numpy(), "left")
    counted = accuracy_by(timed.select("correct", pl.Series("band", band)), "band")
    labels = pl.Series("seconds", [BANDS[each] for each in counted["band"]], pl.String)
    return counted.select(labels, pl.exclude("band"))


def order_in_tests(log: Interactions) -> pl.DataFrame:
    """Steps between consecutive rows of one user in one test, by the difference of their tails (E20).

    Columns: step (tail - previous tail), n. Step 1 is the printed order; every other step violates it.
    """
    return _steps(log).group_by("step").agg(pl.len().cast(pl.Int64).alias("n")).sort("step")


def violations(log: Interactions) -> pl.DataFrame:
    """Transitions inside a test that do not go to the next tail, in all and per head."""
    steps = _steps(log)
    number = pl.len().cast(pl.Int64).alias("transitions")
    broken = (pl.col("step") != 1).sum().cast(pl.Int64).alias("violations")
    of_head = steps.group_by("head").agg(number, broken).sort("head").with_columns(pl.col("head").cast(pl.String))
    counted = pl.concat([steps.select(pl.lit("all").alias("head"), number, broken), of_head])
    return counted.with_columns((pl.col("violations") / pl.col("transitions")).fill_nan(None).alias("share"))


def _steps(log: Interactions) -> pl.DataFrame:
    """The transitions between consecutive rows of one user in one test: head, step."""
    inside = (pl.col("user") == pl.col("user").shift(1)) & (pl.col("test") == pl.col("test").shift(1))
    step = (pl.col("tail") - pl.col("tail").shift(1)).alias("step")
    return log.rows.select("head", step, inside.alias("inside")).filter("inside").drop_nulls("step").drop("inside")


def repeats(log: Interactions) -> pl.DataFrame:
    """Accuracy of first attempts at a question, and of answers to a question that the user had met before (E22)."""
    number = (pl.col("position").cum_count().over("user", "question") > 1).alias("again")
    counted = accuracy_by(log.rows.select("correct", number), "again")
    label = pl.when("again").then(pl.lit("repeated")).otherwise(pl.lit("first attempt")).alias("answer")
    return counted.select(label, pl.exclude("again"))
