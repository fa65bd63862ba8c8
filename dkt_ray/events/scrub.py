"""Nothing of what was deleted stays in a SQLite file; done behind the deletions, in one thread.

`secure_delete` overwrites deleted rows, but where rows were moved between pages, stale copies may lie in what is free
of a page. They are looked for, and where there is one the file is built anew (measured: after 2 of 1,000 deletions).
A row of UNSCRUBBED says that this has not happened yet: one that a process left behind makes the next one to open the
file build it anew. PostgreSQL's vacuum and write-ahead log are its administrator's.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine, delete, select

from dkt_ray.errors import UnavailableError
from dkt_ray.events import copies
from dkt_ray.events.database import ATTEMPTS, read, retried, written
from dkt_ray.events.tables import UNSCRUBBED

logger = logging.getLogger(__name__)

SHORTEST: Final = 16  # bytes of a word that is searched for: a shorter one may be a part of what others have
AGAIN_S: Final = 1.0  # after a reader or a writer was in the way


class Scrubber:
    """Scrubs in a thread of its own: after deletions, those that came meanwhile together, and what was left behind."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._waiting: dict[int, Collection[str]] = {}  # by number in UNSCRUBBED
        self._left_behind = True  # may be, by processes before this one
        self._wake = threading.Event()
        self._wake.set()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scrubbing", daemon=True)
        self._thread.start()

    def add(self, number: int, words: Collection[str]) -> None:
        """Have a deletion scrubbed.

        Args:
            number: in UNSCRUBBED.
            words: names and ids that were in the deleted rows, and in no other.
        """
        with self._lock:
            self._waiting[number] = words
        self._wake.set()

    def close(self) -> None:
        """Scrub what waits, where that is possible now."""
        self._closed.set()
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        closing = False
        while not closing:
            self._wake.wait()
            self._wake.clear()
            closing = self._closed.is_set()
            try:
                self._scrub()
            except (UnavailableError, RuntimeError) as error:  # the other one: of the process that looks
                logger.warning("what was deleted could not be scrubbed, trying again: %s", error)
                self._closed.wait(AGAIN_S)
                self._wake.set()

    def _scrub(self) -> None:
        with self._lock:
            words = dict(self._waiting)
        numbers = {*words, *(unscrubbed(self._engine) if self._left_behind else ())}
        if numbers:
            if numbers > words.keys():  # nobody knows what was deleted
                vacuum(self._engine)
            else:
                scrub(self._engine, [word for each in words.values() for word in each])
            done = delete(UNSCRUBBED).where(UNSCRUBBED.c.number.in_(numbers))
            written(self._engine, lambda connection: connection.execute(done))
        self._left_behind = False
        with self._lock:
            for number in words:
                del self._waiting[number]


def scrub(engine: Engine, words: Collection[str]) -> None:
    """Leave no copy of some words in the database's files, and nothing in its log.

    Args:
        words: names and ids that were in the deleted rows, and in no other; those below `SHORTEST` are not looked for.

    Raises:
        UnavailableError: a reader or a writer is in the way; the rows are deleted all the same.
    """
    if engine.dialect.name != "sqlite":
        return
    _execute(engine, "PRAGMA wal_checkpoint(TRUNCATE)")
    searched = [word for word in words if len(word.encode()) >= SHORTEST]
    if engine.url.database and searched and copies.found(Path(engine.url.database), searched):
        vacuum(engine)


def vacuum(engine: Engine) -> None:
    """Build the file of a SQLite database anew.

    Raises:
        UnavailableError: a reader or a writer is in the way.
    """
    if engine.dialect.name == "sqlite":
        _execute(engine, "VACUUM")
        _execute(engine, "PRAGMA wal_checkpoint(TRUNCATE)")


def unscrubbed(engine: Engine) -> set[int]:
    """The deletions after which copies were not looked for yet, by number in UNSCRUBBED."""
    return read(engine, lambda connection: set(connection.execute(select(UNSCRUBBED.c.number)).scalars()))


def _execute(engine: Engine, statement: str) -> None:
    """Run what stands outside of transactions."""
    connection = retried(engine.raw_connection)
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
    raise UnavailableError(f"events: a copy of what was deleted may be in the database's files ({reason}); try again")
