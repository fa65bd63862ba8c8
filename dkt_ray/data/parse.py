"""Validation of one raw table: good rows in canonical columns, bad rows with their reason.

What is accepted: user and question are any text or whole number; an answer code is 1, 0 or -1 (hidden), also written
`1.0`, `true` or `false`; a timestamp is `YYYY-MM-DD HH:MM:SS[.fff]` (naive = UTC; `T` may stand for the space), the
same with a zone (`Z`, `UTC`, `+09:00`), or an epoch number: below 1e11 in magnitude it counts seconds (until the year
5138), else milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import polars as pl

from dkt_ray.data.history import Int64
from dkt_ray.errors import InputError
from dkt_ray.schema import CONCEPT_SEPARATOR, OPTIONAL, RAW_COLUMNS, REQUIRED, RIGHT, UNKNOWN, WRONG

ONE_TEST: Final = "all"  # the test of every row where the data know no tests
CANONICAL: Final = (*REQUIRED, *OPTIONAL)

MISSING_USER: Final = "missing user"
MISSING_QUESTION: Final = "missing question"
UNKNOWN_ANSWER: Final = "unknown answer code (expected 1, 0 or -1)"
MISSING_TIME: Final = "missing timestamp"
UNPARSABLE_TIME: Final = "unparsable timestamp (expected YYYY-MM-DD HH:MM:SS or epoch seconds or milliseconds)"
WRONG_WIDTH: Final = "wrong number of columns"
NOT_TEXT: Final = "not UTF-8 text"
BAD_ORDER: Final = "unparsable order number (expected a whole number)"
LINE_BREAK: Final = "line break inside a value (is a quotation mark left open?)"

REJECTED_SCHEMA: Final = {"file": pl.String, "row": pl.Int64, "reason": pl.String, "raw": pl.String}

_PLAIN_TIME: Final = "%Y-%m-%d %H:%M:%S%.f"
_SECONDS_BELOW: Final = 1e11
_MILLISECONDS_BELOW: Final = 1e14


class Parsed(NamedTuple):
    """One table after validation."""

    good: (
        pl.DataFrame
    )  # user, question, test, concepts: String; correct: Int8; timestamp (if timed): Int64 ms UTC; row;
    # order (if the format has one): Int64, the source's own order key
    rejected: pl.DataFrame  # REJECTED_SCHEMA


def locate(header: list[str], columns: Mapping[str, str], file: str) -> dict[str, str]:
    """Find the file's columns: canonical name -> column, in the file's order, without the optional ones that it lacks.

    Args:
        header: column names of the file.
        columns: the configured mapping; what it leaves out has its name of the six-column schema.

    Raises:
        InputError: a required column, or one that the mapping names, is not in the file.
    """
    unknown = sorted(set(columns) - set(CANONICAL))
    if unknown:
        raise InputError(f"data.columns has {unknown[0]!r}; expected some of {', '.join(CANONICAL)}")
    wanted = {name: columns.get(name, RAW_COLUMNS[name]) for name in CANONICAL}
    for name, column in wanted.items():
        if header.count(column) > 1:
            raise InputError(f"{file}: two columns are called {column!r} ({name}); rename one of them")
        if column not in header and (name in REQUIRED or name in columns):
            raise InputError(
                f"{file}: no column {column!r} for the {name}; the file has {', '.join(map(repr, header))}. "
                f"Name the right one with --set data.columns.{name}=COLUMN"
            )
    return {name: column for column in header for name, wish in wanted.items() if wish == column}


def parse(raw: pl.DataFrame, file: str | pl.Series, rows: Int64, milliseconds: bool = False) -> Parsed:
    """Validate a table.

    Args:
        raw: N rows; columns under canonical names (those that `locate` found), text or typed.
        file: name for the rejected rows; [N] where a block holds rows of several files.
        rows: [N] number of each row in its file, 0-based.
        milliseconds: timestamps are counts of milliseconds, however small.
    """
    where = file if isinstance(file, str) else "several files"
    text = pl.DataFrame([as_text(raw[name], where) for name in raw.columns if name not in ("timestamp", "order")])
    read = {
        "user": text["user"],
        "question": text["question"],
        "test": text["test"] if "test" in text else pl.repeat(ONE_TEST, len(raw), eager=True),
        "correct": text.select(_answer(pl.col("correct")).alias("correct"))["correct"],
        "concepts": canonical_concepts(text["concepts"]) if "concepts" in text else pl.repeat("", len(raw), eager=True),
    }
    broken = pl.any_horizontal([pl.lit(text[name]).str.contains("\n", literal=True) for name in text.columns])
    reasons = [
        pl.when(broken).then(pl.lit(LINE_BREAK)),
        pl.when(pl.col("user") == "").then(pl.lit(MISSING_USER)),
        pl.when(pl.col("question") == "").then(pl.lit(MISSING_QUESTION)),
        pl.when(pl.col("correct").is_null()).then(pl.lit(UNKNOWN_ANSWER)),
    ]
    if "timestamp" in raw:
        read["timestamp"] = _whole(raw["timestamp"]) if milliseconds else _milliseconds(raw["timestamp"], where)
        given = as_text(raw["timestamp"].cast(pl.String), where).alias("given")
        absent = pl.lit(given) == ""
        reasons.append(pl.when(absent).then(pl.lit(MISSING_TIME)))
        reasons.append(pl.when(pl.col("timestamp").is_null()).then(pl.lit(UNPARSABLE_TIME)))
    if "order" in raw:
        read["order"] = _whole(raw["order"])
        reasons.append(pl.when(pl.col("order").is_null()).then(pl.lit(BAD_ORDER)))
    frame = pl.DataFrame([column.alias(name) for name, column in read.items()] + [pl.Series("row", rows, pl.Int64)])
    reason = frame.select(pl.coalesce(*reasons).alias("reason"))["reason"]
    bad = reason.is_not_null()
    file = file if isinstance(file, str) else file.filter(bad)
    return Parsed(frame.filter(~bad), rejected(raw.filter(bad), file, frame["row"].filter(bad), reason.filter(bad)))


def rejected(raw: pl.DataFrame, file: str | pl.Series, rows: pl.Series, reason: pl.Series | str) -> pl.DataFrame:
    """Rejected rows as they go into the store: where they stand, why, and the line's values as text.

    A value with line breaks becomes an entry for each line, so that an open quotation mark hides no lost line.
    """
    line = pl.concat_str([pl.col(name).cast(pl.String).fill_null("") for name in raw.columns], separator=",")
    return (
        pl.DataFrame(
            {
                "file": _repeated(file, len(raw)),
                "row": rows,
                "reason": _repeated(reason, len(raw)),
                "raw": raw.select(line.str.strip_chars_end("\n").str.split("\n").alias("raw"))["raw"],
            },
        )
        .explode("raw")
        .select(pl.col(name).cast(kind) for name, kind in REJECTED_SCHEMA.items())
    )


def canonical_concepts(concepts: pl.Series) -> pl.Series:
    """Tags without repeats, in sorted order, joined by the separator: `9_7_9` is `7_9`."""
    distinct = concepts.unique()
    tags = distinct.str.split(CONCEPT_SEPARATOR).list.eval(pl.element().str.strip_chars())
    tags = tags.list.eval(pl.element().filter(pl.element() != "")).list.unique().list.sort()
    return concepts.replace_strict(distinct, tags.list.join(CONCEPT_SEPARATOR), return_dtype=pl.String)


def _repeated(value: str | pl.Series, rows: int) -> pl.Series:
    return pl.repeat(value, rows, dtype=pl.String, eager=True) if isinstance(value, str) else value


def _whole(column: pl.Series) -> pl.Series:
    """Whole numbers of a text or number column; null where there is none."""
    text = pl.col("n").cast(pl.String).str.strip_chars().str.strip_suffix(".0")
    return column.alias("n").to_frame().select(text.cast(pl.Int64, strict=False))["n"]


def as_text(column: pl.Series, file: str) -> pl.Series:
    """A column as stripped text; whole floats lose their `.0`, nulls become ""."""
    if column.dtype.is_nested() or column.dtype == pl.Binary:
        raise InputError(f"{file}: the {column.name} column has type {column.dtype}; expected text or numbers")
    if column.dtype.is_float():
        column = column.fill_nan(None)
        whole = column.drop_nulls()
        column = column.cast(pl.Int64) if (whole.is_finite() & (whole == whole.floor())).all() else column
    return column.cast(pl.String).str.strip_chars().fill_null("")


def _answer(code: pl.Expr) -> pl.Expr:
    """1, 0 or -1; null where the code is none of them."""
    word = code.str.to_lowercase()
    number = code.cast(pl.Float64, strict=False)
    known = pl.when(number.is_in([float(RIGHT), float(WRONG), float(UNKNOWN)])).then(number)
    return pl.when(word == "true").then(RIGHT).when(word == "false").then(WRONG).otherwise(known).cast(pl.Int8)


def _milliseconds(column: pl.Series, file: str) -> pl.Series:
    """Milliseconds since 1970 UTC; null where there is no time to be read."""
    if column.dtype == pl.Date:
        column = column.cast(pl.Datetime("ms"))
    if isinstance(column.dtype, pl.Datetime):
        return column.dt.epoch("ms")
    if column.dtype.is_numeric():
        return column.to_frame("t").select(_epoch(pl.col("t").cast(pl.Float64)))["t"]
    text = as_text(column, file).alias("t")
    time = text.str.to_datetime(_PLAIN_TIME, strict=False, time_unit="ms").dt.epoch("ms")
    other = (time.is_null() & (text != "")).arg_true()
    return time.scatter(other, _other_times(text.gather(other))) if len(other) else time


def _other_times(text: pl.Series) -> pl.Series:
    spaced = pl.col("t").str.replace(r"^(\d{4}-\d\d-\d\d)T", "$1 ")
    zoned = spaced.str.replace(r"\s*(Z|UTC)$", "+00:00")
    zone_time = zoned.str.to_datetime(f"{_PLAIN_TIME}%#z", strict=False, time_unit="ms", time_zone="UTC")
    plain_time = spaced.str.to_datetime(_PLAIN_TIME, strict=False, time_unit="ms")
    number = _epoch(pl.col("t").cast(pl.Float64, strict=False))
    return text.to_frame("t").select(pl.coalesce(plain_time.dt.epoch("ms"), zone_time.dt.epoch("ms"), number))["t"]


def _epoch(number: pl.Expr) -> pl.Expr:
    """Epoch seconds or milliseconds, told apart by magnitude."""
    size = number.abs()
    seconds = pl.when(size < _SECONDS_BELOW).then(number * 1000)
    return seconds.when(size < _MILLISECONDS_BELOW).then(number).round(0).cast(pl.Int64, strict=False)
