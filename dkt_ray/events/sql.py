"""The event log and the histories in one SQL database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from sqlalchemy import Connection, Engine, Table, delete, func, insert, select

from dkt_ray.events import tombstones
from dkt_ray.events.database import open_engine, pieces, read, written
from dkt_ray.events.histories import SqlHistories
from dkt_ray.events.model import Appended, Event, EventConflictError, ForgottenError, Graded
from dkt_ray.events.tables import EVENTS, IDENTITY, WAITING
from dkt_ray.privacy import Privacy

FIELDS: Final = tuple(Event.__dataclass_fields__)
OPTIONAL: Final = ("answer", "shown_at", "test", "concepts")  # a retry or a grade may leave them out


@dataclass(frozen=True)
class Events:
    """An open database of events."""

    engine: Engine
    log: SqlEventLog
    histories: SqlHistories

    def close(self) -> None:
        """Forget the histories and end all connections."""
        self.histories.close()
        self.engine.dispose()


def open_events(url: str, privacy: Privacy | None = None, now: bool = True) -> Events:
    """Open the database of events; its tables are made or brought up to date.

    Args:
        privacy: None: as the environment says.
        now: False: one that cannot be reached is opened as soon as it can be; see `open_engine`.

    Raises:
        ConfigError: not a database that can hold events.
        UnavailableError: it cannot be reached.
    """
    engine = open_engine(url, now)
    privacy = Privacy.of_environment() if privacy is None else privacy
    return Events(engine, SqlEventLog(engine, privacy), SqlHistories(engine, privacy))


@dataclass(frozen=True)
class SqlEventLog:
    """See `EventLog`."""

    engine: Engine
    privacy: Privacy

    def append(self, events: Sequence[Event]) -> Appended:
        """See `EventLog.append`."""
        if not events:
            return Appended(0, 0, 0)
        return written(self.engine, lambda connection: self._append(connection, events))

    def read(self, after: int, limit: int) -> list[Graded]:
        """See `EventLog.read`."""
        columns = [EVENTS.c.sequence, *(EVENTS.c[name] for name in FIELDS)]
        query = select(*columns).where(EVENTS.c.sequence > after).order_by(EVENTS.c.sequence).limit(limit)

        def rows(connection: Connection) -> list[Graded]:
            return [Graded(sequence, Event(*values)) for sequence, *values in connection.execute(query)]

        return read(self.engine, rows)

    def count(self) -> int:
        """See `EventLog.count`."""
        query = select(func.count()).select_from(EVENTS)
        return read(self.engine, lambda connection: connection.execute(query).scalar_one())

    def identity(self) -> str:
        """Which log it is; a copy made by `dkt backup` is another one."""
        return read(self.engine, lambda connection: connection.execute(select(IDENTITY.c.identity)).scalar_one())

    def end(self) -> int:
        """The highest place that was ever given, be the event there or deleted."""
        counter = "SELECT last_value FROM events_sequence_seq"
        if self.engine.dialect.name == "sqlite":
            counter = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'events'"
        return read(self.engine, lambda connection: int(connection.exec_driver_sql(counter).scalar_one()))

    def _append(self, connection: Connection, events: Sequence[Event]) -> Appended:
        self._refuse_forgotten(connection, events)
        kept = _kept(connection, [event.event_id for event in events])
        new: dict[str, Event] = {}
        repeated, grades = 0, set[str]()
        for index, event in enumerate(events):
            there = kept.get(event.event_id)
            merged = event if there is None else _merged(there, event, index)
            if there is not None and merged == there:
                repeated += 1
                continue
            if there is not None and event.event_id not in new:
                grades.add(event.event_id)
            kept[event.event_id] = new[event.event_id] = merged
        for chosen in pieces(list(grades)):
            connection.execute(delete(WAITING).where(WAITING.c.event_id.in_(chosen)))
        graded = [event for event in new.values() if event.correct is not None]
        waiting = [_without_grade(event) for event in new.values() if event.correct is None]
        if graded:
            connection.execute(insert(EVENTS), [asdict(event) for event in graded])
        if waiting:
            connection.execute(insert(WAITING), waiting)
        return Appended(len(graded), len(waiting), repeated, graded)

    def _refuse_forgotten(self, connection: Connection, events: Sequence[Event]) -> None:
        marks = {user: self.privacy.mark(user) for user in {event.user for event in events}}
        gone = tombstones.among(connection, marks.values())
        if gone:
            index = next(i for i, event in enumerate(events) if marks[event.user] in gone)
            raise ForgottenError(f"event {index}: its user was deleted, and nothing is kept of him any more")


def _kept(connection: Connection, ids: Sequence[str]) -> dict[str, Event]:
    """The events that are there under some ids."""
    found: dict[str, Event] = {}
    for chosen in pieces(ids):
        for table in (EVENTS, WAITING):
            for row in connection.execute(select(*_columns(table)).where(table.c.event_id.in_(chosen))).mappings():
                found[row["event_id"]] = Event(**row)
    return found


def _columns(table: Table) -> list[Any]:
    return [table.c[name] for name in FIELDS if name in table.c]


def _merged(kept: Event, given: Event, index: int) -> Event:
    """What is kept after an event that is there was given again; the same one where that says nothing new."""
    absent = {name: getattr(kept, name) for name in OPTIONAL if getattr(given, name) in (None, "")}
    if given.answered_at == given.received_at:  # by the server's clock, which has gone on
        absent["answered_at"] = kept.answered_at
    said = replace(given, received_at=kept.received_at, **absent)
    if replace(said, correct=kept.correct) != kept or (
        said.correct != kept.correct and None not in (said.correct, kept.correct)
    ):
        raise EventConflictError(index)
    return kept if said.correct is None else said


def _without_grade(event: Event) -> dict[str, Any]:
    values = asdict(event)
    del values["correct"]
    return values
