"""(Ray) `dkt prepare`: validate, order and shuffle interaction logs once into user buckets, encode them, index windows.

Three passes of Ray Data: read (a task per file: shards), merge (a task per bucket: histories and counts), encode
(a task per bucket: rows and moments). The manifest is written last; until then the dataset is not there. The content
depends on the settings and the input files only, never on the order in which files, blocks or tasks arrive.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import logging
import operator
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import ray
from pydantic import Field

from dkt_ray import __version__
from dkt_ray.config import Config, build
from dkt_ray.data import reader
from dkt_ray.data.buckets import merge
from dkt_ray.data.history import Histories, Int8, Strings, graded, ranges
from dkt_ray.data.ingest import DataConfig, Inputs, Shards, inspect, read, read_split, run_tasks
from dkt_ray.data.splits import TEST, assign_folds, folds_from_file
from dkt_ray.data.windows import context_segments
from dkt_ray.features.dataset import MANIFEST, Manifest, bucket_key, encode_users, folder, rows_to_table
from dkt_ray.features.difficulty import Counts, count
from dkt_ray.features.state import STATE_VERSION, EncoderConfig, EncoderState, Moments, fit, moments
from dkt_ray.features.structure import consistent
from dkt_ray.features.student import VERSIONS
from dkt_ray.schema import CONCEPT_SEPARATOR
from dkt_ray.storage import Store, open_store

logger = logging.getLogger(__name__)

SUMMED: Final = ("rows", "users", "test_users", "hidden", "duplicates")  # over buckets
REPORTED: Final = {"dataset", *SUMMED, "rejected", "buckets", "questions", "concepts", "fingerprint"}
PARTS: Final = ("histories", "encoded", "windows", "state")
WINDOW_TYPES: Final = {"bucket": pa.int16()} | dict.fromkeys(("user", "start", "stop", "score_from"), pa.int32())


class PrepareConfig(Config):
    """From interaction logs to a dataset in the store."""

    store: str = "data/store"
    """A folder or s3://bucket/prefix."""
    dataset: str = Field("default", pattern=r"^[A-Za-z0-9._-]+$")
    """The dataset's name in the store."""
    data: DataConfig
    encoder: EncoderConfig = EncoderConfig()
    context: int = Field(100, ge=1)
    """Rows of a context window: a network sees the window of a row and the one before it."""
    force: bool = False
    """Prepare again even if settings and inputs are those of the dataset that is there."""


def run(config: PrepareConfig) -> dict[str, Any]:
    """Prepare a dataset, or reuse the one that was made from the same inputs with the same settings.

    Returns:
        dataset, rows, users, test_users, hidden, rejected, duplicates, buckets, questions, concepts (all counts),
        seconds (wall), reused, fingerprint.

    Raises:
        InputError: the data are not what the schema says; names file, column or rows, and the remedy.
    """
    started = time.monotonic()
    files = open_store(config.store).child(folder(config.dataset))
    inputs = inspect(config.data)
    split = read_split(config.data)
    fingerprint = _fingerprint(config, inputs, split)
    manifest = None if config.force else _reusable(files, fingerprint)
    reused = manifest is not None
    if manifest is None:
        work = files.child(f"tmp/{fingerprint}")
        files.delete_prefix("tmp")  # of runs that were killed
        try:
            manifest = _prepare(config, inputs, split, fingerprint, files, work)
        finally:
            files.delete_prefix("tmp")
    note = " (reused)" if reused else ""
    logger.info("dataset %s: %d rows of %d users%s", config.dataset, manifest.rows, manifest.users, note)
    seconds = round(time.monotonic() - started, 2)
    return manifest.model_dump(include=REPORTED) | {"seconds": seconds, "reused": reused}


def _fingerprint(config: PrepareConfig, inputs: Inputs, split: pa.Table | None) -> str:
    """Hash of everything that the content depends on."""
    parts = {
        "config": config.model_dump(mode="json", exclude={"store", "dataset", "force"}),
        "inputs": {path: digest.sha256 for path, digest in inputs.digests.items()},
        "split": None if split is None else hashlib.sha256(json.dumps(split.to_pydict()).encode()).hexdigest(),
        "versions": [__version__, STATE_VERSION, list(VERSIONS), reader.BLOCK_BYTES],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _reusable(files: Store, fingerprint: str) -> Manifest | None:
    if not files.exists(MANIFEST):
        return None
    found = files.read_json(MANIFEST)
    return build(Manifest, found) if found.get("fingerprint") == fingerprint else None


def _prepare(
    config: PrepareConfig, inputs: Inputs, split: pa.Table | None, fingerprint: str, files: Store, work: Store
) -> Manifest:
    buckets = config.data.buckets or inputs.buckets
    files.delete_prefix("rejected")
    shards = read(config.data, inputs, buckets, work, files.child("rejected"))
    files.delete(MANIFEST)  # the inputs are sound: from here on the old dataset is no more
    for part in PARTS:
        files.delete_prefix(part)
    merged = _merge(config.data, inputs.timed, split, buckets, shards, files, work)
    counts = [Counts.from_table(work.read_table(bucket_key("counts", bucket))) for bucket in range(buckets)]
    fitted = fit(counts, config.encoder)
    _check_structure(fitted)
    state = _encode(fitted, buckets, config.context, files, work)
    concepts = state.questions["concepts"].to_pylist()
    tags = {tag for several in concepts for tag in several.split(CONCEPT_SEPARATOR) if tag}
    manifest = Manifest(
        dataset=config.dataset,
        fingerprint=fingerprint,
        **{name: sum(report[name] for report in merged) for name in SUMMED},
        rejected=shards.rejected,
        buckets=buckets,
        folds=config.data.folds,
        questions=state.questions.num_rows,
        concepts=len(tags),
        timed=inputs.timed,
        numbers=state.number_names,
        inputs={path: digest.sha256 for path, digest in inputs.digests.items()},
        config=config.model_dump(mode="json"),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    files.write_json(MANIFEST, manifest.model_dump(mode="json"))
    return manifest


def _check_structure(state: EncoderState) -> None:
    """Say so when ids have the competition's form, but name another test than the rows do."""
    questions, tests = (state.questions[name].to_numpy().astype(object) for name in ("question", "test"))
    odd = np.flatnonzero(~consistent(questions, tests))
    if len(odd):
        logger.warning(
            "%d of %d questions are not in the test that their id names, e.g. %s in %s; is the test column right?",
            *(len(odd), len(questions), questions[odd[0]], tests[odd[0]]),
        )


@dataclass(frozen=True)
class _Splitter:
    """Which fold a user is in."""

    config: DataConfig
    split: ray.ObjectRef[pa.Table] | None

    def folds(self, users: Strings) -> Int8:
        if self.split is None:
            return assign_folds(users, self.config.seed, self.config.test_fraction, self.config.folds)
        return folds_from_file(users, ray.get(self.split), self.config.folds)


def _merge(
    config: DataConfig, timed: bool, split: pa.Table | None, buckets: int, shards: Shards, files: Store, work: Store
) -> list[dict[str, Any]]:
    splitter = _Splitter(config, None if split is None else ray.put(split))
    task = partial(_merge_bucket, timed=timed, splitter=splitter, files=files, work=work)
    items = [{"bucket": bucket, "keys": shards.keys.get(bucket, [])} for bucket in range(buckets)]
    reports = list(run_tasks(task, items, "merge buckets"))
    sizes = np.sum([report["fold_users"] for report in reports], axis=0)
    if (sizes == 0).any():
        logger.warning("fold %d has no user: too few users for data.folds=%d", int(np.argmin(sizes)), config.folds)
    return reports


def _merge_bucket(item: dict[str, Any], timed: bool, splitter: _Splitter, files: Store, work: Store) -> dict[str, Any]:
    bucket = item["bucket"]
    histories, duplicates = merge([work.read_table(key) for key in item["keys"]], timed)
    fold = splitter.folds(histories.users)
    stored = histories.to_table().append_column("fold", pa.array(fold, pa.int8()))
    files.write_table(bucket_key("histories", bucket), stored)
    work.write_table(bucket_key("counts", bucket), count(histories, fold).to_table())
    return {
        "rows": histories.rows,
        "users": len(histories.users),
        "test_users": int((fold == TEST).sum()),
        "hidden": int((~graded(histories.correct)).sum()),
        "duplicates": duplicates,
        "fold_users": np.bincount(fold[fold != TEST], minlength=splitter.config.folds).tolist(),
    }


def _encode(state: EncoderState, buckets: int, context: int, files: Store, work: Store) -> EncoderState:
    """Encode all buckets, store the state with the scaler of the training rows, and the windows."""
    task = partial(_encode_bucket, state=ray.put(state), context=context, files=files, work=work)
    reports = list(run_tasks(task, [{"bucket": bucket} for bucket in range(buckets)], "encode buckets"))
    scaled = state.with_scaler(_sum_moments(reports))
    with tempfile.TemporaryDirectory() as local:
        scaled.save(Path(local))
        files.upload(Path(local), "state")
    windows = [work.read_table(bucket_key("windows", bucket)) for bucket in range(buckets)]
    files.write_table("windows/context.parquet", pa.concat_tables(windows))
    return scaled


def _encode_bucket(
    item: dict[str, Any], state: ray.ObjectRef[EncoderState], context: int, files: Store, work: Store
) -> dict[str, Any]:
    bucket = item["bucket"]
    table = files.read_table(bucket_key("histories", bucket))
    histories, fold = Histories.from_table(table), table["fold"].to_numpy()
    fitted = ray.get(state)
    rows = encode_users(histories, fold, fitted)
    files.write_table(bucket_key("encoded", bucket), rows_to_table(rows, fitted.number_names))
    segments = context_segments(histories.lengths, context)
    columns = {"bucket": np.full(len(segments.user), bucket)} | segments._asdict()
    windows = pa.table({name: pa.array(columns[name]).cast(kind) for name, kind in WINDOW_TYPES.items()})
    work.write_table(bucket_key("windows", bucket), windows)
    users = np.flatnonzero(fold != TEST)
    training = moments(rows.take(*ranges(rows.offsets[users], rows.offsets[users + 1])))
    return {name: np.asarray(value).tolist() for name, value in vars(training).items()}


def _sum_moments(reports: Sequence[dict[str, Any]]) -> Moments:
    each = (Moments(r.pop("count"), **{name: np.array(r[name], np.int64) for name in r}) for r in reports)
    return functools.reduce(operator.add, each)
