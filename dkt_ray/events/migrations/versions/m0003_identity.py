"""Which log it is."""

from uuid import uuid4

from alembic import op
from sqlalchemy import Column, Text

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the table and its one row."""
    table = op.create_table("log_identity", Column("identity", Text, primary_key=True))
    op.bulk_insert(table, [{"identity": uuid4().hex}])
