"""LightGBM on the encoder's numbers and a few id columns: every row stands for itself.

Legend: N rows, F numeric columns, I id columns.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Self

import lightgbm as lgb
import numpy as np
import numpy.typing as npt
from pydantic import Field

from dkt_ray.config import build
from dkt_ray.errors import ConfigError
from dkt_ray.features.batch import Rows
from dkt_ray.models.base import Between, Model, ModelConfig, Probabilities, Space


class LightGBMConfig(ModelConfig):
    """Settings of LightGBM; names of the trees' settings follow LightGBM's documentation."""

    columns: tuple[str, ...] = ("head", "tail", "lag", "previous_elapsed", "previous_correct")
    """Id columns that are read beside the numbers."""
    categorical: tuple[str, ...] = ()
    """Those of `columns` that are split as categories; the others by order (bins and structure ids are ordered)."""
    rounds: int = Field(default=400, gt=0)
    """Most boosting rounds."""
    patience: int = Field(default=50, gt=0)
    """Rounds without a better validation AUC before training stops."""
    report_rounds: int = Field(default=25, gt=0)
    """Rounds between two looks at the validation AUC."""
    learning_rate: float = Field(default=0.05, gt=0)
    num_leaves: int = Field(default=31, gt=1)
    min_data_in_leaf: int = Field(default=100, gt=0)
    feature_fraction: float = Field(default=0.8, gt=0, le=1)
    lambda_l2: float = Field(default=1.0, ge=0)
    max_bin: int = Field(default=127, gt=1, le=255)
    threads: int = Field(default=1, gt=0)

    @property
    def longest(self) -> int:
        """Most rounds of a fit."""
        return self.rounds

    def parameters(self) -> dict[str, Any]:
        """The parameters as LightGBM names them; same seed, same trees on any number of cores."""
        trees = ("learning_rate", "num_leaves", "min_data_in_leaf", "feature_fraction", "lambda_l2", "max_bin")
        return {name: getattr(self, name) for name in trees} | {
            "objective": "binary",
            "metric": ["auc", "binary_logloss"],
            "seed": self.seed,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": self.threads,
            "verbosity": -1,
        }


SPACE: Final[Space] = {
    "learning_rate": Between(0.02, 0.2, log=True),
    "num_leaves": Between(15, 127, log=True, integer=True),
    "min_data_in_leaf": Between(20, 500, log=True, integer=True),
    "feature_fraction": Between(0.4, 1.0),
    "lambda_l2": Between(0.01, 100.0, log=True),
}


class LightGBM(Model):
    """A fitted booster; the past is read through the features only."""

    config: LightGBMConfig

    def __init__(self, config: LightGBMConfig, booster: lgb.Booster) -> None:
        self.config = config
        self.booster = booster

    def score(self, past: Rows, targets: Rows) -> Probabilities:
        """Probability of a right answer for each target row; see `Model.score`."""
        if not targets.rows:
            return np.empty(0, np.float64)
        scores = self.booster.predict(matrix(targets, self.config.columns), num_threads=self.config.threads)
        return np.asarray(scores, np.float64)

    def save(self, folder: Path) -> None:
        """Write `booster.txt` and `config.json`."""
        (folder / "booster.txt").write_text(self.booster.model_to_string(), encoding="utf-8")
        (folder / "config.json").write_text(self.config.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what `save` wrote."""
        config = build(LightGBMConfig, json.loads((folder / "config.json").read_text(encoding="utf-8")))
        return cls(config, lgb.Booster(model_str=(folder / "booster.txt").read_text(encoding="utf-8")))


def matrix(rows: Rows, columns: tuple[str, ...]) -> npt.NDArray[np.float32]:
    """What LightGBM reads: the numbers, then the id columns, [N, F + I].

    Raises:
        ConfigError: a name is no id column.
    """
    for name in columns:
        if name not in rows.ids:
            raise ConfigError(f"columns names {name!r}; the encoder has {', '.join(sorted(rows.ids))}")
    width = rows.numbers.shape[1]
    out = np.empty((rows.rows, width + len(columns)), np.float32)
    out[:, :width] = rows.numbers
    for index, name in enumerate(columns, width):
        out[:, index] = rows.ids[name]
    return out
