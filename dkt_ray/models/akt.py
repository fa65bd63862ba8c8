"""AKT: context-aware attentive knowledge tracing; attention fades with the distance that the context makes.

After Ghosh et al., 2020 (sections 4.1 to 4.3); with `simple`, simpleKT (Liu et al., 2023), which keeps the embeddings
and drops the fading. Beside the embeddings of the input block, a question has a difficulty: one number, which moves it
along a line through its concept, and is as much as a few answers can tell.

Only targets retrieve knowledge. A learned row stands before the first answer, so that there is something to read where
there is no past.

Legend: B batch, T past rows, M targets, Q queries, K keys, C concepts per question, H heads, D width.
"""

from __future__ import annotations

from typing import ClassVar, Final

import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import Field
from torch import Tensor, nn

from dkt_ray.features.batch import PADDING, UNKNOWN_ID, SequenceBatch
from dkt_ray.models.base import Between, Choice, Space
from dkt_ray.models.dropout import Dropout
from dkt_ray.models.layers import (
    ANSWERS,
    Block,
    FeedForward,
    Head,
    join_heads,
    mean_embedding,
    places,
    split_heads,
    table,
)
from dkt_ray.models.network import AttentionConfig, Inputs, Network, SequenceConfig
from dkt_ray.models.visible import read_past


class AktConfig(AttentionConfig):
    """Settings of AKT; without `question` among the embeddings there are no difficulties."""

    encoder_layers: int = Field(default=1, gt=0)
    """Layers of the encoder of questions, and of that of knowledge."""
    layers: int = Field(default=1, gt=0)
    """Layers of the knowledge retriever."""
    inner: int = Field(default=128, gt=0)
    """Width of the feed-forward layers."""
    attention_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the attention weights that are dropped."""
    question_l2: float = Field(default=0.01, ge=0)
    """Weight of the squared difficulties in the objective, so that few answers do not move a question far."""
    simple: bool = False
    """simpleKT: plain attention, which does not fade with distance."""


SPACE: Final[Space] = {
    "width": Choice((32, 64, 128)),
    "encoder_layers": Choice((1, 2)),
    "layers": Choice((1, 2)),
    "inner": Choice((64, 128, 256)),
    "simple": Choice((False, True)),
    "question_l2": Between(1e-4, 1e-1, log=True),
    "dropout": Between(0.0, 0.3),
    "attention_dropout": Between(0.0, 0.2),
    "learning_rate": Between(5e-4, 5e-3, log=True),
    "embedding_rate": Between(0.02, 0.5, log=True),
    "weight_decay": Between(1e-3, 1e-1, log=True),
    "batch_rows": Choice((4096, 6144, 8192)),
}


class RaschEmbedding(nn.Module):
    """Questions as points on a line through their concept, at their difficulty (section 4.3).

    x = c + mu d for a question and y = e + mu f for an answer to it; c and d belong to the concept, e and f to the
    concept and the answer, mu, a number, to the question. Several concepts are averaged.
    """

    def __init__(self, questions: int, concepts: int, width: int) -> None:
        super().__init__()
        self.difficulty = table(questions, 1)
        nn.init.zeros_(self.difficulty.weight)
        self.concept = table(concepts, 2 * width)  # c and d
        self.answered = table(concepts * ANSWERS, 2 * width)  # e and f

    def question(self, mu: Tensor, concepts: Tensor) -> Tensor:
        """x, [B, T, D], from difficulties [B, T, 1] and concepts [B, T, C]."""
        return self._point(mu, mean_embedding(self.concept, concepts))

    def answer(self, mu: Tensor, concepts: Tensor, answer: Tensor) -> Tensor:
        """y, [B, T, D], of answers [B, T]."""
        pairs = torch.where(concepts == PADDING, PADDING, concepts * ANSWERS + answer[..., None])
        return self._point(mu, mean_embedding(self.answered, pairs))

    def difficulties(self, ids: Tensor) -> Tensor:
        """mu of questions [B, T], [B, T, 1]; an unknown question has the mean of the known ones."""
        known = self.difficulty.weight[UNKNOWN_ID + 1 :]
        return torch.where(ids[..., None] == UNKNOWN_ID, known.sum() / max(1, len(known)), self.difficulty(ids))

    @staticmethod
    def _point(mu: Tensor, start_and_direction: Tensor) -> Tensor:
        start, direction = start_and_direction.chunk(2, -1)
        return start + mu * direction


class MonotonicAttention(nn.Module):
    """Multi-head attention whose scores fade with distance (section 4.2).

    Queries and keys share one projection, as in the authors' code: rows that are alike attract each other.
    """

    def __init__(self, config: AktConfig) -> None:
        super().__init__()
        D, H = config.width, config.heads
        self.heads, self.dropout = H, config.attention_dropout
        self.query_key = nn.Linear(D, D)
        self.value = nn.Linear(D, D)
        self.out = nn.Linear(D, D)
        # some heads look far back from the start; softplus makes it positive
        self.speed = None if config.simple else nn.Parameter(torch.linspace(-3.0, 0.0, H))

    def forward(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """What tokens [B, T + M, D] read: past row j rows 0 to j, a target its visible past rows and itself."""
        T = tokens.shape[1] - visible.shape[1]
        key, value = self._heads(tokens, tokens)
        own = key, value
        return self._read(key, key[..., :T, :], value[..., :T, :], places(T, visible), own)

    def retrieve(self, asked: Tensor, earlier: Tensor, known: Tensor, seen: Tensor) -> Tensor:
        """What asked [B, M, D] read of the first `seen` known rows [B, K, D], which stand at earlier [B, K, D]."""
        key, value = self._heads(earlier, known)
        query = split_heads(self.query_key(asked), self.heads)
        return self._read(query, key, value, seen)

    def _heads(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of rows [B, L, D], projected and split: [B, H, L, D / H] each."""
        return split_heads(self.query_key(key), self.heads), split_heads(self.value(value), self.heads)

    def _read(
        self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor, own: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """What queries read of `visible` rows and of their own (see `read_past`), [B, Q, D]."""
        speed = None if self.speed is None else F.softplus(self.speed)
        share = self.dropout if self.training else 0.0
        query = query * query.shape[-1] ** -0.5
        return self.out(join_heads(read_past(query, key, value, visible, own, speed, share)))


class Retriever(nn.Module):
    """A layer of the knowledge retriever: targets read what the answers to questions like them have shown."""

    def __init__(self, config: AktConfig) -> None:
        super().__init__()
        D = config.width
        self.attention = MonotonicAttention(config)
        self.feed_forward = FeedForward(D, config.inner, config.dropout)
        self.norm_1, self.norm_2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.drop = Dropout(config.dropout)

    def forward(self, state: Tensor, earlier: Tensor, known: Tensor, seen: Tensor) -> Tensor:
        """States of targets [B, M, D], which read the first `seen` of K rows, to the same shape."""
        state = state + self.drop(self.attention.retrieve(self.norm_1(state), earlier, known, seen))
        return state + self.drop(self.feed_forward(self.norm_2(state)))


class Akt(Network):
    """Encoders of questions and of knowledge, a retriever, and an MLP that reads what it found and the question."""

    settings: ClassVar[type[SequenceConfig]] = AktConfig
    config: AktConfig

    def __init__(self, config: AktConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        D = config.width
        names = list(config.embeddings)
        self.column = names.index("question") if "question" in names else None
        self.inputs = self.streams()
        self.rasch = RaschEmbedding(self.sizes.get("question", UNKNOWN_ID + 1), self.sizes["concepts"], D)
        self.questions, self.knowledge = self._encoder(), self._encoder()
        self.question_norm, self.knowledge_norm = nn.LayerNorm(D), nn.LayerNorm(D)
        self.start = nn.Parameter(torch.randn(2, 1, 1, D) * D**-0.5)  # stands before the first question and its answer
        self.retriever = nn.ModuleList(Retriever(config) for _ in range(config.layers))
        self.head = Head(2 * D, self.numbers, D, config.dropout)

    def forward(self, batch: SequenceBatch) -> Tensor:
        """Logits of a right answer, [B, M]."""
        T, nobody = batch.past_answer.shape[1], batch.visible[:, :0]
        mu, asked_mu = self.difficulties(batch.past_ids), self.difficulties(batch.target_ids)
        past, known = self.inputs.asked_and_past(batch)
        past = past + self.rasch.question(mu, batch.past_concepts)
        target = self.inputs.target(batch) + self.rasch.question(asked_mu, batch.target_concepts)
        known = known + self.rasch.answer(mu, batch.past_concepts, batch.past_answer)
        questions = torch.cat([past, target], 1)
        for block in self.questions:
            questions = block(questions, batch.visible)
        for block in self.knowledge:
            known = block(known, nobody)
        earlier, state = self.question_norm(questions).tensor_split([T], 1)
        first_question, first_known = self.start.expand(-1, len(known), -1, -1)
        earlier = torch.cat([first_question, earlier], 1)
        known = torch.cat([first_known, self.knowledge_norm(known)], 1)
        for layer in self.retriever:
            state = layer(state, earlier, known, batch.visible + 1)
        return self.head(torch.cat([state, target], -1), batch.target_numbers)

    def penalty(self, batch: SequenceBatch, counts: Tensor) -> Tensor:
        """Mean squared difficulty of the questions of the targets that count, [B, M], weighed by `question_l2`."""
        squares = self.difficulties(batch.target_ids).squeeze(-1).square() * counts
        return self.config.question_l2 * squares.sum() / counts.sum().clamp(min=1)

    def difficulties(self, ids: Tensor) -> Tensor:
        """mu of the questions among ids [B, T, I], [B, T, 1]."""
        if self.column is None:
            return torch.zeros(*ids.shape[:2], 1, device=ids.device)
        return self.rasch.difficulties(ids[..., self.column])

    def _encoder(self) -> nn.ModuleList:
        config = self.config
        return nn.ModuleList(
            Block(MonotonicAttention(config), config.width, config.inner, config.dropout)
            for _ in range(config.encoder_layers)
        )
