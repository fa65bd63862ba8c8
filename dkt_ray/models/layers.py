"""What the sequence families share: settings, the embedding of rows, and the base class that scores and stores them.

Legend: B batch, T past rows, M targets, I id columns, C concepts per question, F numeric columns, D width.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final, NamedTuple, Self

import numpy as np
import torch
from pydantic import Field, PositiveInt, model_validator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dkt_ray.config import build
from dkt_ray.data.history import Int64, ranges
from dkt_ray.data.windows import WindowConfig
from dkt_ray.errors import ConfigError
from dkt_ray.features.batch import PADDING, Rows, SequenceBatch
from dkt_ray.features.collate import FlatRows, Scale, batches, collate, flatten, segments
from dkt_ray.features.encoder import EncoderState
from dkt_ray.models.base import Model, ModelConfig, Probabilities

SCORE_ROWS: Final = 16_384  # padded rows per batch when scoring


class SequenceConfig(ModelConfig):
    """Settings of every network and of its training."""

    embeddings: dict[str, PositiveInt] = Field(
        default={"question": 32, "test": 16, "head": 8, "mid": 8, "tail": 8, "lag": 8, "previous_elapsed": 8}
    )
    """Id columns that the network reads, with the width of each embedding (answers are read anyway)."""
    concept_embedding: int = Field(default=16, gt=0)
    """Width of the concept embedding (mean over the concepts of a question)."""
    context: int = Field(default=100, gt=0)
    """C: at position t the network sees rows from (floor(t / C) - 1) * C to t."""
    windows: WindowConfig = WindowConfig()
    """What training reads at once; validation and scoring follow the context rule."""
    width: int = Field(default=64, gt=0)
    """D: width of the hidden layers."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    unknown_share: float = Field(default=0.02, ge=0, lt=1)
    """Share of ids that training replaces by the unknown id, so that the unknown id is trained."""
    last: int | None = Field(default=None, gt=0)
    """Train on the last K known answers of each segment only; null: on all of them."""
    learning_rate: float = Field(default=3e-3, gt=0)
    """Peak of the one-cycle schedule."""
    embedding_rate: float = Field(default=0.05, gt=0, le=1)
    """Share of the learning rate that embeddings get; at the full rate rare ids learn their few answers by heart."""
    warmup: float = Field(default=0.1, gt=0, lt=1)
    """Share of the steps in which the learning rate rises to its peak."""
    weight_decay: float = Field(default=0.01, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    batch_rows: int = Field(default=6144, gt=0)
    """Padded rows (past and targets) per training step."""
    epochs: int = Field(default=10, gt=0)
    patience: int = Field(default=3, gt=0)
    """Epochs without a better validation AUC before training stops."""

    @model_validator(mode="after")
    def _windows_fit(self) -> Self:
        length = self.windows.length
        if length is not None and length > 2 * self.context:
            raise ValueError(f"windows.length {length} is more than the {2 * self.context} rows that scoring reads")
        return self


class Inputs(NamedTuple):
    """What a network must know of the encoder state."""

    sizes: Mapping[str, int]  # ids per id column and of `concepts`
    scale: Scale

    @classmethod
    def of(cls, state: EncoderState) -> Inputs:
        """Taken from a fitted state with a scaler."""
        assert state.mean is not None, "the state has no scaler yet: EncoderState.with_scaler"
        assert state.std is not None
        return cls(state.sizes, Scale(state.mean, state.std))


class Network(nn.Module, Model):
    """A sequence model: a past tower reads past rows, a target tower reads each target.

    Target m may use its own row and the past rows j < visible[b, m]; never another target.
    """

    settings: ClassVar[type[SequenceConfig]]
    config: SequenceConfig

    def __init__(self, config: SequenceConfig, inputs: Inputs) -> None:
        super().__init__()
        self.config = config
        self.sizes = {name: inputs.sizes[name] for name in _known(config, inputs)}
        self.scale = Scale(*(np.asarray(values, np.float64) for values in inputs.scale))

    @abstractmethod
    def forward(self, batch: SequenceBatch) -> Tensor:
        """Logits of a right answer, [B, M] (of no meaning at padding)."""

    def flatten(self, rows: Rows) -> FlatRows:
        """The rows as this network reads them."""
        return flatten(rows, tuple(self.config.embeddings), self.scale)

    def score(self, past: Rows, targets: Rows) -> Probabilities:
        """Probability of a right answer for each target row; see `Model.score`."""
        parts = segments(past, targets, self.config.context)
        if targets is past:
            whole = self.flatten(past)
            return self.probabilities(whole, whole, parts)
        rows, offsets = ranges(parts[:, 0], parts[:, 1])  # of a long history only the last blocks are read
        parts = np.column_stack([offsets[:-1], offsets[1:], parts[:, 2:]])
        return self.probabilities(self.flatten(past.take(rows, offsets)), self.flatten(targets), parts)

    @torch.inference_mode()
    def probabilities(self, past: FlatRows, targets: FlatRows, parts: Int64) -> Probabilities:
        """Score prepared segments ([S, 4]) that together hold each target once; [targets.rows]."""
        self.eval()
        logits = torch.empty(targets.padding + 1, dtype=torch.float64, device=targets.ids.device)
        for part in batches(parts, SCORE_ROWS):
            batch = collate(past, targets, part)
            logits[batch.rows] = self(batch).double()  # padding has row -1: the last, cut off below
        return torch.sigmoid(logits[:-1]).cpu().numpy()

    def save(self, folder: Path) -> None:
        """Write `network.json` and `weights.safetensors`."""
        facts = {
            "config": self.config.model_dump(mode="json"),
            "sizes": self.sizes,
            "mean": self.scale.mean.tolist(),
            "std": self.scale.std.tolist(),
        }
        (folder / "network.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        weights = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(weights, folder / "weights.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what `save` wrote, ready to score."""
        facts = json.loads((folder / "network.json").read_text(encoding="utf-8"))
        scale = Scale(np.array(facts["mean"]), np.array(facts["std"]))
        network = cls(build(cls.settings, facts["config"]), Inputs(facts["sizes"], scale))
        network.load_state_dict(load_file(folder / "weights.safetensors"))
        return network.eval()


class RowEmbedding(nn.Module):
    """The tables of the id columns and of the concepts; rows become the concatenation of their embeddings.

    Padding (id 0) is the zero vector and stays so. Several concepts are averaged.
    """

    def __init__(self, config: SequenceConfig, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.tables = nn.ModuleDict(
            {name: _table(sizes[name], width) for name, width in config.embeddings.items()},
        )
        self.concepts = _table(sizes["concepts"], config.concept_embedding)
        self.width = sum(config.embeddings.values()) + config.concept_embedding

    def forward(self, ids: Tensor, concepts: Tensor) -> Tensor:
        """Embed ids [B, T, I] and concepts [B, T, C] into [B, T, width]."""
        parts = [table(column) for table, column in zip(self.tables.values(), ids.unbind(-1), strict=True)]
        count = (concepts != PADDING).sum(-1, keepdim=True).clamp(min=1)
        parts.append(self.concepts(concepts).sum(-2) / count)
        return torch.cat(parts, -1)


class RowProjection(nn.Module):
    """Embeddings and numbers of a row to width D: Linear(ids) + Linear(numbers), then LayerNorm."""

    def __init__(self, ids: int, numbers: int, width: int) -> None:
        super().__init__()
        self.ids = nn.Linear(ids, width)
        self.numbers = nn.Linear(numbers, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, embedded: Tensor, numbers: Tensor) -> Tensor:
        """[B, T, ids] and [B, T, F] to [B, T, D]."""
        return self.norm(self.ids(embedded) + self.numbers(numbers))


def _known(config: SequenceConfig, inputs: Inputs) -> tuple[str, ...]:
    """Names of the tables that the config asks for.

    Raises:
        ConfigError: a name is no id column, or one that holds answers, which have no unknown id.
    """
    allowed = sorted(inputs.sizes.keys() - {"concepts", "previous_correct"})
    for name in config.embeddings:
        if name not in allowed:
            raise ConfigError(f"embeddings names {name!r}; a network may embed {', '.join(allowed)}")
    return (*config.embeddings, "concepts")


def _table(size: int, width: int) -> nn.Embedding:
    table = nn.Embedding(size, width, padding_idx=PADDING)
    with torch.no_grad():
        table.weight.normal_(0, width**-0.5)
        table.weight[PADDING].zero_()
    return table
