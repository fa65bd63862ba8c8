"""`dkt train`: fit one model, follow it epoch by epoch, and judge it on the users of one fold."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from dkt_ray import session
from dkt_ray.config import Config, build
from dkt_ray.errors import ConfigError
from dkt_ray.features.batch import Rows
from dkt_ray.features.dataset import Dataset
from dkt_ray.log import progress
from dkt_ray.models.base import Model, ModelConfig
from dkt_ray.models.catalog import CATALOG
from dkt_ray.pipelines import pseudo, trained
from dkt_ray.pipelines.figures import Settings
from dkt_ray.pipelines.importance import draw_importance
from dkt_ray.pipelines.report import REPORT, outcome, text_table, write_report
from dkt_ray.storage import Store, open_store
from dkt_ray.training.fit import fit
from dkt_ray.training.progress import TrainingData
from dkt_ray.training.protocol import scored_rows
from dkt_ray.training.pseudo import Guesses, PseudoConfig, guess
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
    pseudo: PseudoConfig = PseudoConfig()
    """Pseudo-labels: fit again with answers that the model guessed; off unless pseudo.rounds is set."""
    resources: Resources = Resources()
    """What the fit takes, or each of its workers."""
    workers: int = Field(default=1, ge=1)
    """Processes that train a network together, through Ray Train; 1: this process, without Ray."""
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

    @model_validator(mode="after")
    def _shared(self) -> Self:
        if self.workers > 1 and CATALOG[self.family].view != "sequence":
            raise ValueError(f"workers is {self.workers}, and {self.family} is fitted by one process; set workers to 1")
        if self.workers > 1 and self.pseudo.rounds:
            raise ValueError(f"workers is {self.workers}, and pseudo-labels are for one process; set workers to 1")
        return self

    @property
    def model_name(self) -> str:
        """Name of the model in the run."""
        return self.name or self.family


def run(config: TrainConfig) -> dict[str, Any]:
    """Train, judge and store a model.

    Returns:
        name, family, iterations (the best), auc (by model and baseline), auc_interval, fingerprint, report (where the
        page is), reused (it was complete already), and, with pseudo-labels, pseudo (the rounds and the verdict).

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
    before = pseudo.peers(folder, config.pseudo.rounds)
    report = trained.report(run_folder, dataset, (config.model_name,), config.run, Settings(config.samples), before)
    labels = {"pseudo": folder.read_json(pseudo.FACTS)} if before else {}
    write_report(report | labels, folder, REPORT)
    logger.info("evaluation set %s\n%s", report["fingerprint"], text_table(report))
    model = folder.read_json(trained.DONE)
    return {
        "name": config.model_name,
        "family": config.family,
        "iterations": model["iterations"],
        **outcome(report, folder, REPORT),
        "reused": reused,
        **labels,
    }


def _settings(config: TrainConfig) -> ModelConfig:
    try:
        return build(CATALOG[config.family].config, config.settings)
    except ConfigError as error:
        raise ConfigError(f"settings: {error}") from None


def _facts(config: TrainConfig, settings: ModelConfig, dataset: Dataset) -> dict[str, Any]:
    """What decides the model."""
    facts = {
        "family": config.family,
        "settings": settings.model_dump(mode="json"),
        "fold": config.fold,
        "refit": config.refit,
        "dataset": dataset.manifest.fingerprint,
    }
    return facts | ({"pseudo": config.pseudo.model_dump(mode="json")} if config.pseudo.rounds else {})


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
    everyone = set(range(dataset.manifest.folds))
    folder.write_json(CONFIG, facts)
    folder.write_json(ENVIRONMENT, environment())
    fitted, guesses = _fit_rounds(config, settings, dataset, folder, _Users(everyone - {config.fold}, {config.fold}))
    auc = pseudo.conclude(folder, guesses, config.samples)["rounds"][-1]["auc"] if guesses else fitted.auc
    refit = folder.child(trained.REFIT)
    if config.refit:
        _fit_rounds(config, settings, dataset, refit, _Users(everyone, set()), fitted.best_iteration)
    draw_importance(fitted.model, config.model_name, folder)
    folder.write_json(trained.DONE, facts | {"iterations": fitted.best_iteration, "auc": auc})
    for place in (folder, refit):
        place.delete_prefix(CHECKPOINT)
        for number in range(config.pseudo.rounds):
            earlier = pseudo.folder_of(place, number, config.pseudo.rounds)
            earlier.delete_prefix(CHECKPOINT)
            earlier.delete_prefix(trained.MODEL)


class _Users(NamedTuple):
    """Folds of the users who train, and of those who stop the training (none: a fixed number of iterations)."""

    train: Collection[int]
    valid: Collection[int]


class _Fitted(NamedTuple):
    """A fitted model, which is in the store too."""

    model: Model
    best_iteration: int
    auc: float | None


def _fit_rounds(
    config: TrainConfig,
    settings: ModelConfig,
    dataset: Dataset,
    folder: Store,
    users: _Users,
    iterations: int | None = None,
) -> tuple[_Fitted, list[Guesses]]:
    """Fit, score the users who validate, and do so again with pseudo-labels, for as many iterations, round after round.

    Returns:
        The last fit, whose model and scores are the folder's, and the guesses that the rounds were taught.
    """
    rounds, guesses = config.pseudo.rounds, list[Guesses]()
    fitted = _fit_and_judge(config, settings, dataset, pseudo.folder_of(folder, 0, rounds), users, iterations)
    if not rounds:
        return fitted, guesses
    pool = pseudo.load_pool(dataset, users.train, config.pseudo.of)
    rows = pool.encoded(dataset.state)
    for number in range(1, rounds + 1):
        with claimed(config.resources):
            found = guess(fitted.model, rows, config.pseudo.confidence)
        logger.info("pseudo-labels, round %d: %d of %d answers guessed", number, found.taken, found.unknown)
        guesses.append(found)
        taught = pool.answered(found.correct).encoded(dataset.state)
        place = pseudo.folder_of(folder, number, rounds)
        fitted = _fit_and_judge(config, settings, dataset, place, users, fitted.best_iteration, taught)
    return fitted, guesses


def _fit_and_judge(
    config: TrainConfig,
    settings: ModelConfig,
    dataset: Dataset,
    folder: Store,
    users: _Users,
    iterations: int | None = None,
    taught: Rows | None = None,
) -> _Fitted:
    """Fit and store the model, and the scores of the users who validate, if there are any."""
    fitted = _fit(config, settings, dataset, folder, users, iterations, taught)
    if users.valid:
        with claimed(config.resources):
            _store_scores(fitted.model, dataset, config.fold, folder)
    return fitted


def _fit(
    config: TrainConfig,
    settings: ModelConfig,
    dataset: Dataset,
    folder: Store,
    users: _Users,
    iterations: int | None = None,
    taught: Rows | None = None,
) -> _Fitted:
    """Fit in this process or by several workers, follow it, and store the model in the folder.

    Args:
        taught: rows to learn from, with pseudo-labels, while no user validates; None: those of the training users.
    """
    name = config.model_name if users.valid else f"{config.model_name} on all folds"
    if taught is not None:
        name += " with pseudo-labels"
    longest = iterations or settings.longest
    with (
        tempfile.TemporaryDirectory(prefix="dkt-train-") as work,
        Tracker(folder, Path(work), name, longest, config.checkpoint_s) as tracker,
    ):
        if config.workers > 1:
            return _fit_shared(config, settings, dataset, folder, users, iterations, tracker)
        valid = dataset.load(users.valid).rows if users.valid and taught is None else None
        data = TrainingData(dataset.load(users.train).rows if taught is None else taught, valid, dataset.state)
        with claimed(config.resources):
            result = fit(config.family, settings, data, tracker, tracker.checkpoint, iterations)
        with tempfile.TemporaryDirectory() as local:
            result.model.save(Path(local))
            folder.upload(Path(local), trained.MODEL)
    return _Fitted(result.model, result.best_iteration, result.auc)


def _fit_shared(
    config: TrainConfig,
    settings: ModelConfig,
    dataset: Dataset,
    folder: Store,
    users: _Users,
    iterations: int | None,
    tracker: Tracker,
) -> _Fitted:
    """Fit by several workers through Ray Train, which is started only for that."""
    session.connect()
    from dkt_ray.training.sequence_trainer import SharedFit, fit_shared

    shared = SharedFit(
        config.family,
        settings.model_dump(mode="json"),
        dataset.store,
        dataset.name,
        users.train,
        users.valid,
        iterations,
        config.resources,
        folder,
    )
    best_iteration, auc = fit_shared(shared, config.workers, tracker)
    return _Fitted(trained.load_model(folder, config.family), best_iteration, auc)


def _store_scores(model: Model, dataset: Dataset, fold: int, folder: Store) -> None:
    """Score every answer of the held-out users."""
    held_out = dataset.load({fold})
    with progress("score the validation users", 1) as lines:
        probability = model.score(held_out.rows, held_out.rows)
        lines.advance()
    scored = scored_rows(held_out.rows, held_out.users, held_out.fold, probability)
    folder.write_table(trained.SCORES, scored.to_table())
