"""LSTM-Attention: an LSTM reads the past; each target attends to the states that it may see.

The reference's LSTM followed by one attention layer, with the leak removed: a target reads states before it only, and a
learned state stands where there is no past.

Legend: B batch, T past rows, M targets, H heads, D width, F numeric columns.
"""

from __future__ import annotations

from typing import ClassVar, Final

import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import Field
from torch import Tensor, nn

from dkt_ray.features.batch import SequenceBatch
from dkt_ray.models.base import Between, Choice, Space
from dkt_ray.models.layers import Head, Recurrence, join_heads, readable, split_heads, state_at
from dkt_ray.models.network import AttentionConfig, Inputs, Network, SequenceConfig


class LstmAttentionConfig(AttentionConfig):
    """Settings of LSTM-Attention."""

    layers: int = Field(default=1, gt=0)
    """LSTM layers."""


SPACE: Final[Space] = {
    "width": Choice((32, 64, 128)),
    "layers": Choice((1, 2)),
    "dropout": Between(0.0, 0.3),
    "learning_rate": Between(1e-3, 1e-2, log=True),
    "embedding_rate": Between(0.02, 0.5, log=True),
    "weight_decay": Between(1e-3, 1e-1, log=True),
    "batch_rows": Choice((4096, 6144, 8192)),
}


class LstmAttention(Network):
    """LSTM over past interactions, target-to-past attention, and an MLP that sees the numbers again."""

    settings: ClassVar[type[SequenceConfig]] = LstmAttentionConfig
    config: LstmAttentionConfig

    def __init__(self, config: LstmAttentionConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        D = config.width
        self.inputs = self.streams()
        self.lstm = Recurrence(D, config.layers, config.dropout)
        self.start = nn.Parameter(torch.randn(D) * D**-0.5)
        self.memory_norm = nn.LayerNorm(D)
        self.query = nn.Linear(2 * D, D)
        self.key_value = nn.Linear(D, 2 * D)
        self.head = Head(3 * D, self.numbers, D, config.dropout)

    def forward(self, batch: SequenceBatch) -> Tensor:
        """Logits of a right answer, [B, M]."""
        memory = self._memory(self.inputs.past(batch))
        target, current = self.inputs.target(batch), state_at(memory, batch.visible)
        attended = self._attend(torch.cat([target, current], -1), memory, batch.visible)
        return self.head(torch.cat([target, current, attended], -1), batch.target_numbers)

    def _memory(self, past: Tensor) -> Tensor:
        """States [B, T + 1, D]; state j has read the first j past rows, state 0 is learned."""
        states = self.lstm.states(past)
        start = self.start.expand(len(past), 1, -1)
        return self.memory_norm(torch.cat([start, states + past], 1))

    def _attend(self, query: Tensor, memory: Tensor, visible: Tensor) -> Tensor:
        """Each target [B, M, 2 D] reads states 0 to visible of memory [B, T + 1, D]; [B, M, D]."""
        allowed = readable(visible + 1, memory.shape[1])  # [B, M, T + 1]
        query, key, value = (
            split_heads(x, self.config.heads) for x in (self.query(query), *self.key_value(memory).chunk(2, -1))
        )
        return join_heads(F.scaled_dot_product_attention(query, key, value, attn_mask=allowed[:, None]))
