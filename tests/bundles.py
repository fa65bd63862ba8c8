"""A small world of students, and real bundles made from it in a second or two."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from dkt_ray.data.history import Coded, Histories
from dkt_ray.ensemble import member
from dkt_ray.ensemble.chain import Chain
from dkt_ray.features.encoder import EncoderConfig, EncoderState, encode, fit_histories, moments
from dkt_ray.models.base import Model
from dkt_ray.models.catalog import CATALOG
from dkt_ray.registry import bundle, catalogue, profile
from dkt_ray.training.fit import TrainingData
from dkt_ray.training.fit import fit as train

SMALL = {
    "lightgbm": {"num_leaves": 7, "min_data_in_leaf": 5},
    "lstm_attention": {"width": 8, "heads": 2, "context": 32, "dropout": 0.0},
}
ITERATIONS = {"lightgbm": 8, "lstm_attention": 1}
WEIGHTS = {"lightgbm": 0.6, "lstm_attention": 0.4}


@dataclass(frozen=True)
class World:
    """Histories and the encoder's state fitted on them."""

    histories: Histories
    state: EncoderState


def simulate(users: int = 40, questions: int = 30, seed: int = 0) -> Histories:
    """Students who answer random questions; easy questions and able students are right more often."""
    random = np.random.default_rng(seed)
    lengths = random.integers(5, 60, users)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    owner, chosen = np.repeat(np.arange(users), lengths), random.integers(0, questions, offsets[-1])
    odds = random.normal(0, 1, users)[owner] + random.normal(0, 1.5, questions)[chosen]
    seconds = random.integers(5, 4000, offsets[-1])
    names = [f"A{q // 10:03}{q % 5:03}{q:03}" for q in range(questions)]
    tags = [str(q % 7) if q % 3 else f"{q % 7}_{7 + q % 2}" for q in range(questions)]
    return Histories(
        users=np.array([f"u{user}" for user in range(users)], object),
        offsets=offsets,
        question=Coded.of([names[q] for q in chosen]),
        test=Coded.of([f"A{q // 10:03}000{q % 5:03}" for q in chosen]),
        concepts=Coded.of([tags[q] for q in chosen]),
        correct=(random.random(offsets[-1]) < 1 / (1 + np.exp(-odds))).astype(np.int8),
        timestamp=1_600_000_000_000 + 1000 * np.cumsum(seconds),
    )


@cache
def world() -> World:
    """Histories and a fitted state, with its scaler."""
    histories = simulate()
    folds = np.zeros(len(histories.users), np.int8)
    state = fit_histories(histories, folds, EncoderConfig(min_count=2))
    return World(histories, state.with_scaler(moments(encode(histories, None, state).past)))


@cache
def trained(seed: int = 0) -> dict[str, Model]:
    """Every family, trained for a moment."""
    rows = encode(world().histories, None, world().state).past
    data = TrainingData(rows, None, world().state)
    return {
        family: train(family, CATALOG[family].config(seed=seed, **settings), data, iterations=ITERATIONS[family]).model
        for family, settings in SMALL.items()
    }


def save_members(folder: Path, seed: int = 0) -> dict[str, Path]:
    """Save every family's model."""
    members = {family: folder / family for family in SMALL}
    for family, model in trained(seed).items():
        members[family].mkdir(parents=True)
        member.save(model, members[family])
    return members


def build(folder: Path, members: dict[str, Path], weights: dict[str, float] | None = None) -> str:
    """Build a bundle and return its digest."""
    provenance = bundle.Provenance(
        dataset="tiny",
        dataset_fingerprint="0" * 64,
        split={"split": "hash", "split_file": None, "split_time": None, "seed": 0, "test_fraction": 0.4},
        members={family: {"auc": 0.7} for family in members},
        metrics={"auc": 0.71, "auc_interval": [0.65, 0.77]},
    )
    chain, state, histories = Chain.weighted(weights or WEIGHTS), world().state, world().histories
    looked = profile.of_training(histories, catalogue.Catalogue(catalogue.table(state)))
    return bundle.build(folder, state, members, chain, provenance, histories.users, looked)
