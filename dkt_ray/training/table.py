"""Fitting of the table families: boosting rounds on single rows, with early stopping on the validation AUC."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightgbm as lgb

from dkt_ray.data.history import graded
from dkt_ray.errors import TrainingError
from dkt_ray.features.batch import Rows
from dkt_ray.models.base import ModelConfig
from dkt_ray.models.lgbm import LightGBM, LightGBMConfig, matrix
from dkt_ray.training.progress import FitResult, Progress, Report, TrainingData, improves, scored


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
        TrainingError: no training row has a known answer.
    """
    assert isinstance(config, LightGBMConfig)
    rounds = iterations or config.rounds
    booster = _booster(config, data)
    curve: list[Progress] = []
    best: Progress | None = None
    while (done := booster.current_iteration()) < rounds:
        progress = _advance(booster, min(config.report_rounds, rounds - done), data.valid is not None)
        curve.append(progress)
        if best is None or iterations is not None or improves(progress, best):
            best = progress
        if report is not None:
            report(progress)
        if iterations is None and progress.iteration - best.iteration >= config.patience:
            break
    assert best is not None
    text = booster.model_to_string(num_iteration=best.iteration)
    return FitResult(family(config, lgb.Booster(model_str=text)), best.iteration, best.auc, curve)


def _booster(config: LightGBMConfig, data: TrainingData) -> lgb.Booster:
    """An empty booster over the answered training rows, with the counted validation rows beside them."""
    names = [*data.state.number_names, *config.columns]
    training = _dataset(data.train, graded(data.train.correct), config, names, None)
    booster = lgb.Booster(config.parameters(), training)
    if data.valid is not None:
        booster.add_valid(_dataset(data.valid, scored(data.valid), config, names, training), "valid")
    return booster


def _dataset(
    rows: Rows, chosen: Any, config: LightGBMConfig, names: list[str], reference: lgb.Dataset | None
) -> lgb.Dataset:
    if not chosen.any():
        raise TrainingError("no row with a known answer to fit or validate LightGBM on; check the fold's users")
    return lgb.Dataset(
        matrix(rows, config.columns)[chosen],
        rows.correct[chosen],
        reference=reference,
        feature_name=names,
        categorical_feature=list(config.categorical),
        params=config.parameters(),
    )


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
