"""Who was deleted: read from a database of events, and kept in the store for those who have no database.

forgotten/marks.txt   what the key is told by, then keyed hashes of deleted users, one a line, sorted
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Final, NamedTuple

from sqlalchemy import Connection, Engine, insert, select, union

from dkt_ray.errors import ConfigError, ConflictError, NotFoundError
from dkt_ray.events.database import pieces, read, written
from dkt_ray.events.tables import OF_USERS, TOMBSTONES
from dkt_ray.privacy import PRIVACY_KEY, Privacy
from dkt_ray.storage import Store

MARKS: Final = "forgotten/marks.txt"


class Tombstone(NamedTuple):
    """A deleted user."""

    number: int  # grows with each deletion
    mark: str  # `Privacy.mark`


def buried(engine: Engine, after: int = 0) -> list[Tombstone]:
    """The tombstones with a higher number, in their order."""
    query = select(TOMBSTONES.c.number, TOMBSTONES.c.mark).where(TOMBSTONES.c.number > after)

    def rows(connection: Connection) -> list[Tombstone]:
        return [Tombstone(*row) for row in connection.execute(query.order_by(TOMBSTONES.c.number))]

    return read(engine, rows)


def among(connection: Connection, marks: Collection[str]) -> set[str]:
    """Those of some marks that are of users who were deleted."""
    there = (select(TOMBSTONES.c.mark).where(TOMBSTONES.c.mark.in_(chosen)) for chosen in pieces(list(marks)))
    return {mark for query in there for mark in connection.execute(query).scalars()}


def users_of(engine: Engine, privacy: Privacy, marks: Collection[str]) -> list[str]:
    """The users in the database who have one of some marks."""
    everyone = union(*(select(table.c.user) for table in OF_USERS))

    def rows(connection: Connection) -> list[str]:
        return [user for (user,) in connection.execute(everyone) if privacy.mark(user) in marks]

    return read(engine, rows)


def bury(engine: Engine, marks: Collection[str]) -> None:
    """Leave tombstones for users of whom the database has nothing."""

    def work(connection: Connection) -> None:
        there = set(connection.execute(select(TOMBSTONES.c.mark)).scalars())
        new = [
            {"mark": mark, "deleted_at": round(time.time() * 1000), "removed": 0} for mark in sorted({*marks} - there)
        ]
        if new:
            connection.execute(insert(TOMBSTONES), new)

    written(engine, work)


def forgotten(store: Store, privacy: Privacy) -> frozenset[str]:
    """The marks that the store knows.

    Raises:
        ConfigError: they were made with another key, so nobody would be found by them.
    """
    return _read(store, privacy)[0]


def remember(store: Store, marks: Collection[str], privacy: Privacy) -> int:
    """Let the store know of marks; returns how many are new to it.

    Raises:
        ConfigError: those it knows were made with another key.
    """
    while True:
        known, version = _read(store, privacy)
        new = set(marks) - known
        if not new:
            return 0
        text = "".join(f"{line}\n" for line in (_key(privacy), *sorted(known | new)))
        try:
            store.write_if(MARKS, text.encode("ascii"), version)
        except ConflictError:
            continue  # somebody else added some: they stay
        return len(new)


def _read(store: Store, privacy: Privacy) -> tuple[frozenset[str], str | None]:
    try:
        data, version = store.read_versioned(MARKS)
    except NotFoundError:
        return frozenset(), None
    key, *marks = data.decode("ascii").splitlines()
    if key != _key(privacy):
        raise ConfigError(
            f"{store.url}/{MARKS}: its marks of deleted users were made with another {PRIVACY_KEY} (or without one), "
            "so nobody would be found by them; set the key that the service has"
        )
    return frozenset(marks), version


def _key(privacy: Privacy) -> str:
    """The first line: tells keys apart, and tells nothing of them."""
    return f"key {privacy.mark('the key of these marks')}"
