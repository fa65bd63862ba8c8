"""`dkt evaluate`: print a run's table, or, with `final=true`, score the test users in the vault.

The table is out of fold for a run of `dkt tune` and `dkt ensemble`; models of `dkt train` are compared on their fold.

Every opening of the vault is written to its ledger before a test user is read, and reports print the ledger.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from pydantic import Field

from dkt_ray.config import Config
from dkt_ray.data.history import Coded
from dkt_ray.data.simulation.filter import PARTICLES
from dkt_ray.ensemble import member
from dkt_ray.ensemble.chain import Chain
from dkt_ray.errors import ConfigError, NotFoundError
from dkt_ray.features.dataset import Dataset, Vault, held_out
from dkt_ray.features.encoder import EncoderState, encode
from dkt_ray.metrics import first_attempts
from dkt_ray.models.base import Model
from dkt_ray.pipelines import figures, trained
from dkt_ray.pipelines.figures import Answers, Contender, Heading, Kind, Settings, make_report, measure_in_turn
from dkt_ray.pipelines.report import REPORT, outcome, read_report, text_table, write_report
from dkt_ray.pipelines.stored_chain import read_chain
from dkt_ray.pipelines.yardstick import FILTER, ORACLE, Simulator, oracle, yardstick
from dkt_ray.registry import bundle as bundles
from dkt_ray.registry.store import Registry, resolve
from dkt_ray.storage import Store, open_object, open_store
from dkt_ray.training.baselines import BASELINES
from dkt_ray.training.protocol import ON_ALL_FOLDS, Scored, evaluation_set, locate, oof_key, scored_rows

logger = logging.getLogger(__name__)

FINAL: Final = "final"  # name of the final report
HOW: Final = "Test users from the vault, scored by models that were fitted on all training users."


class EvaluateConfig(Config):
    """Settings of `dkt evaluate`."""

    store: str = "data/store"
    """A folder or s3://bucket/prefix."""
    dataset: str = "default"
    """The dataset that the run was made of; with final=true, its test users are scored."""
    run: str = "default"
    """The run whose report is printed, or whose members are scored."""
    bundle: str | None = None
    """With final=true: score this bundle (digest or alias) instead of the run's members."""
    final: bool = False
    """Open the test vault. It is opened for a final figure, never to choose between models."""
    reason: str = ""
    """Why the vault is opened; stands in its ledger."""
    members: tuple[str, ...] | None = None
    """For a run of `dkt train`: the models to compare, and to average with equal weights; unset: all."""
    peers: dict[str, str] = Field(default_factory=dict)
    """Scores from elsewhere to stand beside ours: name -> Parquet of user, position, fold, correct, probability."""
    truth: str | None = None
    """The simulator's truth.parquet (true probabilities): the oracle of the report."""
    yardstick: int = Field(default=0, ge=0)
    """With truth: students whose answers a filter that knows the simulator foresees; 300 say enough, 0: none."""
    particles: int = Field(default=PARTICLES, ge=1)
    """Of that filter; twice as many should change its AUROC by less than 0.001."""
    samples: int = Field(default=200, ge=1)
    """Bootstrap resamples of the users."""
    last_answers: bool = False
    """Also report the AUROC of last answers; only for competition-type logs, elsewhere an artefact."""
    seed: int = 0
    """Seed of the bootstrap."""


class Fitted(NamedTuple):
    """Models that were fitted on every training user, and the chain that combines them."""

    source: str  # run, or bundle
    state: EncoderState
    members: Mapping[str, Model]
    chain: Chain


def run(config: EvaluateConfig) -> dict[str, Any]:
    """Print the figures of a run, or measure the final ones.

    Returns:
        auc (by model), auc_interval (of the ensemble), weights, fingerprint, openings (of the vault so far), report.

    Raises:
        NotFoundError: no such dataset, report, run or bundle.
        ConfigError: a bundle without final=true, no reason, no test users, or models that have seen test users.
    """
    store = open_store(config.store)
    folder = store.child(f"runs/{config.run}")
    name, measure = (FINAL, _measure) if config.final else (REPORT, _validated)
    report = measure(config, store, folder)
    report["ledger"] = figures.ledger(store)
    write_report(report, folder, name)
    logger.info("evaluation set %s\n%s", report["fingerprint"], text_table(report))
    logger.info("openings of the test vault so far: %d", len(report["ledger"]))
    return outcome(report, folder, name)


def _validated(config: EvaluateConfig, store: Store, folder: Store) -> dict[str, Any]:
    """The report that `dkt ensemble` made of the run, or one of the models that `dkt train` stored in it."""
    if config.bundle is not None:
        raise ConfigError(
            f"bundle={config.bundle}: a bundle was fitted on every training user, so only test users can judge it; add "
            "final=true and a reason"
        )
    names = _trained(config, folder)
    if not names:
        report = read_report(folder, REPORT)
        if report is None:
            raise NotFoundError(
                f"nothing to evaluate in {folder.url}; make models with dkt train, or with dkt tune and dkt ensemble, "
                f"--set run={config.run}"
            )
        if config.peers or _simulator(config) is not None:
            raise ConfigError(
                f"run {config.run} has the report of dkt ensemble, which is printed as it is: give truth and yardstick "
                "to dkt ensemble, or add final=true; peers stand beside models of dkt train and in final reports"
            )
        return report
    dataset = Dataset.open(store, config.dataset)
    peers = _peers(config, names)
    return trained.report(folder, dataset, names, config.run, _settings(config), peers, _simulator(config))


def _trained(config: EvaluateConfig, folder: Store) -> tuple[str, ...]:
    """Names of the models to compare, if the run is one of `dkt train`.

    Raises:
        NotFoundError: the run does not have a member that is asked for.
    """
    there = () if folder.exists("blend.json") else tuple(trained.models(folder))
    if missing := set(config.members or ()) - set(there):
        raise NotFoundError(
            f"members names {', '.join(sorted(missing))}; run {config.run} has models {', '.join(there) or 'none'}"
        )
    return config.members or there


def _peers(config: EvaluateConfig, models: Iterable[str]) -> dict[str, Scored]:
    """Scores from elsewhere, by a name that no line of the report has.

    Raises:
        ConfigError: a name that one has.
    """
    taken = {*models, *BASELINES, "ensemble", ORACLE, FILTER}
    if clash := sorted(taken & config.peers.keys()):
        raise ConfigError(f"peers names {', '.join(clash)}, as the report names a line of its own; choose another name")
    tables = {name: open_object(path) for name, path in config.peers.items()}
    return {name: Scored.from_table(store.read_table(key), f"peers.{name}") for name, (store, key) in tables.items()}


def _simulator(config: EvaluateConfig) -> Simulator | None:
    return Simulator.of(config.truth, config.yardstick, config.particles)


def _settings(config: EvaluateConfig) -> Settings:
    return Settings(config.samples, config.seed, config.last_answers)


def _measure(config: EvaluateConfig, store: Store, folder: Store) -> dict[str, Any]:
    """The final figures. Whatever can be wrong is found before the vault is opened."""
    dataset = Dataset.open(store, config.dataset)
    if not dataset.manifest.held_out:
        raise ConfigError(f"dataset {config.dataset!r} has no test users; prepare it with data.test_fraction above 0")
    train = dataset.load()
    fitted = _fitted(config, store, dataset, folder, set(train.users))
    peers = _peers(config, fitted.members)
    simulator = _simulator(config)
    if simulator is not None:
        figures.truth_version(simulator.truth)  # it is there
        simulator.check(dataset.manifest)
    vault = dataset.open_vault(config.reason)
    past = vault.rows if fitted.state is dataset.state else encode(vault.histories, None, fitted.state).past
    scores = {name: model.score(past, past) for name, model in fitted.members.items()}
    columns = np.stack([scores[name] for name in fitted.chain.members], axis=1)
    names = dataset.manifest.numbers
    kinds: dict[Kind, dict[str, Any]] = {
        "ensemble": {"ensemble": fitted.chain.apply(columns, past.visible)},
        "member": scores,
        "baseline": {name: baseline(train.rows, vault.rows, names) for name, baseline in BASELINES.items()},
    }
    base = scored_rows(held_out(vault.rows, vault.first), vault.users, vault.fold, kinds["ensemble"]["ensemble"])
    answers, place = _answers(vault, base)
    contenders = {name: Contender(kind, p[place]) for kind, several in kinds.items() for name, p in several.items()}
    contenders |= {name: Contender("peer", trained.align_peer(name, peer, base)) for name, peer in peers.items()}
    contenders |= oracle(simulator, dataset.manifest, base)
    report = make_report(
        Heading(f"Final report of {fitted.source}", HOW, config.dataset, config.run),
        evaluation_set(dataset.manifest, base, ON_ALL_FOLDS),
        answers,
        contenders,
        {fitted.source: fitted.chain.shares},
        _settings(config),
        measure_in_turn,
    )
    return report | yardstick(simulator, vault.histories, base, answers, contenders, _settings(config))


def _fitted(config: EvaluateConfig, store: Store, dataset: Dataset, folder: Store, users: set[str]) -> Fitted:
    """What is scored: a bundle, the models of `dkt train`, or the members and chain of `dkt ensemble`."""
    if config.bundle:
        return _of_bundle(config.bundle, store)
    if names := _trained(config, folder):
        members = trained.load(folder, dataset, names)
        return Fitted(f"run {config.run}", dataset.state, members, Chain.weighted(dict.fromkeys(names, 1 / len(names))))
    return _of_run(dataset, folder, users)


def _answers(vault: Vault, base: Scored) -> tuple[Answers, Any]:
    """The scored rows of the vault, and where each stands among its rows."""
    owner = np.repeat(np.arange(len(vault.users), dtype=np.int32), np.diff(vault.rows.offsets))
    place = locate(Coded(owner, vault.users), vault.rows.position, base)
    first = first_attempts(owner, vault.histories.question.codes)
    return Answers.of(base, first[place]), place


def _of_run(dataset: Dataset, folder: Store, training_users: set[str]) -> Fitted:
    """A run's members, refitted on all folds, and the chain of its ensemble.

    Raises:
        NotFoundError: the run has no ensemble yet.
        ConfigError: they were fitted on users who are test users of this dataset, or on other features.
    """
    _, chain, _ = read_chain(folder)
    members = {}
    for name in chain.members:
        _check_users(name, folder, training_users)
        with tempfile.TemporaryDirectory() as local:
            folder.download(f"members/{name}/model", Path(local))
            members[name] = member.load(Path(local))
        members[name].check(dataset.state.number_names)
    return Fitted(f"run {folder.url.rsplit('/', 1)[-1]}", dataset.state, members, chain)


def _check_users(name: str, folder: Store, training_users: set[str]) -> None:
    """Refuse a member that was fitted on users who are not training users now."""
    fitted_on = set(folder.read_table(oof_key(name), ["user"])["user"].unique().to_pylist())
    if strangers := fitted_on - training_users:
        raise ConfigError(
            f"member {name} was fitted on {len(strangers)} users who are not training users of the dataset now, e.g. "
            f"{min(strangers)}: it was prepared anew; run dkt tune again"
        )


def _of_bundle(name: str, store: Store) -> Fitted:
    registry = Registry(store)
    digest = resolve(registry, name)
    with tempfile.TemporaryDirectory() as local:
        registry.fetch(digest, Path(local))
        scorer = bundles.load(Path(local), digest).scorer
    return Fitted(f"bundle {digest[:12]}", scorer.state, scorer.members, scorer.chain)
