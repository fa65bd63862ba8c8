"""The stages of `dkt prepare` over buckets of users: merge, split, count, fit; each task reads and writes one bucket.

Tasks keep what they make under names that follow from its content, so that a task that runs twice changes nothing.

Legend: U users of one bucket or, in the split, of the dataset.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import operator
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from dkt_ray.data import splits
from dkt_ray.data.buckets import merge
from dkt_ray.data.engine import Engine
from dkt_ray.data.history import Histories, Int8, Int64, graded
from dkt_ray.data.ingest import DataConfig
from dkt_ray.data.splits import TEST, UserFacts, mix, stable_hash
from dkt_ray.features.chunks import encode_chunks
from dkt_ray.features.dataset import Bucket
from dkt_ray.features.difficulty import Counts, count
from dkt_ray.features.difficulty import merge as add_counts
from dkt_ray.features.profile import Profile, merge_profiles, profile
from dkt_ray.features.state import EncoderConfig, EncoderState, Moments, fit, moments
from dkt_ray.features.structure import consistent
from dkt_ray.storage import Store
from dkt_ray.storage.store import DIGEST_CHARACTERS

logger = logging.getLogger(__name__)

FACTS: Final = ("rows", "hidden", "graded", "last", "before")  # stored beside each user's history
AT_ONCE: Final = 8  # buckets whose counts or profiles are in memory together


class Divided(NamedTuple):
    """A dataset's users and their split, cut into buckets again."""

    key: str  # of the stored split
    bytes: int
    buckets: tuple[tuple[Int8, Int64], ...]  # fold and cut of each bucket's users, [U]
    test_users: int
    held_out: int
    hidden: int


class Fitted(NamedTuple):
    """The encoder's state and where it is stored."""

    state: EncoderState
    prefix: str
    bytes: int


def merge_buckets(
    engine: Engine,
    shards: Mapping[int, Sequence[str]],
    old: Sequence[Bucket],
    buckets: int,
    timed: bool,
    split_ms: int | None,
    files: Store,
    work: Store,
) -> list[Bucket]:
    """Make the histories of every bucket that has new rows; the others stay what they were.

    Args:
        shards: bucket -> keys of its new rows in the work folder.
        old: the buckets of the dataset that rows are added to; empty where there is none.
        timed: whether rows have timestamps.
        split_ms: the split time of a temporal split, ms UTC.
    """
    todo = [bucket for bucket in range(buckets) if not old or bucket in shards]
    items = [
        {"bucket": bucket, "keys": [*shards.get(bucket, [])], "old": old[bucket].histories if old else ""}
        for bucket in todo
    ]
    task = partial(_merge_bucket, timed=timed, split_ms=split_ms, files=files, work=work)
    made = dict(enumerate(old))
    for bucket, report in zip(todo, engine.run(task, items, "merge buckets"), strict=True):
        report["duplicates"] += old[bucket].duplicates if old else 0
        made[bucket] = Bucket(counts="", counts_bytes=0, **report)
    return [made[bucket] for bucket in range(buckets)]


def _merge_bucket(item: dict[str, Any], timed: bool, split_ms: int | None, files: Store, work: Store) -> dict[str, Any]:
    tables = [work.read_table(key) for key in item["keys"]]
    if item["old"]:
        tables.append(_as_shard(Histories.from_table(files.read_table(item["old"]))))
    histories, duplicates = merge(tables, timed)
    table = histories.to_table()
    for name, column in facts(histories, split_ms).items():
        table = table.append_column(name, pa.array(column, pa.int32()))
    kept = files.keep_table(f"histories/b={item['bucket']:03d}", table)
    return {
        "histories": kept.key,
        "histories_bytes": kept.bytes,
        "rows": histories.rows,
        "users": len(histories.users),
        "duplicates": duplicates,
        "checksum": f"{checksum(histories):016x}",
    }


def facts(histories: Histories, split_ms: int | None) -> dict[str, Int64]:
    """What a split may know of each user, [U] each: the columns of `splits.UserFacts` without the names."""
    known = graded(histories.correct)
    position = np.arange(histories.rows) - np.repeat(histories.offsets[:-1], histories.lengths)
    starts = histories.offsets[:-1]
    last = np.maximum.reduceat(np.where(known, position, -1), starts) if histories.rows else np.empty(0, np.int64)
    before = np.zeros(histories.rows, bool)
    if split_ms is not None and histories.timestamp is not None:
        before = histories.timestamp < split_ms
    return {
        "rows": histories.lengths,
        "hidden": _per_user(~known, histories.offsets),
        "graded": _per_user(known, histories.offsets),
        "last": last,
        "before": _per_user(before, histories.offsets),
    }


def checksum(histories: Histories) -> int:
    """A 64-bit sum of hashes of all rows, each with its user and its place: the same however users are grouped."""
    position = np.arange(histories.rows) - np.repeat(histories.offsets[:-1], histories.lengths)
    parts: list[npt.NDArray[Any]] = [stable_hash(histories.users, 0).repeat(histories.lengths), position]
    for column in (histories.question, histories.test, histories.concepts):
        parts.append(stable_hash(column.values, 0)[column.codes] if histories.rows else np.empty(0, np.uint64))
    parts.append(histories.correct)
    if histories.timestamp is not None:
        parts.append(histories.timestamp)
    state = np.zeros(histories.rows, np.uint64)
    for part in parts:
        state = mix(state ^ part.astype(np.uint64))  # of a negative number: its two's complement
    return int(state.sum(dtype=np.uint64))


def divide(
    config: DataConfig, folds: int, buckets: Sequence[Bucket], split_file: pa.Table | None, files: Store
) -> Divided:
    """Split the users of the whole dataset (in the driver: a few numbers per user), and store it as one small table.

    Args:
        folds: number of training folds, K.
        split_file: the published split, where there is one.
    """
    tables = [files.read_table(bucket.histories, ["user", *FACTS]) for bucket in buckets]
    table = pa.concat_tables(tables).combine_chunks()
    order = pc.sort_indices(table["user"]).to_numpy()
    named = table.take(order)
    columns = {name: named[name].to_numpy().astype(np.int64) for name in FACTS}
    everyone = UserFacts(named["user"].to_numpy().astype(object), **columns)
    made = splits.split(
        everyone,
        config.split_kind,
        seed=config.seed,
        test_fraction=config.test_fraction,
        folds=folds,
        file=split_file,
    )
    sizes = np.bincount(made.fold[made.fold != TEST], minlength=folds)
    if (sizes == 0).any():
        logger.warning("fold %d of %d has no user of the data: its fits are for nothing", int(np.argmin(sizes)), folds)
    columns = {"rows": everyone.rows, "fold": made.fold, "cut": made.cut}
    kept = files.keep_table("split/users", pa.table({"user": named["user"], **columns}))
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    ends = np.cumsum([table.num_rows for table in tables])[:-1]
    each = [(made.fold[place], made.cut[place]) for place in np.split(back, ends)]
    held_out = int((everyone.rows - made.cut).sum())
    return Divided(
        kept.key, kept.bytes, tuple(each), int((made.fold == TEST).sum()), held_out, int(everyone.hidden.sum())
    )


def count_buckets(
    engine: Engine, buckets: Sequence[Bucket], divided: Divided, old: Sequence[Bucket], files: Store
) -> list[Bucket]:
    """Count the training rows of every bucket; what was counted of the same rows in the same folds is taken over."""
    sizes = {bucket.counts: bucket.counts_bytes for bucket in old}
    items = []
    for number, (bucket, (fold, cut)) in enumerate(zip(buckets, divided.buckets, strict=True)):
        made_of = hashlib.sha256(bucket.histories.encode() + fold.tobytes() + cut.tobytes()).hexdigest()
        key = f"counts/b={number:03d}-{made_of[:DIGEST_CHARACTERS]}.parquet"
        items.append({"histories": bucket.histories, "counts": key, "fold": fold.tolist(), "cut": cut.tolist()})
    todo = [item for item in items if item["counts"] not in sizes]
    reports = engine.run(partial(_count_bucket, files=files), todo, "count answers")
    sizes |= {item["counts"]: report["bytes"] for item, report in zip(todo, reports, strict=True)}
    counted = [{"counts": item["counts"], "counts_bytes": sizes[item["counts"]]} for item in items]
    return [bucket.model_copy(update=update) for bucket, update in zip(buckets, counted, strict=True)]


def _count_bucket(item: dict[str, Any], files: Store) -> dict[str, Any]:
    histories, fold = _trained(item, files)
    return {"bytes": files.write_parquet(item["counts"], count(histories, fold).to_table())}


def fit_state(
    engine: Engine,
    buckets: Sequence[Bucket],
    divided: Divided,
    config: EncoderConfig,
    timed: bool,
    files: Store,
    work: Store,
) -> Fitted:
    """Fit the encoder on the training rows of all buckets: counts, then profiles (they need counts), then the scale.

    Args:
        timed: whether rows have timestamps.
    """
    counts = _total([bucket.counts for bucket in buckets], files)
    items = [
        {"bucket": number, "histories": bucket.histories, "fold": fold.tolist(), "cut": cut.tolist()}
        for number, (bucket, (fold, cut)) in enumerate(zip(buckets, divided.buckets, strict=True))
    ]
    profiling = partial(
        _profile_bucket,
        counts=engine.share(counts),
        submitted=config.timestamp_is == "submitted",
        files=files,
        work=work,
    )
    profiles = [report["profile"] for report in engine.run(profiling, items, "profile questions")]
    state = fit([counts], config, [_total_profile(profiles, work)], timed)
    task = partial(_measure_bucket, state=engine.share(state), files=files)
    measured = map(Moments.from_dict, engine.run(task, items, "measure numbers"))
    state = state.with_scaler(functools.reduce(operator.add, measured))
    with tempfile.TemporaryDirectory() as local:
        state.save(Path(local))
        prefix = f"state/{state.digest[:DIGEST_CHARACTERS]}"
        files.upload(Path(local), prefix)
        return Fitted(state, prefix, sum(path.stat().st_size for path in Path(local).iterdir()))


def _total(keys: Sequence[str], files: Store) -> Counts:
    """The counts of all buckets, a few in memory at one time."""
    total: list[Counts] = []
    for start in range(0, len(keys), AT_ONCE):
        some = [Counts.from_table(files.read_table(key)) for key in keys[start : start + AT_ONCE]]
        total = [add_counts([*total, *some])]
    return total[0]


def _profile_bucket(
    item: dict[str, Any], counts: Callable[[], Counts], submitted: bool, files: Store, work: Store
) -> dict[str, Any]:
    histories, fold = _trained(item, files)
    key = f"profiles/b={item['bucket']:03d}.parquet"
    work.write_table(key, profile(histories, fold, counts(), submitted).to_table())
    return {"profile": key}


def _total_profile(keys: Sequence[str], work: Store) -> Profile:
    """The profiles of all buckets, a few in memory at one time."""
    total = Profile.empty()
    for start in range(0, len(keys), AT_ONCE):
        some = [Profile.from_table(work.read_table(key)) for key in keys[start : start + AT_ONCE]]
        total = merge_profiles([total, *some])
    return total


def _measure_bucket(item: dict[str, Any], state: Callable[[], EncoderState], files: Store) -> dict[str, Any]:
    histories, fold = _trained(item, files)
    parts = (moments(rows) for _, rows in encode_chunks(histories, fold, state()))
    return functools.reduce(operator.add, parts, Moments.nothing(len(state().number_names))).to_dict()


def warn_of_structure(state: EncoderState) -> None:
    """Say so when ids have the competition's form, but name another test than the rows do."""
    questions, tests = (state.questions[name].to_numpy().astype(object) for name in ("question", "test"))
    odd = np.flatnonzero(~consistent(questions, tests))
    if len(odd):
        logger.warning(
            "%d of %d questions are not in the test that their id names, e.g. %s in %s; is the test column right?",
            *(len(odd), len(questions), questions[odd[0]], tests[odd[0]]),
        )


def _trained(item: dict[str, Any], files: Store) -> tuple[Histories, Int8]:
    """The training rows of a bucket's training users, and their folds."""
    histories = Histories.from_table(files.read_table(item["histories"]))
    fold, cut = np.array(item["fold"], np.int8), np.array(item["cut"], np.int64)
    users = np.flatnonzero((fold != TEST) & (cut > 0))
    return histories.select(users).head(cut[users]), fold[users]


def _as_shard(histories: Histories) -> pa.Table:
    """Stored histories as rows to be merged with new ones, which they stand before."""
    text = {name: getattr(histories, name).arrow().cast(pa.string()) for name in ("question", "test", "concepts")}
    frame = pl.DataFrame(
        {
            "user": pl.Series(np.repeat(histories.users, histories.lengths), dtype=pl.String),
            **{name: pl.Series(column) for name, column in text.items()},
            "correct": histories.correct,
            "source": pl.repeat(-1, histories.rows, dtype=pl.Int32, eager=True),
            "row": np.arange(histories.rows),
        }
    )
    if histories.timestamp is not None:
        frame = frame.with_columns(timestamp=pl.Series(histories.timestamp))
    return frame.to_arrow()


def _per_user(mask: Any, offsets: Int64) -> Int64:
    return np.diff(np.concatenate([[0], np.cumsum(mask)]).astype(np.int64)[offsets])
