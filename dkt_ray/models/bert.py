"""BERT: Hugging Face's encoder over one sequence of past and target tokens, each target blind to the others.

Past tokens know their answers; the token of a target stands where its visible past ends, and has none.

Legend: B batch, T past rows, M targets, H heads, D width, F numeric columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from dkt_ray.features.batch import NO_ANSWER, SequenceBatch
from dkt_ray.models.base import Between, Choice, Space
from dkt_ray.models.dropout import Dropout, quicken
from dkt_ray.models.layers import (
    ANSWERS,
    RealBatchNorm,
    RowEmbedding,
    attend_tokens,
    join_heads,
    places,
    split_heads,
    table,
)
from dkt_ray.models.network import AttentionConfig, Inputs, Network, SequenceConfig

ATTENTION: Final = "dkt_visible_past"  # name of `visible_past` in the table of transformers


class BertConfig(AttentionConfig):
    """Settings of BERT."""

    layers: int = Field(default=2, gt=0)
    """N: encoder layers."""
    inner: int = Field(default=128, gt=0)
    """Width of the feed-forward layers."""
    answer_embedding: int = Field(default=16, gt=0)
    """Width of the embedding of the answer to a past row."""
    attention_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the attention weights that are dropped."""
    positions: bool = True
    """Learn a vector for each position of the context."""
    t_fixup: bool = False
    """Train without layer norms and without warm-up, from weights that are scaled for it."""

    @model_validator(mode="after")
    def _warms_up(self) -> BertConfig:
        if self.t_fixup and self.warmup:
            raise ValueError(f"t_fixup trains without warm-up: set warmup to 0 (now {self.warmup})")
        return self


SPACE: Final[Space] = {
    "width": Choice((32, 64, 128)),
    "layers": Choice((1, 2, 3)),
    "inner": Choice((64, 128, 256)),
    "positions": Choice((True, False)),
    "dropout": Between(0.0, 0.3),
    "attention_dropout": Between(0.0, 0.2),
    "learning_rate": Between(5e-4, 5e-3, log=True),
    "embedding_rate": Between(0.02, 0.5, log=True),
    "weight_decay": Between(1e-3, 1e-1, log=True),
    "batch_rows": Choice((4096, 6144, 8192)),
}


class Tokens(nn.Module):
    """The input block: categories and numbers, each through Linear and LayerNorm, then ReLU, Linear, LayerNorm.

    Past rows and targets go through the same layers; the embedding of the answer, a zero vector for a target, tells
    them apart.
    """

    def __init__(self, embed: RowEmbedding, numbers: int, config: BertConfig) -> None:
        super().__init__()
        D = config.width
        self.embed = embed
        self.answer = table(ANSWERS, config.answer_embedding)
        self.ids = nn.Sequential(nn.Linear(embed.width + config.answer_embedding, D), nn.LayerNorm(D))
        self.batch_norm = RealBatchNorm(numbers) if config.batch_norm and numbers else None
        self.numbers = nn.Sequential(nn.Linear(numbers, D), nn.LayerNorm(D)) if numbers else None
        self.combine = nn.Sequential(nn.ReLU(), nn.Linear(2 * D if numbers else D, D), nn.LayerNorm(D))

    def forward(self, batch: SequenceBatch) -> Tensor:
        """Past rows, then targets, [B, T + M, D]."""
        past = self.embed(batch.past_ids, batch.past_concepts)
        target = self.embed(batch.target_ids, batch.target_concepts)
        answer = torch.cat([batch.past_answer, torch.full_like(batch.visible, NO_ANSWER)], 1)
        parts = [self.ids(torch.cat([torch.cat([past, target], 1), self.answer(answer)], -1))]
        if self.numbers is not None:
            numbers = torch.cat([batch.past_numbers, batch.target_numbers], 1)
            if self.batch_norm is not None:
                real = torch.cat([batch.past_answer != NO_ANSWER, batch.rows >= 0], 1)
                numbers = self.batch_norm(numbers, real)
            parts.append(self.numbers(numbers))
        return self.combine(torch.cat(parts, -1))


class RegressionHead(nn.Module):
    """The output head: Linear, LayerNorm, Dropout, ReLU, Linear, Linear; first and last read the numbers again."""

    def __init__(self, numbers: int, width: int, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.Sequential(
            nn.Linear(width + numbers, width),
            nn.LayerNorm(width),
            Dropout(dropout),
            nn.ReLU(),
            nn.Linear(width, width),
        )
        self.out = nn.Linear(width + numbers, 1)

    def forward(self, states: Tensor, numbers: Tensor) -> Tensor:
        """[B, M, D] and the targets' numbers [B, M, F] to logits [B, M]."""
        hidden = self.hidden(torch.cat([states, numbers], -1))
        return self.out(torch.cat([hidden, numbers], -1)).squeeze(-1)


class Bert(Network):
    """`transformers.BertModel` over the tokens of a segment, and a regression head that reads those of the targets."""

    settings: ClassVar[type[SequenceConfig]] = BertConfig
    config: BertConfig

    def __init__(self, config: BertConfig, inputs: Inputs) -> None:
        super().__init__(config, inputs)
        embed = RowEmbedding(config.embeddings, config.concept_embedding, self.sizes)
        self.inputs = Tokens(embed, self.numbers, config)
        self.encoder = encoder(config)
        self.head = RegressionHead(self.numbers, config.width, config.dropout)
        if config.t_fixup:
            t_fixup(self, self.encoder.encoder.layer)

    def forward(self, batch: SequenceBatch) -> Tensor:
        """Logits of a right answer, [B, M]."""
        states = encode(self.encoder, self.inputs(batch), batch.visible)
        return self.head(states, batch.target_numbers)


def encode(model: Any, tokens: Tensor, visible: Tensor) -> Tensor:
    """What `BertModel` makes of the tokens [B, T + M, D] of both streams, those of the targets, [B, M, D].

    Its last layer makes no others, as nobody reads them.
    """
    T, last_place = tokens.shape[1] - visible.shape[1], model.config.max_position_embeddings - 1
    place = places(T, visible).clamp(max=last_place)  # only padding lies beyond
    tokens = model.embeddings(inputs_embeds=tokens, position_ids=place)
    *earlier, last = model.encoder.layer
    for layer in earlier:
        tokens = layer(tokens, visible=visible)
    attention, asked = last.attention.self, tokens[:, T:]
    query, key, value = (
        split_heads(project(x), attention.num_attention_heads)
        for project, x in ((attention.query, asked), (attention.key, tokens), (attention.value, tokens))
    )
    read = attend_tokens(query, key, value, visible, attention.dropout.p if last.training else 0.0)
    return last.feed_forward_chunk(last.attention.output(join_heads(read), asked))


def positions(config: BertConfig) -> int:
    """Rows of the table of positions; without positions all tokens share one vector."""
    return 2 * config.context if config.positions else 1


def encoder(config: BertConfig) -> Any:
    """A new `transformers.BertModel` that attends by `visible_past`; it has no words and no pooler."""
    import transformers  # takes seconds: only those who use the family wait

    transformers.AttentionInterface.register(ATTENTION, visible_past)
    settings = transformers.BertConfig(
        vocab_size=1,
        type_vocab_size=1,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.inner,
        max_position_embeddings=positions(config),
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.attention_dropout,
    )
    model = transformers.BertModel(settings, add_pooling_layer=False)
    model.set_attn_implementation(ATTENTION)
    model.set_input_embeddings(None)  # tokens come as vectors
    quicken(model)
    return model


def visible_past(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    visible: Tensor,
    dropout: float = 0.0,
    **settings: Any,
) -> tuple[Tensor, None]:
    """`attend_tokens` as transformers calls its attention.

    Args:
        query: [B, H, T + M, D / H], as key and value.
        visible: [B, M] past rows that each target may read; handed through by transformers' layers.
        dropout: share of the weights that are dropped.

    Returns:
        [B, T + M, H, D / H], and no weights.
    """
    return attend_tokens(query, key, value, visible, dropout).transpose(1, 2), None


@torch.no_grad()
def t_fixup(network: nn.Module, layers: Sequence[Any]) -> None:
    """Remove the layer norms and initialise as T-Fixup does (Huang, Perez, Ba and Volkovs, 2020, section 4.1).

    Xavier weights, those of the values, of the attention's output and of the feed-forward in each of the N encoder
    layers times 0.67 N^(-1/4); embeddings of width d from N(0, 1 / d), times (9 N)^(-1/4).

    Args:
        network: the whole network, in place.
        layers: the N layers of its encoder.
    """
    N = len(layers)
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.LayerNorm):
                setattr(module, name, nn.Identity())
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(0, module.embedding_dim**-0.5).mul_((9 * N) ** -0.25)
            if module.padding_idx is not None:
                module.weight[module.padding_idx].zero_()
    for layer in layers:
        attention, feed_forward = layer.attention, (layer.intermediate.dense, layer.output.dense)
        for linear in (attention.self.value, attention.output.dense, *feed_forward):
            linear.weight.mul_(0.67 * N**-0.25)
