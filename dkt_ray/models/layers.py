"""The layers that networks are built from: the input block, attention over the visible past, and the output head.

A batch has two streams. The past stream holds rows with their answers; the target stream holds rows whose answer is
asked for. Past row j reads past rows up to j; target m reads the first visible[m] past rows and itself. Tokens are the
rows of the past stream followed by those of the target stream.

Legend: B batch, T past rows, M targets, I id columns, C concepts per question, F numeric columns, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from dkt_ray.features.batch import NO_ANSWER, PADDING, SequenceBatch
from dkt_ray.models.dropout import Dropout
from dkt_ray.models.lookup import look_up
from dkt_ray.models.visible import read_past

BLOCK: Final = 16  # past rows
ANSWERS: Final = 4  # NO_ANSWER, WAS_WRONG, WAS_RIGHT, WAS_HIDDEN


class RowEmbedding(nn.Module):
    """The tables of the id columns and of the concepts; rows become the concatenation of their embeddings.

    Padding (id 0) is the zero vector and stays so. Several concepts are averaged.
    """

    def __init__(self, embeddings: Mapping[str, int], concept_embedding: int, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({name: table(sizes[name], width) for name, width in embeddings.items()})
        self.concepts = table(sizes["concepts"], concept_embedding)
        self.width = sum(embeddings.values()) + concept_embedding

    def forward(self, ids: Tensor, concepts: Tensor) -> Tensor:
        """Embed ids [B, T, I] and concepts [B, T, C] into [B, T, width]."""
        # it copies the tables, which pays with a backward pass only: one request would wait for a million questions
        if torch.is_grad_enabled() and ids.device.type == "cpu" and not torch.compiler.is_compiling():
            weights = [*(each for table in self.tables.values() for each in table.parameters()), self.concepts.weight]
            return look_up(weights, ids.int(), concepts.int())
        parts = [table(column) for table, column in zip(self.tables.values(), ids.unbind(-1), strict=True)]
        parts.append(mean_embedding(self.concepts, concepts))
        return torch.cat(parts, -1)


class RealBatchNorm(nn.Module):
    """Batch normalisation of the numbers over real rows: padding takes no part (Ioffe and Szegedy, 2015)."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(numbers)

    def forward(self, numbers: Tensor, real: Tensor) -> Tensor:
        """Normalise [B, T, F] where real, [B, T]; padding becomes 0."""
        rows = numbers[real]
        if self.training and len(rows) < 2:  # a batch of one row has no spread
            return numbers * 0
        return numbers.new_zeros(numbers.shape).masked_scatter(real[..., None], self.norm(rows))


class RowProjection(nn.Module):
    """Embeddings and numbers of a row to width D: Linear(ids) + Linear(numbers), then LayerNorm."""

    def __init__(self, ids: int, numbers: int, width: int, batch_norm: bool = False) -> None:
        """Without numbers (`numbers` 0) the ids are projected alone."""
        super().__init__()
        self.ids = nn.Linear(ids, width)
        self.batch_norm = RealBatchNorm(numbers) if batch_norm and numbers else None
        self.numbers = nn.Linear(numbers, width) if numbers else None
        self.norm = nn.LayerNorm(width)

    def forward(self, embedded: Tensor, numbers: Tensor, real: Tensor) -> Tensor:
        """[B, T, ids], [B, T, F] and where rows are real, [B, T], to [B, T, D]."""
        row = self.ids(embedded)
        if self.numbers is not None:
            row = row + self.numbers(numbers if self.batch_norm is None else self.batch_norm(numbers, real))
        return self.norm(row)


class Streams(nn.Module):
    """The input block: ids, concepts and numbers of both streams to width D, each through a projection of its own.

    The answer of a past row scales and shifts its vector (FiLM; Perez et al., 2018).
    """

    def __init__(self, embed: RowEmbedding, numbers: int, width: int, dropout: float, batch_norm: bool = False) -> None:
        super().__init__()
        self.embed = embed
        self.past_row = RowProjection(embed.width, numbers, width, batch_norm)
        self.target_row = RowProjection(embed.width, numbers, width, batch_norm)
        self.answer = nn.Embedding(ANSWERS, 2 * width)
        self.drop = Dropout(dropout)

    def past(self, batch: SequenceBatch) -> Tensor:
        """Past rows with their answers, [B, T, D]."""
        return self._answered(self.embed(batch.past_ids, batch.past_concepts), batch)

    def asked_and_past(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """Past rows as they were asked, projected as targets are, and with their answers; [B, T, D] each."""
        embedded = self.embed(batch.past_ids, batch.past_concepts)
        asked = self.target_row(embedded, batch.past_numbers, batch.past_answer != NO_ANSWER)
        return self.drop(asked), self._answered(embedded, batch)

    def _answered(self, embedded: Tensor, batch: SequenceBatch) -> Tensor:
        row = self.past_row(embedded, batch.past_numbers, batch.past_answer != NO_ANSWER)
        scale, shift = self.answer.weight.chunk(2, -1)
        answer = batch.past_answer
        return self.drop(torch.addcmul(F.embedding(answer, shift), row, F.embedding(answer, 1 + scale)))

    def target(self, batch: SequenceBatch) -> Tensor:
        """Targets, [B, M, D]."""
        embedded = self.embed(batch.target_ids, batch.target_concepts)
        return self.drop(self.target_row(embedded, batch.target_numbers, batch.rows >= 0))


class Head(nn.Module):
    """The output head: an MLP that reads the numbers of the target again, in its first and in its last layer."""

    def __init__(self, inputs: int, numbers: int, width: int, dropout: float) -> None:
        super().__init__()
        half = max(1, width // 2)
        self.hidden = nn.Sequential(
            nn.Linear(inputs + numbers, width), nn.GELU(), Dropout(dropout), nn.Linear(width, half), nn.GELU()
        )
        self.out = nn.Linear(half + numbers, 1)

    def forward(self, states: Tensor, numbers: Tensor) -> Tensor:
        """[B, M, inputs] and the targets' numbers [B, M, F] to logits [B, M]."""
        hidden = self.hidden(torch.cat([states, numbers], -1))
        return self.out(torch.cat([hidden, numbers], -1)).squeeze(-1)


class Recurrence(nn.LSTM):
    """LSTM layers of one width over [B, T, D]."""

    def __init__(self, width: int, layers: int, dropout: float) -> None:
        super().__init__(width, width, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)

    def states(self, past: Tensor, start: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """The hidden state after each past row, [B, T, D], from hidden and cell states [L, B, D]; None: from zeros.

        oneDNN compiles a kernel for each shape, which takes three times as long as it runs; so who scores, whose shapes
        are all different, has T filled up to a multiple of `BLOCK`. A state knows nothing of the rows after it.
        """
        if self.training:
            return self(past, start)[0]
        length = past.shape[1]
        return self(F.pad(past, (0, 0, 0, -length % BLOCK)), start)[0][:, :length]


class Attention(nn.Module):
    """Multi-head attention of the tokens of both streams (Vaswani et al., 2017, section 3.2); see `attend_tokens`."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        """`dropout` is the share of the attention weights that training drops."""
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor, visible: Tensor, memory: Tensor | None = None) -> Tensor:
        """What tokens [B, T + M, D], or the targets' alone [B, M, D], read of a memory [B, T + M, D], or each other."""
        key, value = self.key_value(tokens if memory is None else memory).chunk(2, -1)
        query, key, value = (split_heads(x, self.heads) for x in (self.query(tokens), key, value))
        read = attend_tokens(query, key, value, visible, self.dropout if self.training else 0.0)
        return self.out(join_heads(read))


class FeedForward(nn.Sequential):
    """Two linear layers with a GELU between them, applied to each row."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__(nn.Linear(width, inner), nn.GELU(), Dropout(dropout), nn.Linear(inner, width))


class Block(nn.Module):
    """A transformer layer over tokens, with the norms before attention and feed-forward (Xiong et al., 2020)."""

    def __init__(self, attention: nn.Module, width: int, inner: int, dropout: float) -> None:
        """`attention` reads tokens and `visible`, as `Attention` does."""
        super().__init__()
        self.attention = attention
        self.feed_forward = FeedForward(width, inner, dropout)
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.drop = Dropout(dropout)

    def forward(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """[B, T + M, D] to the same shape."""
        tokens = tokens + self.drop(self.attention(self.norm_1(tokens), visible))
        return tokens + self.drop(self.feed_forward(self.norm_2(tokens)))


def attend_tokens(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, dropout: float = 0.0) -> Tensor:
    """What the tokens of both streams read: past row j rows 0 to j, a target its visible past rows and itself.

    The same as scaled dot-product attention with a boolean mask [B, 1, T + M, T + M], at a cost that grows with M times
    T, not with M squared.

    Args:
        query: [B, H, T + M, D / H], past rows and then targets, or the M targets alone.
        key: [B, H, T + M, D / H], as value.
        visible: [B, M] past rows that each target may read.
        dropout: share of the weights that are dropped.

    Returns:
        Of the shape of `query`.
    """
    M, T = visible.shape[1], key.shape[-2] - visible.shape[1]
    if dropout and query.device.type == "cpu" and query.shape[-2] > M:  # torch's own is several times slower then
        asked = query * query.shape[-1] ** -0.5
        return read_past(asked, key[..., :T, :], value[..., :T, :], places(T, visible), (key, value), share=dropout)
    (query, asked), (key, own_key), (value, own_value) = (
        x.tensor_split([x.shape[-2] - M], -2) for x in (query, key, value)
    )
    read = attend(asked, key, value, own_key, own_value, visible, dropout)
    if not query.shape[-2]:
        return read
    earlier = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
    return torch.cat([earlier, read], -2)


def attend(
    query: Tensor, key: Tensor, value: Tensor, own_key: Tensor, own_value: Tensor, visible: Tensor, dropout: float = 0.0
) -> Tensor:
    """What each target reads of the visible past and of itself; targets do not read each other.

    Args:
        query: [B, H, M, D / H], as own_key and own_value.
        key: [B, H, T, D / H], as value.
        visible: [B, M] past rows that each target may read.
        dropout: share of the weights that are dropped.

    Returns:
        [B, H, M, D / H].
    """
    query = query * query.shape[-1] ** -0.5
    return read_past(query, key, value, visible, (own_key, own_value), share=dropout)


def places(past: int, visible: Tensor) -> Tensor:
    """Where tokens stand, [B, T + M]: past row j at j, a target at the end of what it may read."""
    rows = torch.arange(past, device=visible.device).expand(len(visible), past)
    return torch.cat([rows, visible], 1)


def readable(visible: Tensor, past: int) -> Tensor:
    """[B, M, T] whether target m may read past row j."""
    return torch.arange(past, device=visible.device) < visible[..., None]


def state_at(states: Tensor, visible: Tensor) -> Tensor:
    """The state that each target sees: states [B, T + 1, D], of which state j has read j rows; [B, M, D]."""
    return states.gather(1, visible[..., None].expand(-1, -1, states.shape[-1]))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, L, D] to [B, H, L, D / H]."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """[B, H, L, D / H] to [B, L, D]."""
    return x.transpose(1, 2).flatten(2)


def mean_embedding(table: nn.Embedding, concepts: Tensor) -> Tensor:
    """The mean over the concepts of each row: [B, T, C] to [B, T, width]; 0 where there is none."""
    count = (concepts != PADDING).sum(-1, keepdim=True).clamp(min=1)
    return table(concepts).sum(-2) / count


def table(size: int, width: int) -> nn.Embedding:
    """An embedding table whose padding row is zero."""
    made = nn.Embedding(size, width, padding_idx=PADDING)
    with torch.no_grad():
        made.weight.normal_(0, width**-0.5)
        made.weight[PADDING].zero_()
    return made
