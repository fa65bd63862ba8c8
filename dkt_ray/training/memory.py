"""Fitting of what learns by keeping rows: one pass, no iterations."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from dkt_ray.data.history import graded
from dkt_ray.ensemble.neighbours import Neighbours, NeighboursConfig
from dkt_ray.errors import TrainingError
from dkt_ray.metrics import auc, log_loss
from dkt_ray.models.base import ModelConfig
from dkt_ray.training.progress import FitResult, Progress, Report, TrainingData, scored


def train(
    family: type[Neighbours],
    config: ModelConfig,
    data: TrainingData,
    report: Report | None = None,
    checkpoint: Path | None = None,
    iterations: int | None = None,
) -> FitResult:
    """Fit neighbours; see `training.fit.fit`. The only iteration is the first; its loss is that of the overall mean.

    Raises:
        TrainingError: no training row has a known answer.
        ConfigError: a column that is to be read does not exist.
    """
    assert isinstance(config, NeighboursConfig)
    answers = data.train.correct[graded(data.train.correct)]
    if not len(answers):
        raise TrainingError("no row with a known answer to keep as a neighbour; check the fold's users")
    started = time.perf_counter()
    model = family.fit(config, data.train, data.state)
    seconds = time.perf_counter() - started
    loss = log_loss(answers, np.full(len(answers), answers.mean()))
    assert loss is not None
    progress = Progress(1, _validated(model, data), loss, len(answers) / seconds)
    if report is not None:
        report(progress)
    return FitResult(model, 1, progress.auc, [progress])


def _validated(model: Neighbours, data: TrainingData) -> float | None:
    if data.valid is None:
        return None
    counted = scored(data.valid)
    return auc(data.valid.correct[counted], model.score(data.valid, data.valid)[counted])
