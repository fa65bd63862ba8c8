"""From input files to shards: a read task validates one source and deals its rows to the buckets of their users.

Shards have deterministic names, so a retried task overwrites what its first attempt wrote.
"""

from __future__ import annotations

import datetime
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Literal, NamedTuple

import polars as pl
import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from dkt_ray.config import Config
from dkt_ray.data import reader
from dkt_ray.data.adapters import catalog
from dkt_ray.data.buckets import deal
from dkt_ray.data.engine import Engine
from dkt_ray.data.naming import Naming
from dkt_ray.data.parse import parse
from dkt_ray.data.splits import MOST_FOLDS, SplitKind
from dkt_ray.errors import InputError
from dkt_ray.privacy import Privacy
from dkt_ray.schema import RAW_COLUMNS, UNKNOWN
from dkt_ray.storage import Store, input_bytes, list_inputs

logger = logging.getLogger(__name__)

BUCKET_BYTES: Final = 64 << 20  # CSV text of one bucket, about a million interactions
FEWEST_BUCKETS, MOST_BUCKETS = 4, 4096
EXPANSION: Final = {"gz": 6, "parquet": reader.PARQUET_EXPANSION}  # bytes of text that a byte stands for, roughly
AS_THEY_ARE: Final = Naming(Privacy())
SHOWN: Final = 100  # characters of a bad line in a message


class DataConfig(Config):
    """Where the interaction logs are and how to read them."""

    path: str | tuple[str, ...]
    """A file, folder or glob of .csv, .csv.gz or .parquet, local or on s3://; or a list of these."""
    format: str = catalog.AUTO
    """What the files are (docs/data-formats.md); auto: the six-column schema, or the format that is recognised."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Columns with other names than the six-column schema's, e.g. {user: student_id}."""
    pseudonyms: bool = False
    """Make pseudonyms of the users' ids with the key DKT_PRIVACY_KEY, as the service does; pseudonyms stay what they
    are. Off for research on data that are pseudonymous already."""
    tenant: str = ""
    """Whose users the ids are, where the service knows several tenants (`dkt keys`): the same id under another tenant
    is another user. Needs DKT_PRIVACY_KEY."""
    max_rejected: float = Field(0.01, ge=0, le=1)
    """Share of bad rows above which the job fails."""
    split: SplitKind = "hash"
    """Who waits in the test vault: a share of the users (hash), those with hidden answers (population), a share of the
    rows (balanced), the rows from split_time on (temporal), or the last answer of some users (last_answer)."""
    split_file: str | None = None
    """A CSV `userID,split` with fold1 to foldK and test, which decides in place of `split`; K folds then."""
    split_time: datetime.datetime | None = None
    """With split=temporal: earlier rows train, later ones wait in the vault; UTC unless it says otherwise."""
    seed: int = 0
    """Seed of the split by hash."""
    test_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of users (balanced: of rows) that wait in the test vault."""
    folds: int | None = Field(None, ge=2, le=MOST_FOLDS)
    """Folds of the other users; unset: those of `split_file`, or 5."""
    buckets: int | None = Field(None, ge=1, le=MOST_BUCKETS)
    """Files that the users are dealt to; unset: by size. What a reader gets does not depend on it."""

    @field_validator("format")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in (catalog.AUTO, *catalog.FORMATS):
            raise ValueError(f"expected {catalog.AUTO}, {', '.join(catalog.FORMATS)}")
        return name

    @model_validator(mode="after")
    def _one_split(self) -> DataConfig:
        if (self.split == "temporal") != (self.split_time is not None):
            raise ValueError("split=temporal and split_time belong together; set both or neither")
        if self.split == "file" and self.split_file is None:
            raise ValueError("split=file needs split_file, a CSV with the columns userID and split")
        return self

    @property
    def paths(self) -> tuple[str, ...]:
        """All that `path` names."""
        return (self.path,) if isinstance(self.path, str) else self.path

    @property
    def split_kind(self) -> SplitKind:
        """The kind of split that is made: a split file decides where there is one."""
        return "file" if self.split_file is not None else self.split

    @property
    def split_ms(self) -> int | None:
        """`split_time` in ms UTC."""
        if self.split_time is None:
            return None
        aware = self.split_time if self.split_time.tzinfo else self.split_time.replace(tzinfo=datetime.UTC)
        return round(aware.timestamp() * 1000)


@dataclass(frozen=True)
class Inputs:
    """The files to be read, checked: they exist, have a header and the columns that are needed."""

    columns: Mapping[str, Mapping[str, str]]  # path -> canonical name -> column in that file
    format: str = catalog.COMPETITION.name
    questions: str | None = None  # path of the format's table of questions, which the rows depend on too

    @property
    def timestamp_is(self) -> Literal["shown", "submitted"] | None:
        """What the format's timestamps tell; None where it has none."""
        return catalog.FORMATS[self.format].timestamp_is

    @property
    def identity(self) -> list[str | None]:
        """What the rows depend on beside the logs: the format, and the content of its table of questions."""
        return [self.format, None if self.questions is None else reader.digest(self.questions).sha256]

    @property
    def timed(self) -> bool:
        """Whether rows have timestamps (all files, or none)."""
        return "timestamp" in next(iter(self.columns.values()))

    @property
    def text_bytes(self) -> int:
        """Size of the files as plain CSV, roughly."""
        return sum(input_bytes(path) * EXPANSION.get(path.rpartition(".")[2], 1) for path in self.columns)

    def only(self, paths: Sequence[str]) -> Inputs:
        """Some of the files."""
        return replace(self, columns={path: self.columns[path] for path in paths})


class Shards(NamedTuple):
    """What the read tasks wrote."""

    keys: dict[int, list[str]]  # bucket -> keys of its shards
    rejected: int
    sources: int  # read tasks
    dropped: Mapping[str, int] = {}  # reason -> rows that the format's rules leave out
    forgotten: int = 0  # rows left out, of users who were deleted


def inspect(config: DataConfig) -> Inputs:
    """Find the input files and check their headers.

    Raises:
        InputError: no file, an empty one, a missing column, or timestamps in some files only.
    """
    found = catalog.find(config.paths, config.format, config.columns)
    columns, paths = found.columns, list(found.columns)
    if config.format != found.format.name != catalog.COMPETITION.name:
        logger.info("%s: recognised as %s, %s", config.path, found.format.name, found.format.title)
    timed = [path for path in paths if "timestamp" in columns[path]]
    if timed and len(timed) < len(paths):
        other = next(path for path in paths if path not in timed)
        name = columns[timed[0]]["timestamp"]
        raise InputError(f"{timed[0]} has the column {name!r}, {other} has not; give all files timestamps, or none")
    return Inputs(columns, found.format.name, found.questions)


def digests(paths: Sequence[str], engine: Engine) -> dict[str, str]:
    """Hash the content of files: path -> SHA-256.

    Raises:
        InputError: a file cannot be read.
    """
    reports = engine.run(_digest, [{"path": path} for path in paths], "hash files")
    return {path: report["sha256"] for path, report in zip(paths, reports, strict=True)}


def _digest(item: dict[str, Any]) -> dict[str, Any]:
    return {"sha256": reader.digest(item["path"]).sha256}


def buckets_for(text_bytes: int) -> int:
    """A number of buckets that fits the size of the input."""
    return max(FEWEST_BUCKETS, min(MOST_BUCKETS, -(-text_bytes // BUCKET_BYTES)))


def read_split(config: DataConfig, naming: Naming) -> pa.Table | None:
    """The published split of the users, columns `user` and `split`; None where users are split by hash.

    Raises:
        InputError: no such file, or a column is missing.
    """
    if config.split_file is None:
        return None
    (path,) = list_inputs(config.split_file)
    columns = {"user": config.columns.get("user", RAW_COLUMNS["user"]), "split": "split"}
    found = reader.header(path)
    for column in columns.values():
        if column not in found:
            raise InputError(f"{path}: no column {column!r} in {found}; a split file has {', '.join(columns.values())}")
    frames = [block.raw for source in reader.sources([path]) for block in reader.blocks(source, columns)]
    split = pl.concat(frames).select(pl.all().cast(pl.String).str.strip_chars())
    return (split.with_columns(naming.series(split["user"])) if naming.pseudonyms else split).to_arrow()


def read(
    config: DataConfig,
    inputs: Inputs,
    buckets: int,
    shards: Store,
    rejected: Store,
    engine: Engine,
    first_source: int = 0,
    needs_answers: bool = True,
    naming: Naming = AS_THEY_ARE,
) -> Shards:
    """Validate all inputs; write shards `b=000/00000-0000.parquet` and the rejected rows `part-00000-0000.parquet`.

    Args:
        first_source: number of sources that were read before, of files that sort before these.
        needs_answers: False where rows are only scored or added, and all answers may be hidden.
        naming: how users are named, and who was deleted.

    Raises:
        InputError: too many bad rows, or no known answer where some are needed.
    """
    listed = catalog.sources(catalog.FORMATS[inputs.format], list(inputs.columns))
    found = [source._replace(number=first_source + source.number) for source in listed]
    needed = inputs.only([source.path for source in found])
    task = partial(_read_source, inputs=needed, buckets=buckets, shards=shards, rejected=rejected, naming=naming)
    reports = list(engine.run(task, [source._asdict() for source in found], "read files"))
    _check(config, reports, rejected, needs_answers)
    dropped = _dropped(config, reports)
    keys: dict[int, list[str]] = {}
    for report in reports:
        for bucket, key in zip(report["shard_buckets"], report["shard_keys"], strict=True):
            keys.setdefault(bucket, []).append(key)
    rejects = sum(sum(report["reason_counts"]) for report in reports)
    return Shards(keys, rejects, len(found), dropped, sum(report["forgotten"] for report in reports))


def _read_source(
    item: dict[str, Any], inputs: Inputs, buckets: int, shards: Store, rejected: Store, naming: Naming
) -> dict[str, Any]:
    source = reader.Source(**item)
    adapter = catalog.FORMATS[inputs.format]
    dropped: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    examples: dict[str, str] = {}
    keys: list[tuple[int, str]] = []
    rows = known = forgotten = 0
    blocks = catalog.blocks(adapter, source, inputs.columns[source.path], inputs.questions)
    for number, block in enumerate(blocks):
        name = f"{source.number:05d}-{number:04d}.parquet"
        dropped.update(block.dropped)
        block, left_out = naming.block(block)
        forgotten += left_out
        parsed = parse(block.raw, block.file, block.rows, adapter.milliseconds)
        bad = pl.concat([block.malformed, parsed.rejected])
        if len(bad):
            rejected.write_table(f"part-{name}", bad.sort("row", maintain_order=True).to_arrow())
            reasons.update(bad["reason"].to_list())
            first = bad.unique("reason", keep="first", maintain_order=True)
            for file, row, reason, raw in first.iter_rows():
                examples.setdefault(reason, f"{file}, row {row}: {raw[:SHOWN]}")
        for bucket, shard in deal(parsed.good, source.number, buckets).items():
            keys.append((bucket, f"b={bucket:03d}/{name}"))
            shards.write_table(keys[-1][1], shard)
        rows += len(parsed.good)
        known += int((parsed.good["correct"] != UNKNOWN).sum())
    return {
        "rows": rows,
        "known": known,
        "forgotten": forgotten,
        "reasons": list(reasons),
        "reason_counts": list(reasons.values()),
        "examples": [examples[reason] for reason in reasons],
        "dropped": list(dropped),
        "dropped_counts": list(dropped.values()),
        "shard_buckets": [bucket for bucket, _ in keys],
        "shard_keys": [key for _, key in keys],
    }


def _dropped(config: DataConfig, reports: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Rows that the format's rules left out, by reason: said, but no fault."""
    total: Counter[str] = Counter()
    for report in reports:
        total.update(dict(zip(report["dropped"], report["dropped_counts"], strict=True)))
    for reason, count in sorted(total.items()):
        logger.info("%s: left out %d rows: %s", config.path, count, reason)
    return dict(sorted(total.items()))


def _check(config: DataConfig, reports: Sequence[Mapping[str, Any]], rejected: Store, needs_answers: bool) -> None:
    rows = sum(report["rows"] for report in reports)
    reasons: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for report in reports:
        for reason, count, example in zip(report["reasons"], report["reason_counts"], report["examples"], strict=True):
            reasons[reason] += count
            examples.setdefault(reason, example)
    bad = reasons.total()
    summary = "\n".join(f"  {count} x {reason}, e.g. {examples[reason]}" for reason, count in reasons.most_common())
    share = bad / max(rows + bad, 1)
    if share > config.max_rejected:
        raise InputError(
            f"{bad} of {rows + bad} rows are bad ({share:.1%}; data.max_rejected is {config.max_rejected:.1%}):\n"
            f"{summary}\nall of them are in {rejected.url}; correct the file, or raise --set data.max_rejected"
        )
    if bad:
        logger.warning("%d of %d rows are bad, left out, and kept in %s:\n%s", bad, rows + bad, rejected.url, summary)
    if not rows and needs_answers:
        raise InputError(f"{config.path}: there is a header but no row; expected one interaction a line")
    if needs_answers and not sum(report["known"] for report in reports):
        raise InputError(
            f"{config.path}: all {rows} answers are hidden (-1); training needs rows with 1 or 0: "
            "give the training log too (data.path may be a folder or a glob)"
        )
