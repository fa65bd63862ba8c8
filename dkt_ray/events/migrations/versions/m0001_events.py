"""Events, those that wait for a grade, tombstones and retentions."""

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, SmallInteger, Text

revision = "0001"
down_revision = None

NUMBER = BigInteger().with_variant(Integer, "sqlite")


def content() -> list[Column[str] | Column[int]]:
    """Columns of an event."""
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


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "events",
        Column("sequence", NUMBER, primary_key=True),
        Column("event_id", Text, nullable=False, unique=True),
        *content(),
        Column("correct", SmallInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("events_of_a_user", "events", ["user", "answered_at", "sequence"])
    op.create_index("events_since", "events", ["user", "sequence"])
    op.create_index("events_by_time", "events", ["answered_at"])
    op.create_table("waiting", Column("event_id", Text, primary_key=True), *content())
    op.create_index("waiting_of_a_user", "waiting", ["user"])
    op.create_index("waiting_by_time", "waiting", ["answered_at"])
    op.create_table(
        "tombstones",
        Column("number", NUMBER, primary_key=True),
        Column("mark", Text, nullable=False, unique=True),
        Column("deleted_at", BigInteger, nullable=False),
        Column("removed", BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "retentions",
        Column("number", NUMBER, primary_key=True),
        Column("kept_from", BigInteger, nullable=False),
        Column("removed_at", BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )
