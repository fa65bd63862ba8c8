"""(Ray) `dkt tune`: search all families in one Ray Tune experiment, then fit each family's best on every fold.

Trials and members are stored with a digest of what decides them: a second run with nothing changed returns at once, a
new family or another selection does not repeat the others, and an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Self

import pyarrow as pa
import pyarrow.compute as pc
import ray
from pydantic import Field, field_validator, model_validator

from dkt_ray import __version__
from dkt_ray.ensemble import member
from dkt_ray.ensemble.families import NEIGHBOURS
from dkt_ray.errors import ConfigError
from dkt_ray.features.dataset import Dataset, Manifest
from dkt_ray.models.catalog import CATALOG
from dkt_ray.pipelines.importance import PLOT, draw_importance
from dkt_ray.storage import Store, open_store
from dkt_ray.training.folds import TrainingUsers, fit_members, is_complete, member_key
from dkt_ray.training.protocol import Scored, oof_key
from dkt_ray.training.resources import Resources, place
from dkt_ray.training.sampling import sampled
from dkt_ray.training.search import Attempt, FamilySpace
from dkt_ray.training.selection import TABLE, Chosen, SelectionConfig, choose, nearest, stacked, stale
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


class TuneConfig(SearchConfig, SelectionConfig):
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

    @field_validator("shifts")
    @classmethod
    def _of_networks(cls, shifts: dict[str, int]) -> dict[str, int]:
        _check_families(shifts)
        for family, count in shifts.items():
            if count < 2:
                raise ValueError(f"{family} has {count} readings; give 2 or more, or leave it out")
            if CATALOG[family].view != "sequence":
                raise ValueError(f"{family} is no network and reads no rows one by one; leave it out")
        return shifts

    @model_validator(mode="after")
    def _stacks_networks(self) -> Self:
        networks = [family for family in self.families if CATALOG[family].view == "sequence"]
        for name in self.stacked:
            if name not in networks:
                raise ValueError(
                    f"stacked names {name!r}; the networks among families are {', '.join(networks) or 'none'}"
                )
        if len(set(self.stacked)) < len(self.stacked):
            raise ValueError("stacked names a network twice; name each once")
        return self


def run(config: TuneConfig) -> dict[str, Any]:
    """Search, fit and store the members of a run.

    Returns:
        {"run", "families": {family: {"trials", "auc", "iterations", "config", "fingerprint"} of its best member},
        "members": {name: auc}, "seconds", "reused"}; every `auc` is of out-of-fold scores.

    Raises:
        ConfigError: a setting that a family does not have, or resources that no node has.
        NotFoundError: no such dataset.
        TrainingError: no trial of a family finished, or a member cannot be fitted.
    """
    started = time.monotonic()
    store = open_store(config.store)
    dataset = Dataset.open(store, config.dataset)
    folder = store.child(f"runs/{config.run}")
    spaces = {family: _space(family, config) for family in config.families}
    spaces = _warmed(spaces, config, store)
    digests = {family: _digest(family, space, config, dataset.manifest) for family, space in spaces.items()}
    trials = _stored_trials(folder)
    unsearched = [family for family in spaces if not config.resume or not _finished(trials, digests[family])]
    choices = [] if unsearched else _choices(spaces, trials, digests, config, dataset.manifest)
    reused = bool(choices) and all(is_complete(choice, folder) for choice in choices)
    if not reused:
        choices = _sweep(spaces, unsearched, digests, config, dataset, folder)
    members = _settle(choices, config.families, folder)
    return {
        "run": config.run,
        "families": {family: _summary(members[family]) for family in config.families},
        "members": {name: facts["auc"] for name, facts in members.items()},
        "seconds": round(time.monotonic() - started, 1),
        "reused": reused,
    }


def _sweep(
    spaces: Mapping[str, FamilySpace],
    unsearched: Sequence[str],
    digests: Mapping[str, str],
    config: TuneConfig,
    dataset: Dataset,
    folder: Store,
) -> list[Chosen]:
    """Search the families that were not, then fit the members that are not there; returns all members."""
    resources = _resources(list(spaces), config)
    trials = _stored_trials(folder)
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
    choices = _choices(spaces, trials, digests, config, dataset.manifest)
    if not config.resume:
        for choice in choices:
            folder.delete_prefix(choice.folder)
    left = [choice for choice in choices if not is_complete(choice, folder)]
    fit = functools.partial(
        fit_members,
        resources={NEIGHBOURS: Resources(), TABLE: Resources(), **resources},
        manifest=dataset.manifest,
        run=folder,
        concurrency=config.concurrency,
        parallel=config.folds_parallel,
    )
    fit([choice for choice in left if not choice.reads], users=users)
    for choice in left:
        if choice.reads:
            scores = {name: Scored.from_table(folder.read_table(oof_key(name)), name) for name in choice.reads}
            fit([choice], users=ray.put(everyone.reading(scores)))
    for choice in choices:
        if folder.exists(f"{choice.folder}/{PLOT}"):
            continue
        with tempfile.TemporaryDirectory() as local:
            folder.download(f"{choice.folder}/model", Path(local))
            draw_importance(member.load(Path(local)), choice.name, folder.child(choice.folder))
    return choices


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


def _choices(
    spaces: Mapping[str, FamilySpace],
    trials: pa.Table,
    digests: Mapping[str, str],
    config: TuneConfig,
    manifest: Manifest,
) -> list[Chosen]:
    """The members of all families; see `training.selection.choose`."""
    choices, whole = [], config.sample == 1
    for family, space in spaces.items():
        own = trials.filter(pc.equal(trials["digest"], digests[family])).to_pylist()
        choices += choose(family, own, {**space.default, **space.fixed}, config, manifest.fingerprint, whole)
    choices += nearest(config, manifest.fingerprint)
    default = CATALOG[TABLE].config(**{"seed": config.seed} | config.overrides.get(TABLE, {})).model_dump(mode="json")
    return choices + stacked(choices, config, default, manifest.fingerprint)


def _settle(choices: Sequence[Chosen], families: Sequence[str], folder: Store) -> dict[str, dict[str, Any]]:
    """What the run's members are, by name; those that an earlier selection made and this one does not want are gone."""
    there = {key.split("/")[1] for key in folder.list("members")}
    for name in stale(there, [*families, NEIGHBOURS], choices):
        logger.info("member %s is not among the chosen ones any more: removed", name)
        folder.delete_prefix(f"members/{name}")
    members = {}
    for name, notes in [(name, choice.notes_of(name)) for choice in choices for name in choice.names]:
        stored = folder.read_json(member_key(name))
        members[name] = stored | notes
        if members[name] != stored:  # another search led to the same member
            folder.write_json(member_key(name), members[name])
    return members


def _summary(facts: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: facts[name] for name in ("trials", "auc", "config", "fingerprint")}
    return kept | {"iterations": facts["best_iteration"]}


def _check_families(families: Iterable[str]) -> None:
    unknown = [family for family in families if family not in CATALOG]
    if unknown:
        raise ValueError(f"no model family {unknown[0]!r}; the catalog has {', '.join(CATALOG)}")
