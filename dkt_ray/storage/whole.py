"""A local Arrow file system for a library that writes files itself: a killed writer leaves what was there before."""

from __future__ import annotations

from io import FileIO
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.fs as pafs
from fsspec.implementations.local import LocalFileSystem

from dkt_ray.storage.atomic import PRIVATE


def whole(filesystem: pafs.FileSystem) -> pafs.FileSystem:
    """The file system itself where a write is whole by nature (object stores), else one that writes beside and renames.

    What a killed writer leaves is a file whose name begins with `PRIVATE`, and the older file under the name; so does a
    write that fails. (A writer that gives up for another reason closes what it has: Arrow does not say which it was.)
    """
    return pafs.PyFileSystem(_Whole()) if isinstance(filesystem, pafs.LocalFileSystem) else filesystem


class _Whole(pafs.FSSpecHandler):  # type: ignore[misc]  # Arrow has no types here; Ray Tune's books name this class
    def __init__(self, fs: LocalFileSystem | None = None) -> None:
        super().__init__(fs or LocalFileSystem())

    def open_output_stream(self, path: str, metadata: object) -> pa.PythonFile:
        return pa.PythonFile(_Beside(Path(path)), mode="w")


class _Beside(FileIO):
    """Takes its name when it is closed, unless a write failed."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._temporary = target.with_name(f"{PRIVATE}{uuid4().hex}")
        self._failed = False
        super().__init__(self._temporary, "xb")

    def write(self, content: bytes) -> int:  # type: ignore[override]
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[super().write(rest) :]
        except OSError:
            self._failed = True
            raise
        return len(content)

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        try:
            if not self._failed:
                self._temporary.replace(self._target)
        finally:
            self._temporary.unlink(missing_ok=True)
