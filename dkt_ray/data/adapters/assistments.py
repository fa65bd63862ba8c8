"""ASSISTments: the skill-builder file of 2009-2010 (two layouts), 2012-2013, 2015 and the 2017 competition."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import polars as pl

from dkt_ray.data.adapters.base import FRACTION, Context, Format, as_text, drop, fractional, without_marks
from dkt_ray.data.reader import Block
from dkt_ray.schema import CONCEPT_SEPARATOR


def graded_rows(blocks: Iterator[Block], context: Context) -> Iterator[Block]:
    """Rows with a right or a wrong answer; partial credit is left out and counted."""
    del context
    for block in blocks:
        yield without_marks(drop(as_text(block, "concepts"), fractional("correct"), FRACTION))


def skills_as_questions(blocks: Iterator[Block], context: Context) -> Iterator[Block]:
    """2015 knows problem sets only: the set is the question, and its concept."""
    for block in graded_rows(blocks, context):
        yield block._replace(raw=block.raw.with_columns(concepts="question"))


def named_skills(blocks: Iterator[Block], context: Context) -> Iterator[Block]:
    """2017 names one skill a row; an underscore in a name joins nothing."""
    one = pl.col("concepts").str.replace_all(CONCEPT_SEPARATOR, "-", literal=True)
    for block in graded_rows(blocks, context):
        yield block._replace(raw=block.raw.with_columns(one))


ASSISTMENTS_2009: Final = Format(
    name="assistments2009",
    title="ASSISTments 2009-2010 skill builder, collapsed or a row a skill",
    columns={"user": "user_id", "question": "problem_id", "correct": "correct", "order": "order_id"},
    optional={"concepts": "skill_id"},
    convert=graded_rows,
    encoding="latin-1",
)
ASSISTMENTS_2012: Final = Format(
    name="assistments2012",
    title="ASSISTments 2012-2013",
    columns={
        "user": "user_id",
        "question": "problem_id",
        "correct": "correct",
        "order": "problem_log_id",
        "timestamp": "start_time",
    },
    optional={"concepts": "skill_id"},
    convert=graded_rows,
    timestamp_is="shown",
    encoding="latin-1",
)
ASSISTMENTS_2015: Final = Format(
    name="assistments2015",
    title="ASSISTments 2015, 100 skill builders",
    columns={"user": "user_id", "question": "sequence_id", "correct": "correct", "order": "log_id"},
    convert=skills_as_questions,
    encoding="latin-1",
)
ASSISTMENTS_2017: Final = Format(
    name="assistments2017",
    title="ASSISTments 2017 data-mining competition",
    columns={
        "user": "studentId",
        "question": "problemId",
        "concepts": "skill",
        "correct": "correct",
        "timestamp": "startTime",
    },
    convert=named_skills,
    timestamp_is="shown",
    encoding="latin-1",
)
