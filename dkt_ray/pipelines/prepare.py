"""(Ray) `dkt prepare`: validate, order and shuffle interaction logs once into user buckets, split, fit the encoder.

Read (a task per source: shards), merge (a task per bucket: histories), split (in the driver), count and measure (a task
per bucket: what the encoder is fitted on). Files are named by their content and never change; the manifest is written
last, and that one write is the switch to the new dataset. The content depends on the settings and the input files only,
never on engine, buckets, or the order in which files, blocks or tasks arrive.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, NamedTuple

import pyarrow as pa
from pydantic import Field

from dkt_ray import __version__
from dkt_ray.config import Config
from dkt_ray.data import reader
from dkt_ray.data.engine import Engine, ResumingEngine
from dkt_ray.data.ingest import DataConfig, Inputs, Shards, buckets_for, digests, inspect, read, read_split
from dkt_ray.data.naming import Naming
from dkt_ray.data.splits import number_of_folds
from dkt_ray.errors import ConfigError, InputError
from dkt_ray.events import tombstones
from dkt_ray.features.dataset import Bucket, Manifest, folder
from dkt_ray.features.state import STATE_VERSION, EncoderConfig, EncoderState
from dkt_ray.features.student import VERSIONS, uninformed
from dkt_ray.pipelines import stages
from dkt_ray.pipelines.engines import LOCAL_BYTES, EngineKind, choose
from dkt_ray.pipelines.stages import Divided, Fitted
from dkt_ray.pipelines.versions import Found, find, gone_since, sweep, switch
from dkt_ray.schema import CONCEPT_SEPARATOR
from dkt_ray.storage import Store, open_store
from dkt_ray.storage.inputs import input_order
from dkt_ray.storage.lease import lease

logger = logging.getLogger(__name__)

SUMMED: Final = ("rows", "users", "duplicates")  # over buckets
REPORTED: Final = {
    *(
        "dataset",
        *SUMMED,
        "test_users",
        "held_out",
        "hidden",
        "rejected",
        "forgotten",
        "buckets",
        "questions",
        "concepts",
    ),
    *("fingerprint", "content", "stages"),
}
NOT_CONTENT: Final = {"store", "dataset", "force", "append", "engine", "local_bytes"}
MOST_GROWTH: Final = 4  # times the size at which a bucket was planned, before all is dealt anew


class PrepareConfig(Config):
    """From interaction logs to a dataset in the store."""

    store: str = "data/store"
    """A folder or s3://bucket/prefix."""
    dataset: str = Field("default", pattern=r"^[A-Za-z0-9._-]+$")
    """The dataset's name in the store."""
    data: DataConfig
    encoder: EncoderConfig = EncoderConfig()
    context: int = Field(100, ge=1)
    """Rows of a context block, by which models are compared: a row is scored from its block and the one before it."""
    append: bool = False
    """`data.path` names only new files, which sort after those of the dataset that is there, as new exports do."""
    force: bool = False
    """Prepare everything anew even if settings and inputs are those of the dataset that is there."""
    engine: EngineKind = "auto"
    """local: in this process, without Ray; ray: through Ray Data; auto: local for a small input where no cluster is
    attached. A submitted job always takes ray."""
    local_bytes: int = Field(LOCAL_BYTES, ge=0)
    """With engine=auto: size of the input, as plain text, up to which it is prepared locally. Measured on 2 cores, with
    the start of Ray: 131 MB here 9 s, through Ray 14 s; 1.1 GB 87 s and 71 s."""


class Plan(NamedTuple):
    """What a run has to do."""

    settings: str  # hash of the settings
    fingerprint: str  # hash of settings and all inputs
    inputs: dict[str, str]  # path -> digest of all inputs of the dataset to be
    new: Inputs  # files to be read
    base: Manifest | None  # the dataset that they are added to; None: everything is prepared anew
    buckets: int
    folds: int
    naming: Naming
    gone: int = 0  # users of the dataset that is there who were deleted since: no file of it stays

    @property
    def old(self) -> Sequence[Bucket]:
        """The buckets that stay as they are where no new row falls into them."""
        return () if self.base is None else self.base.files

    @property
    def run(self) -> str:
        """Names the run: a restarted one finds what it has finished by it."""
        base = None if self.base is None else self.base.created
        return hashlib.sha256(json.dumps([self.fingerprint, base, self.buckets]).encode()).hexdigest()[:16]


def run(config: PrepareConfig) -> dict[str, Any]:
    """Prepare a dataset, add new files to it, or reuse the one that was made from the same inputs and settings.

    Returns:
        dataset, rows, users, test_users, held_out (rows), hidden, rejected, duplicates, forgotten (rows of users who
        were deleted), buckets, questions, concepts (all counts), bytes_per_row (stored), added (files that were added
        to what was there), seconds (wall), stages (seconds of each), engine, reused, fingerprint, content (checksum).

    Raises:
        InputError: the data are not what the schema says; names file, column or rows, and the remedy.
        ConflictError: somebody else prepares the dataset.
    """
    started = time.monotonic()
    files = open_store(config.store).child(folder(config.dataset))
    inputs = inspect(config.data)
    config = _as_the_format_says(config, inputs)
    engine = choose(config.engine, inputs.text_bytes, config.local_bytes)
    with lease(files, f"dataset {config.dataset!r}"):
        plan, manifest = _next(config, inputs, files, engine)
        while manifest is None:
            logger.info("dataset %s is prepared anew: users of it were deleted meanwhile", config.dataset)
            plan, manifest = _next(config, inputs, files, engine)
    reused = not plan.new.columns
    added = len(plan.new.columns) if plan.base is not None else 0
    note = " (reused)" if reused else f" ({added} files were added)" if added else ""
    logger.info("dataset %s: %d rows of %d users%s", config.dataset, manifest.rows, manifest.users, note)
    return manifest.model_dump(include=REPORTED) | {
        "bytes_per_row": round(manifest.stored_bytes / manifest.rows, 1),
        "added": added,
        "seconds": round(time.monotonic() - started, 2),
        "engine": engine.name,
        "reused": reused,
    }


def _next(config: PrepareConfig, inputs: Inputs, files: Store, engine: Engine) -> tuple[Plan, Manifest | None]:
    """The plan, and the dataset by it; None where somebody in it was deleted meanwhile."""
    naming = Naming.of_environment(config.data.pseudonyms, config.data.tenant)
    naming = replace(naming, forgotten=tombstones.forgotten(open_store(config.store), naming.privacy))
    split = read_split(config.data, naming)
    found = find(files)
    gone = 0 if found.manifest is None else gone_since(files, found.manifest, naming)
    if gone and config.append:
        config, inputs = _with_all_files(config, found.manifest, inputs)
    plan = _plan(config, inputs, split, found.manifest, engine, naming, gone)
    return plan, _prepare(config, plan, split, found, files, engine) if plan.new.columns else found.manifest


def _as_the_format_says(config: PrepareConfig, inputs: Inputs) -> PrepareConfig:
    """What the timestamps tell, where the format of the files knows it and nobody has set it."""
    if inputs.timestamp_is is None or "timestamp_is" in config.encoder.model_fields_set:
        return config
    logger.info("encoder.timestamp_is=%s, as the format %s says", inputs.timestamp_is, inputs.format)
    encoder = config.encoder.model_copy(update={"timestamp_is": inputs.timestamp_is})
    return config.model_copy(update={"encoder": encoder})


def _with_all_files(config: PrepareConfig, there: Manifest | None, new: Inputs) -> tuple[PrepareConfig, Inputs]:
    """The settings that prepare all files together: those of the dataset that is there, and new ones."""
    assert there is not None
    paths = tuple(sorted({*there.inputs, *new.columns}, key=input_order))
    data = config.data.model_copy(update={"path": paths})
    return config.model_copy(update={"data": data, "append": False}), inspect(data)


def _plan(
    config: PrepareConfig,
    inputs: Inputs,
    split: pa.Table | None,
    there: Manifest | None,
    engine: Engine,
    naming: Naming,
    gone: int,
) -> Plan:
    """Decide what is to be read; nothing, where the dataset is there."""
    folds = number_of_folds(config.data.folds, split)
    settings = _settings(config, split, folds, inputs, naming)
    listed = digests(list(inputs.columns), engine)
    base = _base(config, settings, listed, inputs, there, gone)
    wanted = (base.inputs if base else {}) | listed
    new = sorted(set(wanted) - set(base.inputs), key=input_order) if base else list(listed)
    buckets = config.data.buckets or (base.buckets if base else buckets_for(inputs.text_bytes))
    made_of: list[object] = [settings, wanted]
    if naming.forgotten:
        made_of.append(hashlib.sha256("".join(sorted(naming.forgotten)).encode()).hexdigest())
    fingerprint = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    return Plan(settings, fingerprint, wanted, inputs.only(new), base, buckets, folds, naming, gone)


def _settings(config: PrepareConfig, split: pa.Table | None, folds: int, inputs: Inputs, naming: Naming) -> str:
    """Hash of everything but the input files that the content depends on."""
    values = config.model_dump(mode="json", exclude=NOT_CONTENT)
    for name in ("path", "buckets", "pseudonyms", "tenant"):
        del values["data"][name]
    values["data"]["folds"] = folds
    parts = {
        "config": values,
        "format": inputs.identity,
        "split": None if split is None else hashlib.sha256(json.dumps(split.to_pydict()).encode()).hexdigest(),
        "versions": [__version__, STATE_VERSION, list(VERSIONS), reader.BLOCK_BYTES],
    }
    if naming.identity is not None:
        parts["pseudonyms"] = naming.identity
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _base(
    config: PrepareConfig, settings: str, listed: dict[str, str], inputs: Inputs, there: Manifest | None, gone: int
) -> Manifest | None:
    """The dataset that is there, if what is listed can be added to it or is in it.

    Raises:
        ConfigError: `append` without a dataset, or with other settings.
        InputError: `append` of files that do not sort after those that are there, or that have changed.
    """
    if there is None or config.force:
        if config.append:
            raise ConfigError(
                f"append=true, but there is no dataset {config.dataset!r} to add to (or force=true); prepare all files "
                "with append=false first"
            )
        return None
    deleted = f"{gone} of its users were deleted since" if gone else None
    reason = deleted or _obstacle(config, settings, listed, inputs, there)
    if reason is None:
        return there
    if config.append:
        raise InputError(f"append=true: {reason}; prepare all files together, with append=false")
    logger.info("dataset %s is prepared anew: %s", config.dataset, reason)
    return None


def _obstacle(
    config: PrepareConfig, settings: str, listed: dict[str, str], inputs: Inputs, there: Manifest
) -> str | None:
    """Why what is listed cannot be added to the dataset that is there; None where it can."""
    if settings != there.settings:
        return "its settings (or this package's version) are others"
    if config.data.buckets not in (None, there.buckets):
        return f"it has {there.buckets} buckets, data.buckets is {config.data.buckets}"
    if inputs.timed != there.timed:
        return "either its rows or the new ones have no timestamps"
    changed = [path for path, digest in listed.items() if there.inputs.get(path, digest) != digest]
    if changed:
        return f"{changed[0]} has changed"
    lost = [] if config.append else sorted(set(there.inputs) - set(listed))
    if lost:
        return f"{lost[0]} is not among the files of data.path any more"
    new, last = sorted(set(listed) - set(there.inputs), key=input_order), max(there.inputs, key=input_order)
    if new and input_order(new[0]) < input_order(last):
        return f"{new[0]} is new, but does not sort after {last}"
    if new and any("order" in columns for columns in inputs.columns.values()):
        return "the order of its rows is a column of the files, which histories do not keep"
    planned = buckets_for(inputs.text_bytes)
    if config.data.buckets is None and not config.append and planned > MOST_GROWTH * there.buckets:
        return f"it has {there.buckets} buckets, and its files now need {planned}"
    return None


def _prepare(
    config: PrepareConfig, plan: Plan, split: pa.Table | None, found: Found, files: Store, engine: Engine
) -> Manifest | None:
    """Make the dataset's next version and switch to it; None where somebody in it was deleted meanwhile."""
    for run in {key.split("/")[1] for key in files.list("tmp")} - {plan.run}:
        files.delete_prefix(f"tmp/{run}")  # of a run that was killed, and whose inputs or settings were others
    work = files.child(f"tmp/{plan.run}")
    resuming = ResumingEngine(engine, work.child("finished"))
    clock = Clock()
    rejected = f"rejected/{plan.run}"
    with clock.of("read"):
        try:
            shards = _read(config.data, plan, files.child(rejected), work.child("shards"), resuming)
        except InputError:  # it would be the same the next time
            files.delete_prefix(f"tmp/{plan.run}")
            raise
    with clock.of("merge"):
        buckets = stages.merge_buckets(
            resuming,
            shards.keys,
            plan.old,
            plan.buckets,
            plan.new.timed,
            config.data.split_ms,
            files,
            work.child("shards"),
        )
    with clock.of("split"):
        divided = stages.divide(config.data, plan.folds, buckets, split, files)
    with clock.of("count"):
        buckets = stages.count_buckets(resuming, buckets, divided, plan.old, files)
    with clock.of("fit"):
        fitted = stages.fit_state(resuming, buckets, divided, config.encoder, plan.new.timed, files, work)
    _say_what_is_off(fitted.state)
    stages.warn_of_structure(fitted.state)
    manifest = _manifest(config, plan, shards, buckets, divided, fitted, rejected, clock.seconds)
    forgotten = tombstones.forgotten(open_store(config.store), plan.naming.privacy)
    if gone_since(files, manifest, replace(plan.naming, forgotten=forgotten - plan.naming.forgotten)):
        return None
    switch(files, manifest, found, config.dataset)
    sweep(files, manifest, None if plan.gone else found.manifest)
    return manifest


def _say_what_is_off(state: EncoderState) -> None:
    """Name the features that the data cannot feed, by reason."""
    reasons: dict[str, list[str]] = {}
    for name, reason in state.switched_off.items():
        reasons.setdefault(reason, []).append(name)
    logger.info("%d numeric features are on", len(state.number_names))
    for reason, names in reasons.items():
        logger.info("%d are off, as %s: %s", len(names), reason, ", ".join(names))
    stay = uninformed(state.facts)
    if stay:  # baselines, mastery and bundles read them by name
        logger.info(
            "%d of core stay on, but repeat the rate of the head or are constant: %s", len(stay), ", ".join(stay)
        )


def _read(config: DataConfig, plan: Plan, rejected: Store, shards: Store, engine: Engine) -> Shards:
    base = plan.base
    return read(
        config,
        plan.new,
        plan.buckets,
        shards,
        rejected,
        engine,
        first_source=base.sources if base else 0,
        needs_answers=base is None,
        naming=plan.naming,
    )


def _manifest(
    config: PrepareConfig,
    plan: Plan,
    shards: Shards,
    buckets: Sequence[Bucket],
    divided: Divided,
    fitted: Fitted,
    rejected: str,
    seconds: dict[str, float],
) -> Manifest:
    base, state = plan.base, fitted.state
    several = state.questions["concepts"].to_pylist()
    histories = sum(int(bucket.checksum, 16) for bucket in buckets) % (1 << 64)
    content = hashlib.sha256(f"{histories:016x} {divided.key} {state.digest}".encode()).hexdigest()
    return Manifest(
        dataset=config.dataset,
        fingerprint=plan.fingerprint,
        settings=plan.settings,
        content=content[:16],
        **{name: sum(getattr(bucket, name) for bucket in buckets) for name in SUMMED},
        test_users=divided.test_users,
        held_out=divided.held_out,
        hidden=divided.hidden,
        rejected=shards.rejected + (base.rejected if base else 0),
        forgotten=shards.forgotten + (base.forgotten if base else 0),
        buckets=plan.buckets,
        folds=plan.folds,
        questions=state.questions.num_rows,
        concepts=len({tag for tags in several for tag in tags.split(CONCEPT_SEPARATOR) if tag}),
        timed=plan.new.timed,
        numbers=state.number_names,
        inputs=plan.inputs,
        sources=shards.sources + (base.sources if base else 0),
        files=tuple(buckets),
        split=divided.key,
        state=fitted.prefix,
        rejects=(*(base.rejects if base else ()), rejected),
        stored_bytes=sum(b.histories_bytes + b.counts_bytes for b in buckets) + divided.bytes + fitted.bytes,
        config=config.model_dump(mode="json"),
        stages=seconds,
        created=datetime.datetime.now(datetime.UTC).isoformat(),
    )


class Clock:
    """How many seconds each stage took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Time what is done in the context."""
        started = time.monotonic()
        yield
        self.seconds[stage] = round(time.monotonic() - started, 2)
