"""`dkt publish`: make a bundle of a run's members, chain and encoder state, and put it into the registry."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from dkt_ray.config import Config
from dkt_ray.ensemble import member
from dkt_ray.ensemble.chain import Chain
from dkt_ray.ensemble.mastery import lowered_share
from dkt_ray.ensemble.scorer import Scorer
from dkt_ray.errors import ConfigError, NotFoundError
from dkt_ray.features.dataset import Dataset
from dkt_ray.pipelines.stored_chain import read_chain
from dkt_ray.privacy import Privacy
from dkt_ray.registry import bundle, catalogue, profile
from dkt_ray.registry.bundle import Provenance
from dkt_ray.registry.store import Registry
from dkt_ray.storage import Store, open_store
from dkt_ray.training.protocol import Scored, align_members, oof_key

logger = logging.getLogger(__name__)

SAMPLED_USERS: Final = 2000  # training users who are looked at for the mastery and the profile
MASTERY_SAMPLE: Final = 300  # right answers of theirs that are checked for lowering the mastery of their concept


class PublishConfig(Config):
    """Settings of `dkt publish`."""

    store: str = "data/store"
    """Folder or s3://bucket/prefix."""
    dataset: str = "default"
    """The dataset that the run was tuned on."""
    run: str = "default"
    """The run whose members and chain are bundled."""
    promote: bool = False
    """Also move the alias, without a rollout: for a service that is not running."""
    alias: str = "champion"
    """Alias that `promote` moves."""


def run(config: PublishConfig) -> dict[str, Any]:
    """Build, verify and publish a bundle; the same run gives the same bundle.

    Returns:
        bundle (digest), metrics (of the ensemble: out of fold, and `mastery_lowered`), promoted.

    Raises:
        NotFoundError: no such dataset or run, or the run has no ensemble yet.
        ConfigError: the dataset was prepared anew since the run.
        BundleError: the bundle does not verify; nothing is published.
    """
    store = open_store(config.store)
    dataset = Dataset.open(store, config.dataset)
    blend, chain, facts = read_chain(store.child(f"runs/{config.run}"))
    _check_dataset(facts, dataset)
    with tempfile.TemporaryDirectory(prefix="dkt-publish-") as local:
        folder = Path(local)
        digest = _build(folder, dataset, store.child(f"runs/{config.run}"), blend, chain, facts)
        metrics = bundle.verify(folder / "bundle", digest).manifest.provenance.metrics
        registry = Registry(store)
        registry.publish(folder / "bundle", digest)
    if config.promote:
        entry = registry.alias(config.alias)
        registry.promote(config.alias, digest, entry.bundle if entry else None, "publish")
    logger.info("published bundle %s%s", digest, f" as {config.alias}" if config.promote else "")
    return {"bundle": digest, "metrics": metrics, "promoted": config.promote}


def _check_dataset(facts: Mapping[str, Mapping[str, Any]], dataset: Dataset) -> None:
    for family, fact in facts.items():
        fitted, now = fact.get("dataset"), dataset.manifest.fingerprint
        if fitted != now:
            raise ConfigError(
                f"member {family} was fitted on data with fingerprint {fitted}, dataset {dataset.name} now has {now}: "
                "run dkt tune and dkt ensemble again"
            )


def _build(
    folder: Path,
    dataset: Dataset,
    run: Store,
    blend: Mapping[str, Any],
    chain: Chain,
    facts: Mapping[str, Mapping[str, Any]],
) -> str:
    members = {name: folder / "members" / name for name in chain.members}
    for name, path in members.items():
        path.mkdir(parents=True)
        run.download(f"members/{name}/model", path)
    sample, questions = dataset.sample(SAMPLED_USERS), catalogue.Catalogue(catalogue.table(dataset.state))
    scorer = Scorer(dataset.state, {name: member.load(path) for name, path in members.items()}, chain)
    probes = questions.probes(questions.concepts)
    lowered = lowered_share(scorer, sample, probes, MASTERY_SAMPLE, seed=0)
    provenance = Provenance(
        dataset=dataset.name,
        dataset_fingerprint=dataset.manifest.fingerprint,
        split=dataset.manifest.split_settings,
        protocol_fingerprint=blend["fingerprint"],
        members={name: dict(fact) for name, fact in facts.items()},
        blend={"method": blend["method"]},
        metrics=dict(blend["metrics"]) | {"mastery_lowered": lowered},
    )
    users = _training_users(dataset)
    looked = profile.of_training(sample, questions, _held_out(run, chain))
    return bundle.build(folder / "bundle", dataset.state, members, chain, provenance, users, looked)


def _held_out(run: Store, chain: Chain) -> profile.Floats | None:
    """[N] what the ensemble says of the rows that its members were not fitted on; None: the run has not kept them."""
    try:
        scored = {name: Scored.from_table(run.read_table(oof_key(name)), f"member {name}") for name in chain.members}
    except NotFoundError:
        return None
    rows, columns = align_members(scored)
    return chain.apply(columns, rows.position)


def _training_users(dataset: Dataset) -> Iterator[str]:
    """Their stored names, as tombstones know them; read only where the bundle records them."""
    privacy, tenant = Privacy.of_environment(), dataset.manifest.config["data"].get("tenant", "")
    yield from (privacy.in_data(user, tenant) for user in dataset.training_users())
