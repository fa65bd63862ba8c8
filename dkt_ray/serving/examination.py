"""The gate's evaluation set: a dataset's users, whose answers a champion and a challenger foresee side by side."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

import numpy as np

from dkt_ray.data.history import Histories, Int64
from dkt_ray.data.splits import TEST, stable_hash
from dkt_ray.ensemble.scorer import Scorer
from dkt_ray.errors import ConfigError, NotFoundError, StorageError
from dkt_ray.features.dataset import Dataset, held_out
from dkt_ray.features.encoder import encode
from dkt_ray.registry.bundle import Bundle, Provenance
from dkt_ray.registry.gate import GateConfig, judge
from dkt_ray.storage import Store
from dkt_ray.training.protocol import ON_ALL_FOLDS, Scored, evaluation_set, scored_rows

STABLE: Final = ("hash", "temporal")  # kinds of split under which no row changes sides when others are added


def examine(store: Store, champion: Bundle, challenger: Bundle, config: GateConfig) -> dict[str, Any]:
    """Let both foresee the answers of the evaluation set, and judge.

    Returns:
        The `GateReport` as a mapping, with champion, challenger, dataset, and the fingerprint of the evaluation set:
        equal fingerprints mean the same answers.

    Raises:
        NotFoundError: no such dataset.
        ConfigError: it has no such users, or one of the bundles may have been trained on them.
    """
    name = config.dataset or challenger.manifest.provenance.dataset
    dataset = Dataset.open(store, name)
    for role, bundle in (("champion", champion), ("challenger", challenger)):
        _check_unseen(store, dataset, role, bundle, config)
    histories, first = _judges(dataset, config, f"gate: {challenger.digest[:12]} against {champion.digest[:12]}")
    old, new = (_foreseen(bundle.scorer, histories, first) for bundle in (champion, challenger))
    report = judge(old.correct, old.user.codes, old.position, old.probability, new.probability, config)
    fingerprint = evaluation_set(dataset.manifest, old, ON_ALL_FOLDS).fingerprint
    facts = {"champion": champion.digest, "challenger": challenger.digest, "dataset": name, "fingerprint": fingerprint}
    return {**facts, **asdict(report)}


def _check_unseen(store: Store, dataset: Dataset, role: str, bundle: Bundle, config: GateConfig) -> None:
    """Refuse judges from whom a bundle may have learned: an answer that it has seen proves nothing."""
    trained = bundle.manifest.provenance
    reason = _seen_test_users(dataset, trained) if config.users == "test" else _seen_dataset(store, dataset, trained)
    if reason is None:
        return
    raise ConfigError(
        f"gate.users={config.users}: {role} {bundle.digest[:12]} may have seen the answers that judge it: {reason}; "
        "judge by a dataset that neither was trained on (gate.dataset=NAME, gate.users=all), or leave the gate out "
        "(gate=false)"
    )


def _seen_test_users(dataset: Dataset, trained: Provenance) -> str | None:
    name, now = dataset.name, dataset.manifest
    if trained.dataset != name:
        return f"it was trained on dataset {trained.dataset!r}, whose training users may be test users of {name!r}"
    if trained.dataset_fingerprint == now.fingerprint:
        return None
    split = now.split_settings
    if trained.split == split and split["split_file"] is None and split["split"] in STABLE:
        return None
    return (
        f"dataset {name!r} has other data or settings now (fingerprint {now.fingerprint}, then "
        f"{trained.dataset_fingerprint}), and its split is not known to have stayed: its test users may have trained"
    )


def _seen_dataset(store: Store, dataset: Dataset, trained: Provenance) -> str | None:
    """Judged by names, fingerprints, and the files of a dataset that is still in the store."""
    if trained.dataset == dataset.name or trained.dataset_fingerprint == dataset.manifest.fingerprint:
        return f"it was trained on dataset {dataset.name!r} itself"
    try:
        inputs = set(Dataset.open(store, trained.dataset).manifest.inputs.values())
    except (NotFoundError, StorageError):  # another store, or another version: nothing more is known
        return None
    shared = sorted(path for path, digest in dataset.manifest.inputs.items() if digest in inputs)
    return f"it was trained on dataset {trained.dataset!r}, which holds {shared[0]}, too" if shared else None


def _judges(dataset: Dataset, config: GateConfig, reason: str) -> tuple[Histories, Int64]:
    """The users who judge, and the position of each one's first answer that counts."""
    if config.users == "all":
        histories = dataset.load_histories()[0]
        first = np.zeros(len(histories.users), np.int64)
    else:
        if not dataset.manifest.held_out:
            raise ConfigError(
                f"dataset {dataset.name!r} has no test users to judge by; prepare it with data.test_fraction above 0, "
                "judge by another one (gate.dataset=NAME, gate.users=all), or leave the gate out (gate=false)"
            )
        vault = dataset.open_vault(reason)
        histories, first = vault.histories, vault.first
    chosen = np.sort(np.argsort(stable_hash(histories.users, 0), kind="stable")[: config.most_users])
    return histories.select(chosen), first[chosen]


def _foreseen(scorer: Scorer, histories: Histories, first: Int64) -> Scored:
    """Every known answer from its user's first one that counts on, and the ensemble's probability of it."""
    past = encode(histories, None, scorer.state).past
    columns = np.stack([scorer.members[name].score(past, past) for name in scorer.chain.members], axis=1)
    fold = np.full(len(histories.users), TEST, np.int8)
    return scored_rows(held_out(past, first), histories.users, fold, scorer.chain.apply(columns, past.visible))
