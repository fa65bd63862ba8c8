"""The work on one bucket of users, as pure functions: rows are dealt to buckets, a bucket's shards become histories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from dkt_ray.data.history import Coded, Histories
from dkt_ray.data.parse import canonical_concepts
from dkt_ray.data.splits import bucket_of
from dkt_ray.schema import CONCEPT_SEPARATOR


class Merged(NamedTuple):
    """A bucket's users, in the order of their names."""

    histories: Histories
    duplicates: int  # dropped rows


def deal(good: pl.DataFrame, source: int, buckets: int) -> dict[int, pa.Table]:
    """Split validated rows of one source into the buckets of their users.

    Args:
        good: rows as `parse.parse` gives them.
        source: place of the source among the inputs; rows remember it for the total order.
        buckets: number of buckets.

    Returns:
        bucket -> its rows (a shard); buckets without rows are absent.
    """
    dealt = good.with_columns(
        pl.lit(source, pl.Int32).alias("source"),
        pl.Series("bucket", bucket_of(good["user"].to_arrow(), buckets), pl.Int64),
    )
    parts = dealt.partition_by("bucket", include_key=False, as_dict=True)
    return {int(key[0]): part.to_arrow() for key, part in parts.items()}


def merge(shards: Sequence[pa.Table], timed: bool) -> Merged:
    """Merge the shards of one bucket, in any order.

    Rows follow the total order (user, timestamp, order, source, row), where `order` is the source's own order key, if
    its format has one. Rows of one user with the same key and question are one interaction: their concepts are united,
    all else is the first row's. A row is a duplicate when an earlier one equals it in all six columns, timestamp
    included; without timestamps none is, as a repeated answer then looks the same.
    """
    columns = ["user", "question", "test", "concepts", "correct", *(["timestamp"] if timed else []), "source", "row"]
    if not shards:
        return Merged(_empty(timed), 0)
    frame = pl.concat([_with_order(pl.DataFrame(shard)).select(*columns, "order") for shard in shards])
    order = ["user", *(["timestamp"] if timed else []), "order", "source", "row"]
    whole = _unite(frame.sort(order), order)
    kept = _distinct(whole, columns[:-2]) if timed else whole
    return Merged(_histories(kept, timed), len(whole) - len(kept))


def _distinct(rows: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    """The first of rows that are equal in the given columns; rows of one user and time follow each other."""
    again = rows.select(
        pl.all_horizontal(pl.col(name).eq_missing(pl.col(name).shift()) for name in ("user", "timestamp"))
    ).to_series()
    tied = again | again.shift(-1, fill_value=False)  # few: only these can be equal
    first = np.ones(len(rows), bool)
    first[tied.to_numpy()] = rows.filter(tied).select(pl.struct(columns).is_first_distinct()).to_series().to_numpy()
    return rows if first.all() else rows.filter(pl.Series(first))


def _with_order(shard: pl.DataFrame) -> pl.DataFrame:
    return shard if "order" in shard else shard.with_columns(pl.lit(None, pl.Int64).alias("order"))


def _unite(rows: pl.DataFrame, order: Sequence[str]) -> pl.DataFrame:
    """Make one interaction of the rows, sorted by `order`, that share user, order key and question."""
    key = ["user", "order", "question"]
    keyed = rows["order"].is_not_null()
    several = rows.select(pl.struct(key).is_duplicated() & keyed).to_series() if keyed.any() else keyed
    if not several.any():
        return rows
    first = pl.all().exclude(*key, "concepts").first()
    joined = pl.col("concepts").str.join(CONCEPT_SEPARATOR)
    united = rows.filter(several).group_by(key, maintain_order=True).agg(first, joined)
    united = united.with_columns(canonical_concepts(united["concepts"]))
    return pl.concat([rows.filter(~several), united.select(rows.columns)]).sort(order)


def _histories(rows: pl.DataFrame, timed: bool) -> Histories:
    """Histories of rows that are grouped by user."""
    runs = rows["user"].rle().struct.unnest()
    return Histories(
        users=runs["value"].to_numpy().astype(object),
        offsets=np.concatenate([[0], np.cumsum(runs["len"].to_numpy())]).astype(np.int64),
        question=Coded.of(rows["question"].to_arrow()),
        test=Coded.of(rows["test"].to_arrow()),
        concepts=Coded.of(rows["concepts"].to_arrow()),
        correct=rows["correct"].to_numpy(),
        timestamp=rows["timestamp"].to_numpy() if timed else None,
    )


def _empty(timed: bool) -> Histories:
    nothing = Coded(np.empty(0, np.int32), np.empty(0, object))
    return Histories(
        users=np.empty(0, object),
        offsets=np.zeros(1, np.int64),
        question=nothing,
        test=nothing,
        concepts=nothing,
        correct=np.empty(0, np.int8),
        timestamp=np.empty(0, np.int64) if timed else None,
    )
