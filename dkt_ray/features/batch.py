"""Encoded rows and the padded batches that networks read.

Legend: U users, N rows, I id columns, C concepts per question, F numeric columns; B batch, T past rows, M targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from dkt_ray.data.history import Int8, Int32, Int64

if TYPE_CHECKING:
    import torch

PADDING: Final = 0  # id of "no row"; ids of values start at 2
UNKNOWN_ID: Final = 1  # id of a value that the training users did not show often enough

# `previous_correct` and the answer stream of a network
NO_ANSWER, WAS_WRONG, WAS_RIGHT, WAS_HIDDEN = range(4)


@dataclass(frozen=True, eq=False)
class Rows:
    """Encoded rows of U users, flat, in the order of the histories (or targets) that they were made from."""

    offsets: Int64  # [U + 1]
    ids: dict[str, Int32]  # I columns of [N]; see features.encoder.ID_COLUMNS
    concepts: Int32  # [N, C] ids, 0 = no further concept
    numbers: npt.NDArray[np.float32]  # [N, F] in the order of features.student.FEATURES
    correct: Int8  # [N], 1, 0 or -1 (hidden; always so for targets)
    position: Int32  # [N] index in the user's history; a target stands after the last row
    visible: Int32  # [N] number of the user's earlier rows that this row may read, <= position

    @property
    def rows(self) -> int:
        """Number of rows, N."""
        return int(self.offsets[-1])

    def take(self, rows: Int64, offsets: Int64) -> Rows:
        """The given rows, grouped by the given offsets."""
        return Rows(
            offsets,
            {name: column[rows] for name, column in self.ids.items()},
            self.concepts[rows],
            self.numbers[rows],
            self.correct[rows],
            self.position[rows],
            self.visible[rows],
        )


@dataclass(frozen=True, eq=False)
class Encoded:
    """What `encode` returns: the past, and the targets if there were any."""

    past: Rows
    targets: Rows | None = None


@dataclass(frozen=True, eq=False)
class SequenceBatch:
    """Padded tensors for a network: B segments, each with T past rows and M targets that read a prefix of them."""

    past_ids: torch.Tensor  # int32 [B, T, I], 0 = padding
    past_concepts: torch.Tensor  # int32 [B, T, C], 0 = none
    past_numbers: torch.Tensor  # float32 [B, T, F], standardised
    past_answer: torch.Tensor  # int64 [B, T], NO_ANSWER (padding), WAS_WRONG, WAS_RIGHT, WAS_HIDDEN
    target_ids: torch.Tensor  # int32 [B, M, I]
    target_concepts: torch.Tensor  # int32 [B, M, C]
    target_numbers: torch.Tensor  # float32 [B, M, F], standardised
    visible: torch.Tensor  # int64 [B, M], how many of the segment's past rows the target may read
    correct: torch.Tensor  # float32 [B, M], 1 or 0; -1 where hidden or padding: no loss
    rows: torch.Tensor  # int64 [B, M], flat index of the target row, -1 = padding
