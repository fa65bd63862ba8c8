"""The tables of the event log; who is deleted leaves each with a column `user`, what is old each with a time."""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, Float, Index, Integer, MetaData, SmallInteger, Table, Text

METADATA: Final = MetaData()

_Number: Final = BigInteger().with_variant(Integer, "sqlite")  # there only INTEGER counts up by itself


def _content() -> list[Column[str] | Column[int]]:
    """What is kept of an event, in the order of `Event`'s fields that are not its id or its grade."""
    return [
        Column("user", Text, nullable=False),
        Column("question", Text, nullable=False),
        Column("answered_at", BigInteger, nullable=False),
        Column("received_at", BigInteger, nullable=False),
        Column("answer", Text),
        Column("shown_at", BigInteger),
        Column("test", Text, nullable=False),
        Column("concepts", Text, nullable=False),
    ]


# Graded events. The log's order is `sequence`; one writer at a time draws it, so it is the order of the commits too.
EVENTS: Final = Table(
    "events",
    METADATA,
    Column("sequence", _Number, primary_key=True),
    Column("event_id", Text, nullable=False, unique=True),
    *_content(),
    Column("correct", SmallInteger, nullable=False),
    Index("events_of_a_user", "user", "answered_at", "sequence"),  # his latest answers
    Index("events_since", "user", "sequence"),  # what is new of him
    Index("events_by_time", "answered_at"),  # what is too old to be kept
    sqlite_autoincrement=True,  # a number is never given again, even where the newest event was deleted
)

# Events that wait for their grade.
WAITING: Final = Table(
    "waiting",
    METADATA,
    Column("event_id", Text, primary_key=True),
    *_content(),
    Index("waiting_of_a_user", "user"),
    Index("waiting_by_time", "answered_at"),
)

# Users who were deleted, by mark; what other processes remember of them goes when they meet a new number.
TOMBSTONES: Final = Table(
    "tombstones",
    METADATA,
    Column("number", _Number, primary_key=True),
    Column("mark", Text, nullable=False, unique=True),
    Column("deleted_at", BigInteger, nullable=False),
    Column("removed", BigInteger, nullable=False),  # rows
    sqlite_autoincrement=True,
)

# Deletions after which the file of a SQLite database was not searched for copies yet.
UNSCRUBBED: Final = Table(
    "unscrubbed",
    METADATA,
    Column("number", _Number, primary_key=True),
    sqlite_autoincrement=True,
)

# How far back events are kept: a row for each limit by which `dkt forget` removed older ones, its number new with each
# batch, by which other processes know that what they remember is out of date.
RETENTIONS: Final = Table(
    "retentions",
    METADATA,
    Column("number", _Number, primary_key=True),
    Column("kept_from", BigInteger, nullable=False),
    Column("removed_at", BigInteger, nullable=False),
    sqlite_autoincrement=True,
)

# Which log it is, one row: a copy that is put back is another one, as it gives the same places to other events.
IDENTITY: Final = Table("log_identity", METADATA, Column("identity", Text, primary_key=True))

# What was foreseen for users and is not answered yet: joined to the next answer to the same question, then gone.
PREDICTIONS: Final = Table(
    "predictions",
    METADATA,
    Column("number", _Number, primary_key=True),
    Column("user", Text, nullable=False),
    Column("question", Text, nullable=False),
    Column("bundle", Text, nullable=False),
    Column("probability", Float, nullable=False),
    Column("at", BigInteger, nullable=False),
    Index("predictions_of_a_user", "user", "question", "at"),
    Index("predictions_by_time", "at"),
)

# What users were recommended, and how likely it was to be.
RECOMMENDATIONS: Final = Table(
    "recommendations",
    METADATA,
    Column("number", _Number, primary_key=True),
    Column("user", Text, nullable=False),
    Column("question", Text, nullable=False),
    Column("bundle", Text, nullable=False),
    Column("policy", Text, nullable=False),
    Column("candidates", Integer, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("propensity", Float, nullable=False),
    Column("at", BigInteger, nullable=False),
    Index("recommendations_of_a_user", "user"),
    Index("recommendations_by_time", "at"),
)

# Predictions and what came of them; of nobody.
OUTCOMES: Final = Table(
    "outcomes",
    METADATA,
    Column("number", _Number, primary_key=True),
    Column("bundle", Text, nullable=False),
    Column("probability", Float, nullable=False),
    Column("correct", SmallInteger, nullable=False),
    Column("at", BigInteger, nullable=False),
    Index("outcomes_of_a_bundle", "bundle", "number"),
)

OF_USERS: Final = tuple(table for table in METADATA.sorted_tables if "user" in table.c)
