"""SAINT: an encoder reads the exercises, a decoder the answers given to them, and what the encoder made of them.

After Choi et al., 2020 (section 4). Past exercises stand in the encoder as they were asked, with their own numbers, and
in the decoder with their answers. A target stands in both as it is asked, without an answer.

Legend: B batch, T past rows, M targets, H heads, D width, F numeric columns.
"""

from __future__ import annotations

import math
from typing import ClassVar, Final, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dkt_ray.features.batch import SequenceBatch
from dkt_ray.models.base import Between, Choice, Space
from dkt_ray.models.dropout import Dropout
from dkt_ray.models.layers import Attention, Block, FeedForward, Head, places
from dkt_ray.models.network import AttentionConfig, Inputs, Network, SequenceConfig


class SaintConfig(AttentionConfig):
    """Settings of SAINT."""

    layers: int = Field(default=2, gt=0)
    """Layers of the encoder, and of the decoder."""
    inner: int = Field(default=128, gt=0)
    """Width of the feed-forward layers."""
    attention_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the attention weights that are dropped."""
    positions: Literal["sinusoids", "learned", "none"] = "sinusoids"
    """What tells tokens where they stand: sinusoids with a learned scale, a learned vector for each place, nothing."""


SPACE: Final[Space] = {
    "width": Choice((32, 64, 128)),
    "layers": Choice((1, 2, 3)),
    "inner": Choice((64, 128, 256)),
    "positions": Choice(("sinusoids", "learned", "none")),
    "dropout": Between(0.0, 0.3),
    "attention_dropout": Between(0.0, 0.2),
    "learning_rate": Between(5e-4, 5e-3, log=True),
    "embedding_rate": Between(0.02, 0.5, log=True),
    "weight_decay": Between(1e-3, 1e-1, log=True),
    "batch_rows": Choice((4096, 6144, 8192)),
}


class Sinusoids(nn.Module):
    """Adds sines and cosines of the places (Vaswani et al., 2017, section 3.5), times a learned scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.scale = nn.Parameter(torch.tensor(0.1))

    def forward(self, tokens: Tensor, place: Tensor) -> Tensor:
        """Tokens [B, T + M, D] that stand at [B, T + M]."""
        even = torch.arange(0, self.width, 2, device=place.device)
        angle = place[..., None] * torch.exp(even * (-math.log(10_000) / self.width))
        waves = torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)[..., : self.width]
        return tokens + self.scale * waves


class LearnedPlaces(nn.Module):
    """Adds a learned vector for each place."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, width)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, tokens: Tensor, place: Tensor) -> Tensor:
        """Tokens [B, T + M, D] that stand at [B, T + M]; only padding stands beyond the table."""
        return tokens + self.table(place.clamp(max=self.table.num_embeddings - 1))


class DecoderBlock(nn.Module):
    """A layer of the decoder: tokens read each other, then those of the encoder, with the norms before each step."""

    def __init__(self, config: SaintConfig) -> None:
        super().__init__()
        D = config.width
        self.own = Attention(D, config.heads, config.attention_dropout)
        self.cross = Attention(D, config.heads, config.attention_dropout)
        self.feed_forward = FeedForward(D, config.inner, config.dropout)
        self.norm_1, self.norm_2, self.norm_3 = (nn.LayerNorm(D) for _ in range(3))
        self.drop = Dropout(config.dropout)

    def forward(self, tokens: Tensor, exercises: Tensor, visible: Tensor, first: int = 0) -> Tensor:
        """Tokens and the encoder's exercises, both [B, T + M, D], to tokens of that shape.

        With `first` T to those of the targets alone, [B, M, D]: others are read, not made.
        """
        memory = self.norm_1(tokens)
        tokens = tokens[:, first:] + self.drop(self.own(memory[:, first:], visible, memory))
        tokens = tokens + self.drop(self.cross(self.norm_2(tokens), visible, exercises))
        return tokens + self.drop(self.feed_forward(self.norm_3(tokens)))


class Saint(Network):
    """A transformer encoder over exercises and a decoder over answers; an MLP reads the decoder's tokens of targets."""

    settings: ClassVar[type[SequenceConfig]] = SaintConfig
    config: SaintConfig

    def __init__(self, config: SaintConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        D = config.width
        self.inputs = self.streams()
        self.exercise_places, self.answer_places = _places(config), _places(config)
        self.encoder = nn.ModuleList(
            Block(Attention(D, config.heads, config.attention_dropout), D, config.inner, config.dropout)
            for _ in range(config.layers)
        )
        self.encoder_norm = nn.LayerNorm(D)
        self.decoder = nn.ModuleList(DecoderBlock(config) for _ in range(config.layers))
        self.decoder_norm = nn.LayerNorm(D)
        self.head = Head(D, self.numbers, D, config.dropout)

    def forward(self, batch: SequenceBatch) -> Tensor:
        """Logits of a right answer, [B, M]."""
        visible, T = batch.visible, batch.past_answer.shape[1]
        exercises, tokens = self.streams_of(batch)
        for block in self.encoder:
            exercises = block(exercises, visible)
        exercises = self.encoder_norm(exercises)
        *earlier, last = self.decoder
        for block in earlier:
            tokens = block(tokens, exercises, visible)
        tokens = last(tokens, exercises, visible, first=T)  # nobody reads what it would make of past rows
        return self.head(self.decoder_norm(tokens), batch.target_numbers)

    def streams_of(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """Exercises, and the answers given to them: what encoder and decoder start from, [B, T + M, D] each."""
        target = self.inputs.target(batch)
        exercises, answers = (torch.cat([past, target], 1) for past in self.inputs.asked_and_past(batch))
        if self.exercise_places is None or self.answer_places is None:
            return exercises, answers
        place = places(batch.past_answer.shape[1], batch.visible)
        return self.exercise_places(exercises, place), self.answer_places(answers, place)


def _places(config: SaintConfig) -> nn.Module | None:
    if config.positions == "none":
        return None
    if config.positions == "sinusoids":
        return Sinusoids(config.width)
    return LearnedPlaces(2 * config.context, config.width)
