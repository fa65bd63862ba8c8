"""The few statistics that the analysis shares: moments, accuracies with intervals, correlations, distances.

A figure that does not exist (no rows, no spread) is null.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

Floats = npt.NDArray[np.float64]

Z: Final = 1.959963984540054  # of a 95 % interval
MOMENTS: Final = ("n", "mean", "std", "min", "25 %", "50 %", "75 %", "max")
SMALLEST_SHARE: Final = 1e-4  # of a bin in `stability`, so that an empty bin does not make it infinite


class Correlation(NamedTuple):
    """A Pearson correlation with its 95 % interval by Fisher's z; None where it does not exist."""

    n: int
    r: float | None
    low: float | None
    high: float | None


def moments(columns: Mapping[str, pl.Series]) -> pl.DataFrame:
    """One line per series: n, mean, sample standard deviation, minimum, quartiles (linear), maximum."""
    lines = []
    for name, values in columns.items():
        known = values.drop_nulls().cast(pl.Float64)
        quartiles = [known.quantile(share, "linear") for share in (0.25, 0.5, 0.75)]
        lines.append((name, len(known), known.mean(), known.std(), known.min(), *quartiles, known.max()))
    floats = dict.fromkeys(MOMENTS[1:], pl.Float64)
    return pl.DataFrame(lines, {"statistic": pl.String, "n": pl.Int64, **floats}, orient="row")


def accuracy_by(rows: pl.DataFrame, *keys: str) -> pl.DataFrame:
    """Known answers (n), right ones and their share (accuracy, with its 95 % Wilson interval) per key, keys ascending.

    Args:
        rows: the keys and `correct`, 1 or 0; rows with a null key or answer are left out.
    """
    kept = rows.select(*keys, "correct").drop_nulls()
    counted = kept.group_by(*keys).agg(pl.len().cast(pl.Int64).alias("n"), pl.col("correct").cast(pl.Int64).sum())
    return with_share(counted.rename({"correct": "right"}).sort(*keys))


def with_share(counted: pl.DataFrame) -> pl.DataFrame:
    """Add `accuracy`, right / n, with its 95 % Wilson interval `low` to `high`."""
    low, high = wilson(counted["right"].to_numpy(), counted["n"].to_numpy())
    share = (pl.col("right") / pl.col("n")).fill_nan(None).alias("accuracy")
    return counted.with_columns(share, pl.Series("low", low), pl.Series("high", high))


def wilson(right: npt.NDArray[np.integer], n: npt.NDArray[np.integer]) -> tuple[Floats, Floats]:
    """95 % score interval of a share (Wilson, 1927); from 0 to 1 where there is nothing to count."""
    tried = np.maximum(n, 1).astype(np.float64)
    share = right / tried
    spread = Z * np.sqrt(share * (1 - share) / tried + Z**2 / (4 * tried**2))
    centre, scale = share + Z**2 / (2 * tried), 1 + Z**2 / tried
    low, high = np.clip((centre - spread) / scale, 0, 1), np.clip((centre + spread) / scale, 0, 1)
    return np.where(n > 0, low, 0.0), np.where(n > 0, high, 1.0)


def pearson(x: Sequence[float] | pl.Series, y: Sequence[float] | pl.Series) -> Correlation:
    """Correlation over the pairs where both are known (interval: Fisher, 1921; from 4 pairs on)."""
    pairs = pl.DataFrame({"x": x, "y": y}, strict=False).cast(pl.Float64).drop_nulls().to_numpy()
    n = len(pairs)
    if n < 2 or not (np.ptp(pairs, axis=0) > 0).all():
        return Correlation(n, None, None, None)
    centred = pairs - pairs.mean(0)
    r = float((centred[:, 0] * centred[:, 1]).sum() / math.sqrt(float(np.prod((centred**2).sum(0)))))
    r = max(-1.0, min(1.0, r))
    if n < 4 or abs(r) == 1:
        return Correlation(n, r, None, None)
    z, half = math.atanh(r), Z / math.sqrt(n - 3)
    return Correlation(n, r, math.tanh(z - half), math.tanh(z + half))


def line(x: Sequence[float] | pl.Series, y: Sequence[float] | pl.Series) -> tuple[float, float] | None:
    """Slope and intercept of the least-squares line; None without a spread in x."""
    pairs = pl.DataFrame({"x": x, "y": y}, strict=False).cast(pl.Float64).drop_nulls().to_numpy()
    if len(pairs) < 2 or np.ptp(pairs[:, 0]) == 0:
        return None
    centred = pairs - pairs.mean(0)
    slope = float((centred[:, 0] * centred[:, 1]).sum() / (centred[:, 0] ** 2).sum())
    return slope, float(pairs[:, 1].mean() - slope * pairs[:, 0].mean())


def kolmogorov(first: pl.Series, second: pl.Series) -> float | None:
    """Largest distance between two empirical distribution functions (the two-sample Kolmogorov-Smirnov statistic)."""
    a, b = (np.sort(each.drop_nulls().to_numpy()) for each in (first, second))
    if not len(a) or not len(b):
        return None
    grid = np.concatenate([a, b])
    return float(np.abs(np.searchsorted(a, grid, "right") / len(a) - np.searchsorted(b, grid, "right") / len(b)).max())


def stability(first: npt.NDArray[np.integer], second: npt.NDArray[np.integer]) -> float | None:
    """Population stability index of two histograms over the same bins: sum (p - q) ln (p / q) (Siddiqi, 2006)."""
    if not first.sum() or not second.sum():
        return None
    p, q = (np.maximum(each / each.sum(), SMALLEST_SHARE) for each in (first, second))
    return float(((p - q) * np.log(p / q)).sum())


def histogram(values: pl.Series, bins: int, low: float | None = None, high: float | None = None) -> pl.DataFrame:
    """Equally wide bins: from, to, n (the last one holds its upper end)."""
    known = values.drop_nulls().cast(pl.Float64).to_numpy()
    schema = {"from": pl.Float64, "to": pl.Float64, "n": pl.Int64}
    if not len(known):
        return pl.DataFrame(schema=schema)
    ends = (float(known.min()) if low is None else low, float(known.max()) if high is None else high)
    counts, edges = np.histogram(known, bins, ends if ends[0] < ends[1] else (ends[0] - 0.5, ends[0] + 0.5))
    return pl.DataFrame({"from": edges[:-1], "to": edges[1:], "n": counts}, schema)
