"""Encoding many users in bounded memory, each with what was fitted on others.

Legend: U users, N rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dkt_ray.data.history import Histories, Int8, Int64, ranges
from dkt_ray.data.splits import TEST
from dkt_ray.features.batch import Rows
from dkt_ray.features.encoder import encode
from dkt_ray.features.mapped import blank
from dkt_ray.features.state import EncoderState

CHUNK_ROWS: Final = 1 << 16  # encoded at one time; no result depends on it


def encode_users(histories: Histories, fold: Int8, state: EncoderState, threads: int = 1) -> Rows:
    """Encode users with what was fitted on others: fold k with a state that excludes k, test users with the full state.

    Args:
        fold: [U] fold of each user.
        state: fitted on all training rows.
        threads: chunks that are encoded at one time; the recursions release the interpreter.
    """
    rows = _allocate(histories, encode(histories.select(np.empty(0, np.int64)), None, state).past)

    def fill(chunk: tuple[Int64, EncoderState]) -> None:
        users, fitted = chunk
        part = encode(histories.select(users), None, fitted).past
        place, _ = ranges(histories.offsets[users], histories.offsets[users + 1])
        for into, column in zip(_columns(rows), _columns(part), strict=True):
            into[place] = column

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(fill, _chunks(histories, fold, state, CHUNK_ROWS)):
            pass
    return rows


def encode_chunks(
    histories: Histories, fold: Int8, state: EncoderState, chunk_rows: int = CHUNK_ROWS
) -> Iterator[tuple[Int64, Rows]]:
    """The same, some users of one fold at a time: their indices and their rows.

    Args:
        chunk_rows: a chunk ends with the user who reaches it.
    """
    for users, fitted in _chunks(histories, fold, state, chunk_rows):
        yield users, encode(histories.select(users), None, fitted).past


def _chunks(
    histories: Histories, fold: Int8, state: EncoderState, chunk_rows: int
) -> Iterator[tuple[Int64, EncoderState]]:
    """Some users of one fold at a time, and the state that encodes them."""
    for each in np.unique(fold):
        fitted = state if each == TEST else state.excluding(int(each))
        users = np.flatnonzero(fold == each)
        ends = np.cumsum(histories.lengths[users])
        chunk = (ends - histories.lengths[users]) // chunk_rows
        for some in np.split(users, np.flatnonzero(np.diff(chunk)) + 1):
            yield some, fitted


def _allocate(histories: Histories, like: Rows) -> Rows:
    """Rows of the given histories to be filled, with the columns of other ones."""

    def empty(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return blank((histories.rows, *column.shape[1:]), column.dtype)

    return Rows(
        histories.offsets,
        {name: empty(column) for name, column in like.ids.items()},
        empty(like.concepts),
        empty(like.numbers),
        empty(like.correct),
        empty(like.position),
        empty(like.visible),
    )


def _columns(rows: Rows) -> list[npt.NDArray[Any]]:
    """All columns but the offsets, in a fixed order."""
    return [*rows.ids.values(), rows.concepts, rows.numbers, rows.correct, rows.position, rows.visible]
