"""Large arrays in files without a name, so that rows larger than memory can be trained on."""

from __future__ import annotations

import math
import os
import tempfile
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dkt_ray.errors import StorageError

MAPPED_BYTES: Final = 1 << 26  # from this size on an array is mapped


def blank(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An array to be filled: in memory if it is small, else mapped from a file in the folder for temporary files.

    The file has no name, so it is gone with the last array that maps it, however the process ends. What was written
    leaves memory when memory is short, and comes back when it is read.

    Raises:
        StorageError: the folder for temporary files has no room.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < MAPPED_BYTES:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile() as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)  # a write to a page that has no room would kill the process
        except OSError as error:
            raise StorageError(
                f"no room for {size / 2**30:.1f} GiB of encoded rows in {tempfile.gettempdir()}: {error.strerror}; "
                "free some, or set TMPDIR to a folder with room"
            ) from error
        return np.asarray(np.memmap(file, dtype, "r+", shape=shape))
