"""LSTM-Attention: an LSTM reads the past; each target attends to the states that it may see.

The reference's LSTM followed by one attention layer, with the leak removed: a target reads states before it only, and a
learned state stands where there is no past.

Legend: B batch, T past rows, M targets, H heads, D width, F numeric columns.
"""

from __future__ import annotations

from typing import ClassVar, Final

import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import Field, model_validator
from torch import Tensor, nn

from dkt_ray.features.batch import SequenceBatch
from dkt_ray.models.base import Between, Choice, Space
from dkt_ray.models.layers import Inputs, Network, RowEmbedding, RowProjection, SequenceConfig

ANSWERS: Final = 4  # NO_ANSWER, WAS_WRONG, WAS_RIGHT, WAS_HIDDEN


class LstmAttentionConfig(SequenceConfig):
    """Settings of LSTM-Attention."""

    layers: int = Field(default=1, gt=0)
    """LSTM layers."""
    heads: int = Field(default=4, gt=0)
    """H: attention heads; divides width."""

    @model_validator(mode="after")
    def _divides(self) -> LstmAttentionConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


SPACE: Final[Space] = {
    "width": Choice((32, 64, 128)),
    "layers": Choice((1, 2)),
    "dropout": Between(0.0, 0.3),
    "learning_rate": Between(1e-3, 1e-2, log=True),
    "embedding_rate": Between(0.02, 0.5, log=True),
    "weight_decay": Between(1e-3, 1e-1, log=True),
    "batch_rows": Choice((4096, 8192)),
}


class LstmAttention(Network):
    """LSTM over past interactions, target-to-past attention, and an MLP that sees the numbers again."""

    settings: ClassVar[type[SequenceConfig]] = LstmAttentionConfig
    config: LstmAttentionConfig

    def __init__(self, config: LstmAttentionConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        D, numbers = config.width, len(self.scale.mean)
        self.embed = RowEmbedding(config, self.sizes)
        self.past = RowProjection(self.embed.width, numbers, D)
        self.answer = nn.Embedding(ANSWERS, 2 * D)
        self.lstm = nn.LSTM(D, D, config.layers, batch_first=True, dropout=config.dropout if config.layers > 1 else 0.0)
        self.start = nn.Parameter(torch.randn(D) * D**-0.5)
        self.memory_norm = nn.LayerNorm(D)
        self.target = RowProjection(self.embed.width, numbers, D)
        self.query = nn.Linear(2 * D, D)
        self.key_value = nn.Linear(D, 2 * D)
        self.head = nn.Sequential(
            nn.Linear(3 * D + numbers, D), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(D, D // 2), nn.GELU()
        )
        self.out = nn.Linear(D // 2 + numbers, 1)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, batch: SequenceBatch) -> Tensor:
        """Logits of a right answer, [B, M]."""
        memory = self._memory(batch)
        target = self.drop(self.target(self.embed(batch.target_ids, batch.target_concepts), batch.target_numbers))
        current = memory.gather(1, batch.visible[..., None].expand(-1, -1, memory.shape[-1]))  # [B, M, D]
        attended = self._attend(torch.cat([target, current], -1), memory, batch.visible)
        hidden = self.head(torch.cat([target, current, attended, batch.target_numbers], -1))
        return self.out(torch.cat([hidden, batch.target_numbers], -1)).squeeze(-1)

    def _memory(self, batch: SequenceBatch) -> Tensor:
        """States [B, T + 1, D]; state j has read the first j past rows, state 0 is learned."""
        row = self.past(self.embed(batch.past_ids, batch.past_concepts), batch.past_numbers)
        scale, shift = self.answer(batch.past_answer).chunk(2, -1)
        token = self.drop(row * (1 + scale) + shift)
        states, _ = self.lstm(token)
        start = self.start.expand(len(token), 1, -1)
        return self.memory_norm(torch.cat([start, states + token], 1))

    def _attend(self, query: Tensor, memory: Tensor, visible: Tensor) -> Tensor:
        """Each target [B, M, 2 D] reads states 0 to visible of memory [B, T + 1, D]; [B, M, D]."""
        allowed = torch.arange(memory.shape[1], device=memory.device) <= visible[..., None]  # [B, M, T + 1]
        key, value = self.key_value(memory).chunk(2, -1)
        read = F.scaled_dot_product_attention(
            self._heads(self.query(query)), self._heads(key), self._heads(value), attn_mask=allowed[:, None]
        )
        return read.transpose(1, 2).flatten(2)

    def _heads(self, x: Tensor) -> Tensor:
        """[B, L, D] to [B, H, L, D / H]."""
        return x.view(*x.shape[:2], self.config.heads, -1).transpose(1, 2)
