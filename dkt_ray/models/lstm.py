"""LSTM: the baseline network; each target is read beside the state of an LSTM over its visible past.

Legend: B batch, T past rows, M targets, D width, L layers, F numeric columns.
"""

from __future__ import annotations

from typing import ClassVar, Final, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dkt_ray.features.batch import SequenceBatch
from dkt_ray.models.base import Between, Choice, Space
from dkt_ray.models.layers import Head, Recurrence, state_at
from dkt_ray.models.network import Inputs, Network, SequenceConfig


class LstmConfig(SequenceConfig):
    """Settings of LSTM."""

    layers: int = Field(default=1, gt=0)
    """L: LSTM layers."""
    start: Literal["zero", "learned", "numbers"] = "learned"
    """State before the first past row: zero, learned, or learned and moved by the numbers of that row, which tell what
    the student did before it."""


SPACE: Final[Space] = {
    "width": Choice((32, 64, 128)),
    "layers": Choice((1, 2)),
    "start": Choice(("zero", "learned", "numbers")),
    "dropout": Between(0.0, 0.3),
    "learning_rate": Between(1e-3, 1e-2, log=True),
    "embedding_rate": Between(0.02, 0.5, log=True),
    "weight_decay": Between(1e-3, 1e-1, log=True),
    "batch_rows": Choice((4096, 6144, 8192)),
}


class Lstm(Network):
    """LSTM over past interactions; an MLP reads its state at each target's visible past, and the target."""

    settings: ClassVar[type[SequenceConfig]] = LstmConfig
    config: LstmConfig

    def __init__(self, config: LstmConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        D, L = config.width, config.layers
        self.inputs = self.streams()
        self.start = nn.Parameter(torch.randn(2, L, D) * D**-0.5) if config.start != "zero" else None
        self.moved = nn.Linear(self.numbers, 2 * L * D) if config.start == "numbers" and self.numbers else None
        self.lstm = Recurrence(D, L, config.dropout)
        self.head = Head(2 * D, self.numbers, D, config.dropout)

    def forward(self, batch: SequenceBatch) -> Tensor:
        """Logits of a right answer, [B, M]."""
        past = self.inputs.past(batch)
        start = past.new_zeros(2, *self.shape) if self.start is None else self.start
        start = start[:, :, None].expand(-1, -1, len(past), -1)
        hidden, cell = self._moved(start, batch.past_numbers[:, 0])
        states = self.lstm.states(past, (hidden.contiguous(), cell.contiguous()))
        current = state_at(torch.cat([start[0, -1, :, None], states], 1), batch.visible)
        return self.head(torch.cat([current, self.inputs.target(batch)], -1), batch.target_numbers)

    @property
    def shape(self) -> tuple[int, int]:
        """L and D."""
        return self.config.layers, self.config.width

    def _moved(self, start: Tensor, first: Tensor) -> Tensor:
        """Hidden and cell states [2, L, B, D], moved by the numbers of the first past row, [B, F].

        A target without a past may not read that row (it may be the target itself), so it gets the state unmoved; all
        others may.
        """
        if self.moved is None:
            return start
        return start + self.moved(first).view(len(first), 2, *self.shape).permute(1, 2, 0, 3)
