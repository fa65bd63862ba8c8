"""`dkt automl` without Ray: the verdict, the budget, and that those who judge take no part in the choice."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dkt_ray.config import build
from dkt_ray.data.history import Coded
from dkt_ray.errors import ConfigError, TrainingError
from dkt_ray.features.dataset import Split
from dkt_ray.metrics import auc
from dkt_ray.pipelines import automl
from dkt_ray.pipelines.automl import AutomlConfig, best_settings, budget, outer_folds, without
from dkt_ray.pipelines.verdict import judge, verdict
from dkt_ray.training.folds import TrainingUsers
from dkt_ray.training.protocol import Scored
from dkt_ray.training.tuning import TrialResult
from tests.contract import world as w

RNG = np.random.default_rng(1)
USERS, EACH = 60, 30
TRUTH = RNG.random(USERS * EACH)
RIGHT = (RNG.random(USERS * EACH) < TRUTH).astype(np.int8)
TRIAL = TrialResult("lightgbm", "1", "finished", {}, 0.7, 3, 3, 1.0, [0.7], "")


def scored(noise: float, seed: int = 2) -> Scored:
    """Scores that are the truth, with noise."""
    owner = np.repeat(np.arange(USERS, dtype=np.int32), EACH)
    names = np.array([f"u{user:02}" for user in range(USERS)], object)
    probability = np.clip(TRUTH + noise * np.random.default_rng(seed).normal(size=len(TRUTH)), 0.001, 0.999)
    position = np.tile(np.arange(EACH, dtype=np.int32), USERS)
    return Scored(Coded(owner, names), position, np.zeros(len(owner), np.int8), RIGHT, probability)


def test_gain_is_what_the_whole_interval_says() -> None:
    found = judge(scored(0.5), scored(0.05), samples=100, seed=0)
    assert found["verdict"] == "gain"
    assert 0 < found["difference"]["low"] <= found["difference"]["value"] <= found["difference"]["high"]
    value = found["auc"]["automl"]["value"] - found["auc"]["default"]["value"]
    assert found["difference"]["value"] == pytest.approx(value)
    assert (found["users"], found["rows"]) == (USERS, USERS * (EACH - 1))
    assert judge(scored(0.05), scored(0.5), samples=100, seed=0)["verdict"] == "no gain"
    same = judge(scored(0.2), scored(0.2), samples=100, seed=0)
    assert (same["verdict"], same["difference"]["value"]) == ("no gain", 0.0)
    worse, better = sorted((scored(0.2, seed) for seed in (3, 4)), key=lambda each: auc(each.correct, each.probability))
    little = judge(worse, better, samples=100, seed=0)  # better, but that may be chance
    assert little["verdict"] == "no gain"
    assert little["difference"]["low"] <= 0 < little["difference"]["value"]
    assert verdict({"value": None, "low": None, "high": None}) == "no gain"


def test_rows_that_differ_are_refused() -> None:
    other = dataclasses.replace(scored(0.1), correct=1 - RIGHT)
    with pytest.raises(ConfigError, match="automl"):
        judge(scored(0.1), other, samples=10, seed=0)


def test_those_who_judge_are_not_among_those_who_choose() -> None:
    world = w.World.of(w.students(12, seed=1))
    rows = world.data.train
    users = len(rows.offsets) - 1
    names = np.array([f"u{user}" for user in range(users)], object)
    fold = (np.arange(users) % 4).astype(np.int8)
    everyone = TrainingUsers(Split(rows, names, fold), world.data.state)
    inner = without(everyone, 1)
    assert set(inner.split.users) == set(names[fold != 1])
    assert dict(zip(inner.split.users, inner.split.fold, strict=True)) == {
        name: {0: 0, 2: 1, 3: 2}[int(of)] for name, of in zip(names, fold, strict=True) if of != 1
    }
    kept = np.repeat(fold != 1, np.diff(rows.offsets))
    np.testing.assert_array_equal(inner.split.rows.numbers, rows.numbers[kept])
    found = automl._eliminate(AutomlConfig(features_share=0), inner, 0.0, 1)
    assert (found["numbers"], found["dropped"]) == (list(world.data.state.number_names), [])


def test_the_outer_folds_and_their_time() -> None:
    assert outer_folds(AutomlConfig(), 3) == [0]
    assert outer_folds(AutomlConfig(outer="all"), 4) == [0, 1, 2, 3]
    assert budget(100, 0.25, 4) == (6.25, 25.0)
    with pytest.raises(ConfigError, match="has 2 folds; automl needs 3 or more"):
        outer_folds(AutomlConfig(), 2)
    with pytest.raises(ConfigError, match="outer is 5; expected a fold from 0 to 2, or all"):
        outer_folds(AutomlConfig(outer=5), 3)


def test_the_best_trial_is_the_choice_and_without_one_the_default_or_a_reason() -> None:
    best, worse = (dataclasses.replace(TRIAL, auc=auc, settings={"auc": auc}) for auc in (0.7, 0.6))
    cut, failed = dataclasses.replace(TRIAL, auc=None), dataclasses.replace(TRIAL, auc=None, reason="no memory")
    assert best_settings([worse, best, failed], {"default": 1}) == {"auc": 0.7}
    assert best_settings([cut], {"default": 1}) == best_settings([], {"default": 1}) == {"default": 1}
    with pytest.raises(TrainingError, match=r"no trial finished \(2 tried\): no memory"):
        best_settings([failed, cut], {})


def test_a_setting_that_lightgbm_does_not_have_is_named() -> None:
    with pytest.raises(ConfigError, match="did you mean rounds"):
        build(AutomlConfig, {"settings": {"round": 3}})
