"""Spaces by config: what contradicts itself is refused before Ray starts; it names the field, the value, the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dkt_ray.config import build
from dkt_ray.data.splits import assign_folds
from dkt_ray.errors import ConfigError
from dkt_ray.features.batch import Rows
from dkt_ray.features.dataset import Split
from dkt_ray.models.base import Between, Choice
from dkt_ray.models.catalog import CATALOG
from dkt_ray.pipelines import sweep
from dkt_ray.storage import open_store
from dkt_ray.training.folds import TrainingUsers
from dkt_ray.training.sampling import sampled
from dkt_ray.training.search import FamilySpace
from dkt_ray.training.spaces import contains, within
from dkt_ray.training.tuning import TrialResult
from tests.datasets import manifest


def space_of(family: str, space: dict[str, Any], **settings: Any) -> FamilySpace:
    return sweep._space(family, build(sweep.TuneConfig, {"spaces": {family: space}, **settings}))


@pytest.mark.parametrize("family", CATALOG)
def test_a_family_s_space_holds_its_default_and_can_be_built_at_its_ends(family: str) -> None:
    spec = CATALOG[family]
    assert within(spec.space, build(spec.config, {}).model_dump(mode="json"))
    for name, domain in spec.space.items():
        for value in domain.values if isinstance(domain, Choice) else (domain.low, domain.high):
            build(spec.config, {name: int(value) if isinstance(domain, Between) and domain.integer else value})


def test_a_space_by_config_replaces_adds_and_leaves_the_rest() -> None:
    search = space_of(
        "lstm",
        {"width": [32, 64], "dropout": {"low": 0, "high": 0.5}, "clip_norm": {"low": 0.1, "high": 10, "log": True}},
    )
    assert search.space["width"] == Choice((32, 64))
    assert search.space["dropout"] == Between(0, 0.5)
    assert search.space["clip_norm"] == Between(0.1, 10, log=True)
    assert search.space["layers"] == CATALOG["lstm"].space["layers"]
    assert within(search.space, search.default)
    assert not search.space.keys() & search.fixed.keys()
    assert build(CATALOG["lstm"].config, {**search.fixed, **search.default})


def test_a_first_value_can_be_given_where_the_default_lies_outside() -> None:
    domain = {"low": 1e-5, "high": 1e-3, "log": True, "default": 1e-4}
    assert space_of("lstm", {"learning_rate": domain}).default["learning_rate"] == 1e-4
    choice = {"values": [16, 24], "default": 24}
    assert space_of("lstm", {"width": choice}).default["width"] == 24


@pytest.mark.parametrize(
    ("space", "says"),
    [
        ({"dropout": {"low": 0.5, "high": 0.1}}, r"spaces\.lstm\.dropout is .*low 0\.5 is above high 0\.1.*exchange"),
        ({"dropout": {"low": 0, "high": 0.5, "log": True}}, r"spaces\.lstm\.dropout .*log needs low above 0.*raise"),
        ({"width": []}, r"spaces\.lstm\.width is .*no value to choose from; list at least one"),
        ({"width": {"low": 1.5, "high": 3, "integer": True}}, r"spaces\.lstm\.width .*integer needs whole bounds"),
        ({"width": {"low": 32}}, r"spaces\.lstm\.width .*needs low and high"),
        ({"width": {"low": 1, "high": 2, "values": [1]}}, r"spaces\.lstm\.width .*not both"),
        ({"width": [32, -1]}, r"spaces\.lstm\.width holds -1, which lstm cannot have.*greater than 0"),
        ({"widht": [32, 64]}, r"spaces\.lstm\.widht holds 32.*unknown setting widht.*did you mean width"),
        ({"learning_rate": {"low": 1e-5, "high": 1e-4}}, r"learning_rate is between .*0\.003, lies outside; widen it"),
        (
            {"width": [16, 24]},
            r"spaces\.lstm\.width is one of 16, 24, .*64, lies outside.*\.width\.default",
        ),
        ({"seed": [1, 2]}, r"spaces\.lstm\.seed varies what is fixed"),
    ],
)
def test_a_space_that_contradicts_itself_is_refused(space: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        space_of("lstm", space)


def test_what_is_fixed_cannot_vary() -> None:
    with pytest.raises(ConfigError, match=r"spaces\.lstm\.width varies what is fixed at 32 \(overrides\.lstm"):
        space_of("lstm", {"width": [32, 64]}, overrides={"lstm": {"width": 32}})


def test_no_family_is_refused() -> None:
    with pytest.raises(ConfigError, match="name each family once, and at least one"):
        build(sweep.TuneConfig, {"families": []})


def test_one_is_not_true() -> None:
    assert not contains(Choice((True, False)), 1)
    assert not contains(Between(0, 1), True)


def test_a_warm_start_takes_the_finished_trials_inside_the_space_once_the_best_first(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    config = build(sweep.TuneConfig, {"store": str(tmp_path), "families": ["lstm"], "warm_start": ["old"]})
    spaces = {"lstm": sweep._space("lstm", config)}
    with pytest.raises(ConfigError, match=r"warm_start names the run 'old', which has no finished sweep in .*name an"):
        sweep._warmed(spaces, config, store)
    default = {**spaces["lstm"].fixed, **spaces["lstm"].default}

    def trial(auc: float | None, family: str = "lstm", **settings: Any) -> TrialResult:
        return TrialResult(family, "t", "finished", default | settings, auc, 3, 2, 1.0, [], "")

    trials = [
        *(trial(0.7, width=32), trial(0.8, width=128), trial(0.75, width=32), trial(None), trial(0.9, width=4096)),
        trial(0.95, family="saint"),
    ]
    store.write_table("runs/old/trials.parquet", sweep._trials_table(trials, {"lstm": "d", "saint": "d"}))
    warmed = sweep._warmed(spaces, config, store)
    known = warmed["lstm"].known
    assert [(attempt.params["width"], attempt.auc) for attempt in known] == [(128, 0.8), (32, 0.75)]
    digests = {sweep._digest("lstm", each["lstm"], config, manifest()) for each in (spaces, warmed)}
    assert len(digests) == 2


def users_of(count: int, folds: int) -> TrainingUsers:
    names = np.array([f"u{number}" for number in range(count)], object)
    zeros = np.zeros(count, np.int32)
    rows = Rows(
        offsets=np.arange(count + 1),
        ids={"question": np.arange(count, dtype=np.int32)},
        concepts=np.zeros((count, 1), np.int32),
        numbers=np.zeros((count, 0), np.float32),
        correct=np.ones(count, np.int8),
        position=zeros,
        visible=zeros,
    )
    state: Any = None
    return TrainingUsers(Split(rows, names, assign_folds(names, 0, 0.0, folds)), state)


def test_a_sample_is_the_same_users_of_every_fold_alike_and_a_larger_one_holds_the_smaller() -> None:
    everyone = users_of(4000, 5)
    some = sampled(everyone, 0.25, 0).split
    assert abs(len(some.users) / 4000 - 0.25) < 0.03
    shares = np.bincount(some.fold, minlength=5) / np.bincount(everyone.split.fold, minlength=5)
    assert shares.min() > 0.18  # the folds have the same seed: their hashes must not go together
    assert shares.max() < 0.32
    assert [f"u{row}" for row in some.rows.ids["question"]] == some.users.tolist()
    assert set(some.users) < set(sampled(everyone, 0.5, 0).split.users)
    assert set(some.users) != set(sampled(everyone, 0.25, 1).split.users)
    assert sampled(everyone, 1.0, 0) is everyone


def test_a_sample_without_a_user_of_some_fold_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sample is 0\.01, which leaves no user of fold \d \(20 users in all\)"):
        sampled(users_of(20, 5), 0.01, 0)
