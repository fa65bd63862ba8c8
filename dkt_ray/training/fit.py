"""`fit`: the one call that turns encoded rows into a fitted model of any family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from dkt_ray.ensemble.families import FAMILIES
from dkt_ray.errors import ConfigError
from dkt_ray.models.base import ModelConfig
from dkt_ray.models.catalog import CATALOG
from dkt_ray.training import loop, memory, table
from dkt_ray.training.progress import FitResult, Progress, Report, TrainingData

__all__ = ["FitResult", "Progress", "Report", "TrainingData", "fit"]

# view of the rows (ModelSpec.view) -> its trainer
TRAINERS: Final[Mapping[str, Callable[..., FitResult]]] = {
    "table": table.train,
    "sequence": loop.train,
    "memory": memory.train,
}


def fit(
    family: str,
    config: ModelConfig,
    data: TrainingData,
    report: Report | None = None,
    checkpoint: Path | None = None,
    iterations: int | None = None,
) -> FitResult:
    """Fit one model.

    Args:
        family: key of the catalog, or `neighbours`.
        config: of that family.
        data: encoded training and validation rows; with validation rows, the best iteration on them is kept and
            training stops early.
        report: called after every epoch (every `report_rounds` of a booster); what it raises ends the fit.
        checkpoint: folder that is written after every epoch, and resumed from when it holds an epoch already; a resumed
            run is equal to one that was never stopped. Boosters start again.
        iterations: train exactly so many epochs or rounds and keep the last (the refit on all folds).

    Raises:
        ConfigError: no such family, or the checkpoint belongs to other settings.
        TrainingError: the loss diverged, or no answer is known.
    """
    assert iterations is None or iterations > 0
    if family not in FAMILIES:
        raise ConfigError(f"no model family {family!r}; the catalog has {', '.join(CATALOG)}")
    spec = FAMILIES[family]
    return TRAINERS[spec.view](spec.model, config, data, report, checkpoint, iterations)
