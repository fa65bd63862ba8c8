"""What is older than it may be kept leaves the database, a bounded number of rows in one transaction."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Final

from sqlalchemy import ColumnElement, Connection, Engine, Table, delete, insert, select

from dkt_ray.events.database import written
from dkt_ray.events.scrub import vacuum
from dkt_ray.events.tables import METADATA, RETENTIONS

AT_ONCE: Final = 1_000  # rows of one transaction
PAUSE_S: Final = 0.02  # between them, in which others write
TIMES: Final = ("answered_at", "at")  # columns that say when a row is from, ms UTC


def expire(engine: Engine, kept_from: int) -> dict[str, int]:
    """Remove the rows of before a time from every table that says when its rows are from.

    Args:
        kept_from: ms UTC.

    Returns:
        Table -> removed rows.

    Raises:
        UnavailableError: the database cannot be reached.
    """
    tell = partial(_tell, kept_from=kept_from)
    times = [(table, name) for table in METADATA.sorted_tables for name in TIMES if name in table.c]
    removed = {table.name: remove(engine, table, table.c[name] < kept_from, told=tell) for table, name in times}
    if any(removed.values()):
        vacuum(engine)
    return removed


def remove(
    engine: Engine, table: Table, *which: ColumnElement[bool], told: Callable[[Connection], None] | None = None
) -> int:
    """Remove rows of a table; returns how many.

    Args:
        which: all of it holds for those that go.
        told: called in the transaction of each batch.

    Raises:
        UnavailableError: the database cannot be reached.
    """
    (key,) = table.primary_key.columns
    old = select(key).where(*which).limit(AT_ONCE)

    def some(connection: Connection) -> int:
        removed = connection.execute(delete(table).where(key.in_(old))).rowcount
        if removed and told is not None:
            told(connection)
        return removed

    total = 0
    while removed := written(engine, some):
        total += removed
        time.sleep(PAUSE_S)
    return total


def _tell(connection: Connection, kept_from: int) -> None:
    """A new number with each batch, so that whoever is killed has told of all that is gone."""
    connection.execute(delete(RETENTIONS).where(RETENTIONS.c.kept_from == kept_from))
    now = round(time.time() * 1000)
    connection.execute(insert(RETENTIONS), {"kept_from": kept_from, "removed_at": now})
