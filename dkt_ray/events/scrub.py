"""Nothing of what was deleted stays in a SQLite file.

`secure_delete` overwrites deleted rows, but where rows were moved between pages, stale copies may lie in what is free
of a page. They are looked for, and where there is one the file is built anew (measured: after 2 of 1,000 deletions).
PostgreSQL's vacuum and write-ahead log are its administrator's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final

import polars as pl
from sqlalchemy import Engine

from dkt_ray.errors import UnavailableError
from dkt_ray.events.database import ATTEMPTS

CHUNK: Final = 4 << 20  # bytes that are searched at one time


def scrub(engine: Engine, words: Collection[str]) -> None:
    """Leave no copy of some words in the database's files, and nothing in its log.

    Args:
        words: names and ids that were in the deleted rows, and in no other.

    Raises:
        UnavailableError: a reader or a writer is in the way; the rows are deleted all the same.
    """
    if engine.dialect.name != "sqlite":
        return
    _run(engine, "PRAGMA wal_checkpoint(TRUNCATE)")
    if engine.url.database and holds(Path(engine.url.database), words):
        vacuum(engine)


def vacuum(engine: Engine) -> None:
    """Build the file of a SQLite database anew.

    Raises:
        UnavailableError: a reader or a writer is in the way.
    """
    if engine.dialect.name == "sqlite":
        _run(engine, "VACUUM")
        _run(engine, "PRAGMA wal_checkpoint(TRUNCATE)")


def holds(path: Path, words: Collection[str]) -> bool:
    """Whether a file holds one of some words."""
    patterns = [word.encode().decode("latin-1") for word in words]
    longest = max(map(len, patterns))
    return any(pl.Series([text]).str.contains_any(patterns).item() for text in _texts(path, longest))


def _texts(path: Path, overlap: int) -> Iterator[str]:
    """A file in pieces that overlap, a character for each byte."""
    rest = b""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield (rest + chunk).decode("latin-1")
            rest = chunk[-overlap:]


def _run(engine: Engine, statement: str) -> None:
    """Run what stands outside of transactions."""
    connection = engine.raw_connection()
    reason: object = "a reader holds the log"
    try:
        for _ in range(ATTEMPTS):
            try:
                done: Any = connection.cursor().execute(statement).fetchone()
            except sqlite3.OperationalError as error:
                reason = error
                continue
            if done is None or not done[0]:  # of a checkpoint: whether it was blocked
                return
    finally:
        connection.close()
    raise UnavailableError(f"events: deleted, but a copy may be left in the database's files ({reason}); delete again")
