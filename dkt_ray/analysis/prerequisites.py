"""Which concept comes before which: directed matrices over users, by sparse products (F08).

R(A, B) is the share of the users who were right on A and tried B that were right on B. "Right on a tag" is at least one
right answer on it. R is not symmetric: R(A, B) well above R(B, A) says that who masters A nearly always masters B.

Legend: U users, G tags.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from scipy import sparse
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from dkt_ray.analysis.interactions import Interactions
from dkt_ray.analysis.measures import wilson


def pairs(tagged: pl.DataFrame, users: int, tags: int) -> pl.DataFrame:
    """All directed pairs of different tags that a user tried both of, by code.

    Columns: a, b; tried (users who tried both), support (of them, right on A), both (of them, right on B too), right_b
    (of those who tried both, right on B), joint (right on both and wrong on both); r = both / support with its 95 %
    Wilson interval low to high; base = right_b / tried; lift = r - base; joint_share = joint / tried.

    Args:
        tagged: tag, user and correct (1 or 0), a line per answer and tag.
    """
    seen = tagged.group_by("user", "tag").agg(
        (pl.col("correct") == 1).any().alias("right"), (pl.col("correct") == 0).any().alias("wrong")
    )

    def matrix(chosen: pl.DataFrame) -> sparse.csr_matrix:
        place = (chosen["user"].to_numpy(), chosen["tag"].to_numpy())
        return sparse.csr_matrix((np.ones(len(chosen), np.int32), place), shape=(users, tags))

    tried, right = matrix(seen), matrix(seen.filter("right"))
    mixed = matrix(seen.filter(pl.col("right") & pl.col("wrong")))
    counts = (tried.T @ tried, right.T @ tried, right.T @ right, tried.T @ right, mixed.T @ mixed)
    found = _long(counts)
    low, high = wilson(found["both"].to_numpy(), found["support"].to_numpy())
    share = pl.when(pl.col("support") > 0).then(pl.col("both") / pl.col("support"))
    base = pl.col("right_b") / pl.col("tried")
    return found.with_columns(
        share.alias("r"),
        pl.Series("low", low),
        pl.Series("high", high),
        base.alias("base"),
        (share - base).alias("lift"),
        (pl.col("joint") / pl.col("tried")).alias("joint_share"),
    )


def _long(counts: tuple[sparse.csr_matrix, ...]) -> pl.DataFrame:
    """The counts of all off-diagonal pairs that anybody tried, in order of a, b."""
    tried = counts[0].tocoo()
    order = np.lexsort((tried.col, tried.row))
    a, b = tried.row[order], tried.col[order]
    off = a != b
    a, b = a[off], b[off]
    width = counts[0].shape[1]
    wanted = a.astype(np.int64) * width + b
    columns = {"a": a.astype(np.int32), "b": b.astype(np.int32)}
    for name, count in zip(("tried", "support", "both", "right_b", "joint"), counts, strict=True):
        values = np.zeros(len(wanted), np.int64)
        cells = count.tocoo()
        away = cells.row != cells.col  # whoever was right on both has tried both: every other cell is in `wanted`
        keys = cells.row[away].astype(np.int64) * width + cells.col[away]
        values[np.searchsorted(wanted, keys)] = cells.data[away]
        columns[name] = values
    return pl.DataFrame(columns)


def per_head(log: Interactions) -> pl.DataFrame:
    """`pairs` inside each head, from that head's rows only: head, and the columns of `pairs`."""
    tagged = log.tagged("user", "head").drop_nulls("head")
    parts = []
    for head in sorted(tagged["head"].unique().to_list()):
        rows = tagged.filter(pl.col("head") == head)
        found = pairs(rows, len(log.users), len(log.concepts))
        parts.append(found.select(pl.lit(head, pl.Int16).alias("head"), pl.all()))
    return pl.concat(parts) if parts else pairs(tagged, 1, 1).with_columns(pl.lit(0, pl.Int16).alias("head"))


def asymmetric(found: pl.DataFrame, support: int, most: int) -> pl.DataFrame:
    """The pairs whose two directions differ most beyond chance: by low(A, B) - high(B, A), both well supported.

    Args:
        found: `pairs`.
        support: users right on the first and having tried the second, in both directions, at least.
        most: number of pairs.
    """
    kept = found.filter(pl.col("support") >= support)
    back = kept.select(
        pl.col("b").alias("a"), pl.col("a").alias("b"),
        *(pl.col(name).alias(f"{name}_back") for name in ("r", "support", "high")),
    )  # fmt: skip
    both = kept.join(back, ["a", "b"]).with_columns((pl.col("low") - pl.col("high_back")).alias("gap"))
    return both.filter(pl.col("gap") > 0).sort(["gap", "a", "b"], descending=[True, False, False]).head(most)


def lifted(found: pl.DataFrame, support: int, most: int) -> pl.DataFrame:
    """The pairs where being right on A says most about B: by low(A, B) - base(B), well supported."""
    kept = found.filter(pl.col("support") >= support).with_columns((pl.col("low") - pl.col("base")).alias("gap"))
    return kept.filter(pl.col("gap") > 0).sort(["gap", "a", "b"], descending=[True, False, False]).head(most)


def named(found: pl.DataFrame, log: Interactions) -> pl.DataFrame:
    """The pairs with tags' names in place of codes."""
    names = log.concepts
    return found.with_columns(pl.Series(c, names[found[c].to_numpy()].astype(str), pl.String) for c in ("a", "b"))


def dense(found: pl.DataFrame, column: str, tags: list[int], support: int) -> np.ndarray:
    """A column of `pairs` in whole percent, int8 [G, G] over the given tags; -1 where support is too small."""
    place = pl.DataFrame({"tag": pl.Series(tags, dtype=pl.Int32), "at": pl.Series(range(len(tags)), dtype=pl.Int64)})
    kept = found.filter(pl.col("support") >= support).drop_nulls(column)
    kept = kept.join(place, left_on="a", right_on="tag").join(place, left_on="b", right_on="tag", suffix="_b")
    matrix = np.full((len(tags), len(tags)), -1, np.int8)
    matrix[kept["at"].to_numpy(), kept["at_b"].to_numpy()] = np.rint(100 * kept[column].to_numpy())
    return matrix


def clustered(found: pl.DataFrame, tags: list[int], support: int) -> list[int]:
    """The tags in the order of a hierarchical clustering (average linkage) of 1 - (R(A, B) + R(B, A)) / 2."""
    if len(tags) < 3:
        return tags
    matrix = dense(found, "r", tags, support).astype(np.float64) / 100
    known = matrix >= 0
    matrix[~known] = matrix[known].mean() if known.any() else 0.0
    distance = 1 - (matrix + matrix.T) / 2
    np.fill_diagonal(distance, 0.0)
    leaves = hierarchy.leaves_list(hierarchy.linkage(squareform(distance, checks=False), "average"))
    return [tags[leaf] for leaf in leaves]


def most_tried(log: Interactions, most: int) -> list[int]:
    """Codes of the tags with the most known answers, by head, then by name."""
    tagged = log.tagged("head")
    counted = tagged.group_by("tag").agg(pl.len().alias("n"), pl.col("head").min())
    kept = counted.sort(["n", "tag"], descending=[True, False]).head(most)
    return kept.sort("head", "tag", nulls_last=True)["tag"].to_list()
