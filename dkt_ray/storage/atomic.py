"""Files that appear whole or not at all, and a lock per folder: what a local store stands on."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final
from uuid import uuid4

from dkt_ray.errors import NotFoundError, StorageError

PRIVATE: Final = ".dkt-"  # prefix of the temporary files and locks made here


@contextmanager
def explained(place: str) -> Iterator[None]:
    """Turn the operating system's errors about `place` into ours.

    Raises:
        NotFoundError: no such file.
        StorageError: no permission, disk full, a folder where a file was expected.
    """
    try:
        yield
    except FileNotFoundError:
        raise NotFoundError(f"{place}: nothing is stored there") from None
    except OSError as error:
        raise StorageError(
            f"{place}: {error.strerror or error}; check the path, its permissions and the disk"
        ) from None


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """The name of a temporary file beside `target`, to be moved there; what is still under it at the end is removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{PRIVATE}{uuid4().hex}")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock against all threads and processes (flock: the kernel frees it when the holder dies)."""
    path = folder / f"{PRIVATE}lock"
    while True:
        with path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(file, path):  # else the folder was deleted and made anew while we waited
                yield
                return


def settle(path: Path) -> None:
    """Make a file, or the renames inside a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
