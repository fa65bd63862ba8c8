"""A map of histories in two dimensions: users by how they work, from the rows before their last one (F16).

Legend: U users, F columns.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from dkt_ray.analysis.interactions import Interactions

Floats = npt.NDArray[np.float64]

PLAIN: Final = ("accuracy", "accuracy of the last 10", "accuracy of the last 30", "accuracy in the last test")
LOGGED: Final = (
    *("questions", "questions per cycle", "days from first to last", "days between cycles"),
    "seconds between answers in a cycle",
)
PERPLEXITY: Final = 30.0
FEWEST: Final = 10  # users for a t-SNE


def vectors(log: Interactions, features: pl.DataFrame) -> tuple[Floats, list[str]]:
    """Standardised columns per user of `features`, [U, F], and their names: habits and head shares weigh alike.

    What is not known of a user stands at the mean; a column without a spread is left out.
    """
    users = features["user"].to_numpy()
    rows = log.rows.filter(pl.col("position") < pl.len().over("user") - 1).drop_nulls("head")
    counted = rows.group_by("user", "head").agg(pl.len().cast(pl.Int64).alias("n"))
    heads = sorted(counted["head"].unique().to_list())
    share = np.zeros((len(users), len(heads)))
    at = (np.searchsorted(users, counted["user"].to_numpy()), np.searchsorted(heads, counted["head"].to_numpy()))
    share[at] = counted["n"].to_numpy()
    share /= np.maximum(share.sum(1, keepdims=True), 1)
    plain = [features[name].to_numpy() for name in PLAIN]
    logged = [np.log1p(np.maximum(features[name].to_numpy(), 0)) for name in LOGGED]
    habits, kept = _standardised(np.stack([*plain, *logged], 1), [*PLAIN, *(f"log {name}" for name in LOGGED)])
    parts, kept_heads = _standardised(share, [f"share of head {head}" for head in heads])
    return np.concatenate([habits, parts], 1), kept + kept_heads


def project(log: Interactions, features: pl.DataFrame, sample: int, seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The map, a line per user, and what its axes mean.

    Args:
        features: `aggregates.features`.
        sample: users of the t-SNE, evenly spread over the names; 0: none.
        seed: of the t-SNE.

    Returns:
        user, questions, accuracy, last (answer), head (most frequent one), pc1, pc2, tsne1, tsne2 (null: not sampled);
        and per column its loading on both principal components, with their explained share in the line "explained".
    """
    values, names = vectors(log, features)
    components, loadings, explained = _principal(values)
    table = features.select("user", "questions", "accuracy", "last").join(_main_head(log), "user", "left")
    names_of = pl.Series("user", log.users[features["user"].to_numpy()].astype(str), pl.String)
    places = _neighbours(values, sample, seed)
    table = table.with_columns(
        names_of, pl.Series("pc1", components[:, 0]), pl.Series("pc2", components[:, 1]),
        pl.Series("tsne1", places[:, 0]).fill_nan(None), pl.Series("tsne2", places[:, 1]).fill_nan(None),
    )  # fmt: skip
    axes = pl.DataFrame({"column": [*names, "explained"]}).with_columns(
        pl.Series(f"pc{axis + 1}", [*loadings[:, axis], explained[axis]], pl.Float64) for axis in range(2)
    )
    return table, axes


def _standardised(columns: Floats, names: list[str]) -> tuple[Floats, list[str]]:
    """Mean 0 and a variance that sums to 1 over the columns; nan becomes 0."""
    known = np.isfinite(columns)
    count = np.maximum(known.sum(0), 1)
    mean = np.where(known, columns, 0.0).sum(0) / count
    centred = np.where(known, columns - mean, 0.0)
    spread = np.sqrt((centred**2).sum(0) / count)
    kept = np.flatnonzero(spread > 1e-12)
    return centred[:, kept] / spread[kept] / np.sqrt(max(len(kept), 1)), [names[column] for column in kept]


def _principal(values: Floats) -> tuple[Floats, Floats, Floats]:
    """Places [U, 2] on the first two principal components, loadings [F, 2], explained shares [2].

    The largest loading of a component is positive, which fixes its sign.
    """
    users, width = values.shape
    loadings, explained = np.zeros((width, 2)), np.zeros(2)
    if users > 1 and width:
        variance, vectors_of = np.linalg.eigh(values.T @ values)
        found = min(2, width)
        chosen = vectors_of[:, ::-1][:, :found]
        sign = np.sign(chosen[np.abs(chosen).argmax(0), np.arange(found)])
        loadings[:, :found] = chosen * np.where(sign == 0, 1.0, sign)
        explained[:found] = variance[::-1][:found] / max(float(variance.sum()), 1e-12)
    return values @ loadings, loadings, explained


def _neighbours(values: Floats, sample: int, seed: int) -> Floats:
    """Places by t-SNE (van der Maaten and Hinton, 2008), [U, 2]; nan for users who are not in the sample."""
    places = np.full((len(values), 2), np.nan)
    spread = np.linspace(0, max(len(values) - 1, 0), min(sample, len(values)))
    chosen = np.unique(spread.astype(np.int64))
    if len(chosen) < FEWEST or not values.shape[1]:
        return places
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(chosen) - 1) / 3)
    model = TSNE(2, perplexity=perplexity, init=_principal(values[chosen])[0], random_state=seed, learning_rate="auto")
    places[chosen] = model.fit_transform(values[chosen])
    return places


def _main_head(log: Interactions) -> pl.DataFrame:
    counted = log.rows.drop_nulls("head").group_by("user", "head").agg(pl.len().alias("n"))
    ordered = counted.sort(["user", "n", "head"], descending=[False, True, False])
    return ordered.unique("user", keep="first", maintain_order=True).select("user", "head")
