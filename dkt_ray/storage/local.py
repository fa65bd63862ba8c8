"""A store in a local folder."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

import pyarrow.fs as pafs

from dkt_ray.storage import atomic
from dkt_ray.storage.store import Keys, Store, checked, conflict

_CHUNK: Final = 1 << 20


class LocalStore(Store):
    """Objects as files of a folder; a lock per folder gives conditional writes the meaning that S3 gives them."""

    def read_versioned(self, key: str) -> tuple[bytes, str]:
        with atomic.explained(f"{self.url}/{key}"):
            data = self._path(key).read_bytes()
        return data, _version(data)

    def write(self, key: str, data: bytes) -> str:
        with self._writing(key, io.BytesIO(data)) as (temporary, path):
            temporary.replace(path)
        return _version(data)

    def write_if(self, key: str, data: bytes, match: str | None) -> str:
        with self._writing(key, io.BytesIO(data)) as (temporary, path):
            found = _version(path.read_bytes()) if path.exists() else None
            if found != match:
                raise conflict(f"{self.url}/{key}", match)
            temporary.replace(path)
        return _version(data)

    def exists(self, key: str) -> bool:
        with atomic.explained(f"{self.url}/{key}"):
            return self._path(key).is_file()

    def list(self, prefix: str = "") -> Keys:
        root = self._path(prefix.rstrip("/")) if prefix else Path(self.url)
        with atomic.explained(str(root)):
            found = (Path(folder, name) for folder, _, names in os.walk(root, onerror=_complain) for name in names)
            keys = [path.relative_to(self.url).as_posix() for path in found if not path.name.startswith(atomic.PRIVATE)]
        return sorted(keys)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with atomic.explained(f"{self.url}/{key}"):
            if path.exists():
                with atomic.locked(path.parent):
                    path.unlink(missing_ok=True)

    def delete_prefix(self, prefix: str) -> None:
        root = self._path(prefix.rstrip("/"))
        with atomic.explained(str(root)):
            if root.is_dir():
                shutil.rmtree(root)

    def filesystem(self) -> tuple[pafs.FileSystem, str]:
        return pafs.LocalFileSystem(), self.url

    def _send(self, source: Path, key: str) -> None:
        with source.open("rb") as content, self._writing(key, content) as (temporary, path):
            temporary.replace(path)

    def _receive(self, key: str, target: Path) -> None:
        shutil.copyfile(self._path(key), target)

    def _path(self, key: str) -> Path:
        return Path(self.url, checked(key))

    @contextmanager
    def _writing(self, key: str, content: BinaryIO) -> Iterator[tuple[Path, Path]]:
        """A temporary file with the content and the path that it is to take, under the lock of their folder."""
        path = self._path(key)
        with atomic.explained(f"{self.url}/{key}"), atomic.staged(path) as temporary:
            with temporary.open("xb") as file:
                shutil.copyfileobj(content, file, _CHUNK)
            atomic.settle(temporary)
            with atomic.locked(path.parent):
                yield temporary, path
                atomic.settle(path.parent)


def _version(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _complain(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # a folder that went away while we listed
        raise error
