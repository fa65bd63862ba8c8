"""A store: objects under keys, written whole or not at all, wherever they are kept.

A version is a token of an object's *content* (SHA-256 locally; the ETag on S3, a content hash for single puts). A
conditional write therefore cannot see an A -> B -> A change; whoever must see it keeps a counter in the content, as the
registry's aliases do.
"""

from __future__ import annotations

import builtins
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from dkt_ray.errors import ConflictError, NotFoundError, StorageError
from dkt_ray.storage import atomic, aws

Keys: TypeAlias = list[str]

DIGEST_CHARACTERS: Final = 12  # of a content digest in a key
_TRANSFERS: Final = 4  # files moved at the same time by upload and download


class Stored(NamedTuple):
    """An object in a listing."""

    key: str
    bytes: int
    changed: datetime  # UTC


class Kept(NamedTuple):
    """An object that is named by its content."""

    key: str
    bytes: int


@dataclass(frozen=True)
class Store(ABC):
    """Objects under keys ("a/b.json"); every write is whole or not at all.

    A prefix is a folder: `list("a")` gives the keys under `a/`. Whatever cannot be reached or read raises StorageError.
    """

    url: str

    @abstractmethod
    def read_versioned(self, key: str) -> tuple[bytes, str]:
        """The content of an object and its version.

        Raises:
            NotFoundError: nothing is stored under the key.
        """

    @abstractmethod
    def write(self, key: str, data: bytes) -> str:
        """Write an object, replacing what was there; returns the version."""

    @abstractmethod
    def write_if(self, key: str, data: bytes, match: str | None) -> str:
        """Write only if the object still has the version `match` (None: only if there is no object).

        Returns:
            The new version.

        Raises:
            ConflictError: somebody else wrote, made or deleted the object first.
        """

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether an object is stored under the key."""

    @abstractmethod
    def list(self, prefix: str = "") -> Keys:
        """All keys under a prefix, sorted; empty where there are none."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Delete an object; no error where there is none."""

    @abstractmethod
    def delete_prefix(self, prefix: str) -> None:
        """Delete everything under a prefix; not at once, and nobody should write there meanwhile."""

    @abstractmethod
    def filesystem(self) -> tuple[pafs.FileSystem, str]:
        """An Arrow file system and the store's root inside it, for Ray and Parquet."""

    @abstractmethod
    def _send(self, source: Path, key: str) -> None:
        """Copy a file to a key."""

    @abstractmethod
    def _receive(self, key: str, target: Path) -> None:
        """Copy an object to a file."""

    def details(self, prefix: str) -> builtins.list[Stored]:
        """Everything under a prefix with its size and the time of its last write, sorted by key, in one listing."""
        filesystem, root = self.filesystem()
        folder = f"{root}/{checked(prefix)}"
        with explained(f"{self.url}/{prefix}"):
            found = filesystem.get_file_info(pafs.FileSelector(folder, allow_not_found=True, recursive=True))
        return sorted(
            Stored(info.path.removeprefix(f"{root}/"), info.size, info.mtime.astimezone(UTC))
            for info in found
            if info.type == pafs.FileType.File and not info.base_name.startswith(atomic.PRIVATE)
        )

    def child(self, prefix: str) -> Store:
        """The store whose root is the given prefix of this one."""
        return replace(self, url=f"{self.url}/{checked(prefix)}")

    def read(self, key: str) -> bytes:
        """The content of an object; NotFoundError where there is none."""
        return self.read_versioned(key)[0]

    def read_json(self, key: str) -> Any:
        """The value of a JSON object."""
        return parse_json(self.read(key), f"{self.url}/{key}")

    def write_json(self, key: str, value: Any) -> str:
        """Write a value as JSON, the same bytes for the same value; returns the version."""
        return self.write(key, json_bytes(value))

    def read_table(self, key: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read a Parquet object, or only some of its columns, in the order asked for."""
        filesystem, root = self.filesystem()
        with explained(f"{self.url}/{checked(key)}"), filesystem.open_input_file(f"{root}/{key}") as file:
            parquet = pq.ParquetFile(file, pre_buffer=True)
            names = parquet.schema_arrow.names
            absent = [name for name in columns or () if name not in names]
            if absent:
                raise StorageError(f"{self.url}/{key}: no column {', '.join(absent)}; it has {', '.join(names)}")
            return parquet.read() if columns is None else parquet.read([*columns]).select([*columns])

    def write_table(self, key: str, table: pa.Table) -> str:
        """Write a table as Parquet (zstd); returns the version."""
        return self.write(key, parquet_bytes(table))

    def write_parquet(self, key: str, table: pa.Table) -> int:
        """Write a table as Parquet (zstd); returns the number of bytes."""
        data = parquet_bytes(table)
        self.write(key, data)
        return len(data)

    def keep_table(self, name: str, table: pa.Table) -> Kept:
        """Write a table as `NAME-DIGEST.parquet`: another content is another object, so what is there never changes."""
        data = parquet_bytes(table)
        key = f"{name}-{hashlib.sha256(data).hexdigest()[:DIGEST_CHARACTERS]}.parquet"
        self.write(key, data)
        return Kept(key, len(data))

    def upload(self, folder: Path, prefix: str, skip: Collection[str] = ()) -> None:
        """Copy the files of a local folder to a prefix; `skip` names relative paths to leave out."""
        if not folder.is_dir():
            raise StorageError(f"{folder}: no such folder to upload")
        files = files_of(folder)
        names = sorted(files.keys() - set(skip))
        with ThreadPoolExecutor(_TRANSFERS) as pool:
            [*pool.map(lambda name: self._send(files[name], f"{prefix}/{name}"), names)]

    def download(self, prefix: str, folder: Path) -> None:
        """Copy everything under a prefix to a local folder; a file appears there when it is complete.

        Raises:
            NotFoundError: nothing is stored under the prefix.
        """
        keys = self.list(prefix)
        if not keys:
            raise NotFoundError(f"{self.url}/{prefix}: nothing is stored there")

        def receive(key: str) -> None:
            target = folder / checked(key).removeprefix(f"{prefix.strip('/')}/")
            with atomic.explained(str(target)), atomic.staged(target) as temporary:
                self._receive(key, temporary)
                temporary.replace(target)

        with ThreadPoolExecutor(_TRANSFERS) as pool:
            [*pool.map(receive, keys)]


def files_of(folder: Path) -> dict[str, Path]:
    """The files that `Store.upload` copies, by relative path: not what a local store leaves beside its own."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(atomic.PRIVATE))
    return {path.relative_to(folder).as_posix(): path for path in found}


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as Parquet (zstd)."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    content: bytes = sink.getvalue().to_pybytes()
    return content


def json_bytes(value: Any) -> bytes:
    """A value as JSON with sorted keys and no NaN: equal values give equal bytes."""
    return (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def parse_json(data: bytes, place: str) -> Any:
    """The value of a JSON object that was read from `place`."""
    try:
        return json.loads(data)
    except ValueError as error:
        raise StorageError(f"{place}: damaged, not JSON ({error}); write it anew") from None


def checked(key: str) -> str:
    """The key itself, if it is a plain relative path."""
    parts = key.split("/")
    if any(
        part in ("", ".", "..") or part.startswith(atomic.PRIVATE) or "\0" in part or "\\" in part for part in parts
    ):
        raise StorageError(f"key {key!r} is not a plain relative path such as 'bundles/abc/manifest.json'")
    return key


def conflict(url: str, match: str | None) -> ConflictError:
    """The error of a conditional write that lost."""
    expected = "no object yet" if match is None else f"version {match}"
    return ConflictError(f"{url}: expected {expected}, but somebody else wrote it first; read it again and retry")


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn Arrow's errors about `url` into ours."""
    try:
        yield
    except pa.ArrowInvalid as error:
        raise StorageError(f"{url}: damaged, not Parquet ({error}); write it anew") from None
    except OSError as error:
        raise aws.explain(url, error) from None
