"""`dkt train`: fit one model, follow it epoch by epoch, and judge it on the users of one fold."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any, Final

from pydantic import Field, field_validator

from dkt_ray.config import Config, build
from dkt_ray.errors import ConfigError
from dkt_ray.features.dataset import Dataset, Split
from dkt_ray.log import progress
from dkt_ray.models.base import ModelConfig
from dkt_ray.models.catalog import CATALOG
from dkt_ray.pipelines import trained
from dkt_ray.pipelines.figures import Settings
from dkt_ray.pipelines.report import REPORT, outcome, text_table, write_report
from dkt_ray.storage import Store, open_store
from dkt_ray.training.fit import fit
from dkt_ray.training.progress import FitResult, TrainingData
from dkt_ray.training.protocol import evaluation_set, scored_rows
from dkt_ray.training.resources import Resources, claimed
from dkt_ray.training.tracking import CHECKPOINT, CONFIG, ENVIRONMENT, Tracker, environment

logger = logging.getLogger(__name__)

_NAME: Final = r"^[A-Za-z0-9._-]+$"


class TrainConfig(Config):
    """Settings of `dkt train`."""

    store: str = "data/store"
    """A folder or s3://bucket/prefix."""
    dataset: str = "default"
    """The prepared dataset."""
    run: str = Field(default="default", pattern=_NAME)
    """Run that the model is stored in; models of one run are compared by `dkt evaluate`."""
    family: str
    """Model family: a key of the catalog."""
    name: str | None = Field(default=None, pattern=_NAME)
    """Name of the model in the run; unset: the family's."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of the family, e.g. {width: 128, epochs: 20}; others are its defaults."""
    fold: int = Field(default=0, ge=0)
    """Users of this fold stop the training and judge the model; those of all other folds train it."""
    refit: bool = False
    """Fit once more, on all folds, for the best number of epochs: what `dkt evaluate --set final=true` scores."""
    resources: Resources = Resources()
    """What the fit takes on this machine."""
    checkpoint_s: float = Field(default=60.0, ge=0)
    """Least seconds between two copies of the checkpoint to the store."""
    resume: bool = True
    """Go on with what an interrupted run left; false: start again, and replace a model of the same name."""
    samples: int = Field(default=200, ge=1)
    """Bootstrap resamples of the users."""

    @field_validator("family")
    @classmethod
    def _known(cls, family: str) -> str:
        if family not in CATALOG:
            raise ValueError(f"no model family {family!r}; the catalog has {', '.join(CATALOG)}")
        return family

    @property
    def model_name(self) -> str:
        """Name of the model in the run."""
        return self.name or self.family


def run(config: TrainConfig) -> dict[str, Any]:
    """Train, judge and store a model.

    Returns:
        name, family, iterations (the best), auc (by model and baseline), auc_interval, fingerprint, report (where the
        page is), reused (it was complete already).

    Raises:
        NotFoundError: no such dataset.
        ConfigError: a setting that the family does not have, a fold that the dataset does not have, or a model of that
            name with other settings.
        TrainingError: the loss diverged, or there is nothing to train on.
    """
    store = open_store(config.store)
    dataset = Dataset.open(store, config.dataset)
    settings = _settings(config)
    run_folder = store.child(f"runs/{config.run}")
    folder = run_folder.child(f"{trained.FOLDER}/{config.model_name}")
    facts = _facts(config, settings, dataset)
    reused = _prepared(folder, facts, config)
    if not reused:
        _fit_and_score(config, settings, dataset, folder, facts)
    report = trained.report(run_folder, dataset, (config.model_name,), config.run, Settings(config.samples))
    write_report(report, folder, REPORT)
    logger.info("evaluation set %s\n%s", report["fingerprint"], text_table(report))
    model = folder.read_json(trained.DONE)
    return {
        "name": config.model_name,
        "family": config.family,
        "iterations": model["iterations"],
        **outcome(report, folder, REPORT),
        "reused": reused,
    }


def _settings(config: TrainConfig) -> ModelConfig:
    try:
        return build(CATALOG[config.family].config, config.settings)
    except ConfigError as error:
        raise ConfigError(f"settings: {error}") from None


def _facts(config: TrainConfig, settings: ModelConfig, dataset: Dataset) -> dict[str, Any]:
    """What decides the model."""
    return {
        "family": config.family,
        "settings": settings.model_dump(mode="json"),
        "fold": config.fold,
        "refit": config.refit,
        "dataset": dataset.manifest.fingerprint,
    }


def _prepared(folder: Store, facts: dict[str, Any], config: TrainConfig) -> bool:
    """Whether the model is complete; else its folder holds nothing but what the same fit left.

    Raises:
        ConfigError: the folder holds a model with other settings.
    """
    if not config.resume:
        for key in folder.list():
            folder.delete(key)
    if folder.exists(CONFIG):
        before = folder.read_json(CONFIG)
        if before != facts:
            different = "; ".join(_differences(before, facts))
            raise ConfigError(
                f"model {config.model_name} of run {config.run} was trained with other settings ({different}); choose "
                "another name, or replace it with resume=false"
            )
    return folder.exists(trained.DONE)


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Each fact that differs; of the model's settings, each one by its name."""
    flat = [{**facts, **facts["settings"]} for facts in (before, now)]
    names = sorted((flat[0].keys() | flat[1].keys()) - {"settings"})
    return [f"{n} {flat[0].get(n)!r} there, {flat[1].get(n)!r} here" for n in names if flat[0].get(n) != flat[1].get(n)]


def _fit_and_score(
    config: TrainConfig, settings: ModelConfig, dataset: Dataset, folder: Store, facts: dict[str, Any]
) -> None:
    folds = set(range(dataset.manifest.folds))
    held_out, others = dataset.load({config.fold}), dataset.load(folds - {config.fold})
    folder.write_json(CONFIG, facts)
    folder.write_json(ENVIRONMENT, environment())
    with claimed(config.resources):
        data = TrainingData(others.rows, held_out.rows, dataset.state)
        fitted = _fit(config, settings, data, folder, config.model_name)
        _store_scores(fitted, held_out, dataset, folder)
        if config.refit:
            del others, data
            everyone = TrainingData(dataset.load().rows, None, dataset.state)
            name = f"{config.model_name} on all folds"
            again = _fit(config, settings, everyone, folder.child(trained.REFIT), name, fitted.best_iteration)
            _store_model(again, folder, f"{trained.REFIT}/{trained.MODEL}")
    _store_model(fitted, folder, trained.MODEL)
    folder.write_json(trained.DONE, facts | {"iterations": fitted.best_iteration, "auc": fitted.auc})
    for prefix in (CHECKPOINT, f"{trained.REFIT}/{CHECKPOINT}"):
        folder.delete_prefix(prefix)


def _fit(
    config: TrainConfig,
    settings: ModelConfig,
    data: TrainingData,
    folder: Store,
    name: str,
    iterations: int | None = None,
) -> FitResult:
    longest = iterations or settings.longest
    with (
        tempfile.TemporaryDirectory(prefix="dkt-train-") as work,
        Tracker(folder, Path(work), name, longest, config.checkpoint_s) as tracker,
    ):
        return fit(config.family, settings, data, tracker, tracker.checkpoint, iterations)


def _store_scores(fitted: FitResult, held_out: Split, dataset: Dataset, folder: Store) -> None:
    """Score every answer of the held-out users, and keep the scores with their fingerprint."""
    with progress("score the validation users", 1) as lines:
        probability = fitted.model.score(held_out.rows, held_out.rows)
        lines.advance()
    scored = scored_rows(held_out.rows, held_out.users, held_out.fold, probability)
    logger.info("evaluation set %s", evaluation_set(dataset.manifest, scored).fingerprint)
    folder.write_table(trained.SCORES, scored.to_table())


def _store_model(fitted: FitResult, folder: Store, prefix: str) -> None:
    with tempfile.TemporaryDirectory() as local:
        fitted.model.save(Path(local))
        folder.upload(Path(local), prefix)
