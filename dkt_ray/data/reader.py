"""Reading input files (CSV, gzipped CSV, Parquet) block by block, so that file and row of everything are known."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, Literal, NamedTuple

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

Encoding = Literal["utf-8", "latin-1"]


class Source(NamedTuple):
    """A file, one row group of a Parquet file, or many small CSV files: the work of one read task."""

    number: int  # place of the source in the sorted inputs: its part in the total order of rows
    path: str
    group: int | None  # row group of a Parquet file
    first_row: int  # number of its first row in the file
    more: Sequence[str] = ()  # the other files, where there are several


class Block(NamedTuple):
    """Some rows of a source."""

    raw: pl.DataFrame  # canonical names, values as they stand in the file
    rows: Int64  # [N] 0-based number of each row in its file
    malformed: pl.DataFrame  # lines that are no row at all, as parse.REJECTED_SCHEMA
    file: str | pl.Series = ""  # [N] where the source is several files
    dropped: Mapping[str, int] = {}  # reason -> rows that the format's rules leave out, which is no fault of theirs


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
        return _open_csv(pa.BufferReader(_first_line(stream)), HEADER_BYTES, {}, []).schema.names


def sources(paths: list[str], together: int = 1) -> list[Source]:
    """The read tasks of all inputs: one a CSV file (or `together` small ones), one a Parquet row group."""
    if together > 1:
        groups = [paths[start : start + together] for start in range(0, len(paths), together)]
        return [Source(number, group[0], None, 0, group[1:]) for number, group in enumerate(groups)]
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


def blocks(
    source: Source, columns: Mapping[str, str], block_bytes: int = BLOCK_BYTES, encoding: Encoding = "utf-8"
) -> Iterator[Block]:
    """Read a source in bounded blocks, in order.

    Args:
        columns: canonical name -> column in the file, as `parse.locate` found them.
        block_bytes: size of a CSV block.
        encoding: of a CSV file's text.

    Raises:
        InputError: the file cannot be read as what its name says.
    """
    with _readable(source.path), open_input(source.path) as stream:
        if source.group is None:
            yield from _csv_blocks(stream, source.path, columns, block_bytes, encoding)
            return
        table = pq.ParquetFile(stream).read_row_group(source.group, columns=_distinct(columns))
        frame = pl.DataFrame({name: pl.Series(name, table[column]) for name, column in columns.items()})
        rows = source.first_row + np.arange(len(frame))
        yield Block(frame, rows, pl.DataFrame(schema=REJECTED_SCHEMA), source.path)


def blocks_of_many(source: Source, columns: Mapping[str, str], block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """Read many small CSV files with one header, as many at a time as fill a block.

    Raises:
        InputError: a file cannot be read, or has another header than the first one.
    """
    header: bytes | None = None
    gathered: list[tuple[str, bytes]] = []
    size = 0
    for path in (source.path, *source.more):
        with _readable(path), open_input(path) as stream:
            first, _, body = stream.read().removeprefix(b"\xef\xbb\xbf").partition(b"\n")
        header = first.strip() if header is None else header
        if first.strip() != header:
            raise InputError(f"{path}: the header is {first[:200]!r}, that of {source.path} is {header!r}")
        gathered.append((path, body.rstrip(b"\r\n")))
        size += len(body)
        if size >= block_bytes:
            yield from _joined(header, gathered, columns)
            gathered, size = [], 0
    if gathered:
        assert header is not None
        yield from _joined(header, gathered, columns)


def lines(source: Source, block_bytes: int = BLOCK_BYTES) -> Iterator[list[str]]:
    """The lines of a text file without line ends, in bounded pieces.

    Raises:
        InputError: not UTF-8 text.
    """
    rest = b""
    with _readable(source.path), open_input(source.path) as stream:
        while chunk := stream.read(block_bytes):
            *whole, rest = (rest + chunk).split(b"\n")
            yield [line.decode().rstrip("\r") for line in whole]
        if rest.strip():
            yield [rest.decode().rstrip("\r")]


def _joined(header: bytes, files: Sequence[tuple[str, bytes]], columns: Mapping[str, str]) -> Iterator[Block]:
    """One block of several files' lines; each line gets its file's number in front."""
    lengths = [body.count(b"\n") + 1 if body else 0 for _, body in files]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    numbered = (b"%d,%s" % (i, body.replace(b"\n", b"\n%d," % i)) for i, (_, body) in enumerate(files) if body)
    text = b"file," + header + b"\n" + b"\n".join(numbered)
    names = pl.Series("file", [path for path, _ in files], pl.String)
    stream = pa.BufferReader(text)
    for block in _csv_blocks(stream, files[0][0], {"file": "file", **columns}, len(text) + 1, "utf-8"):
        owner = block.raw["file"].cast(pl.Int64)
        bad = np.searchsorted(starts, block.malformed["row"].to_numpy(), "right") - 1
        malformed = block.malformed.with_columns(
            names.gather(bad), pl.Series("row", block.malformed["row"].to_numpy() - starts[bad], pl.Int64)
        )
        rows = block.rows - starts[owner.to_numpy()]
        yield Block(block.raw.drop("file"), rows, malformed, names.gather(owner))


def _csv_blocks(
    stream: pa.NativeFile, path: str, columns: Mapping[str, str], block_bytes: int, encoding: Encoding
) -> Iterator[Block]:
    bad: list[tuple[int, str]] = []  # row number and text of each line of a wrong width, as the reader meets them
    reported = 0
    next_row = 0
    for batch in _open_csv(stream, block_bytes, columns, bad, encoding):
        skipped = [row for row, _ in bad if row >= next_row]
        candidates = np.arange(next_row, next_row + batch.num_rows + len(skipped))
        rows = np.setdiff1d(candidates, skipped, assume_unique=True)[: batch.num_rows]
        next_row = int(rows[-1]) + 1 if len(rows) else next_row
        raw, unreadable = _decode(batch, columns)
        met = bad[reported:]  # taken once: of a compressed file, the reader reads ahead in a thread of its own
        reported += len(met)
        malformed = [_malformed(path, met)]
        if unreadable.any():
            malformed.append(rejected(raw.filter(unreadable), path, pl.Series(rows).filter(unreadable), NOT_TEXT))
            raw, rows = raw.filter(~unreadable), rows[~unreadable.to_numpy()]
        yield Block(raw, rows, pl.concat(malformed), path)
    if reported < len(bad):
        empty = pl.DataFrame(schema=dict.fromkeys(columns, pl.String))
        yield Block(empty, np.empty(0, np.int64), _malformed(path, bad[reported:]), path)


def _first_line(stream: pa.NativeFile) -> bytes:
    """The first line that is not empty, with the line breaks inside of quotation marks."""
    text: bytes = stream.read(HEADER_BYTES).lstrip(b"\r\n")
    end = text.find(b"\n")
    while end >= 0 and text.count(b'"', 0, end) % 2:
        end = text.find(b"\n", end + 1)
    return text if end < 0 else text[: end + 1]


def _open_csv(
    stream: pa.NativeFile,
    block_bytes: int,
    columns: Mapping[str, str],
    bad: list[tuple[int, str]],
    encoding: Encoding = "utf-8",
) -> pacsv.CSVStreamingReader:
    """A reader that appends lines of a wrong width to `bad`; single-threaded, as else it knows no line numbers."""

    def skip(row: pacsv.InvalidRow) -> str:
        bad.append((row.number - 2, row.text))  # numbers start at 1, and the header is one
        return "skip"

    return pacsv.open_csv(
        stream,
        read_options=pacsv.ReadOptions(use_threads=False, block_size=block_bytes, encoding=encoding),
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
