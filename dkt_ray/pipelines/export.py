"""`dkt export`: graded events from the log to Parquet in the store, each exactly once, from where the last one ended.

A part is written under the place at which it begins, then the pointer moves behind it. Whoever is killed in between
leaves a part that the next run takes as it is: nothing is ever written twice, in another form, or skipped.
"""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import pyarrow as pa
from pydantic import Field

from dkt_ray.config import Config
from dkt_ray.errors import ConfigError, ConflictError, NotFoundError
from dkt_ray.events import parts, tombstones
from dkt_ray.events.database import required_url
from dkt_ray.events.parts import POINTER
from dkt_ray.events.sql import Events, open_events
from dkt_ray.storage import Store, json_bytes, open_store, parse_json
from dkt_ray.storage.lease import lease
from dkt_ray.storage.store import parquet_bytes

logger = logging.getLogger(__name__)

PAGE: Final = 10_000  # events that are read from the database at one time


class ExportConfig(Config):
    """Settings of `dkt export`."""

    events: str | None = None
    """The database: sqlite:////PATH or postgresql+psycopg://HOST/DATABASE, without a password (PGPASSWORD or .pgpass);
    the variable DKT_EVENTS_URL, where it is set, wins."""
    store: str = "data/store"
    """A folder or s3://bucket/prefix."""
    name: str = Field("events", pattern=r"^[A-Za-z0-9._-]+$")
    """The export's name in the store; one name has one database."""
    part_rows: int = Field(100_000, ge=1)
    """Most events of one file; they are in memory together."""


class Pointer(NamedTuple):
    """Up to where the log is exported."""

    after: int
    rows: int
    log: str | None  # `SqlEventLog.identity`; None: nothing is exported
    version: str | None  # of the object


def run(config: ExportConfig) -> dict[str, Any]:
    """Export what the log has got since the last time.

    Returns:
        export, path (of the parts), rows and parts (written now), adopted (parts of a run that was killed), forgotten
        (rows left out, of users who were deleted meanwhile), total (rows of all runs), after (place in the log),
        seconds.

    Raises:
        ConfigError: no database, or another one than was exported: a copy, put back.
        ConflictError: somebody else exports under this name.
        UnavailableError: the database cannot be reached.
    """
    started = time.monotonic()
    events = open_events(required_url(config.events))
    try:
        store = open_store(config.store)
        files = store.child(parts.folder(config.name))
        with lease(files, f"export {config.name!r}"):
            told = _export(config, events, store, files)
        tombstones.remember(store, [each.mark for each in tombstones.buried(events.engine)], events.log.privacy)
    finally:
        events.close()
    logger.info("export %s: %d events in %d new parts", config.name, told["rows"], told["parts"])
    seconds = round(time.monotonic() - started, 2)
    return {"export": config.name, "path": files.url, **told, "seconds": seconds}


def _export(config: ExportConfig, events: Events, store: Store, files: Store) -> dict[str, Any]:
    pointer = _pointer(files)
    log, end = events.log.identity(), events.log.end()
    if pointer.log not in (None, log) or end < pointer.after:
        raise ConfigError(
            f"export {config.name!r} goes up to {pointer.after} in another log than this one, which ends at {end}: a "
            "backup was put back, or this is another database; export under another name, --set name=NAME: prepare "
            "takes what is in both once"
        )
    pointer = pointer._replace(log=log)
    left = [key for key in parts.keys(files) if parts.first_of(key) > pointer.after]
    told = {"rows": 0, "parts": 0, "adopted": len(left), "forgotten": 0}
    marks = set(tombstones.forgotten(store, events.log.privacy))  # a restored log may know fewer
    met = 0
    for key, part in _parts(config, events, files, left, pointer.after):
        buried = tombstones.buried(events.engine, met)  # after the part is there: whoever is deleted later, forgets it
        marks.update(each.mark for each in buried)
        met = max((each.number for each in buried), default=met)
        kept = parts.without(part, marks, events.log.privacy)
        if kept.num_rows < part.num_rows:
            files.write_table(key, kept)
        pointer = _move(files, pointer, parts.last_of(part, f"{files.url}/{key}"), kept.num_rows)
        told["rows"] += kept.num_rows
        told["parts"] += 1
        told["forgotten"] += part.num_rows - kept.num_rows
        logger.info("export %s: %d events, up to %d in the log", config.name, told["rows"], pointer.after)
    return told | {"total": pointer.rows, "after": pointer.after}


def _parts(
    config: ExportConfig, events: Events, files: Store, left: list[str], after: int
) -> Iterator[tuple[str, pa.Table]]:
    """Parts that the pointer is not yet behind: those that a killed run left, then new ones."""
    for key in left:
        part = files.read_table(key)
        yield key, part
        after = parts.last_of(part, f"{files.url}/{key}")
    while True:
        tables: list[pa.Table] = []
        rows, last = 0, after
        while rows < config.part_rows and (page := events.log.read(last, min(PAGE, config.part_rows - rows))):
            tables.append(parts.table(page))
            rows, last = rows + len(page), page[-1].sequence
        if not tables:
            return
        part = parts.ending(pa.concat_tables(tables), last)
        key = parts.key_of(after + 1)  # whatever is its first row now: who else writes this part, writes this key
        files.write_if(key, parquet_bytes(part), None)
        yield key, part
        after = last


def _pointer(files: Store) -> Pointer:
    try:
        data, version = files.read_versioned(POINTER)
    except NotFoundError:
        return Pointer(0, 0, None, None)
    found = parse_json(data, f"{files.url}/{POINTER}")
    return Pointer(found["after"], found["rows"], found["log"], version)


def _move(files: Store, pointer: Pointer, after: int, rows: int) -> Pointer:
    """Move the pointer behind a part.

    Raises:
        ConflictError: somebody else moved it: this run slept, and its lease was taken over.
    """
    moved = {
        "after": after,
        "rows": pointer.rows + rows,
        "log": pointer.log,
        "moved_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    try:
        version = files.write_if(POINTER, json_bytes(moved), pointer.version)
    except ConflictError:
        raise ConflictError(f"{files.url}: somebody else exported meanwhile; run dkt export again") from None
    return pointer._replace(after=after, rows=pointer.rows + rows, version=version)
