"""Nearest training rows by L2 distance inside a question's head: the mean of their answers (reference 8.2).

A row is its standardised numbers, which read its visible past only, rounded to a grid: distances are then integers, and
a product of float64 matrices holds them exactly. So who is near does not depend on the rows that are asked together,
and of rows equally far the one that stood first in the training data is the nearer.

Data whose questions name no head have one group. A row never finds itself out of fold, for the rows of its fold were
not fitted on. A model refitted on all folds holds its users' old answers, past like any other; whoever let it score
those very rows would be told their answers.

Legend: N rows, R reference rows, H heads, F numeric columns that are read, k neighbours.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field
from safetensors.numpy import load_file, save_file

from dkt_ray.config import build
from dkt_ray.data.history import Int8, Int64, graded
from dkt_ray.errors import ConfigError
from dkt_ray.features.batch import Rows
from dkt_ray.features.encoder import EncoderState
from dkt_ray.models.base import Model, ModelConfig, ModelSpec, Probabilities

Floats = npt.NDArray[np.float64]
Int16 = npt.NDArray[np.int16]

CLIP: Final = 10.0  # standard deviations
STEPS: Final = 1024  # of the grid, per standard deviation
MOST_REFERENCES: Final = 1 << 16
MOST_COLUMNS: Final = 256  # 3 * 256 columns * (CLIP * STEPS) ** 2 * 2 ** 16 references < 2 ** 53: exact in float64
CELLS: Final = 1 << 21  # distances held at one time


class NeighboursConfig(ModelConfig):
    """Settings of the neighbours."""

    k: int = Field(default=64, gt=0)
    """Nearest rows whose answers are averaged; the reference took 9."""
    number_names: tuple[str, ...] = (
        *("question_log_odds", "concept_log_odds", "user_log_odds", "recent_20_log_odds"),
        *("user_concept_log_odds", "user_concept_count", "user_question_log_odds"),
    )
    """Numeric columns that the distance reads, each in standard deviations."""
    reference_rows: int = Field(default=4096, gt=0, le=MOST_REFERENCES)
    """Most training rows kept per head, a sample drawn by `seed`."""
    prior: float = Field(default=2.0, gt=0)
    """Pseudo-answers of the head's mean, added to those of the neighbours: all there is where a head has no rows."""

    @property
    def longest(self) -> int:
        """One pass."""
        return 1


@dataclass(frozen=True, eq=False)
class References:
    """What a fit keeps: some rows of each head, and what is typical where they are few."""

    mean: Floats  # [F]
    std: Floats  # [F]
    heads: Int64  # [H] ids, ascending
    offsets: Int64  # [H + 1] of the heads' rows
    grid: Int16  # [R, F] in steps
    answers: Int8  # [R]
    rates: Floats  # [H] mean answer of all of the head's training rows
    overall: Floats  # [1] of all heads


class Neighbours(Model):
    """The mean answer of a row's nearest training rows in its head."""

    config: NeighboursConfig

    def __init__(self, config: NeighboursConfig, encoder: tuple[str, ...], references: References) -> None:
        self.config, self.fitted_on, self.references = config, encoder, references
        self._read = _places(config, encoder)

    @classmethod
    def fit(cls, config: NeighboursConfig, rows: Rows, state: EncoderState) -> Self:
        """Keep rows with known answers.

        Args:
            rows: of training users, each encoded with a state that excludes its fold; one answer at least is known.

        Raises:
            ConfigError: a column that is to be read does not exist.
        """
        assert state.mean is not None, "the state has no scaler yet: EncoderState.with_scaler"
        assert state.std is not None
        places = _places(config, state.number_names)
        mean, std = state.mean[places], state.std[places]
        known = np.flatnonzero(graded(rows.correct))
        head = rows.ids["head"][known].astype(np.int64)
        overall = float(rows.correct[known].mean())
        heads, group, counts = np.unique(head, return_inverse=True, return_counts=True)
        right = np.bincount(group, rows.correct[known], len(heads))
        kept = _sampled(group, counts, config)
        chosen = known[kept]
        return cls(
            config,
            tuple(state.number_names),
            References(
                mean,
                std,
                heads,
                np.concatenate([[0], np.cumsum(np.minimum(counts, config.reference_rows))]).astype(np.int64),
                _on_grid(rows.numbers[chosen][:, places], mean, std),
                rows.correct[chosen],
                (right + config.prior * overall) / (counts + config.prior),
                np.array([overall]),
            ),
        )

    def score(self, past: Rows, targets: Rows) -> Probabilities:
        """Probability of a right answer for each target row; see `Model.score`."""
        kept = self.references
        out = np.full(targets.rows, kept.overall[0])
        head = targets.ids["head"].astype(np.int64)
        order = np.argsort(head, kind="stable")
        starts = np.searchsorted(head[order], kept.heads, "left")
        stops = np.searchsorted(head[order], kept.heads, "right")
        for number, (start, stop) in enumerate(zip(starts, stops, strict=True)):
            size = int(kept.offsets[number + 1] - kept.offsets[number])
            for first in range(start, stop, max(1, CELLS // size)):
                rows = order[first : min(first + max(1, CELLS // size), stop)]
                asked = _on_grid(targets.numbers[rows][:, self._read], kept.mean, kept.std)
                right, count = self._near(number, asked)
                out[rows] = (right + self.config.prior * kept.rates[number]) / (count + self.config.prior)
        return out

    def _near(self, number: int, asked: Int16) -> tuple[Int64, int]:
        """How many of the rows nearest to each asked one were answered right, and how many they are."""
        kept = self.references
        mine = slice(kept.offsets[number], kept.offsets[number + 1])
        grid, answers = kept.grid[mine].astype(np.float64), kept.answers[mine]
        size = len(answers)
        # squared distance, without the asked row's own square, times the number of rows, plus the row: no two are equal
        key = asked.astype(np.float64) @ (-2.0 * size * grid.T)
        key += size * (grid**2).sum(1) + np.arange(size)
        count = min(self.config.k, size)
        near = np.argpartition(key, count - 1, axis=1)[:, :count]
        return answers[near].sum(1, dtype=np.int64), count

    def save(self, folder: Path) -> None:
        """Write `neighbours.json` and `references.safetensors`."""
        facts = {"config": self.config.model_dump(mode="json"), "names": self.fitted_on}
        (folder / "neighbours.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        arrays = {name: np.ascontiguousarray(array) for name, array in vars(self.references).items()}
        save_file(arrays, folder / "references.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what `save` wrote."""
        facts = json.loads((folder / "neighbours.json").read_text(encoding="utf-8"))
        references = References(**load_file(folder / "references.safetensors"))
        return cls(build(NeighboursConfig, facts["config"]), tuple(facts["names"]), references)


SPEC: Final = ModelSpec("memory", NeighboursConfig, Neighbours, {})


def _places(config: NeighboursConfig, encoder: tuple[str, ...]) -> Int64:
    """Where the read columns stand among the encoder's, [F]."""
    unknown = [name for name in config.number_names if name not in encoder]
    if unknown:
        raise ConfigError(f"number_names names {unknown[0]!r}; the encoder has {', '.join(encoder)}")
    if not 0 < len(config.number_names) <= MOST_COLUMNS:
        raise ConfigError(f"number_names has {len(config.number_names)} columns; name 1 to {MOST_COLUMNS}")
    return np.array([encoder.index(name) for name in config.number_names], np.int64)


def _sampled(group: Int64, counts: Int64, config: NeighboursConfig) -> Int64:
    """Some rows of each group, at most `reference_rows`, group by group and in order."""
    draw = np.random.default_rng(config.seed).random(len(group))
    order = np.lexsort((draw, group))
    first = np.repeat(np.cumsum(counts) - counts, counts)
    kept = order[np.arange(len(group)) - first < config.reference_rows]
    return kept[np.lexsort((kept, group[kept]))].astype(np.int64)


def _on_grid(numbers: npt.NDArray[np.float32], mean: Floats, std: Floats) -> Int16:
    """Numbers, [N, F], in steps of the grid."""
    return np.rint(np.clip((numbers - mean) / std, -CLIP, CLIP) * STEPS).astype(np.int16)
