"""(Ray) `dkt tune`: search all families in one Ray Tune experiment, then fit each family's best on every fold.

What a family's settings decide is stored with a digest of them: a second run with nothing changed returns at once, a
new family does not repeat the others, and an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import ray
from pydantic import Field, field_validator

from dkt_ray import __version__
from dkt_ray.ensemble import member
from dkt_ray.errors import ConfigError, TrainingError
from dkt_ray.features.dataset import Dataset, Manifest
from dkt_ray.models.catalog import CATALOG
from dkt_ray.pipelines.importance import draw_importance
from dkt_ray.storage import Store, open_store
from dkt_ray.training.folds import Chosen, TrainingUsers, fit_members, member_key
from dkt_ray.training.resources import Resources, place
from dkt_ray.training.sampling import sampled
from dkt_ray.training.search import Attempt, FamilySpace
from dkt_ray.training.spaces import Domain, laid_over, within
from dkt_ray.training.tuning import SearchConfig, TrialResult, nodes, search

logger = logging.getLogger(__name__)

TRIALS: Final = "trials.parquet"
TRIALS_SCHEMA: Final = pa.schema(
    [
        ("family", pa.string()),
        ("trial", pa.string()),
        ("status", pa.string()),
        ("config", pa.string()),
        ("auc", pa.float64()),
        ("iterations", pa.int32()),
        ("best_iteration", pa.int32()),
        ("seconds", pa.float64()),
        ("curve", pa.list_(pa.float64())),
        ("reason", pa.string()),
        ("digest", pa.string()),
        ("schedule", pa.string()),  # JSON: [[reports before it, settings in force from then on], ...]; null: unchanged
    ]
)
DECIDES: Final = {  # the settings of a sweep on which its trials depend
    *("trials", "scheduler", "searcher", "max_reports", "grace_period", "reduction_factor", "perturbation_reports"),
    *("seed", "time_budget_s", "compute_budget_s", "sample"),
}
_TUNE: Final = "tune"  # Ray Tune's own folder in a run


class TuneConfig(SearchConfig):
    """Settings of the sweep."""

    store: str = "data/store"
    """Folder or s3://bucket/prefix."""
    dataset: str = "default"
    """The prepared dataset; its folds are used, and trials are validated on fold 0."""
    run: str = Field(default="default", pattern=r"^[A-Za-z0-9._-]+$")
    """Name under which trials and members are stored."""
    families: tuple[str, ...] = tuple(CATALOG)
    """Model families; default: the whole catalog."""
    resources: dict[str, Resources] = Field(default_factory=dict)
    """What a fit of a family takes while it runs, e.g. {lstm_attention: {cpus: 1, gpus: 0.25}}; default: 1 CPU."""
    overrides: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Settings of a family that are fixed instead of searched, e.g. {lightgbm: {rounds: 1000}}."""
    spaces: dict[str, dict[str, Domain]] = Field(default_factory=dict)
    """What may vary, in place of a family's own, e.g. {lstm: {width: [32, 64], dropout: {low: 0, high: 0.5}}}."""
    warm_start: tuple[str, ...] = ()
    """Earlier runs of this store: their finished trials teach Optuna, and the best of them are tried again early."""
    sample: float = Field(default=1, gt=0, le=1)
    """Share of the training users on which trials are fitted and compared; members are fitted on all of them."""
    resume: bool = True
    """Go on with what an earlier run of these settings left; false: start again."""

    @field_validator("families")
    @classmethod
    def _known(cls, families: tuple[str, ...]) -> tuple[str, ...]:
        _check_families(families)
        if not families or len(set(families)) < len(families):
            raise ValueError("name each family once, and at least one")
        return families

    @field_validator("resources", "overrides", "spaces")
    @classmethod
    def _of_known(cls, settings: dict[str, Any]) -> dict[str, Any]:
        _check_families(settings)
        return settings


def run(config: TuneConfig) -> dict[str, Any]:
    """Search, fit and store the members of a run.

    Returns:
        {"run", "families": {family: {"trials", "auc", "iterations", "config", "fingerprint"}}, "seconds", "reused"};
        `auc` is of the out-of-fold scores.

    Raises:
        ConfigError: a setting that a family does not have, or resources that no node has.
        NotFoundError: no such dataset.
        TrainingError: no trial of a family finished.
    """
    started = time.monotonic()
    store = open_store(config.store)
    dataset = Dataset.open(store, config.dataset)
    folder = store.child(f"runs/{config.run}")
    spaces = {family: _space(family, config) for family in config.families}
    spaces = _warmed(spaces, config, store)
    digests = {family: _digest(family, space, config, dataset.manifest) for family, space in spaces.items()}
    todo = [family for family in spaces if not config.resume or not _complete(folder, family, digests[family])]
    if todo:
        _sweep({family: spaces[family] for family in todo}, digests, config, dataset, folder)
    members = {family: folder.read_json(member_key(family)) for family in config.families}
    return {
        "run": config.run,
        "families": {family: _summary(facts) for family, facts in members.items()},
        "seconds": round(time.monotonic() - started, 1),
        "reused": not todo,
    }


def _sweep(
    spaces: Mapping[str, FamilySpace], digests: Mapping[str, str], config: TuneConfig, dataset: Dataset, folder: Store
) -> None:
    """Everything that is left to do for the given families."""
    resources = _resources(list(spaces), config)
    trials = _stored_trials(folder)
    unsearched = [family for family in spaces if not config.resume or not _finished(trials, digests[family])]
    everyone = TrainingUsers(dataset.load(), dataset.state)
    some = sampled(everyone, config.sample, config.seed)
    users = ray.put(everyone)
    if unsearched:
        found = search(
            {family: spaces[family] for family in unsearched},
            resources,
            users if some is everyone else ray.put(some),
            config,
            folder.child(_TUNE),
            _experiment(folder, [digests[family] for family in unsearched], config.resume),
        )
        others = trials.filter(pc.invert(pc.is_in(trials["family"], pa.array(unsearched, pa.string()))))
        trials = pa.concat_tables([others, _trials_table(found, digests)])
        folder.write_table(TRIALS, trials)
    choices = [_choice(family, trials, digests[family]) for family in spaces]
    if not config.resume:
        for choice in choices:
            folder.delete_prefix(f"members/{choice.family}")
    fit_members(choices, resources, users, dataset.manifest, folder, config.concurrency)
    for family in spaces:
        with tempfile.TemporaryDirectory() as local:
            folder.download(f"members/{family}/model", Path(local))
            draw_importance(member.load(Path(local)), family, folder.child(f"members/{family}"))


def _space(family: str, config: TuneConfig) -> FamilySpace:
    """What varies in a family: its space, without what is fixed by config.

    Raises:
        ConfigError: the family has no such setting, or not this value, or the space contradicts itself.
    """
    fixed = {"seed": config.seed} | config.overrides.get(family, {})
    return FamilySpace(*laid_over(family, CATALOG[family], fixed, config.spaces.get(family, {})))


def _warmed(spaces: Mapping[str, FamilySpace], config: TuneConfig, store: Store) -> dict[str, FamilySpace]:
    """The spaces, with what earlier runs know of them.

    Raises:
        ConfigError: one of them has no trials.
    """
    tables = []
    for name in config.warm_start:
        folder = store.child(f"runs/{name}")
        if name == config.run or not folder.exists(TRIALS):
            raise ConfigError(
                f"warm_start names the run {name!r}, which has no finished sweep in {config.store} or is this run; "
                "name an earlier one, or none"
            )
        tables.append(folder.read_table(TRIALS).select(["family", "config", "auc"]))
    rows = [row for table in tables for row in table.to_pylist() if row["auc"] is not None]
    return {family: replace(search, known=_known(family, search, rows)) for family, search in spaces.items()}


def _known(family: str, search: FamilySpace, rows: Iterable[Mapping[str, Any]]) -> tuple[Attempt, ...]:
    """Earlier trials of a family inside the space, each setting once, the best first."""
    own = sorted((row for row in rows if row["family"] == family), key=lambda row: -row["auc"])
    found: dict[str, Attempt] = {}
    for row in own:
        settings = json.loads(row["config"])
        if within(search.space, settings):
            params = {name: settings[name] for name in search.space}
            found.setdefault(json.dumps(params, sort_keys=True), Attempt(params, "finished", row["auc"]))
    return tuple(found.values())


def _digest(family: str, space: FamilySpace, config: TuneConfig, manifest: Manifest) -> str:
    """Digest of everything that decides a family's trials and member."""
    facts = {
        "version": __version__,
        "dataset": manifest.fingerprint,
        "family": family,
        "space": {name: repr(domain) for name, domain in space.space.items()},
        "default": space.default,
        "fixed": space.fixed,
        "known": [(attempt.params, attempt.auc) for attempt in space.known],
        "search": config.model_dump(mode="json", include=DECIDES),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _resources(families: Sequence[str], config: TuneConfig) -> dict[str, Resources]:
    wanted = {family: config.resources.get(family, Resources()) for family in families}
    return wanted if config.autoscale else place(wanted, nodes())


def _experiment(folder: Store, digests: Sequence[str], resume: bool) -> str:
    """Name of the experiment that searches families with these digests; all others of the run are removed."""
    name = hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()[:16]
    stale = {key.removeprefix(f"{_TUNE}/").partition("/")[0] for key in folder.list(_TUNE)}
    for other in stale - {name} if resume else stale:
        folder.delete_prefix(f"{_TUNE}/{other}")
    return name


def _complete(folder: Store, family: str, digest: str) -> bool:
    return folder.exists(member_key(family)) and folder.read_json(member_key(family))["digest"] == digest


def _stored_trials(folder: Store) -> pa.Table:
    if not folder.exists(TRIALS):
        return TRIALS_SCHEMA.empty_table()
    table = folder.read_table(TRIALS)
    return table if table.schema.names == TRIALS_SCHEMA.names else TRIALS_SCHEMA.empty_table()  # of an earlier version


def _finished(trials: pa.Table, digest: str) -> bool:
    return bool(pc.any(pc.and_(pc.equal(trials["digest"], digest), pc.is_valid(trials["auc"]))).as_py())


def _trials_table(results: Iterable[TrialResult], digests: Mapping[str, str]) -> pa.Table:
    rows = [
        {name: getattr(result, name) for name in TRIALS_SCHEMA.names if name not in ("config", "digest", "schedule")}
        | {"config": json.dumps(result.settings, sort_keys=True), "digest": digests[result.family]}
        | {"schedule": json.dumps(result.schedule) if result.schedule else None}
        for result in sorted(results, key=lambda result: (result.family, result.trial))
    ]
    return pa.Table.from_pylist(rows, schema=TRIALS_SCHEMA)


def _choice(family: str, trials: pa.Table, digest: str) -> Chosen:
    """The best trial of a family.

    Raises:
        TrainingError: none finished; it says why.
    """
    own = trials.filter(pc.equal(trials["digest"], digest)).to_pylist()
    finished = [row for row in own if row["auc"] is not None]
    if not finished:
        reasons = "; ".join(sorted({row["reason"] for row in own if row["reason"]})) or "the time budget was too short"
        raise TrainingError(f"no trial of {family} finished ({len(own)} tried): {reasons}")
    best = max(finished, key=lambda row: row["auc"])
    return Chosen(family, json.loads(best["config"]), best["best_iteration"], len(own), digest)


def _summary(facts: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: facts[name] for name in ("trials", "auc", "config", "fingerprint")}
    return kept | {"iterations": facts["best_iteration"]}


def _check_families(families: Iterable[str]) -> None:
    unknown = [family for family in families if family not in CATALOG]
    if unknown:
        raise ValueError(f"no model family {unknown[0]!r}; the catalog has {', '.join(CATALOG)}")
