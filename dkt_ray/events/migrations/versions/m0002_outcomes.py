"""Predictions, recommendations, and outcomes."""

from alembic import op
from sqlalchemy import BigInteger, Column, Float, Integer, SmallInteger, Text

revision = "0002"
down_revision = "0001"

NUMBER = BigInteger().with_variant(Integer, "sqlite")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "predictions",
        Column("number", NUMBER, primary_key=True),
        Column("user", Text, nullable=False),
        Column("question", Text, nullable=False),
        Column("bundle", Text, nullable=False),
        Column("probability", Float, nullable=False),
        Column("at", BigInteger, nullable=False),
    )
    op.create_index("predictions_of_a_user", "predictions", ["user", "question", "at"])
    op.create_index("predictions_by_time", "predictions", ["at"])
    op.create_table(
        "recommendations",
        Column("number", NUMBER, primary_key=True),
        Column("user", Text, nullable=False),
        Column("question", Text, nullable=False),
        Column("bundle", Text, nullable=False),
        Column("policy", Text, nullable=False),
        Column("candidates", Integer, nullable=False),
        Column("rank", Integer, nullable=False),
        Column("propensity", Float, nullable=False),
        Column("at", BigInteger, nullable=False),
    )
    op.create_index("recommendations_of_a_user", "recommendations", ["user"])
    op.create_index("recommendations_by_time", "recommendations", ["at"])
    op.create_table(
        "outcomes",
        Column("number", NUMBER, primary_key=True),
        Column("bundle", Text, nullable=False),
        Column("probability", Float, nullable=False),
        Column("correct", SmallInteger, nullable=False),
        Column("at", BigInteger, nullable=False),
    )
    op.create_index("outcomes_of_a_bundle", "outcomes", ["bundle", "number"])
