"""`dkt backup`: a consistent copy of a SQLite database of events, while it is read and written."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import make_url

from dkt_ray.config import Config
from dkt_ray.errors import ConfigError, UnavailableError
from dkt_ray.events.database import required_url
from dkt_ray.storage.atomic import settle, staged


class BackupConfig(Config):
    """Settings of `dkt backup`."""

    events: str | None = None
    """The database, as in `dkt export`: a SQLite file; of a PostgreSQL server, pg_dump does (docs/runbook.md)."""
    target: str
    """The file to be written; what is there is replaced when the copy is complete."""


def run(config: BackupConfig) -> dict[str, Any]:
    """Copy the database.

    Returns:
        target, bytes, events (graded ones in the copy), seconds.

    Raises:
        ConfigError: no database, or one that is no SQLite file.
        UnavailableError: it cannot be read, or the copy not be written.
    """
    started = time.monotonic()
    url = make_url(required_url(config.events))
    if url.get_backend_name() != "sqlite" or url.database is None:
        raise ConfigError(
            "events: not a SQLite file; of a PostgreSQL server: pg_dump --format=custom --file=FILE DATABASE"
        )
    target = Path(config.target)
    try:
        with staged(target) as temporary:
            events = _copy(url.database, temporary)
            settle(temporary)
            temporary.replace(target)
        settle(target.parent)
    except (sqlite3.Error, OSError) as error:
        raise UnavailableError(f"{target}: the copy could not be made ({error}); try again") from None
    seconds = round(time.monotonic() - started, 2)
    return {"target": str(target), "bytes": target.stat().st_size, "events": events, "seconds": seconds}


def _copy(source: str, target: Path) -> int:
    """Copy in one read transaction, so that writers go on and the copy is of one moment; returns the graded events."""
    with closing(sqlite3.connect(source)) as database, closing(sqlite3.connect(target)) as copy:
        database.backup(copy)
        # it will give the same places to other events
        copy.execute("UPDATE log_identity SET identity = ?", [uuid4().hex])
        copy.commit()
        copy.execute("PRAGMA journal_mode=DELETE")  # one file, complete without a log beside it
        (events,) = copy.execute("SELECT count(*) FROM events").fetchone()
        return int(events)
