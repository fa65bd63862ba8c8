"""The data files that a user names: found and opened, on a local disk or in a bucket."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Final

import pyarrow as pa
import pyarrow.fs as pafs

from dkt_ray.errors import InputError, NotFoundError
from dkt_ray.storage import aws
from dkt_ray.storage.aws import SCHEME
from dkt_ray.storage.bucket import S3Store
from dkt_ray.storage.store import explained

INPUT_SUFFIXES: Final = (".csv", ".csv.gz", ".parquet")

PART: Final = re.compile(r"part-(\d{20})\.parquet")  # of an export of the event log, see `events/parts.py`

_WILD: Final = re.compile(r"[*?[]")


def list_inputs(path: str, suffixes: Sequence[str] = INPUT_SUFFIXES) -> list[str]:
    """The data files that a path names: a file, a folder (with those below it), a glob, or the same on `s3://`.

    Returns:
        Absolute paths or s3 urls, in their order (`input_order`).

    Raises:
        InputError: there is no such file, or none with one of the suffixes.
        StorageError: no such bucket, or it cannot be reached.
    """
    found = _list_bucket(path) if path.startswith(SCHEME) else _list_folder(path)
    files = sorted((file for file in found if file.endswith(tuple(suffixes))), key=input_order)
    if not files:
        wrong = f"; found only {', '.join(sorted(found)[:3])}" if found else ""
        raise InputError(f"{path}: no data there; looked for {', '.join(suffixes)} in a file, folder or glob{wrong}")
    return files


def input_order(path: str) -> tuple[bool, str]:
    """Sorts input files: by name, and what was exported from the event log after all else, wherever it lies."""
    return PART.fullmatch(PurePosixPath(path).name) is not None, path


def open_input(path: str) -> pa.NativeFile:
    """Open one file of `list_inputs` to be read from its start; `.gz` is decompressed, the others can seek.

    Raises:
        InputError: there is no such file.
    """
    remote = path.startswith(SCHEME)
    filesystem = aws.filesystem() if remote else pafs.LocalFileSystem()
    name = path.removeprefix(SCHEME) if remote else str(Path(path).absolute())
    try:
        with explained(path):
            if path.endswith(".gz"):
                return filesystem.open_input_stream(name, compression="gzip")
            return filesystem.open_input_file(name)
    except NotFoundError:
        raise InputError(f"{path}: no such file") from None


def input_bytes(path: str) -> int:
    """Size of one file of `list_inputs`, as it is stored."""
    remote = path.startswith(SCHEME)
    filesystem = aws.filesystem() if remote else pafs.LocalFileSystem()
    with explained(path):
        return int(filesystem.get_file_info(path.removeprefix(SCHEME) if remote else path).size or 0)


def _list_folder(path: str) -> set[str]:
    place = Path(path).expanduser().absolute()
    base = place if place.exists() else Path(_fixed(str(place)) or "/")
    files = set()
    for match in [place] if base == place else base.glob(str(place.relative_to(base))):
        below = match.rglob("*") if match.is_dir() else [match]
        files |= {str(file) for file in below if file.is_file() and not _hidden(file.relative_to(base))}
    return files


def _list_bucket(path: str) -> set[str]:
    bucket, _, name = path.removeprefix(SCHEME).rstrip("/").partition("/")
    store = S3Store(SCHEME + bucket)
    if name and store.exists(name):
        return {path}
    base = _fixed(name) if _WILD.search(name) else name
    matches = re.compile(_glob_pattern(name) + "(/.*)?").fullmatch
    keys = [key for key in store.list(base) if base == name or matches(key)]
    return {f"{SCHEME}{bucket}/{key}" for key in keys if not _hidden(PurePosixPath(key).relative_to(base))}


def _fixed(pattern: str) -> str:
    """The folder that holds everything a glob can match."""
    return _WILD.split(pattern)[0].rpartition("/")[0]


def _hidden(path: PurePath) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _glob_pattern(pattern: str) -> str:
    """The regular expression of a shell glob: `*` and `?` stay within a folder, `**/` crosses folders."""
    words = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]+\])", pattern)
    return "".join(words.get(part, part.replace("[!", "[^") if part[:1] == "[" else re.escape(part)) for part in parts)
