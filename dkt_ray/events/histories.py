"""Histories of users out of the event log, remembered in this process within a bound of rows.

Whatever is remembered of a user, each read asks the database what is new of him, so that an event is seen at once
whoever appended it. What others delete leaves this memory within `POLL_S`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from sqlalchemy import Connection, Engine, Select, Table, delete, func, insert, select, union_all, update
from sqlalchemy.exc import SQLAlchemyError

from dkt_ray.errors import UnavailableError
from dkt_ray.events import tombstones
from dkt_ray.events.database import read, reading, retried, written
from dkt_ray.events.model import Event, ForgottenError, History, Receipt
from dkt_ray.events.scrub import Scrubber
from dkt_ray.events.tables import EVENTS, OF_USERS, RETENTIONS, TOMBSTONES, UNSCRUBBED, WAITING
from dkt_ray.privacy import Privacy

logger = logging.getLogger(__name__)

REMEMBERED_ROWS: Final = 1_000_000  # of all users together; some 330 bytes each
POLL_S: Final = 1.0

_OF_A_USER: Final = 8  # what it costs to remember a user, in rows
_PLACE: Final = (EVENTS.c.answered_at, EVENTS.c.sequence)
_COLUMNS: Final = (*_PLACE, EVENTS.c.question, EVENTS.c.correct, EVENTS.c.test, EVENTS.c.concepts)

_Row: TypeAlias = tuple[int, int, str, int, str, str]  # _COLUMNS: sorts by place


class _Known(NamedTuple):
    """What is remembered of a user."""

    rows: Sequence[_Row]  # oldest first
    limit: int  # most rows
    older: int  # events before these
    last: int  # sequence up to which all of his events are counted in

    @property
    def cost(self) -> int:
        return len(self.rows) + _OF_A_USER


class SqlHistories:
    """See `HistoryStore`; threads share one.

    Args:
        remembered_rows: of all users together.
    """

    def __init__(self, engine: Engine, privacy: Privacy, remembered_rows: int = REMEMBERED_ROWS) -> None:
        self._engine = engine
        self._privacy = privacy
        self._bound = remembered_rows
        self._lock = threading.Lock()
        self._known: OrderedDict[str, _Known] = OrderedDict()  # by mark, the one used last at the end
        self._cost = 0
        self._forgotten: set[str] = set()  # since the start: a read that is under way may not bring them back
        self._cleared = 0  # how often all was forgotten
        self._met = self._first()  # tombstone and retention; None: the database was not reached yet
        self._closed = threading.Event()
        self._poller = threading.Thread(target=self._poll, name="forgetting", daemon=True)
        self._poller.start()
        self._scrubber = Scrubber(engine)

    def close(self) -> None:
        """Stop looking for deletions, scrub what is left of them, and forget all."""
        self._closed.set()
        self._poller.join()
        self._scrubber.close()
        self._clear()

    def get(self, user: str, limit: int) -> History:
        """See `HistoryStore.get`."""
        mark = self._privacy.mark(user)
        with self._lock:
            known, cleared = self._known.get(mark), self._cleared
        if known is not None and known.limit < limit:
            known = None
        found = retried(lambda: _read(self._engine, user, mark, limit, known))
        self._remember(mark, found, cleared)
        rows = found.rows[-limit:]
        answered_at, _, question, correct, test, concepts = zip(*rows, strict=True) if rows else ((),) * len(_COLUMNS)
        return History(question, correct, test, concepts, answered_at, found.older + len(found.rows) - len(rows))

    def waiting(self, user: str) -> int:
        """See `HistoryStore.waiting`."""
        query = select(func.count()).select_from(WAITING).where(WAITING.c.user == user)
        return read(self._engine, lambda connection: connection.execute(query).scalar_one())

    def append(self, events: Sequence[Event]) -> None:
        """See `HistoryStore.append`: nothing to be done, as each `get` asks for what is new."""

    def delete(self, user: str) -> Receipt:
        """See `HistoryStore.delete`."""
        mark = self._privacy.mark(user)
        receipt, ids, number = written(self._engine, lambda connection: _delete(connection, user, mark))
        self._forget([mark])
        self._scrubber.add(number, [user, *ids])
        return receipt

    def _remember(self, mark: str, found: _Known, cleared: int) -> None:
        with self._lock:
            if mark in self._forgotten or cleared != self._cleared:
                return
            self._drop(mark)
            self._known[mark] = found
            self._cost += found.cost
            while self._cost > self._bound:
                self._drop(next(iter(self._known)))

    def _forget(self, marks: Sequence[str]) -> None:
        with self._lock:
            self._forgotten.update(marks)
            for mark in marks:
                self._drop(mark)

    def _drop(self, mark: str) -> None:
        gone = self._known.pop(mark, None)
        self._cost -= 0 if gone is None else gone.cost

    def _clear(self) -> None:
        with self._lock:
            self._known.clear()
            self._cost = 0
            self._cleared += 1

    def _poll(self) -> None:
        while not self._closed.wait(POLL_S):
            try:
                self._meet_deletions()
            except (UnavailableError, SQLAlchemyError) as error:
                logger.warning("deletions by others could not be looked up, trying again: %s", error)

    def _first(self) -> tuple[int, int] | None:
        try:
            return read(self._engine, _newest)
        except UnavailableError:
            return None

    def _meet_deletions(self) -> None:
        newest = read(self._engine, _newest)
        if self._met is None:
            self._clear()  # what was read before may be deleted since
            self._met = newest
            return
        tombstone, retention = self._met
        buried = tombstones.buried(self._engine, tombstone)
        self._forget([each.mark for each in buried])
        if newest[1] > retention:
            self._clear()
        self._met = max((each.number for each in buried), default=tombstone), newest[1]


def _read(engine: Engine, user: str, mark: str, limit: int, known: _Known | None) -> _Known:
    """What the database has of a user; of one who is known, only what is new.

    Raises:
        ForgottenError: he was deleted.
    """
    with reading(engine) as connection:
        found = None if known is None else _with_new(connection, user, known)
        found = found or _afresh(connection, user, limit)
        if tombstones.among(connection, [mark]):
            raise ForgottenError("the user was deleted; nothing is kept of him")
    return found


def _with_new(connection: Connection, user: str, known: _Known) -> _Known | None:
    """What is known with what is new; None where that is too much to be read one by one."""
    query = _of(user).where(EVENTS.c.sequence > known.last).order_by(EVENTS.c.sequence).limit(known.limit)
    new = [tuple(row) for row in connection.execute(query)]
    if not new:
        return known
    if len(new) == known.limit:
        return None
    rows = [*known.rows, *new]
    rows.sort()  # late events find their place
    kept = rows[-known.limit :]
    return _Known(kept, known.limit, known.older + len(rows) - len(kept), new[-1][1])


def _afresh(connection: Connection, user: str, limit: int) -> _Known:
    mine = EVENTS.c.user == user
    last = connection.execute(select(func.max(EVENTS.c.sequence)).where(mine)).scalar() or 0
    latest = _of(user).where(EVENTS.c.sequence <= last).order_by(*(c.desc() for c in _PLACE)).limit(limit)
    rows = [tuple(row) for row in connection.execute(latest)][::-1]
    older = 0
    if len(rows) == limit:
        counted = select(func.count()).select_from(EVENTS).where(mine, EVENTS.c.sequence <= last)
        older = connection.execute(counted).scalar_one() - limit
    return _Known(rows, limit, older, last)


def _of(user: str) -> Select[Any]:
    return select(*_COLUMNS).where(EVENTS.c.user == user)


def _delete(connection: Connection, user: str, mark: str) -> tuple[Receipt, list[str], int]:
    """Remove a user from every table that has users, and leave a tombstone; returns the ids of his events too, and the
    number under which copies of them are to be looked for.
    """
    mine = [select(table.c.event_id).where(table.c.user == user) for table in (EVENTS, WAITING)]
    ids = [*connection.execute(union_all(*mine)).scalars()]
    removed = {table.name: connection.execute(delete(table).where(table.c.user == user)).rowcount for table in OF_USERS}
    found = select(TOMBSTONES.c.deleted_at).where(TOMBSTONES.c.mark == mark)
    deleted_at = connection.execute(found).scalar()
    if deleted_at is None:
        deleted_at = round(time.time() * 1000)
        connection.execute(insert(TOMBSTONES), {"mark": mark, "deleted_at": deleted_at, "removed": 0})
    grown = {"removed": TOMBSTONES.c.removed + sum(removed.values())}
    connection.execute(update(TOMBSTONES).where(TOMBSTONES.c.mark == mark).values(grown))
    unscrubbed = connection.execute(insert(UNSCRUBBED).values()).inserted_primary_key
    assert unscrubbed is not None
    return Receipt(mark, deleted_at, removed), ids, unscrubbed[0]


def _newest(connection: Connection) -> tuple[int, int]:
    """The latest tombstone and the latest retention, by number."""
    return _highest(connection, TOMBSTONES), _highest(connection, RETENTIONS)


def _highest(connection: Connection, table: Table) -> int:
    highest: Any = connection.execute(select(func.max(table.c.number))).scalar()
    return highest or 0
