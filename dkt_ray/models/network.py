"""What the sequence families share: their settings, and the base class that scores and stores them.

Legend: B batch, T past rows, M targets, F numeric columns, S segments.
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
from dkt_ray.features.batch import Rows, SequenceBatch
from dkt_ray.features.collate import FlatRows, Scale, batches, collate, flatten, segments, split_targets
from dkt_ray.features.encoder import EncoderState
from dkt_ray.models.base import Model, Probabilities
from dkt_ray.models.layers import RowEmbedding, Streams
from dkt_ray.models.optimization import OptimizationConfig

SCORE_ROWS: Final = 16_384  # padded rows per batch when scoring
SCORE_PADDING: Final = 300  # rows: a forward pass on a CPU begins with what so many cost
TARGETS_AT_ONCE: Final = 1_024  # of one student; attention over them is a matrix of targets and past rows


class SequenceConfig(OptimizationConfig):
    """Settings of every network and of its training."""

    embeddings: dict[str, PositiveInt] = Field(
        default={"question": 32, "test": 16, "head": 8, "mid": 8, "tail": 8, "lag": 8, "previous_elapsed": 8}
    )
    """Id columns that the network reads, with the width of each embedding (answers are read anyway)."""
    concept_embedding: int = Field(default=16, gt=0)
    """Width of the concept embedding (mean over the concepts of a question)."""
    numbers: bool = True
    """Read the numeric columns, at the input and at the output head; false: ids and answers only (then
    embedding_rate 0.5 suits: all that is known of a question is in its embedding)."""
    batch_norm: bool = False
    """Normalise the numbers per batch as well, as the reference system does; they are standardised anyway."""
    context: int = Field(default=100, gt=0)
    """C: at position t the network sees rows from (floor(t / C) - 1) * C to t."""
    windows: WindowConfig = WindowConfig()
    """What training reads at once; validation and scoring follow the context rule."""
    width: int = Field(default=64, gt=0)
    """D: width of the hidden layers."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    unknown_share: float = Field(default=0.02, ge=0, lt=1)
    """Share of ids that training replaces by the unknown id, so that the unknown id is trained."""

    @property
    def longest(self) -> int:
        """Most epochs of a fit."""
        return self.epochs

    @model_validator(mode="after")
    def _windows_fit(self) -> Self:
        length = self.windows.length
        if length is not None and length > 2 * self.context:
            raise ValueError(f"windows.length {length} is more than the {2 * self.context} rows that scoring reads")
        return self


class AttentionConfig(SequenceConfig):
    """Settings of the networks that attend."""

    heads: int = Field(default=4, gt=0)
    """H: attention heads; divides width."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class Inputs(NamedTuple):
    """What a network must know of the encoder state."""

    sizes: Mapping[str, int]  # ids per id column and of `concepts`
    scale: Scale
    names: tuple[str, ...] | None = None  # of the numeric columns

    @classmethod
    def of(cls, state: EncoderState) -> Inputs:
        """Taken from a fitted state with a scaler."""
        assert state.mean is not None, "the state has no scaler yet: EncoderState.with_scaler"
        assert state.std is not None
        return cls(state.sizes, Scale(state.mean, state.std), state.number_names)


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
        self.fitted_on = inputs.names if config.numbers else None

    @abstractmethod
    def forward(self, batch: SequenceBatch) -> Tensor:
        """Logits of a right answer, [B, M] (of no meaning at padding)."""

    def penalty(self, batch: SequenceBatch, counts: Tensor) -> Tensor:
        """What training adds to its objective: a mean over the same targets, those where `counts`, [B, M]."""
        return batch.correct.new_zeros(())

    @property
    def contexts(self) -> frozenset[int]:
        """Its own context; see `Model.contexts`."""
        return frozenset({self.config.context})

    @property
    def numbers(self) -> int:
        """F: how many numeric columns the network reads."""
        return len(self.scale.mean) if self.config.numbers else 0

    def streams(self) -> Streams:
        """A new input block for this network's columns."""
        config = self.config
        embed = RowEmbedding(config.embeddings, config.concept_embedding, self.sizes)
        return Streams(embed, self.numbers, config.width, config.dropout, config.batch_norm)

    def flatten(self, rows: Rows) -> FlatRows:
        """The rows as this network reads them."""
        return flatten(rows, tuple(self.config.embeddings), self.scale if self.config.numbers else None)

    def score(self, past: Rows, targets: Rows) -> Probabilities:
        """Probability of a right answer for each target row; see `Model.score`."""
        return self.score_segments(past, targets, segments(past, targets, self.config.context))

    def score_segments(self, past: Rows, targets: Rows, parts: Int64) -> Probabilities:
        """The same, where each target reads the past of its segment.

        Args:
            parts: [S, 4] segments of the past and the targets; each target is in exactly one.
        """
        parts = split_targets(parts, TARGETS_AT_ONCE)
        if targets is past:
            whole = self.flatten(past)
            return self.probabilities(whole, whole, parts)
        rows, offsets = ranges(parts[:, 0], parts[:, 1])  # of a long history only the last blocks are read
        parts = np.column_stack([offsets[:-1], offsets[1:], parts[:, 2:]])
        return self.probabilities(self.flatten(past.take(rows, offsets)), self.flatten(targets), parts)

    @torch.inference_mode()
    def probabilities(self, past: FlatRows, targets: FlatRows, parts: Int64) -> Probabilities:
        """Score prepared segments ([S, 4]) that together hold each target once; [targets.rows]."""
        if self.training:  # each module is told, which takes as long as a tenth of a request
            self.eval()
        logits = torch.empty(targets.padding + 1, dtype=torch.float64, device=targets.ids.device)
        for part in batches(parts, SCORE_ROWS, most_padding=SCORE_PADDING):
            batch = collate(past, targets, part)
            logits[batch.rows] = self(batch).double()  # padding has row -1: the last, cut off below
        return torch.sigmoid(logits[:-1]).cpu().numpy()

    def save(self, folder: Path) -> None:
        """Write `network.json` and `weights.safetensors`."""
        facts = {
            "config": self.config.model_dump(mode="json"),
            "sizes": self.sizes,
            "names": self.fitted_on,
            "mean": self.scale.mean.tolist(),
            "std": self.scale.std.tolist(),
        }
        (folder / "network.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        weights = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(weights, folder / "weights.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what `save` wrote, ready to score.

        Raises:
            ConfigError: an earlier version wrote it, without the names of the numeric columns.
        """
        facts = json.loads((folder / "network.json").read_text(encoding="utf-8"))
        if "names" not in facts:
            raise ConfigError(
                f"network.json of the saved {cls.__name__} has no `names`: an earlier version of dkt-ray wrote it, and "
                "did not keep the names of the numeric columns; train the model again"
            )
        scale = Scale(np.array(facts["mean"]), np.array(facts["std"]))
        names = facts["names"] and tuple(facts["names"])
        network = cls(build(cls.settings, facts["config"]), Inputs(facts["sizes"], scale, names))
        network.load_state_dict(load_file(folder / "weights.safetensors"))
        return network.eval()


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
