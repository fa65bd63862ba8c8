"""Reading an input file (CSV, gzipped CSV, Parquet) block by block, so that file and row of everything are known."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from dkt_ray.data.history import Int64
from dkt_ray.data.parse import NOT_TEXT, REJECTED_SCHEMA, WRONG_WIDTH, rejected
from dkt_ray.errors import InputError
from dkt_ray.storage import open_input

BLOCK_BYTES: Final = 16 << 20  # text of a CSV file in memory at one time; part of the shards' names, hence fixed
HEADER_BYTES: Final = 1 << 20
HASH_BYTES: Final = 4 << 20
PARQUET_EXPANSION: Final = 4  # bytes of CSV text that a byte of Parquet stands for, roughly


class Source(NamedTuple):
    """A file, or one row group of a Parquet file: the work of one read task."""

    number: int  # place of the source in the sorted inputs: its part in the total order of rows
    path: str
    group: int | None  # row group of a Parquet file
    first_row: int  # number of its first row in the file


class Block(NamedTuple):
    """Some rows of a source."""

    raw: pl.DataFrame  # canonical names, values as they stand in the file
    rows: Int64  # [N] 0-based number of each row in its file
    malformed: pl.DataFrame  # lines that are no row at all, as parse.REJECTED_SCHEMA


class Digest(NamedTuple):
    """What identifies a file's content."""

    sha256: str
    text_bytes: int  # size as plain CSV, estimated for Parquet


def header(path: str) -> list[str]:
    """Column names of a file.

    Raises:
        InputError: the file is empty, or neither CSV nor Parquet.
    """
    with _readable(path), open_input(path) as stream:
        if _is_parquet(path):
            return pq.read_schema(stream).names
        return _open_csv(stream, path, HEADER_BYTES, {}, []).schema.names


def sources(paths: list[str]) -> list[Source]:
    """The read tasks of all inputs: one a CSV file, one a Parquet row group."""
    found: list[Source] = []
    for path in paths:
        if not _is_parquet(path):
            found.append(Source(len(found), path, None, 0))
            continue
        with _readable(path), open_input(path) as stream:
            metadata = pq.read_metadata(stream)
        first_row = 0
        for group in range(metadata.num_row_groups):
            found.append(Source(len(found), path, group, first_row))
            first_row += metadata.row_group(group).num_rows
    return found


def digest(path: str) -> Digest:
    """Hash a file's content (of `.gz` the decompressed content), streaming."""
    content = hashlib.sha256()
    size = 0
    with _readable(path), open_input(path) as stream:
        while chunk := stream.read(HASH_BYTES):
            content.update(chunk)
            size += len(chunk)
    return Digest(content.hexdigest(), size * (PARQUET_EXPANSION if _is_parquet(path) else 1))


def blocks(source: Source, columns: Mapping[str, str], block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """Read a source in bounded blocks, in order.

    Args:
        columns: canonical name -> column in the file, as `parse.locate` found them.
        block_bytes: size of a CSV block.

    Raises:
        InputError: the file cannot be read as what its name says.
    """
    with _readable(source.path), open_input(source.path) as stream:
        if source.group is None:
            yield from _csv_blocks(stream, source.path, columns, block_bytes)
            return
        table = pq.ParquetFile(stream).read_row_group(source.group, columns=_distinct(columns))
        frame = pl.DataFrame({name: pl.Series(name, table[column]) for name, column in columns.items()})
        yield Block(frame, source.first_row + np.arange(len(frame)), pl.DataFrame(schema=REJECTED_SCHEMA))


def _csv_blocks(stream: pa.NativeFile, path: str, columns: Mapping[str, str], block_bytes: int) -> Iterator[Block]:
    bad: list[tuple[int, str]] = []  # row number and text of each line of a wrong width, as the reader meets them
    reported = 0
    next_row = 0
    for batch in _open_csv(stream, path, block_bytes, columns, bad):
        skipped = [row for row, _ in bad if row >= next_row]
        candidates = np.arange(next_row, next_row + batch.num_rows + len(skipped))
        rows = np.setdiff1d(candidates, skipped, assume_unique=True)[: batch.num_rows]
        next_row = int(rows[-1]) + 1 if len(rows) else next_row
        raw, unreadable = _decode(batch, columns)
        malformed = [_malformed(path, bad[reported:])]
        reported = len(bad)
        if unreadable.any():
            malformed.append(rejected(raw.filter(unreadable), path, pl.Series(rows).filter(unreadable), NOT_TEXT))
            raw, rows = raw.filter(~unreadable), rows[~unreadable.to_numpy()]
        yield Block(raw, rows, pl.concat(malformed))
    if reported < len(bad):
        empty = pl.DataFrame(schema=dict.fromkeys(columns, pl.String))
        yield Block(empty, np.empty(0, np.int64), _malformed(path, bad[reported:]))


def _open_csv(
    stream: pa.NativeFile, path: str, block_bytes: int, columns: Mapping[str, str], bad: list[tuple[int, str]]
) -> pacsv.CSVStreamingReader:
    """A reader that appends lines of a wrong width to `bad`; single-threaded, as else it knows no line numbers."""

    def skip(row: pacsv.InvalidRow) -> str:
        bad.append((row.number - 2, row.text))  # numbers start at 1, and the header is one
        return "skip"

    return pacsv.open_csv(
        stream,
        read_options=pacsv.ReadOptions(use_threads=False, block_size=block_bytes),
        parse_options=pacsv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip),
        convert_options=pacsv.ConvertOptions(
            include_columns=_distinct(columns),
            column_types=dict.fromkeys(columns.values(), pa.binary()),
            strings_can_be_null=False,
        ),
    )


def _decode(batch: pa.RecordBatch, columns: Mapping[str, str]) -> tuple[pl.DataFrame, pl.Series]:
    """The batch as text, and which rows are not UTF-8 (there, what cannot be read is replaced)."""
    unreadable = pl.repeat(False, batch.num_rows, dtype=pl.Boolean, eager=True)
    decoded: dict[str, pl.Series] = {}
    for name, column in columns.items():
        try:
            decoded[name] = pl.Series(name, batch[column].cast(pa.string()))
        except pa.ArrowInvalid:
            values = [value.decode("utf-8", "replace") for value in batch[column].to_pylist()]
            decoded[name] = pl.Series(name, values, pl.String)
            unreadable |= decoded[name].str.contains("\ufffd", literal=True)
    return pl.DataFrame(decoded), unreadable


def _malformed(path: str, lines: list[tuple[int, str]]) -> pl.DataFrame:
    raw = pl.DataFrame({"line": [text for _, text in lines]}, schema={"line": pl.String})
    return rejected(raw, path, pl.Series([row for row, _ in lines], dtype=pl.Int64), WRONG_WIDTH)


def _distinct(columns: Mapping[str, str]) -> list[str]:
    """The file's columns to be read; two canonical columns may come from one of them."""
    return list(dict.fromkeys(columns.values()))


def _is_parquet(path: str) -> bool:
    return path.endswith(".parquet")


@contextmanager
def _readable(path: str) -> Iterator[None]:
    """Turn what Arrow says of a file that cannot be read into a message for people."""
    try:
        yield
    except pa.ArrowInvalid as error:
        if "Empty CSV" in str(error):
            raise InputError(f"{path}: the file is empty; expected a header line and rows") from None
        if "straddling" in str(error):
            hint = "a line is longer than the reader's block: is a quotation mark left open?"
            raise InputError(f"{path}: cannot be read as CSV: {hint}") from None
        kind = "Parquet" if _is_parquet(path) else "CSV"
        raise InputError(f"{path}: cannot be read as {kind}: {error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error}); convert it, e.g. with iconv -t utf-8") from None
    except (OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
