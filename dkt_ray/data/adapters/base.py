"""What an adapter is: the columns of a source's format, and how blocks of its rows become rows of the schema."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

import polars as pl

from dkt_ray.data.parse import rejected
from dkt_ray.data.reader import Block, Encoding

FRACTION: Final = "fractional correctness (partial credit)"
NO_CONCEPT: Final = ("na", "nan", "noskill", "null")  # what stands for "none" in the field's files, in lower case
SOURCE_ROWS: Final = 1 << 40  # interactions of a source that have order keys of their own


class Context(NamedTuple):
    """What an adapter knows beside the rows."""

    source: int  # number of the source
    questions: pl.DataFrame | None  # question, test, concepts, answer: of the file questions.csv, where there is one


Convert = Callable[[Iterator[Block], Context], Iterator[Block]]


def unchanged(blocks: Iterator[Block], context: Context) -> Iterator[Block]:
    """For formats whose rows are those of the schema but for the names."""
    del context
    return blocks


@dataclass(frozen=True)
class Format:
    """One format: a row of the catalog.

    Args:
        columns: canonical name (or one that `convert` knows) -> column that a file must have.
        optional: the same for columns that a file may have.
        convert: makes blocks of canonical columns; `order` (a number) may be among them, see `buckets.merge`.
        milliseconds: timestamps are counts of milliseconds.
        timestamp_is: what its timestamp tells; None where the format has none.
        lines: lines of one user in a file without header; 0 for tables.
        together: small files that one task reads.
        companions: files beside the logs that are no logs.
        questions: whether a table of questions may (or must) lie beside the logs.
    """

    name: str
    title: str
    columns: Mapping[str, str]
    optional: Mapping[str, str] = field(default_factory=dict)
    convert: Convert = unchanged
    milliseconds: bool = False
    timestamp_is: Literal["shown", "submitted"] | None = None
    encoding: Encoding = "utf-8"
    lines: int = 0
    together: int = 1
    companions: tuple[str, ...] = ()
    questions: Literal["none", "optional", "required"] = "none"


def keep(block: Block, mask: pl.Series) -> Block:
    """The rows of a block where the mask holds."""
    file = block.file if isinstance(block.file, str) else block.file.filter(mask)
    return block._replace(raw=block.raw.filter(mask), rows=block.rows[mask.to_numpy()], file=file)


def drop(block: Block, where: pl.Expr, reason: str) -> Block:
    """Leave out rows that the format's rules leave out; they are counted."""
    mask = block.raw.select(where.fill_null(False).alias("left")).to_series()
    if not mask.any():
        return block
    dropped = Counter(block.dropped) + Counter({reason: int(mask.sum())})
    return keep(block, ~mask)._replace(dropped=dropped)


def refuse(block: Block, where: pl.Expr, reason: str) -> Block:
    """Move bad rows to the rejected ones."""
    mask = block.raw.select(where.fill_null(False).alias("bad")).to_series()
    if not mask.any():
        return block
    bad = keep(block, mask)
    refused = rejected(bad.raw, bad.file, pl.Series(bad.rows, dtype=pl.Int64), reason)
    return keep(block, ~mask)._replace(malformed=pl.concat([block.malformed, refused]))


def as_text(block: Block, *names: str) -> Block:
    """The named columns as stripped text, "" for nothing; whole floats lose their `.0`."""
    present = [name for name in names if name in block.raw]
    stripped = pl.col(present).cast(pl.String).str.strip_chars().str.strip_suffix(".0").fill_null("")
    return block._replace(raw=block.raw.with_columns(stripped))


def without_marks(block: Block) -> Block:
    """Concepts with "" where the file has a word for none."""
    if "concepts" not in block.raw:
        return block
    none = pl.col("concepts").str.to_lowercase().is_in(NO_CONCEPT)
    return block._replace(raw=block.raw.with_columns(concepts=pl.when(none).then(pl.lit("")).otherwise("concepts")))


def fractional(column: str) -> pl.Expr:
    """Where a correctness lies between wrong and right."""
    number = pl.col(column).cast(pl.Float64, strict=False)
    return (number > 0) & (number < 1)
