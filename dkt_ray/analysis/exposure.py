"""Is what is met more often also answered better? Users, tags and tests by their number of answers (F11)."""

from __future__ import annotations

from typing import Final

import polars as pl

from dkt_ray.analysis.measures import histogram, line, pearson

BINS: Final = {"user": 300, "tag": 150, "test": 200}
DENSITY_BINS: Final = 40


def correlations(units: dict[str, pl.DataFrame]) -> pl.DataFrame:
    """Pearson's r of number of answers and accuracy over users, tags and tests: raw, per count, and binned.

    Columns: unit, way, n (points), r, low, high, slope (accuracy per 1,000 answers), intercept.
    """
    lines = []
    for unit in BINS:
        for way, points in ways(units[unit], BINS[unit]).items():
            slope, intercept = line(points["n"], points["accuracy"]) or (None, None)
            per_thousand = None if slope is None else 1000 * slope
            lines.append((unit, way, *pearson(points["n"], points["accuracy"]), per_thousand, intercept))
    floats = dict.fromkeys(("r", "low", "high", "slope_per_1000", "intercept"), pl.Float64)
    return pl.DataFrame(lines, {"unit": pl.String, "way": pl.String, "n": pl.Int64, **floats}, orient="row")


def ways(table: pl.DataFrame, bins: int) -> dict[str, pl.DataFrame]:
    """Points (n, accuracy, units): every unit; units of an identical count averaged; equally wide bins of the count."""
    raw = table.select(pl.col("n").cast(pl.Float64), "accuracy", pl.lit(1, pl.Int64).alias("units"))
    units = pl.len().cast(pl.Int64).alias("units")
    per_count = raw.group_by("n").agg(pl.col("accuracy").mean(), units).sort("n")
    width = pl.max_horizontal((pl.col("n").max() - pl.col("n").min()) / bins, pl.lit(1e-9))
    cell = ((pl.col("n") - pl.col("n").min()) / width).floor().clip(0, bins - 1).alias("cell")
    binned = raw.sort("n", "accuracy").with_columns(cell).group_by("cell", maintain_order=True)
    means = binned.agg(pl.col("n").mean(), pl.col("accuracy").mean(), units).sort("cell")
    return {"raw": raw, "per count": per_count, "binned": means.drop("cell")}


def split_at_mean(units: dict[str, pl.DataFrame]) -> pl.DataFrame:
    """Densities of accuracy of the units below and above their mean number of answers (E14, E15).

    Columns: unit, group, from, to, n, density (integrates to 1), mean accuracy, units.
    """
    parts = []
    for unit in BINS:
        table = units[unit]
        mean = table["n"].mean() or 0.0
        for group, chosen in (("up to the mean", pl.col("n") <= mean), ("above the mean", pl.col("n") > mean)):
            kept = table.filter(chosen)
            counted = histogram(kept["accuracy"], DENSITY_BINS, 0.0, 1.0)
            density = (pl.col("n") / max(len(kept), 1) * DENSITY_BINS).alias("density")
            names = (pl.lit(unit).alias("unit"), pl.lit(group).alias("group"))
            mean_accuracy = pl.lit(kept["accuracy"].mean(), pl.Float64).alias("mean_accuracy")
            parts.append(
                counted.select(*names, "from", "to", "n", density, mean_accuracy, pl.lit(len(kept)).alias("units"))
            )
    return pl.concat(parts)
