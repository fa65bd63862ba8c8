"""Reading input files block by block with the row number of everything."""

import gzip
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from dkt_ray.data import reader
from dkt_ray.data.parse import NOT_TEXT, WRONG_WIDTH
from dkt_ray.errors import InputError

COLUMNS = {"user": "u", "correct": "a"}


def read(path: Path, block_bytes: int = 1 << 20) -> tuple[pl.DataFrame, pl.DataFrame]:
    """All rows with their numbers, and all malformed lines."""
    found = [block for source in reader.sources([str(path)]) for block in reader.blocks(source, COLUMNS, block_bytes)]
    rows = pl.concat([block.raw.with_columns(pl.Series("row", block.rows, pl.Int64)) for block in found])
    return rows, pl.concat([block.malformed for block in found])


def written(folder: Path, content: bytes, name: str = "log.csv") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz"])
@pytest.mark.parametrize("block_bytes", [16, 1 << 20])
def test_rows_keep_their_numbers_past_lines_of_a_wrong_width(tmp_path, name, block_bytes):
    path = written(tmp_path, b"u,x,a\n1,-,1\n2,-\n3,-,0\n\n4,-,1,9\n5,-,1\n6\n", name)
    rows, malformed = read(path, block_bytes)
    assert rows.rows() == [("1", "1", 0), ("3", "0", 2), ("5", "1", 4)]
    assert malformed.rows() == [
        (str(path), 1, WRONG_WIDTH, "2,-"),
        (str(path), 3, WRONG_WIDTH, "4,-,1,9"),
        (str(path), 5, WRONG_WIDTH, "6"),
    ]


def test_a_line_of_a_wrong_width_that_is_met_meanwhile_is_not_lost(tmp_path, monkeypatch):
    """The reader of a compressed file appends to its list while a block is made."""
    opened, told = reader._open_csv, reader._malformed
    lists: list[list[tuple[int, str]]] = []

    def open_csv(*arguments):
        lists.append(arguments[3])
        return opened(*arguments)

    def malformed(path, lines):
        if len(lists[0]) == 1:
            lists[0].append((9, "met meanwhile"))
        return told(path, lines)

    monkeypatch.setattr(reader, "_open_csv", open_csv)
    monkeypatch.setattr(reader, "_malformed", malformed)
    _, found = read(written(tmp_path, b"u,a\n1\n2,1\n"))
    assert found["row"].to_list() == [0, 9]


def test_many_small_blocks_give_the_rows_of_one(tmp_path):
    lines = [f"{n},x,{n % 2}" if n % 13 else f"{n}" for n in range(2000)]
    path = written(tmp_path, ("u,x,a\n" + "\n".join(lines) + "\n").encode())
    whole, small = read(path), read(path, 64)
    assert whole[0].equals(small[0])
    assert whole[1].equals(small[1])
    assert all(int(user) == row for user, row in zip(whole[0]["user"], whole[0]["row"], strict=True))


def test_only_malformed_lines(tmp_path):
    rows, malformed = read(written(tmp_path, b"u,a\n1\n2\n"))
    assert len(rows) == 0
    assert malformed["row"].to_list() == [0, 1]


def test_quoted_values_and_windows_line_ends(tmp_path):
    rows, _ = read(written(tmp_path, b'\xef\xbb\xbfu,a\r\n"1,5","1"\r\n"2",0\r\n'))
    assert rows.rows() == [("1,5", "1", 0), ("2", "0", 1)]


def test_lines_that_are_not_utf8_are_malformed(tmp_path):
    rows, malformed = read(written(tmp_path, b"u,a\n1,1\n\xb1\xe8,0\n3,1\n"))
    assert rows["row"].to_list() == [0, 2]
    assert malformed.select("row", "reason").rows() == [(1, NOT_TEXT)]


def test_a_parquet_file_is_read_by_row_group(tmp_path):
    path = tmp_path / "log.parquet"
    table = pl.DataFrame({"u": range(10), "x": ["-"] * 10, "a": [1, 0] * 5}).to_arrow()
    pq.write_table(table, path, row_group_size=4)
    assert [source.first_row for source in reader.sources([str(path)])] == [0, 4, 8]
    rows, malformed = read(path)
    assert rows["user"].to_list() == rows["row"].to_list() == list(range(10))
    assert len(malformed) == 0


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz"])
def test_an_empty_file_is_named(tmp_path, name):
    path = written(tmp_path, b"", name)
    with pytest.raises(InputError, match=rf"{path}: the file is empty"):
        reader.header(str(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.parquet", b"user,answer\n1,1\n", "cannot be read as Parquet"),
        ("log.csv.gz", b"", "cannot be read"),
        ("log.csv", "u,a\n1,1\n".encode("utf-16"), "not UTF-8 text"),
    ],
)
def test_a_file_that_is_not_what_its_name_says(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if not name.endswith(".gz") else b"plain text, not gzip")
    with pytest.raises(InputError, match=message):
        reader.header(str(path))


def test_an_open_quotation_mark_over_more_than_a_block(tmp_path):
    path = written(tmp_path, b'u,a\n1,1\n"2,0\n' + b"3,1\n" * 40)
    with pytest.raises(InputError, match="is a quotation mark left open"):
        read(path, 32)


def test_the_digest_is_of_the_content_whatever_the_compression(tmp_path):
    plain = reader.digest(str(written(tmp_path, b"u,a\n1,1\n")))
    packed = reader.digest(str(written(tmp_path, b"u,a\n1,1\n", "log.csv.gz")))
    assert plain == packed
    assert plain.text_bytes == 8
