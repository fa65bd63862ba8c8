"""Exported events as Parquet: parts named by the place in the log at which they begin.

exports/<name>/part-00000000000000000001.parquet   rows in the log's order; the metadata hold the place of the last
               pointer.json                        up to where the log is exported
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from dkt_ray.errors import StorageError
from dkt_ray.events.model import Graded
from dkt_ray.privacy import Privacy
from dkt_ray.schema import RAW_COLUMNS
from dkt_ray.storage import Store
from dkt_ray.storage.inputs import PART

POINTER: Final = "pointer.json"
USER: Final = RAW_COLUMNS["user"]
TIME: Final = RAW_COLUMNS["timestamp"]
LAST: Final = b"last_sequence"  # in a part's metadata, as its last rows may be removed

_TIME: Final = pa.timestamp("ms", "UTC")
_SCHEMA: Final = pa.schema(
    [
        ("sequence", pa.int64()),
        ("eventID", pa.string()),
        (USER, pa.string()),
        (RAW_COLUMNS["question"], pa.string()),
        (RAW_COLUMNS["test"], pa.string()),
        (RAW_COLUMNS["correct"], pa.int8()),
        (TIME, _TIME),
        (RAW_COLUMNS["concepts"], pa.string()),
        ("shownAt", _TIME),
        ("receivedAt", _TIME),
    ]
)


def folder(name: str) -> str:
    """Where an export lives in the store."""
    return f"exports/{name}"


def keys(files: Store) -> list[str]:
    """The parts of an export, in the log's order."""
    return [key for key in files.list() if PART.fullmatch(key)]


def key_of(first: int) -> str:
    """The key of the part that begins at a place of the log, be an event there or not."""
    return f"part-{first:020d}.parquet"


def first_of(key: str) -> int:
    """The place in the log at which a part begins."""
    found = PART.fullmatch(key)
    assert found is not None
    return int(found[1])


def last_of(part: pa.Table, place: str) -> int:
    """The place in the log up to which a part goes.

    Raises:
        StorageError: the file is no part of an export.
    """
    try:
        return int(part.schema.metadata[LAST])
    except (KeyError, TypeError, ValueError):
        raise StorageError(f"{place}: not a part of an export; move it out of the folder") from None


def table(events: Sequence[Graded]) -> pa.Table:
    """Events as they are exported."""
    rows = [
        (
            sequence,
            event.event_id,
            event.user,
            event.question,
            event.test,
            event.correct,
            event.answered_at,
            event.concepts,
            event.shown_at,
            event.received_at,
        )
        for sequence, event in events
    ]
    columns: Iterable[Sequence[object]] = zip(*rows, strict=True) if rows else [()] * len(_SCHEMA)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
    return pa.table(arrays, _SCHEMA)


def ending(part: pa.Table, last: int) -> pa.Table:
    """A part that says up to where it goes."""
    return part.replace_schema_metadata({LAST: str(last).encode()})


def without(part: pa.Table, marks: Collection[str], privacy: Privacy, kept_from: int | None = None) -> pa.Table:
    """A part without the rows of some users, and without those that were answered before a time.

    Args:
        marks: of the users, as `Privacy.mark` makes them.
        kept_from: ms UTC; None: however old.
    """
    users = part[USER].unique()
    gone = [user for user in users.to_pylist() if privacy.mark(user) in marks] if marks else []
    if gone:
        part = part.filter(pc.invert(pc.is_in(part[USER], pa.array(gone, pa.string()))))
    if kept_from is not None:
        part = part.filter(pc.greater_equal(part[TIME], pa.scalar(kept_from, _TIME)))
    return part
