"""Riiid's logs of the TOEIC tutor Santa: EdNet KT1 (a file a user) and the Kaggle challenge's train.csv."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Final

import polars as pl

from dkt_ray.data import reader
from dkt_ray.data.adapters.base import Context, Format, as_text, drop, refuse
from dkt_ray.data.reader import Block
from dkt_ray.errors import InputError
from dkt_ray.schema import CONCEPT_SEPARATOR

LECTURE: Final = "lecture"
NO_ANSWER: Final = "no answer given"
NO_SUCH_QUESTION: Final = "question is not in questions.csv"

QUESTION_COLUMNS: Final = {
    "question": "question_id",
    "test": "bundle_id",
    "answer": "correct_answer",
    "concepts": "tags",
}


def read_questions(path: str) -> pl.DataFrame:
    """The table questions.csv: question, test (its bundle), answer, concepts (tags, joined as the schema wants it).

    Raises:
        InputError: a column is missing.
    """
    found = reader.header(path)
    for column in QUESTION_COLUMNS.values():
        if column not in found:
            raise InputError(f"{path}: no column {column!r} in {found}; a table of questions has it")
    blocks = [block.raw for source in reader.sources([path]) for block in reader.blocks(source, QUESTION_COLUMNS)]
    text = pl.concat(blocks).select(pl.col(*QUESTION_COLUMNS).cast(pl.String).str.strip_chars().fill_null(""))
    tags = text["concepts"].str.replace_all(r"[;\s]+", CONCEPT_SEPARATOR)
    untagged = tags.is_in(["-1", ""])
    return text.with_columns(concepts=pl.when(untagged).then(pl.lit("")).otherwise(tags)).unique(
        "question", keep="first", maintain_order=True
    )


def compared_answers(blocks: Iterator[Block], context: Context) -> Iterator[Block]:
    """KT1: the user is the file's name, an answer is right when it is the one of questions.csv."""
    assert context.questions is not None
    for block in blocks:
        whole = as_text(block, "question", "user_answer")
        whole = drop(whole, pl.col("user_answer").is_in(["", "nan", "NaN"]), NO_ANSWER)
        # joined, not looked up row by row; the left join keeps the order of the rows
        joined = whole.raw.join(context.questions, on="question", how="left", maintain_order="left")
        told = refuse(whole._replace(raw=joined), pl.col("answer").is_null(), NO_SUCH_QUESTION)
        right = (pl.col("user_answer") == pl.col("answer")).cast(pl.Int8).cast(pl.String)
        raw = told.raw.with_columns(users_of(told), correct=right).drop("answer", "user_answer")
        yield told._replace(raw=raw)


def users_of(block: Block) -> pl.Series:
    """The user of each row: the name of its file without folder and suffix."""
    files = (
        block.file if isinstance(block.file, pl.Series) else pl.Series([block.file] * len(block.rows), dtype=pl.String)
    )
    return files.str.extract(r"([^/]+?)\.csv(?:\.gz)?$").alias("user")


def user_of(path: str) -> str:
    """The user whose file this is."""
    return re.sub(r"\.csv(\.gz)?$", "", PurePosixPath(path).name)


def questions_only(blocks: Iterator[Block], context: Context) -> Iterator[Block]:
    """The challenge: rows of lectures are left out; bundle and tags come from questions.csv where it is there."""
    for block in blocks:
        whole = as_text(block, "kind", "question")
        asked = drop(whole, pl.col("kind").is_in(["1", "true", "True"]), LECTURE)
        raw = asked.raw.drop("kind")
        if context.questions is not None:
            facts = context.questions.select("question", "test", "concepts")
            raw = raw.join(facts, on="question", how="left", maintain_order="left")
        yield asked._replace(raw=raw)


EDNET_KT1: Final = Format(
    name="ednet_kt1",
    title="EdNet KT1, a folder of u*.csv",
    columns={"timestamp": "timestamp", "question": "question_id", "user_answer": "user_answer"},
    convert=compared_answers,
    milliseconds=True,
    timestamp_is="shown",
    together=2000,
    companions=("questions.csv", "lectures.csv"),
    questions="required",
)
RIIID: Final = Format(
    name="riiid",
    title="Riiid Answer Correctness Prediction (Kaggle 2020)",
    columns={
        "order": "row_id",
        "timestamp": "timestamp",
        "user": "user_id",
        "question": "content_id",
        "kind": "content_type_id",
        "correct": "answered_correctly",
    },
    convert=questions_only,
    milliseconds=True,
    timestamp_is="shown",
    companions=("questions.csv", "lectures.csv", "example_test.csv", "example_sample_submission.csv"),
    questions="optional",
)
