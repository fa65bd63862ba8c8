"""Last-Query: only the target asks, so that a long history costs its length and not the square of it.

The first place of the Riiid competition: the target attends to its visible past and to itself, past rows attend to
nothing, and an LSTM reads the past in order. One request over T rows costs O(T); training asks at each of them, which
is one attention of M targets over T rows. `riiid_7` is that competition's plain transformer encoder without positions.

Legend: B batch, T past rows, M targets, H heads, D width, F numeric columns.
"""

from __future__ import annotations

from typing import ClassVar, Final, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dkt_ray.features.batch import SequenceBatch
from dkt_ray.models.base import Between, Choice, Space
from dkt_ray.models.dropout import Dropout
from dkt_ray.models.layers import (
    Attention,
    Block,
    FeedForward,
    Head,
    Recurrence,
    attend,
    join_heads,
    split_heads,
    state_at,
)
from dkt_ray.models.network import AttentionConfig, Inputs, Network, SequenceConfig


class LastQueryConfig(AttentionConfig):
    """Settings of Last-Query."""

    variant: Literal["last_query", "riiid_7"] = "last_query"
    """last_query: one query over the past, and an LSTM; riiid_7: a transformer encoder, which costs the square."""
    layers: int = Field(default=1, gt=0)
    """Layers of the LSTM (riiid_7: of the encoder)."""
    inner: int = Field(default=128, gt=0)
    """Width of the feed-forward layers."""
    context: int = Field(default=200, gt=0)
    """C: at position t the network sees rows from (floor(t / C) - 1) * C to t."""


SPACE: Final[Space] = {
    "variant": Choice(("last_query", "riiid_7")),
    "width": Choice((32, 64, 128)),
    "layers": Choice((1, 2)),
    "inner": Choice((64, 128, 256)),
    "context": Choice((100, 200, 400)),
    "dropout": Between(0.0, 0.3),
    "learning_rate": Between(1e-3, 1e-2, log=True),
    "embedding_rate": Between(0.02, 0.5, log=True),
    "weight_decay": Between(1e-3, 1e-1, log=True),
    "batch_rows": Choice((4096, 6144, 8192)),
}


class OneQuery(nn.Module):
    """Target-to-past attention and feed-forward, each with a residual and a norm; beside it the state of an LSTM."""

    def __init__(self, config: LastQueryConfig, numbers: int) -> None:
        super().__init__()
        D, L = config.width, config.layers
        self.heads = config.heads
        self.query, self.key_value, self.out = nn.Linear(D, D), nn.Linear(D, 2 * D), nn.Linear(D, D)
        self.feed_forward = FeedForward(D, config.inner, config.dropout)
        self.norm_1, self.norm_2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.drop = Dropout(config.dropout)
        self.lstm = Recurrence(D, L, config.dropout)
        self.start = nn.Parameter(torch.randn(D) * D**-0.5)
        self.head = Head(2 * D, numbers, D, config.dropout)

    def forward(self, past: Tensor, target: Tensor, visible: Tensor, numbers: Tensor) -> Tensor:
        """Past [B, T, D], targets [B, M, D] and their numbers [B, M, F] to logits [B, M]."""
        read = self.norm_1(target + self.drop(self._attend(past, target, visible)))
        read = self.norm_2(read + self.drop(self.feed_forward(read)))
        states = self.lstm.states(past)
        states = torch.cat([self.start.expand(len(past), 1, -1), states], 1)
        return self.head(torch.cat([read, state_at(states, visible)], -1), numbers)

    def _attend(self, past: Tensor, target: Tensor, visible: Tensor) -> Tensor:
        """What each target reads, [B, M, D]; no past row asks."""
        key, value = self.key_value(past).chunk(2, -1)
        own_key, own_value = self.key_value(target).chunk(2, -1)
        query, key, value, own_key, own_value = (
            split_heads(x, self.heads) for x in (self.query(target), key, value, own_key, own_value)
        )
        return self.out(join_heads(attend(query, key, value, own_key, own_value, visible)))


class PlainEncoder(nn.Module):
    """A transformer encoder that knows no order but the causal one, and a normalised head."""

    def __init__(self, config: LastQueryConfig, numbers: int) -> None:
        super().__init__()
        D = config.width
        self.blocks = nn.ModuleList(
            Block(Attention(D, config.heads, 0.0), D, config.inner, config.dropout) for _ in range(config.layers)
        )
        self.head = nn.Sequential(
            nn.Linear(D + numbers, D), nn.LayerNorm(D), Dropout(config.dropout), nn.ReLU(), nn.Linear(D, 1)
        )

    def forward(self, past: Tensor, target: Tensor, visible: Tensor, numbers: Tensor) -> Tensor:
        """Past [B, T, D], targets [B, M, D] and their numbers [B, M, F] to logits [B, M]."""
        tokens = torch.cat([past, target], 1)
        for block in self.blocks:
            tokens = block(tokens, visible)
        return self.head(torch.cat([tokens[:, past.shape[1] :], numbers], -1)).squeeze(-1)


BODIES: Final = {"last_query": OneQuery, "riiid_7": PlainEncoder}


class LastQuery(Network):
    """The input block, and the body of the chosen variant."""

    settings: ClassVar[type[SequenceConfig]] = LastQueryConfig
    config: LastQueryConfig

    def __init__(self, config: LastQueryConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        self.inputs = self.streams()
        self.body = BODIES[config.variant](config, self.numbers)

    def forward(self, batch: SequenceBatch) -> Tensor:
        """Logits of a right answer, [B, M]."""
        return self.body(self.inputs.past(batch), self.inputs.target(batch), batch.visible, batch.target_numbers)
