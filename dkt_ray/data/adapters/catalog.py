"""The formats that can be read: one line each; recognising a file's format, and reading it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Final, NamedTuple

import polars as pl

from dkt_ray.data import reader
from dkt_ray.data.adapters import assistments, riiid, sequences
from dkt_ray.data.adapters.base import Context, Format
from dkt_ray.data.parse import locate
from dkt_ray.data.reader import BLOCK_BYTES, Block, Source
from dkt_ray.errors import ConfigError, InputError
from dkt_ray.schema import RAW_COLUMNS, REQUIRED
from dkt_ray.storage import INPUT_SUFFIXES, list_inputs
from dkt_ray.storage.inputs import input_order

AUTO: Final = "auto"
COMPETITION: Final = Format(
    name="competition",
    title="the competition's six columns, or a table whose columns data.columns names",
    columns={name: RAW_COLUMNS[name] for name in REQUIRED},
    timestamp_is="submitted",
    companions=("sample_submission.csv",),
)
FORMATS: Final[dict[str, Format]] = {
    each.name: each
    for each in (
        COMPETITION,
        assistments.ASSISTMENTS_2009,
        assistments.ASSISTMENTS_2012,
        assistments.ASSISTMENTS_2015,
        assistments.ASSISTMENTS_2017,
        riiid.EDNET_KT1,
        riiid.RIIID,
        sequences.LINES_3,
        sequences.LINES_4,
        sequences.PYKT,
    )
}
# columns that are not read, but tell a format from another that has the same names
_TELLING: Final[dict[str, tuple[str, ...]]] = {
    "ednet_kt1": ("solving_id", "elapsed_time"),
    "pykt": ("fold",),
}
_FIRST_LINES: Final = 48  # whole groups of three and of four
_TEXT: Final = ".txt"


class Found(NamedTuple):
    """The logs under a path."""

    format: Format
    columns: dict[str, dict[str, str]]  # path -> canonical name -> column in that file
    questions: str | None  # path of the table of questions


def recognise(path: str) -> Format | None:
    """The format that a file looks like, by its header or, where it has none, by its lines."""
    header = reader.header(path)
    for each in FORMATS.values():
        if not each.lines and {*each.columns.values(), *_TELLING.get(each.name, ())} <= set(header):
            return each
    if path.endswith(".parquet") or not header[0].strip().isdigit():
        return None
    every = itertools.chain.from_iterable(reader.lines(Source(0, path, None, 0), reader.HEADER_BYTES))
    lines = list(itertools.islice(every, _FIRST_LINES))
    return next((each for each in FORMATS.values() if each.lines and _has_lines(lines, each.lines)), None)


def find(paths: Sequence[str], name: str, columns: Mapping[str, str]) -> Found:
    """Find the log files under some paths and what they hold.

    Args:
        name: a format's name, or "auto": the six-column schema unless the files are recognised as another format.
        columns: the configured names of columns, for the six-column schema only.

    Raises:
        ConfigError: names of columns with another format.
        InputError: no file, or one that has not the format; names the right one.
    """
    text = any(path.endswith(_TEXT) for path in paths) or (name in FORMATS and FORMATS[name].lines)
    suffixes = (*INPUT_SUFFIXES, _TEXT) if text else INPUT_SUFFIXES
    listed = sorted({file for path in paths for file in list_inputs(path, suffixes)}, key=input_order)
    every = {companion for each in FORMATS.values() for companion in each.companions}
    logs = [file for file in listed if PurePosixPath(file).name not in every] or listed
    chosen = COMPETITION if columns else recognise(logs[0]) or COMPETITION
    if name != AUTO:
        chosen = FORMATS[name]
        if columns and chosen is not COMPETITION:
            raise ConfigError(f"data.columns is for data.format=competition; {name} has names of its own: leave it out")
    found = [file for file in listed if PurePosixPath(file).name not in chosen.companions] or listed
    first = _columns(chosen, logs[0], columns, name)
    if chosen.together > 1:  # hundreds of thousands: the others' headers are compared when they are read
        _check_users(found)
        located = dict.fromkeys(found, first)
    else:
        located = {file: _columns(chosen, file, columns, name) for file in found}
    if chosen.lines:
        _check_names(found)
    return Found(chosen, located, _questions(chosen, found[0]))


def sources(chosen: Format, paths: Sequence[str]) -> list[Source]:
    """The read tasks of files of one format."""
    return reader.sources(list(paths), chosen.together)


def blocks(
    chosen: Format, source: Source, columns: Mapping[str, str], questions: str | None, block_bytes: int = BLOCK_BYTES
) -> Iterator[Block]:
    """Read a source in bounded blocks of canonical columns, in order.

    Args:
        columns: canonical name -> column, as `find` gives them.
        questions: path of the table of questions, where there is one.
        block_bytes: text in memory at one time.
    """
    raw: Iterator[Block]
    if chosen.lines:
        raw = sequences.line_blocks(source, list(columns), block_bytes)
    elif chosen.together > 1:
        raw = reader.blocks_of_many(source, columns, block_bytes)
    else:
        raw = reader.blocks(source, columns, block_bytes, chosen.encoding)
    table: pl.DataFrame | None = None if questions is None else riiid.read_questions(questions)
    return chosen.convert(raw, Context(source.number, table))


def _columns(chosen: Format, path: str, columns: Mapping[str, str], name: str) -> dict[str, str]:
    """Where a file has what the format needs.

    Raises:
        InputError: it has not; names the format that it has, or the column that is missing.
    """
    other = None if columns else recognise(path)
    if other is not None and other is not chosen:
        asked = f"data.format={name}" if name != AUTO else f"the first file's format, {chosen.name}"
        raise InputError(
            f"{path}: expected {asked}, but this looks like {other.name} ({other.title}); "
            f"set --set data.format={other.name}, or name files of one format only"
        )
    header = reader.header(path)
    if chosen is COMPETITION:
        return locate(header, columns, path)
    if chosen.lines:
        if other is None:
            raise InputError(f"{path}: not {chosen.name} ({chosen.title}), nor any other format that is known")
        return dict(chosen.columns)
    missing = [column for column in chosen.columns.values() if column not in header]
    if missing:
        raise InputError(
            f"{path}: no column {missing[0]!r}, which {chosen.name} ({chosen.title}) has; "
            f"the file has {', '.join(map(repr, header))}; formats: {', '.join(FORMATS)}"
        )
    return dict(chosen.columns) | {key: column for key, column in chosen.optional.items() if column in header}


def _check_users(paths: Sequence[str]) -> None:
    users: dict[str, str] = {}
    for path in paths:
        other = users.setdefault(riiid.user_of(path), path)
        if other is not path:
            raise InputError(f"{other} and {path} are files of one user; remove one of them")


def _check_names(paths: Sequence[str]) -> None:
    names: dict[str, str] = {}
    for path in paths:
        other = names.setdefault(sequences.stem_of(path), path)
        if other is not path:
            raise InputError(f"{other} and {path} have one name, and their users would be named alike; rename one")


def _questions(chosen: Format, log: str) -> str | None:
    """The table of questions: beside the logs, above them, or in the folder `contents` above them."""
    if chosen.questions == "none":
        return None
    folder = log.rpartition("/")[0]
    above = folder.rpartition("/")[0]
    places = [f"{place}/questions.csv" for place in (folder, above, f"{above}/contents")]
    for place in places:
        try:
            return list_inputs(place)[0]
        except InputError:
            continue
    if chosen.questions == "required":
        raise InputError(f"{folder}: no questions.csv, which {chosen.name} needs; looked for {', '.join(places)}")
    return None


def _has_lines(lines: Sequence[str], size: int) -> bool:
    """Whether lines are groups of a length, lists of that length, and answers."""
    groups = [lines[at : at + size] for at in range(0, len(lines) - size + 1, size)]
    return bool(groups) and all(_is_group(group) for group in groups)


def _is_group(group: Sequence[str]) -> bool:
    first = [cell.strip() for cell in group[0].strip(" ,\t").split(",")]
    lists = [[cell.strip() for cell in line.strip(" ,\t").split(",") if cell.strip()] for line in group[1:]]
    if len(first) > 2 or not first[-1].isdigit():
        return False
    return all(len(each) == int(first[-1]) for each in lists) and set(lists[-1]) <= {"0", "1"}
