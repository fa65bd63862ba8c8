"""The embeddings of rows in one pass over them, forward and backward, for training on a CPU.

One kernel per table and a copy to put their results side by side cost a network on a CPU as much as its first layer.

Legend: N rows, I id columns, C concepts per row, W width of all embeddings of a row; table I is that of the concepts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dkt_ray.data.history import Int32, Int64

Floats = npt.NDArray[np.float32]


def look_up(tables: Sequence[Tensor], ids: Tensor, concepts: Tensor) -> Tensor:
    """Embed rows: the id columns side by side, then the mean over the concepts (0 where there is none).

    Args:
        tables: I + 1 float32 tables on a CPU; row 0, padding, is zero and gets no gradient.
        ids: int32 [..., I].
        concepts: int32 [..., C].

    Returns:
        [..., W]

    Raises:
        IndexError: an id that its table does not have.
    """
    shape = np.array([table.shape for table in tables], np.int64)  # [I + 1, 2]
    flat = torch.cat([table.flatten() for table in tables])
    width = int(shape[:, 1].sum())
    rows = ids.flatten(0, -2), concepts.flatten(0, -2)
    found: Tensor = _LookUp.apply(flat, shape, *rows)  # type: ignore[no-untyped-call]
    return found.view(*ids.shape[:-1], width)


class _LookUp(torch.autograd.Function):
    """`look_up` in tables that stand one behind the other."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, shape: Int64, ids: Tensor, concepts: Tensor) -> Tensor:
        ctx.ids, ctx.concepts, ctx.shape, ctx.entries = ids.numpy(), concepts.numpy(), shape, flat.numel()
        out = torch.empty(len(ids), int(shape[:, 1].sum()))
        if _read(flat.detach().numpy(), shape, ctx.ids, ctx.concepts, out.numpy()):
            raise IndexError("a row has an id that the network's tables do not have")
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        out = torch.zeros(ctx.entries)
        _add(out.numpy(), ctx.shape, ctx.ids, ctx.concepts, gradients[0].contiguous().numpy())
        return out, None, None, None


@numba.njit(cache=True, nogil=True)
def _read(flat: Floats, shape: Int64, ids: Int32, concepts: Int32, out: Floats) -> bool:
    """Fill `out`, [N, W]; whether an id was out of its table."""
    last = len(shape) - 1
    for row in range(len(ids)):
        start, place = 0, 0
        for column in range(last):
            size, width = shape[column]
            if not 0 <= ids[row, column] < size:
                return True
            _copy(out[row, place : place + width], flat[start + ids[row, column] * width :])
            start += size * width
            place += width
        size, width = shape[last]
        mean = out[row, place:]
        mean[:] = 0
        count = 0
        for concept in concepts[row]:
            if not 0 <= concept < size:
                return True
            if concept:
                count += 1
                _add_to(mean, flat[start + concept * width :], np.float32(1))
        if count > 1:
            for each in range(width):
                mean[each] /= np.float32(count)
    return False


@numba.njit(cache=True, nogil=True)
def _add(flat: Floats, shape: Int64, ids: Int32, concepts: Int32, gradient: Floats) -> None:
    """Add the gradients of the rows, [N, W], to those of the tables."""
    last = len(shape) - 1
    for row in range(len(ids)):
        start, place = 0, 0
        for column in range(last):
            size, width = shape[column]
            if ids[row, column]:
                target = start + ids[row, column] * width
                _add_to(flat[target : target + width], gradient[row, place:], np.float32(1))
            start += size * width
            place += width
        width = shape[last, 1]
        count = 0
        for concept in concepts[row]:
            count += concept != 0
        for concept in concepts[row]:
            if concept:
                target = start + concept * width
                _add_to(flat[target : target + width], gradient[row, place:], np.float32(1) / np.float32(count))


# Eight at a time, all read before any is written: only so are they loaded and stored at once, for the compiler cannot
# know that the two arrays have no element in common.


@numba.njit(cache=True, nogil=True, inline="always")
def _copy(into: Floats, source: Floats) -> None:
    whole = len(into) & ~7
    for i in range(0, whole, 8):
        a, b, c, d = source[i], source[i + 1], source[i + 2], source[i + 3]
        e, f, g, h = source[i + 4], source[i + 5], source[i + 6], source[i + 7]
        into[i], into[i + 1], into[i + 2], into[i + 3] = a, b, c, d
        into[i + 4], into[i + 5], into[i + 6], into[i + 7] = e, f, g, h
    for i in range(whole, len(into)):
        into[i] = source[i]


@numba.njit(cache=True, nogil=True, inline="always")
def _add_to(into: Floats, source: Floats, k: np.float32) -> None:
    whole = len(into) & ~7
    for i in range(0, whole, 8):
        a, b = into[i] + k * source[i], into[i + 1] + k * source[i + 1]
        c, d = into[i + 2] + k * source[i + 2], into[i + 3] + k * source[i + 3]
        e, f = into[i + 4] + k * source[i + 4], into[i + 5] + k * source[i + 5]
        g, h = into[i + 6] + k * source[i + 6], into[i + 7] + k * source[i + 7]
        into[i], into[i + 1], into[i + 2], into[i + 3] = a, b, c, d
        into[i + 4], into[i + 5], into[i + 6], into[i + 7] = e, f, g, h
    for i in range(whole, len(into)):
        into[i] += k * source[i]
