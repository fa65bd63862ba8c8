"""Formats that write a user's interactions as lists: three or four lines a user, and pyKT's sequence files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Final

import numpy as np
import polars as pl

from dkt_ray.data import reader
from dkt_ray.data.adapters.base import SOURCE_ROWS, Context, Format, keep, refuse
from dkt_ray.data.parse import REJECTED_SCHEMA, rejected
from dkt_ray.data.reader import BLOCK_BYTES, Block, Source

UNEVEN: Final = "lists of different lengths"
WRONG_LENGTH: Final = "the first line is not the number of answers"
LINES_LEFT: Final = "lines left over at the end of the file"
PADDING: Final = "-1"
LISTS: Final = ("question", "concepts", "correct", "timestamp", "selected", "repeated")


def stem_of(path: str) -> str:
    """A file's name without its endings: it names the users of a file that does not."""
    return re.sub(r"\.[a-z.]+$", "", PurePosixPath(path).name)


def line_blocks(source: Source, names: Sequence[str], block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """Groups of lines as rows: one column a line, and the user; a row's number is that of its first line.

    The user is the first number of a first line `user,length`, else the file's name and the number of the group.
    """
    stem = stem_of(source.path)
    size = len(names)
    rest: list[str] = []
    first = 0  # number of the first line in `rest`
    for more in reader.lines(source, block_bytes):
        rest += more
        whole = len(rest) // size * size
        groups = {name: rest[at:whole:size] for at, name in enumerate(names)}
        rows = np.arange(first, first + whole, size, dtype=np.int64)
        numbered = [f"{stem}-{row // size}" for row in rows.tolist()]
        raw = pl.DataFrame(groups, schema=dict.fromkeys(names, pl.String)).with_columns(pl.Series("user", numbered))
        named = pl.col("length").str.extract(r"^\s*([^,\s]+)\s*,\s*\d+[\s,]*$")
        yield Block(
            raw.with_columns(user=pl.coalesce(named, "user")), rows, pl.DataFrame(schema=REJECTED_SCHEMA), source.path
        )
        first, rest = first + whole, rest[whole:]
    left = [(first + at, line) for at, line in enumerate(rest) if line.strip()]
    if left:
        raw = pl.DataFrame({"line": [line for _, line in left]}, schema={"line": pl.String})
        bad = rejected(raw, source.path, pl.Series([row for row, _ in left], dtype=pl.Int64), LINES_LEFT)
        empty = pl.DataFrame(schema=dict.fromkeys([*names, "user"], pl.String))
        yield Block(empty, np.empty(0, np.int64), bad, source.path)


def unrolled(block: Block) -> Block:
    """One row an interaction, of rows whose columns hold lists; rows with uneven lists are rejected."""
    names = [name for name in LISTS if name in block.raw]
    cells = [pl.col(name).str.strip_chars(" ,\t").str.split(",") for name in names]
    width = block.raw.select(pl.concat_list([cell.list.len() for cell in cells]).alias("w"))["w"]
    even = refuse(
        block._replace(raw=block.raw.with_columns(width.list.n_unique().alias("widths"))), pl.col("widths") > 1, UNEVEN
    )
    flat = even.raw.drop("widths").with_columns(cells).with_row_index("at").explode(names)
    raw = flat.drop("at").with_columns(pl.col(names).str.strip_chars())
    return even._replace(raw=raw, rows=even.rows[flat["at"].to_numpy()])


def counted_lines(blocks: Iterator[Block], context: Context) -> Iterator[Block]:
    """Groups of lines, checked against their length; without a line of questions the concept is the question."""
    start = context.source * SOURCE_ROWS
    for block in blocks:
        length = pl.col("length").str.extract(r"(\d+)[\s,]*$").cast(pl.Int64, strict=False)
        answers = pl.col("correct").str.strip_chars(" ,\t")
        count = pl.when(answers == "").then(0).otherwise(answers.str.split(",").list.len())
        fitting = refuse(block, (length != count) | length.is_null(), WRONG_LENGTH)
        some = keep(fitting, fitting.raw.select(answers != "").to_series())
        flat = unrolled(some._replace(raw=some.raw.drop("length")))
        order = pl.Series("order", start + np.arange(len(flat.rows)), pl.Int64)
        start += len(flat.rows)
        yield flat._replace(raw=_with_question(flat.raw).with_columns(order))


def folded_sequences(blocks: Iterator[Block], context: Context) -> Iterator[Block]:
    """pyKT: padding goes, and the rows of one question's concepts share an order key, by which they are merged."""
    start = context.source * SOURCE_ROWS - 1  # key of the last interaction
    for block in blocks:
        flat = unrolled(block)
        padding = pl.col("correct") == PADDING
        if "selected" in flat.raw:
            padding |= pl.col("selected") == PADDING
        real = keep(flat, ~flat.raw.select(padding).to_series())
        names = [name for name in ("selected", "repeated") if name in real.raw]
        begins = real.raw["repeated"] != "1" if "repeated" in real.raw else pl.repeat(True, len(real.rows), eager=True)
        order = start + np.cumsum(begins.to_numpy(), dtype=np.int64)
        start = int(order[-1]) if len(order) else start
        raw = _with_question(real.raw.drop(names)).with_columns(pl.Series("order", order, pl.Int64))
        yield real._replace(raw=raw)


def _with_question(raw: pl.DataFrame) -> pl.DataFrame:
    if "question" in raw:
        return raw
    return raw.with_columns(question="concepts")


LINES_3: Final = Format(
    name="lines3",
    title="three lines a user: length, skills, answers",
    columns={"length": "1", "concepts": "2", "correct": "3"},
    convert=counted_lines,
    lines=3,
)
LINES_4: Final = Format(
    name="lines4",
    title="four lines a user: length, questions, skills, answers",
    columns={"length": "1", "question": "2", "concepts": "3", "correct": "4"},
    convert=counted_lines,
    lines=4,
)
PYKT: Final = Format(
    name="pykt",
    title="pyKT's sequence files, e.g. train_valid_sequences.csv",
    columns={"user": "uid", "concepts": "concepts", "correct": "responses"},
    optional={"question": "questions", "timestamp": "timestamps", "selected": "selectmasks", "repeated": "is_repeat"},
    convert=folded_sequences,
    milliseconds=True,
    timestamp_is="submitted",
)
