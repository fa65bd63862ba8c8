"""Encoded rows to padded batches, by index: flat tensors, segments, batches of similar length, the gather.

A segment is (past_start, past_stop, target_start, target_stop): some targets of one user and the past rows that they
may read. The context rule of data/windows.py makes the segments of scoring; training may read other windows, whose
segments point into the windows' index.

Legend: N rows, S segments, I id columns, C concepts per question, F numeric columns; B batch, T past rows, M targets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from dkt_ray.data.history import Int64
from dkt_ray.data.windows import Interactions, Windows, context_blocks, sizes_of_tests
from dkt_ray.features.batch import NO_ANSWER, WAS_HIDDEN, WAS_RIGHT, WAS_WRONG, Rows, SequenceBatch
from dkt_ray.features.mapped import blank
from dkt_ray.schema import UNKNOWN

CLIP: Final = 10.0  # standard deviations: a wild number must not drown the rest
BUCKET: Final = 16  # segments whose lengths differ by less may share a shuffled batch
_NEVER: Final = np.iinfo(np.int32).max  # position of padding: after every row
_ANSWER: Final = np.array([WAS_WRONG, WAS_RIGHT, WAS_HIDDEN], np.int8)  # by answer code: 0, 1 and (from the end) -1


class Scale(NamedTuple):
    """Mean and standard deviation of the numeric columns."""

    mean: npt.NDArray[np.float64]  # [F]
    std: npt.NDArray[np.float64]  # [F]


@dataclass(frozen=True, eq=False)
class FlatRows:
    """Rows as tensors, with one padding row at index N (of the numbers: none, they are the rows' own array)."""

    ids: torch.Tensor  # int32 [N + 1, I]
    concepts: torch.Tensor  # int32 [N + 1, C]
    numbers: torch.Tensor  # float32 [N, F], one row at least
    scale: torch.Tensor  # float32 [2, F], mean and standard deviation of the numbers
    answer: torch.Tensor  # int8 [N + 1]
    correct: torch.Tensor  # int8 [N + 1]
    position: torch.Tensor  # int32 [N + 1]
    visible: torch.Tensor  # int32 [N + 1]

    @property
    def padding(self) -> int:
        """Index of the padding row, N."""
        return len(self.answer) - 1

    def to(self, device: torch.device) -> FlatRows:
        """The same rows on another device."""
        return FlatRows(**{name: tensor.to(device) for name, tensor in vars(self).items()})


def flatten(rows: Rows, columns: Sequence[str], scale: Scale | None) -> FlatRows:
    """Make the tensors that `collate` gathers from; numbers, most of a row, are not copied.

    Args:
        rows: N encoded rows.
        columns: the id columns to read, in this order.
        scale: of the numeric columns; None: leave them out.
    """
    ids = blank((rows.rows + 1, len(columns)), np.int32)
    for place, name in enumerate(columns):
        ids[:-1, place] = rows.ids[name]
    ids[-1] = 0
    used = max(1, int((rows.concepts != 0).any(0).sum())) if rows.concepts.shape[1] else 0
    return FlatRows(
        torch.from_numpy(ids),
        _padded(rows.concepts[:, :used], 0),
        _numbers(rows, scale),
        torch.tensor(np.array(scale if scale is not None else ((), ()), np.float32)),
        _padded(_ANSWER[rows.correct], NO_ANSWER),
        _padded(rows.correct, UNKNOWN),
        _padded(rows.position, 0),
        _padded(rows.visible, 0),
    )


def segments(past: Rows, targets: Rows, context: int) -> Int64:
    """Cut the targets into runs of one user and one context block, each with the past that it reads.

    Pass `past` itself as targets to score whole histories.

    Args:
        past: histories of U users.
        targets: rows of the same users.
        context: C, the block size.

    Returns:
        [S, 4] past_start, past_stop, target_start, target_stop; each target is in exactly one segment.
    """
    if not targets.rows:
        return np.empty((0, 4), np.int64)
    user = np.repeat(np.arange(len(targets.offsets) - 1), np.diff(targets.offsets))
    start, sees_from = context_blocks(user, targets.position.astype(np.int64), context)
    first, last = past.offsets[user[start]], past.offsets[user[start] + 1]
    past_start = np.minimum(first + sees_from, last)
    readable = first + np.maximum.reduceat(targets.visible.astype(np.int64), start)
    past_stop = np.clip(readable, past_start, last)
    return np.stack([past_start, past_stop, start, np.append(start[1:], targets.rows)], axis=1)


def interactions(rows: Rows) -> Interactions:
    """What the window strategies read of encoded rows; tests that share the unknown id count as one."""
    ids = rows.ids
    sizes = sizes_of_tests(ids["question"], ids["test"])
    return Interactions(rows.offsets, rows.correct, ids["test"], ids["head"], ids["mid"], sizes)


def window_segments(windows: Windows, rows: Rows) -> Int64:
    """The segments of training windows, [S, 4], into `windows.order`.

    The past of a segment ends where none of its targets may read on: before its last row, and earlier where rows that
    were shown together end it.
    """
    if not len(windows.user):
        return np.empty((0, 4), np.int64)
    visible = np.append(rows.visible[windows.order].astype(np.int64), 0)
    edges = np.stack([windows.score_from, windows.stop], axis=1).ravel()
    furthest = np.maximum.reduceat(visible, edges)[::2]  # [S] first position that no target of the window reads
    readable = furthest - rows.position[windows.order[windows.start]]
    past_stop = windows.start + np.clip(readable, 0, windows.stop - 1 - windows.start)
    return np.stack([windows.start, past_stop, windows.score_from, windows.stop], axis=1)


def split_targets(parts: Int64, most: int) -> Int64:
    """The same segments, [S, 4], those with more than `most` targets cut into several with the same past.

    >>> split_targets(np.array([[0, 9, 0, 5]]), 2).tolist()
    [[0, 9, 0, 2], [0, 9, 2, 4], [0, 9, 4, 5]]
    """
    pieces = -((parts[:, 2] - parts[:, 3]) // most)
    cut = np.repeat(parts, pieces, axis=0)
    first = np.cumsum(pieces) - pieces
    cut[:, 2] += most * (np.arange(len(cut)) - np.repeat(first, pieces))
    cut[:, 3] = np.minimum(cut[:, 2] + most, cut[:, 3])
    return cut


def batches(
    parts: Int64, batch_rows: int, shuffle: np.random.Generator | None = None, most_padding: int | None = None
) -> Iterator[Int64]:
    """Group segments of similar length into batches of at most `batch_rows` padded rows (at least one segment each).

    Args:
        parts: [S, 4] segments.
        batch_rows: budget per batch, past and target rows with padding.
        shuffle: mixes segments of about the same length, and the order of the batches.
        most_padding: rows of padding in a batch, beyond which another one costs less; without `shuffle` only.

    Returns:
        Batches of segments, [B, 4] each.
    """
    past, asked = parts[:, 1] - parts[:, 0], parts[:, 3] - parts[:, 2]
    if shuffle is None:
        order = np.lexsort((past, past + asked))
        most_padding = batch_rows if most_padding is None else most_padding
        for start, stop in _cuts(past[order], asked[order], batch_rows, most_padding):
            yield parts[order[start:stop]]
        return
    order = np.lexsort((shuffle.random(len(parts)), (past + asked) // BUCKET))
    cuts = list(_cuts(past[order], asked[order], batch_rows, batch_rows))
    for index in shuffle.permutation(len(cuts)):
        start, stop = cuts[index]
        yield parts[order[start:stop]]


def collate(past: FlatRows, targets: FlatRows, parts: Int64, order: torch.Tensor | None = None) -> SequenceBatch:
    """Gather the segments of one batch into padded tensors (padding on the right).

    Args:
        past: rows that are read.
        targets: rows that are scored, on the same device.
        parts: [B, 4] segments.
        order: int64 [R] flat rows that the segments point to (of the past and of the targets alike); None: to the rows
            themselves.
    """
    width, asks = (max(1, int(lengths.max())) for lengths in (parts[:, 1] - parts[:, 0], parts[:, 3] - parts[:, 2]))
    start, stop, first, last = torch.from_numpy(np.ascontiguousarray(parts.T)).to(past.ids.device)
    rows, asked = _grid(start, stop, width, past.padding, order), _grid(first, last, asks, targets.padding, order)
    # a target reads the segment's rows that stand before the first one which is not visible to it
    position = torch.where(rows == past.padding, _NEVER, past.position[rows])
    visible = torch.searchsorted(position, targets.visible[asked])
    return SequenceBatch(
        past_ids=past.ids[rows],
        past_concepts=past.concepts[rows],
        past_numbers=_standardised(past, rows),
        past_answer=past.answer[rows].long(),
        target_ids=targets.ids[asked],
        target_concepts=targets.concepts[asked],
        target_numbers=_standardised(targets, asked),
        visible=visible,
        correct=targets.correct[asked].float(),
        rows=torch.where(asked == targets.padding, -1, asked),
    )


def _numbers(rows: Rows, scale: Scale | None) -> torch.Tensor:
    if scale is None or not rows.rows:
        return torch.zeros(1, 0 if scale is None else len(scale.mean))
    numbers = rows.numbers
    if not numbers.flags.writeable:  # rows from Ray's store, and torch takes no array that it may not write to
        numbers = blank(numbers.shape, numbers.dtype)
        numbers[:] = rows.numbers
    return torch.from_numpy(numbers)


def _standardised(flat: FlatRows, rows: torch.Tensor) -> torch.Tensor:
    """The numbers of the given rows, [B, L] to [B, L, F], standardised and clipped; 0 at padding."""
    mean, std = flat.scale
    found = flat.numbers.index_select(0, rows.flatten().clamp(max=len(flat.numbers) - 1)).view(*rows.shape, len(mean))
    return found.sub_(mean).div_(std).clamp_(-CLIP, CLIP).mul_((rows != flat.padding)[..., None])


def _padded(column: npt.NDArray[np.generic], padding: float) -> torch.Tensor:
    out = blank((len(column) + 1, *column.shape[1:]), column.dtype)
    out[:-1] = column
    out[-1] = padding
    return torch.from_numpy(out)


def _grid(
    start: torch.Tensor, stop: torch.Tensor, width: int, padding: int, order: torch.Tensor | None
) -> torch.Tensor:
    """Rows of the given ranges (of `order`, if given), [B, width], padded."""
    place = start[:, None] + torch.arange(width, device=start.device)
    rows = place if order is None else order[place.clamp(max=len(order) - 1)]
    return torch.where(place < stop[:, None], rows, padding)


def _cuts(past: Int64, asked: Int64, batch_rows: int, most_padding: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of segments, each as long as its padded rows and its padding stay in their budgets."""
    start = 0
    while start < len(past):
        ahead = slice(start, start + batch_rows)
        width = np.maximum.accumulate(past[ahead]) + np.maximum.accumulate(asked[ahead])
        padded = width * np.arange(1, len(width) + 1)
        padding = padded - np.cumsum(past[ahead] + asked[ahead])
        fitting = np.searchsorted(padded, batch_rows, "right"), np.searchsorted(padding, most_padding, "right")
        stop = start + max(1, int(min(fitting)))
        yield start, stop
        start = stop
