"""(Ray) `dkt automl`: spend a time budget on LightGBM's features and settings, and say whether that gained anything.

Selection is nested. Of the K folds of the training users one, the outer fold, judges; the users of the others choose:
which columns are read, by recursive feature elimination inside those other folds; with which settings, by Ray Tune on
the first of them; and for how many rounds, by early stopping on it. Then LightGBM with all columns and its default
settings, and LightGBM as chosen, are fitted on all users outside the outer fold, each for the rounds that it has
found, and score the users inside. Their difference in AUROC, on the same resamples of these users, decides: gain only
where its whole 95 % interval is above zero. With `outer: all` this is done for each fold, and all training users judge.

Item statistics in the encoded rows (how often a question was answered right) are those of the dataset, out of fold as
everywhere: they count the outer fold's users, for the default and for the choice alike.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import ray
import yaml
from pydantic import Field, field_validator
from ray.exceptions import RayTaskError

from dkt_ray import __version__
from dkt_ray.config import Config, build
from dkt_ray.errors import ConfigError, DktError, TrainingError
from dkt_ray.features.dataset import Dataset
from dkt_ray.log import progress
from dkt_ray.models.catalog import CATALOG
from dkt_ray.models.lgbm import Columns, LightGBMConfig
from dkt_ray.pipelines.sweep import TRIALS, TRIALS_SCHEMA
from dkt_ray.pipelines.verdict import CONTENDERS, judge
from dkt_ray.storage import Store, open_store
from dkt_ray.training.elimination import eliminate, restricted
from dkt_ray.training.fit import fit
from dkt_ray.training.folds import TrainingUsers, select
from dkt_ray.training.protocol import Scored, scored_rows
from dkt_ray.training.resources import Resources, claimed, place
from dkt_ray.training.search import FamilySpace
from dkt_ray.training.spaces import laid_over
from dkt_ray.training.trial import VALIDATION_FOLD
from dkt_ray.training.tuning import SearchConfig, TrialResult, nodes, search

logger = logging.getLogger(__name__)

FAMILY: Final = "lightgbm"
RESULT: Final = "automl.json"  # written last
FOLDER: Final = "automl"
LEAST_FOLDS: Final = 3  # one judges, and elimination compares at least two
FIXED: Final = {"number_names", "columns", "categorical", "threads", "seed"}  # what Ray Tune does not vary
HOW: Final = (
    "Columns, settings and rounds were chosen without the students who judge them (fold {folds}); default: all "
    "columns and the family's own settings, for rounds that were found in the same way. Gain: the whole 95 % interval "
    "of the difference, bootstrapped over these students, is above zero."
)


class AutomlConfig(Config):
    """Settings of `dkt automl`."""

    store: str = "data/store"
    """Folder or s3://bucket/prefix."""
    dataset: str = "default"
    """The prepared dataset, of three folds or more."""
    run: str = Field(default="automl", pattern=r"^[A-Za-z0-9._-]+$")
    """Run that the result is stored in."""
    time_budget_s: float = Field(default=1800.0, gt=0)
    """Seconds for choosing, over all outer folds; what is under way when they are over ends first, and the fits that
    judge come on top."""
    features_share: float = Field(default=0.4, ge=0, lt=1)
    """Share of the time for the elimination of columns; Ray Tune has what is left. 0: all columns are read."""
    trials: int = Field(default=50, ge=1)
    """Most trials of Ray Tune for each outer fold; the first has the default settings."""
    outer: int | Literal["all"] = 0
    """The fold whose users judge; all: each in turn, with its part of the time."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of LightGBM that are fixed, for the default too, e.g. {rounds: 1500}."""
    elimination_rounds: int = Field(default=100, ge=1)
    """Boosting rounds of a fit of the elimination."""
    drop: float = Field(default=0.2, ge=0, lt=1)
    """Share of the columns that a step of the elimination drops."""
    resources: Resources = Resources()
    """What one fit takes."""
    concurrency: int | None = Field(default=None, ge=1)
    """Trials at the same time; unset: as many as the cluster has room for."""
    samples: int = Field(default=1000, ge=2)
    """Bootstrap resamples of the users who judge."""
    seed: int = 0
    """Seed of the search, of every fit and of the bootstrap."""
    resume: bool = True
    """Go on with what an interrupted run of these settings left; false: start again."""

    @field_validator("settings")
    @classmethod
    def _known(cls, settings: dict[str, Any]) -> dict[str, Any]:
        try:
            build(LightGBMConfig, settings)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return settings

    @property
    def base(self) -> LightGBMConfig:
        """The default that is to be beaten."""
        return build(LightGBMConfig, {"seed": self.seed, "threads": max(1, int(self.resources.cpus))} | self.settings)


def run(config: AutomlConfig) -> dict[str, Any]:
    """Choose, judge, and keep the result, with the chosen settings as files for `dkt train` and `dkt tune`.

    Returns:
        run, verdict, difference (value, low, high), auc (default, automl), columns, settings, train and tune (files for
        --config), seconds, reused.

    Raises:
        NotFoundError: no such dataset.
        ConfigError: too few folds, no such outer fold, or resources that no node has.
        TrainingError: no trial finished.
    """
    started = time.monotonic()
    store = open_store(config.store)
    dataset = Dataset.open(store, config.dataset)
    outer = outer_folds(config, dataset.manifest.folds)
    folder = store.child(f"runs/{config.run}")
    digest = _digest(config, dataset)
    if not config.resume:
        folder.delete_prefix(FOLDER)
        folder.delete(RESULT)
    result = folder.read_json(RESULT) if folder.exists(RESULT) else None
    reused = result is not None and result["digest"] == digest
    if result is None or not reused:
        result = _choose_and_judge(config, dataset, outer, folder, digest)
    logger.info("automl: %s", result["told"])
    printed = {name: result[name] for name in ("verdict", "difference", "auc", "columns", "settings")}
    files = {name: f"{folder.url}/{FOLDER}/{name}.yaml" for name in ("train", "tune")}
    return {"run": config.run, **printed, **files, "seconds": round(time.monotonic() - started, 1), "reused": reused}


def outer_folds(config: AutomlConfig, folds: int) -> list[int]:
    """The folds that judge.

    Raises:
        ConfigError: the dataset has too few folds, or not this one.
    """
    if folds < LEAST_FOLDS:
        raise ConfigError(
            f"dataset {config.dataset} has {folds} folds; automl needs {LEAST_FOLDS} or more, one to judge and two to "
            f"compare numbers of columns in: prepare it with data.folds={LEAST_FOLDS}, or with a split file of as many"
        )
    if config.outer == "all":
        return list(range(folds))
    if not 0 <= config.outer < folds:
        raise ConfigError(f"outer is {config.outer}; expected a fold from 0 to {folds - 1}, or all")
    return [config.outer]


def budget(time_budget_s: float, features_share: float, outer: int) -> tuple[float, float]:
    """Seconds of one outer fold: for the columns, and in all.

    >>> budget(100, 0.4, 2)
    (20.0, 50.0)
    """
    whole = time_budget_s / outer
    return whole * features_share, whole


def without(users: TrainingUsers, fold: int) -> TrainingUsers:
    """The users outside a fold, their folds numbered from 0 again, in order."""
    kept = select(users.split, users.split.fold != fold)
    numbers = np.unique(kept.fold, return_inverse=True)[1].astype(kept.fold.dtype)
    return replace(users, split=kept._replace(fold=numbers))


def _choose_and_judge(
    config: AutomlConfig, dataset: Dataset, outer: list[int], folder: Store, digest: str
) -> dict[str, Any]:
    users = TrainingUsers(dataset.load(), dataset.state)
    resources = place({FAMILY: config.resources}, nodes())[FAMILY]
    parts = folder.child(FOLDER)
    for other in {key.split("/")[0] for key in parts.list() if "/" in key} - {digest}:
        parts.delete_prefix(other)  # of other settings
    shared = ray.put(users)
    choices: dict[int, dict[str, Any]] = {}
    tables: dict[str, list[pa.Table]] = {name: [] for name in CONTENDERS}
    with progress("automl", len(outer)) as lines:
        for fold in outer:
            work = parts.child(f"{digest}/fold-{fold}")
            inner = ray.put(without(users, fold))
            choices[fold] = _chosen(config, inner, resources, work, len(outer))
            for name, table in _scores(config, choices[fold], shared, inner, fold, resources, work).items():
                tables[name].append(table)
            lines.advance(note=f"fold {fold}")
    scored = {name: Scored.from_table(_ordered(tables[name]), f"automl's {name}") for name in CONTENDERS}
    found = judge(scored["default"], scored["automl"], config.samples, config.seed)
    kept = choices[outer[0]]
    result = {
        **found,
        "told": _told(found, kept),
        "how": HOW.format(folds=", ".join(map(str, outer))),
        **{name: kept[name] for name in ("columns", "dropped", "settings", "trials", "seconds")},
        "folds": {str(fold): choice["settings"] for fold, choice in choices.items()},
        "fold": outer[0],
        "digest": digest,
    }
    parts.write_table(TRIALS, parts.read_table(f"{digest}/fold-{outer[0]}/{TRIALS}"))
    _write_settings(config, kept["settings"], parts)
    folder.write_json(RESULT, result)
    return result


def _chosen(
    config: AutomlConfig,
    inner: ray.ObjectRef[TrainingUsers],
    resources: Resources,
    work: Store,
    outer: int,
) -> dict[str, Any]:
    """What the users outside an outer fold choose: columns, dropped, settings, trials, seconds."""
    if work.exists("choice.json"):
        choice: dict[str, Any] = work.read_json("choice.json")
        return choice
    features_s, whole_s = budget(config.time_budget_s, config.features_share, outer)
    columns = _features(config, inner, features_s, work)
    left_s = max(whole_s - columns["seconds"], 1.0)
    base = restricted(config.base, columns["numbers"], columns["columns"])
    fixed = config.settings | base.model_dump(mode="json", include=FIXED)
    space = FamilySpace(*laid_over(FAMILY, CATALOG[FAMILY], fixed, {}))
    logger.info("automl: %d columns kept, %d dropped", len(columns["columns"]), len(columns["dropped"]))
    how = SearchConfig(trials=config.trials, time_budget_s=left_s, seed=config.seed, concurrency=config.concurrency)
    started = time.monotonic()
    found = search({FAMILY: space}, {FAMILY: resources}, inner, how, work.child("tune"), "search")
    settings = best_settings(found, {**space.default, **space.fixed})
    work.write_table(TRIALS, _trials(found))
    choice = {
        "columns": columns["columns"],
        "dropped": columns["dropped"],
        "settings": settings,
        "trials": len(found),
        "seconds": {"features": columns["seconds"], "parameters": round(time.monotonic() - started, 1)},
    }
    work.write_json("choice.json", choice)
    return choice


def best_settings(found: list[TrialResult], default: dict[str, Any]) -> dict[str, Any]:
    """The settings of the trial of the highest AUROC; the default ones where the time was too short for any trial.

    Raises:
        TrainingError: all trials failed; it says why.
    """
    scored = [trial for trial in found if trial.auc is not None]
    if scored:
        return max(scored, key=lambda trial: trial.auc or 0.0).settings
    reasons = sorted({trial.reason for trial in found if trial.reason})
    if reasons:
        raise TrainingError(f"no trial finished ({len(found)} tried): {'; '.join(reasons)}")
    logger.warning("automl: no trial reported in time, so the default settings are taken; raise time_budget_s")
    return default


def _trials(found: list[TrialResult]) -> pa.Table:
    """The trials as `dkt report` reads them."""
    facts = [{"config": json.dumps(trial.settings, sort_keys=True), "digest": "", **vars(trial)} for trial in found]
    rows = [{name: fact.get(name) for name in TRIALS_SCHEMA.names} for fact in facts]
    return pa.Table.from_pylist(rows, schema=TRIALS_SCHEMA)


def _features(config: AutomlConfig, inner: ray.ObjectRef[TrainingUsers], seconds: float, work: Store) -> dict[str, Any]:
    """The columns to read: numbers (numeric ones among the candidates), columns, dropped, seconds; kept once found."""
    if not work.exists("features.json"):
        cpus = max(node.get("CPU", 0.0) for node in nodes())  # nothing else runs meanwhile
        task = ray.remote(_eliminate).options(num_cpus=cpus, name="eliminate columns")
        started = time.monotonic()
        chosen = _answer(task.remote(config, inner, seconds, int(cpus)))
        work.write_json("features.json", {**chosen, "seconds": round(time.monotonic() - started, 1)})
    found: dict[str, Any] = work.read_json("features.json")
    return found


def _eliminate(config: AutomlConfig, users: TrainingUsers, seconds: float, threads: int) -> dict[str, Any]:
    """Recursive feature elimination inside the folds of the users (runs in a Ray worker)."""
    columns = Columns(config.base, users.state.number_names)
    numbers, kept, dropped = list(columns.numbers), columns.names, []
    if seconds > 0:
        settings = config.base.model_copy(update={"rounds": config.elimination_rounds, "threads": max(1, threads)})
        folds = np.unique(users.split.fold).tolist()
        with claimed(Resources(cpus=max(1, threads))):
            held_out = (users.holding_out(fold)[0] for fold in folds)
            found = eliminate(settings, held_out, users.everyone, config.drop, seconds / (len(folds) + 1))
        kept, dropped = [*found.columns], [*found.dropped]
    return {"numbers": numbers, "columns": kept, "dropped": dropped}


def _scores(
    config: AutomlConfig,
    choice: Mapping[str, Any],
    users: ray.ObjectRef[TrainingUsers],
    inner: ray.ObjectRef[TrainingUsers],
    fold: int,
    resources: Resources,
    work: Store,
) -> dict[str, pa.Table]:
    """Scores of the outer fold's users by the default and by the choice, fitted at the same time, and kept."""
    settings = {"default": config.base.model_dump(mode="json"), "automl": choice["settings"]}
    task = ray.remote(_score).options(num_cpus=resources.cpus, num_gpus=resources.gpus, name="automl: judge")
    todo = [name for name in CONTENDERS if not work.exists(f"{name}.parquet")]
    for done in [task.remote(settings[name], users, inner, fold, resources, work, name) for name in todo]:
        _answer(done)
    return {name: work.read_table(f"{name}.parquet") for name in CONTENDERS}


def _score(
    settings: Mapping[str, Any],
    users: TrainingUsers,
    inner: TrainingUsers,
    fold: int,
    resources: Resources,
    work: Store,
    name: str,
) -> None:
    """Find the rounds and fit without the outer fold, and store the scores of its users (runs in a Ray worker)."""
    config = build(LightGBMConfig, settings)
    with claimed(resources):
        rounds = fit(FAMILY, config, inner.holding_out(VALIDATION_FOLD)[0]).best_iteration
        data, held_out = users.holding_out(fold)
        model = fit(FAMILY, config, replace(data, valid=None), iterations=rounds).model
        probability = model.score(held_out.rows, held_out.rows)
    scored = scored_rows(held_out.rows, held_out.users, held_out.fold, probability)
    work.write_table(f"{name}.parquet", scored.to_table())


def _answer(task: ray.ObjectRef[Any]) -> Any:
    """What a task returned; an error that is meant for people comes out as itself."""
    try:
        return ray.get(task)
    except RayTaskError as error:
        if isinstance(error.cause, DktError):
            raise TrainingError(f"automl: {error.cause}") from error
        raise


def _ordered(tables: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables).sort_by([("user", "ascending"), ("position", "ascending")])


def _told(found: Mapping[str, Any], kept: Mapping[str, Any]) -> str:
    """The result in one sentence."""
    difference, auc = found["difference"], found["auc"]
    ends = "no interval" if difference["low"] is None else f"{difference['low']:+.4f} to {difference['high']:+.4f}"
    value = "not known" if difference["value"] is None else f"{difference['value']:+.4f}"
    scores = ", ".join(f"{name} {auc[name]['value'] or 0:.4f}" for name in CONTENDERS)
    count = f"{len(kept['columns'])} of {len(kept['columns']) + len(kept['dropped'])} columns, {kept['trials']} trials"
    return f"{found['verdict']}: AUROC {scores}, difference {value} ({ends}) on {found['users']} students; {count}"


def _write_settings(config: AutomlConfig, settings: Mapping[str, Any], parts: Store) -> None:
    """The chosen settings as files for `dkt train --config` and `dkt tune --config`."""
    where = {"store": config.store, "dataset": config.dataset, "run": config.run}
    files = {
        "train": {**where, "family": FAMILY, "settings": dict(settings)},
        "tune": {**where, "families": [FAMILY], "trials": 1, "overrides": {FAMILY: dict(settings)}},
    }
    for name, content in files.items():
        parts.write(f"{name}.yaml", yaml.safe_dump(content, sort_keys=False).encode())


def _digest(config: AutomlConfig, dataset: Dataset) -> str:
    """Digest of everything that decides the result."""
    how = config.model_dump(mode="json", exclude={"store", "run", "resources", "concurrency", "resume"})
    facts = {"version": __version__, "dataset": dataset.manifest.fingerprint, "config": how}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
