"""LightGBM on the encoder's numbers and a few id columns: every row stands for itself.

Legend: N rows, F numeric columns that are read, I id columns, C = F + I.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from dkt_ray.config import build
from dkt_ray.data.history import Int32, Int64
from dkt_ray.errors import ConfigError
from dkt_ray.features.batch import Rows
from dkt_ray.features.student import FEATURE
from dkt_ray.models.base import Between, Model, ModelConfig, Probabilities, Space
from dkt_ray.models.trees import Kind, Said, Trees

SCORE_ROWS: Final = 1 << 16  # whose matrix is made at one time
CONCEPT: Final = "concept"  # the id column of a question's first concept
RISING_IDS: Final = ("previous_correct",)  # id columns whose order is that of success
TREES: Final = (
    *("learning_rate", "num_leaves", "min_data_in_leaf", "feature_fraction", "lambda_l2", "max_bin"),
    *("cat_smooth", "cat_l2", "min_data_per_group"),
)

Floats = npt.NDArray[np.float64]


class LightGBMConfig(ModelConfig):
    """Settings of LightGBM; names of the trees' settings follow LightGBM's documentation."""

    number_names: tuple[str, ...] | None = None
    """Numeric columns that are read; null: all that the encoder has."""
    columns: tuple[str, ...] = ("head", "tail", "lag", "previous_elapsed", "previous_correct")
    """Id columns that are read beside the numbers; `concept` is the question's first concept."""
    categorical: tuple[str, ...] = ()
    """Those of `columns` that are split as categories, e.g. question and concept; the others are split by order."""
    monotone: bool = False
    """The probability never falls where a number of the student's own success rises (see `Feature.direction`)."""
    rounds: int = Field(default=800, gt=0)
    """Most boosting rounds."""
    patience: int = Field(default=50, gt=0)
    """Rounds without a better validation AUC before training stops."""
    report_rounds: int = Field(default=25, gt=0)
    """Rounds between two looks at the validation AUC."""
    learning_rate: float = Field(default=0.03, gt=0)
    num_leaves: int = Field(default=63, gt=1)
    min_data_in_leaf: int = Field(default=100, gt=0)
    feature_fraction: float = Field(default=0.3, gt=0, le=1)
    lambda_l2: float = Field(default=1.0, ge=0)
    max_bin: int = Field(default=127, gt=1, le=255)
    cat_smooth: float = Field(default=100.0, ge=0)
    """Pseudo-answers that damp a category's rate where categories are put in order."""
    cat_l2: float = Field(default=50.0, ge=0)
    """L2 penalty of splits by category, in place of lambda_l2."""
    min_data_per_group: int = Field(default=500, gt=0)
    """Fewest rows of the categories that a split sends one way."""
    bin_rows: int = Field(default=200_000, gt=0)
    """Rows, drawn at random, that the bins of the columns are made from."""
    threads: int = Field(default=1, gt=0)

    @model_validator(mode="after")
    def _categories_are_read(self) -> Self:
        for name in self.categorical:
            if name not in self.columns:
                raise ValueError(f"categorical names {name!r}, columns has {', '.join(self.columns) or 'nothing'}")
        return self

    @property
    def longest(self) -> int:
        """Most rounds of a fit."""
        return self.rounds

    def parameters(self, names: Sequence[str]) -> dict[str, Any]:
        """The parameters as LightGBM names them; same seed, same trees on any number of cores.

        Args:
            names: [C] of the columns that are read, in order.
        """
        directions = [self._direction(name) for name in names]
        bound = {"monotone_constraints": directions} if self.monotone and any(directions) else {}
        fixed = {
            "objective": "binary",
            "metric": ["auc", "binary_logloss"],
            "seed": self.seed,
            "data_random_seed": self.seed,  # else a streamed Dataset would sample other rows than one from memory
            "deterministic": True,
            "force_row_wise": True,
            "bin_construct_sample_cnt": self.bin_rows,
            "num_threads": self.threads,
            "verbosity": -1,
        }
        return {name: getattr(self, name) for name in TREES} | bound | fixed

    def _direction(self, name: str) -> int:
        if name in FEATURE:
            return FEATURE[name].direction
        return int(name in RISING_IDS and name not in self.categorical)


SPACE: Final[Space] = {
    "learning_rate": Between(0.02, 0.2, log=True),
    "num_leaves": Between(15, 127, log=True, integer=True),
    "min_data_in_leaf": Between(20, 500, log=True, integer=True),
    "feature_fraction": Between(0.1, 1.0, log=True),
    "lambda_l2": Between(0.01, 100.0, log=True),
}


class Columns:
    """The columns that a booster reads, in its order: some of the encoder's numbers, then id columns."""

    def __init__(self, config: LightGBMConfig, encoder: Sequence[str]) -> None:
        """Choose among the encoder's numbers.

        Raises:
            ConfigError: the encoder has no number of that name.
        """
        self.encoder = tuple(encoder)
        self.numbers = self.encoder if config.number_names is None else config.number_names
        self.ids = config.columns
        if unknown := [name for name in self.numbers if name not in self.encoder]:
            raise ConfigError(
                f"number_names has {', '.join(unknown)}; expected some of the encoder's {', '.join(self.encoder)}"
            )
        self.places = [self.encoder.index(name) for name in self.numbers]

    @property
    def names(self) -> list[str]:
        """[C] in order."""
        return [*self.numbers, *self.ids]

    def read(self, rows: Rows, where: slice | Int64 = slice(None)) -> npt.NDArray[np.float32]:
        """The matrix of some of the rows, [rows, C].

        Raises:
            ConfigError: a name is no id column.
        """
        assert rows.numbers.shape[1] == len(self.encoder), "rows of another encoder: see Model.check"
        numbers = rows.numbers[where]
        out = np.empty((len(numbers), len(self.places) + len(self.ids)), np.float32)
        out[:, : len(self.places)] = numbers if self.numbers == self.encoder else numbers[:, self.places]
        for place, name in enumerate(self.ids, len(self.places)):
            out[:, place] = _ids(rows, name)[where]
        return out


class LightGBM(Model):
    """A fitted booster; the past is read through the features only."""

    config: LightGBMConfig

    def __init__(self, config: LightGBMConfig, booster: Trees, encoder: Sequence[str]) -> None:
        """Wrap a booster.

        Args:
            encoder: names of all numeric columns of the rows that it was fitted on.
        """
        self.config = config
        self.booster = booster
        self.columns = Columns(config, encoder)
        self.fitted_on = self.columns.encoder

    def score(self, past: Rows, targets: Rows) -> Probabilities:
        """Probability of a right answer for each target row; see `Model.score`."""
        parts = [self._predict(matrix) for matrix in self._matrices(targets)]
        return np.concatenate([np.empty(0, np.float64), *parts])

    def logits(self, rows: Rows) -> Floats:
        """Log-odds of a right answer, [N]: the sum of each row's `contributions`."""
        parts = [self._predict(matrix, "log-odds") for matrix in self._matrices(rows)]
        return np.concatenate([np.empty(0, np.float64), *parts])

    def contributions(self, rows: Rows) -> Floats:
        """SHAP values of each row in log-odds, [N, C + 1]: what each column adds, then what the average row has.

        Exact values by TreeSHAP (Lundberg et al. 2020, From local explanations to global understanding with explainable
        AI for trees, algorithm 2), as LightGBM computes them; columns are those of `columns.names`.
        """
        parts = [self._predict(matrix, "contributions") for matrix in self._matrices(rows)]
        return np.concatenate([np.empty((0, len(self.columns.names) + 1), np.float64), *parts])

    def importance(self, kind: Kind = "gain") -> dict[str, float]:
        """Share of each column in the gain (what its splits took from the loss) or in the number of splits."""
        values = self.booster.importance(kind)
        shares = values / max(float(values.sum()), 1e-300)
        return dict(zip(self.columns.names, shares.tolist(), strict=True))

    def save(self, folder: Path) -> None:
        """Write `booster.txt`, `config.json` and `encoder.json` (the numeric columns of the fit)."""
        (folder / "booster.txt").write_text(self.booster.text, encoding="utf-8")
        (folder / "config.json").write_text(self.config.model_dump_json(indent=2) + "\n", encoding="utf-8")
        (folder / "encoder.json").write_text(json.dumps(self.fitted_on, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what `save` wrote."""
        config, encoder = (json.loads((folder / name).read_text("utf-8")) for name in ("config.json", "encoder.json"))
        booster = Trees((folder / "booster.txt").read_text(encoding="utf-8"))
        return cls(build(LightGBMConfig, config), booster, encoder)

    def _matrices(self, rows: Rows) -> Iterator[npt.NDArray[np.float32]]:
        for start in range(0, rows.rows, SCORE_ROWS):
            yield self.columns.read(rows, slice(start, start + SCORE_ROWS))

    def _predict(self, matrix: npt.NDArray[np.float32], say: Said = "probability") -> Floats:
        return self.booster.predict(matrix, self.config.threads, say)


def _ids(rows: Rows, name: str) -> Int32:
    """An id column, [N].

    Raises:
        ConfigError: there is none of that name.
    """
    if name == CONCEPT:
        return rows.concepts[:, 0]
    if name not in rows.ids:
        raise ConfigError(f"columns names {name!r}; the encoder has {', '.join(sorted([*rows.ids, CONCEPT]))}")
    return rows.ids[name]
