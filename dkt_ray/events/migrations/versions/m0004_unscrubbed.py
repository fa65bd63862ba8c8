"""Deletions whose copies were not looked for yet."""

from alembic import op
from sqlalchemy import BigInteger, Column, Integer

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make the table."""
    number = BigInteger().with_variant(Integer, "sqlite")
    op.create_table("unscrubbed", Column("number", number, primary_key=True), sqlite_autoincrement=True)
