"""`dkt events`: send a log of answers to a service that keeps them, or ask how many it has."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, ClassVar, NamedTuple

import polars as pl
from pydantic import Field

from dkt_ray.client import Client, NoAnswerError, RefusedError
from dkt_ray.config import Config
from dkt_ray.data import reader
from dkt_ray.data.ingest import EXPANSION
from dkt_ray.data.parse import locate, parse
from dkt_ray.errors import DktError, InputError
from dkt_ray.log import progress
from dkt_ray.schema import CONCEPT_SEPARATOR, UNKNOWN
from dkt_ray.serving.events_contract import MAX_EVENTS
from dkt_ray.storage import input_bytes, list_inputs
from dkt_ray.storage.aws import SCHEME

logger = logging.getLogger(__name__)

Fields = dict[str, Any]


class EventsConfig(Config):
    """Settings of `dkt events`."""

    positional: ClassVar[str | None] = "path"

    path: str | None = None
    """A log to be sent: a file, folder or glob of .csv, .csv.gz or .parquet with the six-column schema, local or on
    s3://. Hidden answers (-1) are sent without a grade. Unset: only count what the service has."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Columns with other names than the six-column schema's, e.g. {user: student_id}."""
    name: str | None = None
    """What the log, a single file, is called in the ids of its events, NAME:ROW; unset: each file's name, below the
    folder that `path` names. The same rows under the same name are the same events, so that a command that was
    interrupted can be given again."""
    url: str = "http://127.0.0.1:8000"
    """Address of the service; its key, where it wants one, is taken from DKT_API_KEY."""
    deadline_s: float = Field(default=60.0, gt=0)
    """How long the service may take over 1,000 events, all tries together."""


class Part(NamedTuple):
    """Some rows of a log."""

    events: list[Fields]
    rejected: int  # rows beside them that are no answers
    why: str  # the first of these
    size: int  # bytes of the stored file that it stands for, estimated for `.gz`


def run(config: EventsConfig) -> dict[str, Any]:
    """Send a log, or count.

    Returns:
        added, waiting, repeated, rejected (rows that are no answers), seconds; without a path: events.

    Raises:
        InputError: no such file, or a column is missing.
        DktError: the service refuses events or does not answer; what was sent before them is kept.
    """
    started = time.monotonic()
    with Client(config.url, deadline_s=config.deadline_s) as client:
        if config.path is None:
            return {"events": client.events().events}
        totals = dict.fromkeys(("added", "waiting", "repeated", "rejected"), 0)
        for path, name in _named(config.path, config.name).items():
            _send(path, name, config, client, totals)
    logger.info("%s", ", ".join(f"{count} {word}" for word, count in totals.items()))
    return totals | {"seconds": round(time.monotonic() - started, 2)}


def parts(path: str, columns: Mapping[str, str], name: str, rows: int = MAX_EVENTS) -> Iterator[Part]:
    """A file's rows as events, in their order.

    Args:
        columns: canonical name -> column in the file, as `parse.locate` found them.
        name: of the file in the ids of events.
        rows: of one part.

    Raises:
        InputError: the file cannot be read.
    """
    sources, rest = reader.sources([path]), input_bytes(path)
    parquet = any(source.group is not None for source in sources)
    most = rest // len(sources) if parquet else reader.BLOCK_BYTES // EXPANSION.get(path.rpartition(".")[2], 1)
    for source in sources:
        for block in reader.blocks(source, columns):
            found = parse(block.raw, path, block.rows)
            bad = pl.concat([block.malformed, found.rejected])
            events = _events(found.good, columns, name)
            pieces = [events[start : start + rows] for start in range(0, len(events), rows)] or [[]]
            size = min(most, rest)
            rest -= size
            why = bad["reason"][0] if len(bad) else ""
            for place, piece in enumerate(pieces):
                yield Part(piece, 0 if place else len(bad), why, size // len(pieces))


def _named(path: str, name: str | None) -> dict[str, str]:
    """The files that a path names, each with its name in ids: no two files have the same.

    Raises:
        InputError: one name for several files.
    """
    paths = list_inputs(path)
    if len(paths) == 1 and (name is not None or PurePath(path).name == PurePath(paths[0]).name):
        return {paths[0]: name or PurePath(path).name}
    if name is not None:
        raise InputError(
            f"name={name!r}, but {path} are {len(paths)} files, whose rows would be the same events; unset it"
        )
    return {each: each.removeprefix(_base(path)).lstrip("/") for each in paths}


def _base(path: str) -> str:
    """The folder below which a folder or a glob finds files, whatever else comes to lie there."""
    whole = path if path.startswith(SCHEME) else str(Path(path).absolute())
    return re.split(r"/[^/]*[*?[]", whole, maxsplit=1)[0]


def _send(path: str, name: str, config: EventsConfig, client: Client, totals: dict[str, int]) -> None:
    columns = locate(reader.header(path), config.columns, path)
    total = input_bytes(path)
    with progress(f"send {PurePath(path).name}", total) as done:
        for part in parts(path, columns, name):
            if part.rejected:
                totals["rejected"] += part.rejected
                logger.warning("%s: %d rows are no answers, the first: %s", path, part.rejected, part.why)
            try:
                sent = client.record(part.events)
            except (RefusedError, NoAnswerError) as error:
                before = f"all events before {part.events[0]['event_id']} are kept, and none is kept twice"
                raise DktError(f"{path}: {error}; {before}: give the same command again") from error
            for word in ("added", "waiting", "repeated"):
                totals[word] += getattr(sent, word)
            done.advance(min(part.size, total - 1 - done.done))
        done.advance(total - done.done)


def _events(rows: pl.DataFrame, columns: Mapping[str, str], name: str) -> list[Fields]:
    """Rows as `/v1/events` reads them; what the file does not know is left out."""
    told = [
        pl.format("{}:{}", pl.lit(name), "row").alias("event_id"),
        pl.col("user").alias("user_id"),
        "question",
        pl.when(pl.col("correct") != UNKNOWN).then("correct").alias("correct"),
    ]
    if "timestamp" in columns:
        time_ = pl.from_epoch("timestamp", "ms").dt.strftime("%Y-%m-%dT%H:%M:%S%.3fZ")
        told.append(time_.alias("answered_at"))
    if "test" in columns:
        told.append(pl.when(pl.col("test") != "").then("test").alias("test"))
    if "concepts" in columns:
        told.append(pl.when(pl.col("concepts") != "").then(pl.col("concepts").str.split(CONCEPT_SEPARATOR)))
    return rows.select(told).to_dicts()
