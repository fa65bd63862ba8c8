"""The 13 aggregate features of a user, from the rows before the last one (reference 4.2), and what they correlate with.

Legend: U users, N interactions.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl

from dkt_ray.analysis.interactions import DAY_MS, Interactions
from dkt_ray.analysis.measures import Correlation, pearson

RECENT: Final = (10, 30, 50, 100)
FEATURES: Final = (
    *(
        "questions",
        "right",
        "accuracy",
        "cycles",
        "questions per cycle",
        "days from first to last",
        "days between cycles",
    ),
    *(f"accuracy of the last {n}" for n in RECENT),
    *("accuracy in the last test", "seconds between answers in a cycle"),
)


def features(log: Interactions) -> pl.DataFrame:
    """One line per user with at least two rows: the features, and `last`, the last answer (null: hidden).

    A cycle is one day (UTC) of a user in one test. A feature that the data cannot give (no time, no tests) is null.
    """
    size = pl.len().over("user")
    rows = log.rows.with_columns((pl.col("position") == size - 1).alias("final"), size.alias("size"))
    rows = rows.filter(pl.col("size") > 1)
    past, ends = rows.filter(~pl.col("final")), rows.filter("final")
    counted = past.group_by("user").agg(
        pl.len().cast(pl.Int64).alias("questions"),
        pl.col("correct").cast(pl.Int64).sum().alias("right"),
        (pl.col("correct").cast(pl.Int64).sum() / pl.col("correct").count()).alias("accuracy"),
    )
    same = past.join(ends.select("user", "test"), ["user", "test"]).group_by("user")
    in_test = same.agg(pl.col("correct").cast(pl.Int64).mean().alias("accuracy in the last test"))
    joined = ends.select("user", pl.col("correct").alias("last"))
    for part in (counted, _recent(past), in_test, *_cycles(past, log)):
        joined = joined.join(part, "user", "left")
    missing = [pl.lit(None, pl.Float64).alias(name) for name in FEATURES if name not in joined.columns]
    floats = pl.col(FEATURES).cast(pl.Float64).fill_nan(None)
    return joined.with_columns(*missing).with_columns(floats).select("user", *FEATURES, "last").sort("user")


def correlations(found: pl.DataFrame) -> pl.DataFrame:
    """Pearson's r of every feature with the user's accuracy (E1) and with the last answer (E2), with n and interval."""
    lines = []
    for name in FEATURES:
        itself = Correlation(0, None, None, None)  # accuracy with itself says nothing
        with_accuracy = itself if name == "accuracy" else pearson(found[name], found["accuracy"])
        lines.append((name, *with_accuracy, *pearson(found[name], found["last"])))
    kinds = {"n": pl.Int64, "r": pl.Float64, "low": pl.Float64, "high": pl.Float64}
    names = [f"{each}_{column}" for each in ("accuracy", "last") for column in kinds]
    return pl.DataFrame(
        lines, {"feature": pl.String} | dict(zip(names, [*kinds.values()] * 2, strict=True)), orient="row"
    )


def _recent(past: pl.DataFrame) -> pl.DataFrame:
    """Accuracy of each user's last 10, 30, 50, 100 known answers, by prefix sums."""
    known = past.drop_nulls("correct")
    users, first, size = np.unique(known["user"].to_numpy(), return_index=True, return_counts=True)
    total = np.concatenate([[0], np.cumsum(known["correct"].to_numpy(), dtype=np.int64)])
    columns = {}
    for n in RECENT:
        taken = np.minimum(size, n)
        columns[f"accuracy of the last {n}"] = (total[first + size] - total[first + size - taken]) / taken
    return pl.DataFrame({"user": users.astype(np.int32)} | columns)


def _cycles(past: pl.DataFrame, log: Interactions) -> list[pl.DataFrame]:
    """What time tells (span), and what time and tests tell (cycles)."""
    if not log.timed:
        return []
    span = (pl.col("ms").max() - pl.col("ms").min()) / DAY_MS
    spans = past.group_by("user").agg(span.alias("days from first to last"))
    if not log.tested:
        return [spans]
    day = (pl.col("ms").floordiv(DAY_MS)).alias("day")
    cycles = (
        past.with_columns(day)
        .group_by("user", "day", "test", maintain_order=True)
        .agg(pl.col("ms").min().alias("start"), pl.col("ms").max().alias("end"), pl.len().cast(pl.Int64).alias("n"))
    )
    gap = pl.when(pl.col("n") > 1).then((pl.col("end") - pl.col("start")) / 1000 / (pl.col("n") - 1)).otherwise(0.0)
    between = (pl.col("start") - pl.col("end").shift(1)).drop_nulls().sum() / (pl.len() - 1) / DAY_MS
    of_user = cycles.group_by("user").agg(
        pl.len().cast(pl.Int64).alias("cycles"),
        (pl.col("n").sum() / pl.len()).alias("questions per cycle"),
        pl.when(pl.len() > 1).then(between).otherwise(0.0).alias("days between cycles"),
        (gap.sum() / pl.len()).alias("seconds between answers in a cycle"),
    )
    return [spans, of_user]
