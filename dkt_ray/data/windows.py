"""Windows over histories: an index (user, start, stop), never a copy of the rows.

Legend: U users, S segments.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dkt_ray.data.history import Int64


class Segments(NamedTuple):
    """Slices of histories; positions count within the user. Rows `start` to `score_from` are context only."""

    user: Int64  # [S] index of the user
    start: Int64  # [S]
    stop: Int64  # [S]
    score_from: Int64  # [S], start <= score_from < stop


def context_segments(lengths: Int64, context: int) -> Segments:
    """Cut histories by the context rule: position t sees rows from (floor(t / C) - 1) * C to t.

    Block b of a user scores positions b*C to (b+1)*C and reads from the start of the block before it, so that every
    position is scored exactly once and one pass costs O(T * C).

    >>> context_segments(np.array([5]), 2)[1:]
    (array([0, 0, 2]), array([2, 4, 5]), array([0, 2, 4]))

    Args:
        lengths: [U] number of rows of each user.
        context: C, the block size.
    """
    assert context > 0
    lengths = np.asarray(lengths, np.int64)
    blocks = -(-lengths // context)
    user = np.repeat(np.arange(len(lengths), dtype=np.int64), blocks)
    block = np.arange(len(user), dtype=np.int64) - np.repeat(np.cumsum(blocks) - blocks, blocks)
    score_from = block * context
    return Segments(
        user,
        np.maximum(score_from - context, 0),
        np.minimum(score_from + context, lengths[user]),
        score_from,
    )
