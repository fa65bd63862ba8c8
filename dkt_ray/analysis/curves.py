"""Learning curves: accuracy along a history, per chosen user and over all of them (F12)."""

from __future__ import annotations

from typing import Final

import polars as pl

from dkt_ray.analysis.interactions import Interactions
from dkt_ray.analysis.measures import accuracy_by

WINDOWS: Final = (30, 70, 100, 120)


def median_users(log: Interactions, most: int) -> list[int]:
    """Codes of the users whose number of known answers is nearest to the median."""
    size = log.known.group_by("user").agg(pl.len().cast(pl.Float64).alias("n"))
    away = size.with_columns((pl.col("n") - pl.col("n").median()).abs().alias("away"))
    return away.sort("away", "user").head(most)["user"].to_list()


def heaviest_users(log: Interactions, most: int) -> list[int]:
    """Codes of the users with the most known answers."""
    size = log.known.group_by("user").agg(pl.len().alias("n"))
    return size.sort(["n", "user"], descending=[True, False]).head(most)["user"].to_list()


def cumulative(log: Interactions, users: list[int]) -> pl.DataFrame:
    """Right answers so far / answers so far, after each known answer (E17): user, answer (from 1), accuracy."""
    kept = log.known.filter(pl.col("user").is_in(users))
    number = pl.col("position").cum_count().over("user").cast(pl.Int64)
    share = pl.col("correct").cast(pl.Int64).cum_sum().over("user") / number
    return _named(kept.select("user", number.alias("answer"), share.alias("accuracy")), log)


def windowed(log: Interactions, users: list[int]) -> pl.DataFrame:
    """Share of right answers among the last 30, 70, 100, 120 known ones (E18): user, window, answer, accuracy."""
    kept = log.known.filter(pl.col("user").is_in(users))
    number = pl.col("position").cum_count().over("user").cast(pl.Int64).alias("answer")
    total = pl.col("correct").cast(pl.Int64).cum_sum().over("user").alias("total")
    sums = kept.select("user", number, total)
    parts = []
    for window in WINDOWS:
        before = pl.col("total").shift(window).over("user").fill_null(0)
        share = ((pl.col("total") - before) / window).alias("accuracy")
        part = sums.select("user", pl.lit(window, pl.Int64).alias("window"), "answer", share)
        parts.append(part.filter(pl.col("answer") >= window))
    return _named(pl.concat(parts), log)


def by_position(log: Interactions) -> pl.DataFrame:
    """Accuracy by the number of earlier rows, in bands that double: who answers much is not who answers little."""
    band = (pl.col("position") + 1).log(2).floor().cast(pl.Int64).alias("band")
    counted = accuracy_by(log.rows.select("correct", band), "band")
    first = (pl.lit(2, pl.Int64).pow(pl.col("band")) - 1).cast(pl.Int64)
    last = (pl.lit(2, pl.Int64).pow(pl.col("band") + 1) - 2).cast(pl.Int64)
    return counted.select(first.alias("from"), last.alias("to"), pl.exclude("band"))


def by_practice(log: Interactions, most: int = 30) -> pl.DataFrame:
    """Accuracy by the user's number of earlier answers to the same tag, up to `most`: the curve of practice."""
    rows = log.rows.select("user", "correct")[log.tags["row"]].with_columns(log.tags["tag"])
    earlier = (pl.int_range(pl.len(), dtype=pl.Int64).over("user", "tag")).alias("earlier")
    return accuracy_by(rows.select("correct", earlier).filter(pl.col("earlier") <= most), "earlier")


def months_of_a_user(log: Interactions, user: int) -> pl.DataFrame:
    """What one user worked on: per month and head the tests, in order of the first answer (E27)."""
    month = pl.from_epoch("ms", "ms").dt.strftime("%Y-%m").alias("month")
    rows = log.rows.filter(pl.col("user") == user).select(month, "head", "test").drop_nulls("test")
    names = pl.Series("test", log.tests[rows["test"].to_numpy()].astype(str), pl.String)
    grouped = rows.with_columns(names).group_by("month", "head", maintain_order=True)
    tests = pl.col("test").unique(maintain_order=True)
    return grouped.agg(
        pl.len().cast(pl.Int64).alias("answers"), tests.len().alias("tests"), tests.str.join(" ").alias("names")
    )


def _named(table: pl.DataFrame, log: Interactions) -> pl.DataFrame:
    return table.with_columns(pl.Series("user", log.users[table["user"].to_numpy()].astype(str), pl.String))
