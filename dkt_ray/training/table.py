"""Fitting of the table families: boosting rounds on single rows, with early stopping on the validation AUC.

Legend: N rows, C columns that the booster reads.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import lightgbm as lgb
import numpy as np
import numpy.typing as npt

from dkt_ray.data.history import Int64, graded
from dkt_ray.errors import TrainingError
from dkt_ray.features.batch import Rows
from dkt_ray.models.base import ModelConfig
from dkt_ray.models.lgbm import Columns, LightGBM, LightGBMConfig
from dkt_ray.models.trees import Trees
from dkt_ray.training.progress import FitResult, Progress, Report, TrainingData, improves, scored
from dkt_ray.training.resources import short_of_memory

BATCH_ROWS: Final = 1 << 13  # whose matrix is made at one time


class Matrix(lgb.Sequence):
    """Some rows as LightGBM asks for them, one to sample or a batch to bin: the matrix of all of them never exists."""

    batch_size = BATCH_ROWS

    def __init__(self, rows: Rows, chosen: Int64, columns: Columns) -> None:
        """The `chosen` rows, in this order."""
        self.rows, self.chosen, self.columns = rows, chosen, columns
        self._batch, self._start = np.empty((0, 0), np.float32), 0

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int | slice | list[int]) -> npt.NDArray[Any]:
        """A row as float64 [C], or a slice of rows as float32 [rows, C]."""
        assert not isinstance(index, list), "LightGBM asks for lists only where a Dataset is cut into subsets"
        if isinstance(index, slice):
            return self.columns.read(self.rows, self.chosen[index])
        if not self._start <= index < self._start + len(self._batch):  # samples come in order: a batch at a time
            self._batch, self._start = self[index : index + self.batch_size], index
        return self._batch[index - self._start].astype(np.float64)


def train(
    family: type[LightGBM],
    config: ModelConfig,
    data: TrainingData,
    report: Report | None = None,
    checkpoint: Path | None = None,
    iterations: int | None = None,
) -> FitResult:
    """Fit a booster; see `training.fit.fit`.

    `checkpoint` is not used: a continued booster is not equal to one that was never stopped, so a fit starts again.

    Raises:
        TrainingError: no training row has a known answer, or memory is short.
        ConfigError: a column that is to be read does not exist.
    """
    assert isinstance(config, LightGBMConfig)
    columns = Columns(config, data.number_names)
    sizes = f"{data.train.rows:,} rows of {len(columns.names)} columns, max_bin {config.max_bin}"
    remedy = (
        f"read fewer number_names or columns, each is kept for every row; then lower bin_rows (now {config.bin_rows})"
    )
    with short_of_memory(f"{sizes}: {remedy}", lgb.basic.LightGBMError):
        return _fit(family, config, columns, data, report, iterations)


def _fit(
    family: type[LightGBM],
    config: LightGBMConfig,
    columns: Columns,
    data: TrainingData,
    report: Report | None,
    iterations: int | None,
) -> FitResult:
    rounds = iterations or config.rounds
    booster, validated = _booster(config, columns, data)
    curve: list[Progress] = []
    best: Progress | None = None
    while (done := booster.current_iteration()) < rounds:
        progress = _advance(booster, min(config.report_rounds, rounds - done), validated)
        curve.append(progress)
        if best is None or iterations is not None or improves(progress, best):
            best = progress
        if report is not None:
            report(progress)
        if iterations is None and progress.iteration - best.iteration >= config.patience:
            break
    assert best is not None
    text = booster.model_to_string(num_iteration=best.iteration)
    return FitResult(family(config, Trees(text), columns.encoder), best.iteration, best.auc, curve)


def dataset(
    rows: Rows, chosen: Int64, config: LightGBMConfig, columns: Columns, reference: lgb.Dataset | None = None
) -> lgb.Dataset:
    """LightGBM's binned copy of the chosen rows, made in batches: rows may be mapped from files larger than memory.

    Args:
        reference: the training rows, whose bins are taken.
    """
    return lgb.Dataset(
        Matrix(rows, chosen, columns),
        rows.correct[chosen],
        reference=reference,
        feature_name=columns.names,
        categorical_feature=list(config.categorical),
        params=config.parameters(columns.names),
    )


def _booster(config: LightGBMConfig, columns: Columns, data: TrainingData) -> tuple[lgb.Booster, bool]:
    """An empty booster over the answered training rows, and whether validation rows that have an AUC stand beside."""
    answered = np.flatnonzero(graded(data.train.correct))
    if not len(answered):
        raise TrainingError("no row with a known answer to fit LightGBM on; check the fold's users")
    training = dataset(data.train, answered, config, columns)
    booster = lgb.Booster(config.parameters(columns.names), training)
    if data.valid is None:
        return booster, False
    counted = np.flatnonzero(scored(data.valid))
    if len(np.unique(data.valid.correct[counted])) < 2:
        return booster, False
    booster.add_valid(dataset(data.valid, counted, config, columns, training), "valid")
    return booster, True


def _advance(booster: lgb.Booster, rounds: int, validated: bool) -> Progress:
    """Some more rounds, and how the booster stands after them."""
    started = time.perf_counter()
    for _ in range(rounds):
        booster.update()
    rows_per_s = rounds * booster.train_set.num_data() / (time.perf_counter() - started)
    loss = _metric(booster.eval_train(), "binary_logloss")
    auc = _metric(booster.eval_valid(), "auc") if validated else None
    return Progress(booster.current_iteration(), auc, loss, rows_per_s)


def _metric(results: list[Any], name: str) -> float:
    return next(float(result[2]) for result in results if result[1] == name)
