"""(Ray) `dkt score`: the probability of every hidden (-1) answer of a file, as the competition's submission.

The same validation, order, buckets and engines as `dkt prepare`, the same predictor as the service.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from pydantic import Field

from dkt_ray.config import Config
from dkt_ray.data.buckets import merge
from dkt_ray.data.engine import Engine
from dkt_ray.data.history import Histories, graded
from dkt_ray.data.ingest import DataConfig, Inputs, buckets_for, inspect, read
from dkt_ray.errors import ConfigError, InputError
from dkt_ray.pipelines.engines import LOCAL_BYTES, EngineKind, choose
from dkt_ray.registry.cache import local_copy
from dkt_ray.registry.store import MANIFEST, Registry, resolve
from dkt_ray.schema import UNKNOWN
from dkt_ray.serving.predictor import Predictor
from dkt_ray.storage import Store, json_bytes, open_store

logger = logging.getLogger(__name__)

SUBMISSION: Final = ("id", "prediction")
DIGEST_CHARACTERS: Final = 12  # of the bundle's digest in a file name


class ScoreConfig(Config):
    """Settings of `dkt score`."""

    data: DataConfig
    """Logs whose hidden answers are wanted, with the answers that came before them; any bad row ends the job unless
    `data.max_rejected` is given."""
    out: str = "submission.csv"
    """CSV to write: id,prediction; id counts the hidden rows by user (numbers in numeric order), then time. {auc} and
    {bundle} in it stand for the bundle's out-of-fold AUROC and the start of its digest. OUT.json says what it holds."""
    rows: int | None = Field(default=None, ge=1)
    """Hidden rows that the file must have, e.g. 744; with another number nothing is written. Unset: what it has."""
    keys: str | None = None
    """Another CSV to write: id,user,question for each row of `out`."""
    store: str = "data/store"
    """Folder or s3://bucket/prefix."""
    bundle: str = "champion"
    """Digest or alias."""
    copies: str | None = None
    """Local folder for copies of bundles; unset: one in the system's temporary folder."""
    engine: EngineKind = "auto"
    """As in `dkt prepare`."""
    local_bytes: int = Field(LOCAL_BYTES, ge=0)
    """As in `dkt prepare`."""


def run(config: ScoreConfig) -> dict[str, Any]:
    """Score every hidden row.

    Returns:
        rows (scored), users (with a hidden row), bundle, auc (of the bundle, out of fold), out, sha256 (of it),
        mean (probability), seconds.

    Raises:
        ConfigError: `out` names a figure that there is not.
        InputError: bad rows, no hidden row, fewer probabilities than hidden rows, or not `rows` of them.
        NotFoundError: no such file, bundle or alias.
        BundleError: the bundle is damaged.
    """
    started = time.monotonic()
    store = open_store(config.store)
    digest = resolve(Registry(store), config.bundle)
    local_copy(Registry(store), digest, _folder(config.copies))  # refuse a bad bundle before the work begins
    metrics = store.read_json(f"bundles/{digest}/{MANIFEST}")["provenance"]["metrics"]
    config = config.model_copy(update={"out": file_name(config.out, digest, metrics)})
    data = config.data
    if "max_rejected" not in data.model_fields_set:
        data = data.model_copy(update={"max_rejected": 0.0})
    inputs = inspect(data)
    engine = choose(config.engine, inputs.text_bytes, config.local_bytes)
    work = f"tmp/score-{uuid.uuid4().hex}"
    try:
        scored = _score(config, data, inputs, engine, digest, store, store.child(work))
    finally:
        store.delete_prefix(work)
    content = _csv(scored.select(SUBMISSION))
    _write(config.out, content)
    if config.keys is not None:
        _write(config.keys, _csv(scored.select("id", "user", "question")))
    told = manifest(content, scored, digest, metrics)
    _write(f"{config.out}.json", json_bytes({**told, "data": data.path, "expected_rows": config.rows or len(scored)}))
    logger.info("%d probabilities in %s", len(scored), config.out)
    return {
        "rows": len(scored),
        "users": told["users"],
        "bundle": digest,
        "auc": metric(metrics, "auc"),
        "out": config.out,
        "sha256": told["sha256"],
        "mean": told["mean"],
        "seconds": round(time.monotonic() - started, 2),
    }


def file_name(out: str, digest: str, metrics: Mapping[str, Any]) -> str:
    """The name of the submission, with the bundle's figures in it.

    Raises:
        ConfigError: {auc} is asked for, and the bundle has none.

    >>> file_name("{auc}-{bundle}.csv", "0123456789abcdef", {"auc": {"value": 0.78514}})
    '0.7851-0123456789ab.csv'
    """
    auc = metric(metrics, "auc")
    if auc is None and "{auc}" in out:
        raise ConfigError(f"out is {out!r}, and bundle {digest} has no AUROC in its manifest: leave out {{auc}}")
    return out.replace("{auc}", f"{auc or 0:.4f}").replace("{bundle}", digest[:DIGEST_CHARACTERS])


def metric(metrics: Mapping[str, Any], name: str) -> float | None:
    """A figure of a bundle, which keeps it alone or with its interval; None where it has none."""
    found = metrics.get(name)
    value = found["value"] if isinstance(found, Mapping) else found
    return None if value is None else float(value)


def manifest(content: bytes, scored: pl.DataFrame, digest: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What stands beside a submission, so that its file can be told from others and from a damaged copy of itself.

    Args:
        content: the bytes of the file.
        scored: user, prediction, in any order.
        digest: of the bundle.
        metrics: of the bundle, as its manifest has them.
    """
    prediction = scored["prediction"].to_numpy()
    return {
        "rows": len(scored),
        "users": scored["user"].n_unique(),
        "mean": round(float(prediction.mean()), 6),
        "bundle": digest,
        "metrics": dict(metrics),
        "sha256": hashlib.sha256(content).hexdigest(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def order(scored: pl.DataFrame) -> pl.DataFrame:
    """Number hidden rows by user (numerically where all users are whole numbers), then by their place in the history.

    Args:
        scored: user, position, question, prediction; any order.

    Returns:
        The same with `id` from 0.
    """
    numeric = scored["user"].str.contains(r"^-?\d{1,18}$").all()
    key = pl.col("user").cast(pl.Int64) if numeric else pl.col("user")
    return scored.sort(key, "position").with_row_index("id")


def score_bucket(histories: Histories, predictor: Predictor) -> pl.DataFrame:
    """Every hidden row of the histories: user, position, question, prediction."""
    rows = np.flatnonzero(~graded(histories.correct))
    owner = np.searchsorted(histories.offsets, rows, "right") - 1
    return pl.DataFrame(
        {
            "user": pl.Series(histories.users[owner], dtype=pl.String),
            "position": rows - histories.offsets[owner],
            "question": pl.Series(histories.question.take(rows).strings(), dtype=pl.String),
            "prediction": predictor.score_rows(histories).probability,
        }
    )


def _score(
    config: ScoreConfig, data: DataConfig, inputs: Inputs, engine: Engine, digest: str, store: Store, work: Store
) -> pl.DataFrame:
    rejected = open_store(f"{config.out}.rejected")
    shards = read(data, inputs, buckets_for(inputs.text_bytes), work, rejected, engine, needs_answers=False)
    items = [{"bucket": bucket, "keys": keys} for bucket, keys in sorted(shards.keys.items())]
    task = partial(_score_bucket, timed=inputs.timed, work=work, store=store.url, digest=digest, copies=config.copies)
    reports = list(engine.run(task, items, "score buckets"))
    hidden = sum(report["hidden"] for report in reports)
    if not hidden:
        raise InputError(f"{data.path}: no hidden answer (answer code -1) in it, so there is nothing to score")
    if config.rows not in (None, hidden):
        raise InputError(
            f"{data.path}: {hidden} hidden answers, setting rows is {config.rows}; give the file that was asked for, "
            "or leave rows unset"
        )
    scored = pl.concat([pl.DataFrame(work.read_table(report["key"])) for report in reports])
    if len(scored) != hidden:
        raise InputError(
            f"{data.path}: {hidden} hidden rows, but {len(scored)} probabilities: {hidden - len(scored)} of the rows "
            "are exact duplicates; remove them"
        )
    return order(scored)


def _score_bucket(
    item: dict[str, Any], timed: bool, work: Store, store: str, digest: str, copies: str | None
) -> dict[str, Any]:
    """One bucket of users (a task of the engine)."""
    tables = [work.read_table(key) for key in item["keys"]]
    hidden = sum(int((pl.Series(table["correct"]) == UNKNOWN).sum()) for table in tables)
    histories, _ = merge(tables, timed)
    key = f"scores/b={item['bucket']:03d}.parquet"
    work.write_table(key, score_bucket(histories, _predictor(store, digest, copies)).to_arrow())
    return {"hidden": hidden, "key": key}


@cache
def _predictor(store: str, digest: str, copies: str | None) -> Predictor:
    """Loaded once in a process, which may have many buckets to do."""
    return Predictor.load(local_copy(Registry(open_store(store)), digest, _folder(copies)), digest)


def _folder(copies: str | None) -> Path | None:
    return Path(copies) if copies else None


def _csv(table: pl.DataFrame) -> bytes:
    return table.write_csv().encode()


def _write(url: str, content: bytes) -> None:
    """Write a file whole or not at all."""
    folder, _, name = url.rpartition("/")
    open_store(folder or os.curdir).write(name, content)
