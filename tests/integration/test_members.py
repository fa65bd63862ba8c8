"""From chosen settings to members on a real Ray cluster: means are means, the way of fitting decides nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from dkt_ray.config import build
from dkt_ray.data.splits import TEST
from dkt_ray.ensemble import member
from dkt_ray.errors import TrainingError
from dkt_ray.features.dataset import Dataset
from dkt_ray.models.lgbm import LightGBMConfig
from dkt_ray.storage import Store, open_store
from dkt_ray.training.fit import fit
from dkt_ray.training.folds import TrainingUsers, fit_members
from dkt_ray.training.progress import TrainingData
from dkt_ray.training.protocol import Scored, evaluation_set, scored_rows
from dkt_ray.training.resources import Resources
from dkt_ray.training.selection import Chosen
from tests.sweep_data import FOLDS, SMALL, prepared

__all__ = ["prepared"]  # a fixture

TREES = SMALL["lightgbm"] | {"feature_fraction": 0.5, "seed": 3, "num_leaves": 7}
NETWORK = SMALL["lstm_attention"] | {"width": 16}


@pytest.fixture(scope="module")
def dataset(prepared: str) -> Dataset:
    return Dataset.open(open_store(prepared), "default")


@pytest.fixture(scope="module")
def users(dataset: Dataset) -> TrainingUsers:
    return TrainingUsers(dataset.load(), dataset.state)


@pytest.fixture(scope="module")
def choices(dataset: Dataset) -> list[Chosen]:
    data = dataset.manifest.fingerprint
    return [
        Chosen("lightgbm", "lightgbm", TREES, None, data, seeds=2, served="folds"),
        Chosen("lightgbm-2", "lightgbm", TREES, 5, data, seeds=2),
        Chosen("lstm_attention", "lstm_attention", NETWORK, 1, data),
    ]


def make(choices: list[Chosen], users: TrainingUsers, dataset: Dataset, run: Store, **how: Any) -> None:
    resources = dict.fromkeys(SMALL, Resources())
    fit_members(choices, resources, ray.put(users), dataset.manifest, run, **how)


@pytest.fixture(scope="module")
def run(choices: list[Chosen], users: TrainingUsers, dataset: Dataset) -> Store:
    made = dataset.store.child("runs/members")
    make(choices, users, dataset, made)
    return made


def fitted(users: TrainingUsers, seed: int, iterations: int | None, fold: int | None) -> Any:
    """LightGBM, fitted here and now."""
    settings = build(LightGBMConfig, TREES | {"seed": seed})
    if fold is None:
        return fit("lightgbm", settings, TrainingData(users.split.rows, None, users.state), iterations=iterations)
    data, _ = users.holding_out(fold)
    return fit("lightgbm", settings, data if iterations is None else replace(data, valid=None), iterations=iterations)


def load(run: Store, name: str, folder: Path) -> Any:
    run.download(f"members/{name}/model", folder)
    return member.load(folder)


def oof(run: Store, name: str) -> Scored:
    return Scored.from_table(run.read_table(f"members/{name}/oof.parquet"), name)


def test_a_member_says_what_it_is(run: Store, dataset: Dataset, choices: list[Chosen]) -> None:
    for choice in choices:
        facts = run.read_json(f"members/{choice.name}/member.json")
        named = {"name": choice.name, "family": choice.family, "seeds": choice.seeds, "served": choice.served}
        assert named.items() <= facts.items()
        assert facts["digest"] == choice.digest
        assert facts["score_us"] > 0
        table = run.read_table(f"members/{choice.name}/oof.parquet")
        fingerprint = evaluation_set(dataset.manifest, oof(run, choice.name)).fingerprint
        assert facts["fingerprint"] == table.schema.metadata[b"fingerprint"].decode() == fingerprint
        assert not [key for key in run.list(f"members/{choice.name}") if "/parts/" in key]


def test_no_user_of_the_vault_is_in_an_out_of_fold_table(run: Store, dataset: Dataset, choices: list[Chosen]) -> None:
    vault = set(dataset.split.names[dataset.split.fold == TEST])
    assert vault
    for choice in choices:
        found = set(run.read_table(f"members/{choice.name}/oof.parquet")["user"].to_pylist())
        assert found == set(dataset.training_users())
        assert not found & vault


def test_the_number_of_iterations_is_found_on_one_fold(run: Store, users: TrainingUsers) -> None:
    found = run.read_json("members/lightgbm/member.json")["best_iteration"]
    assert found == fitted(users, TREES["seed"], None, 0).best_iteration
    assert run.read_json("members/lightgbm-2/member.json")["best_iteration"] == 5


def test_a_member_of_folds_and_seeds_serves_their_mean(run: Store, users: TrainingUsers, tmp_path: Path) -> None:
    iterations = run.read_json("members/lightgbm/member.json")["best_iteration"]
    models = [fitted(users, TREES["seed"] + seed, iterations, fold).model for fold in range(FOLDS) for seed in range(2)]
    rows = users.split.rows
    each = np.array([model.score(rows, rows) for model in models])
    assert len(np.unique(each, axis=0)) == len(models)
    served = load(run, "lightgbm", tmp_path)
    np.testing.assert_allclose(served.score(rows, rows), each.mean(axis=0), rtol=0, atol=1e-15)
    assert sum(served.importance().values()) == pytest.approx(1)


def test_a_member_of_seeds_is_their_mean_out_of_fold_and_refitted(
    run: Store, users: TrainingUsers, tmp_path: Path
) -> None:
    for fold in range(FOLDS):
        _, held_out = users.holding_out(fold)
        mean = np.mean(
            [fitted(users, TREES["seed"] + seed, 5, fold).model.score(held_out.rows, held_out.rows) for seed in (0, 1)],
            axis=0,
        )
        expected = scored_rows(held_out.rows, held_out.users, held_out.fold, mean)
        found = oof(run, "lightgbm-2")
        assert np.array_equal(found.probability[found.fold == fold], expected.probability)
    rows = users.split.rows
    refits = [fitted(users, TREES["seed"] + seed, 5, None).model.score(rows, rows) for seed in (0, 1)]
    np.testing.assert_allclose(
        load(run, "lightgbm-2", tmp_path).score(rows, rows), np.mean(refits, axis=0), rtol=0, atol=1e-15
    )


def test_folds_in_turn_give_the_same_bits(
    run: Store, choices: list[Chosen], users: TrainingUsers, dataset: Dataset
) -> None:
    other = dataset.store.child("runs/in-turn")
    make(choices, users, dataset, other, parallel=False)
    files = [key for key in run.list("members") if not key.endswith("member.json")]
    assert files == [key for key in other.list("members") if not key.endswith("member.json")]
    assert [key for key in files if run.read(key) != other.read(key)] == []
    for choice in choices:
        key = f"members/{choice.name}/member.json"
        assert run.read_json(key) | {"score_us": 0} == other.read_json(key) | {"score_us": 0}


def test_a_fit_that_fails_names_member_and_fold_and_what_was_finished_is_kept(
    choices: list[Chosen], users: TrainingUsers, dataset: Dataset
) -> None:
    """LightGBM knows trees of 131,072 leaves at most."""
    run = dataset.store.child("runs/failing")
    good = replace(choices[0], seeds=1)
    bad = replace(choices[1], settings=TREES | {"num_leaves": 200_000}, seeds=1)
    with pytest.raises(TrainingError, match=r"^lightgbm-2 on all folds: LightGBMError: .*leaves"):
        make([good, bad], users, dataset, run, concurrency=1)
    found = f"{good.parts}/iterations.json"
    assert run.list("members/lightgbm") == [found]
    run.write_json(found, {"iterations": 2})
    make([good], users, dataset, run)
    assert run.read_json("members/lightgbm/member.json")["best_iteration"] == 2  # the part was read, not made again
