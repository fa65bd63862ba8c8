"""`dkt champion`: what its settings refuse, and what tuning was worth."""

from __future__ import annotations

import numpy as np
import pytest

from dkt_ray.config import build
from dkt_ray.data.history import Coded
from dkt_ray.errors import ConfigError
from dkt_ray.metrics import paired_difference
from dkt_ray.pipelines.champion import ChampionConfig, against_default, default_of
from dkt_ray.training.protocol import Scored

USERS, ROWS = 30, 20


def scored(noise: float, seed: int = 1) -> Scored:
    """Scores that tell an answer from its opposite, the better the less noise there is."""
    draw = np.random.default_rng(0)
    correct = draw.integers(0, 2, USERS * ROWS).astype(np.int8)
    p = np.clip(correct + np.random.default_rng(seed).normal(0, noise, len(correct)), -3, 4)
    names = [f"u{user:02}" for user in range(USERS) for _ in range(ROWS)]
    position = np.tile(np.arange(ROWS, dtype=np.int32), USERS)
    fold = np.repeat(np.arange(USERS) % 3, ROWS).astype(np.int8)
    return Scored(Coded.of(names), position, fold, correct, (p + 3) / 7)


def test_the_gain_of_tuning_is_the_paired_difference_without_first_rows_and_the_fold_of_the_trials() -> None:
    tuned, default = scored(0.5), scored(2.0, seed=2)
    gain = against_default(tuned, default, samples=50, seed=3)
    assert gain["low"] is not None
    assert gain["low"] > 0
    kept = (tuned.position >= 1) & (tuned.fold != 0)
    p, other = tuned.probability[kept], default.probability[kept]
    assert gain == paired_difference(tuned.correct[kept], p, other, tuned.user.codes[kept], 50, 3)
    loss = against_default(default, tuned, samples=50, seed=3)
    assert loss["value"] == pytest.approx(-(gain["value"] or 0))
    assert against_default(tuned, tuned, samples=50, seed=3) == {"value": 0, "low": 0, "high": 0}


def test_the_default_of_a_family_may_be_its_tuned_member_or_missing() -> None:
    facts = {
        "akt": {"family": "akt", "default": True},
        "lstm": {"family": "lstm", "default": False},
        "lstm-default-shift": {"family": "lstm", "default": True},  # before the next one in a store's order
        "lstm-default": {"family": "lstm", "default": True},
        "bert": {"family": "bert", "default": False},
    }
    assert [default_of(family, facts) for family in ("akt", "lstm", "bert")] == ["akt", "lstm-default", None]


@pytest.mark.parametrize("section", ["tune", "ensemble"])
def test_what_all_stages_share_is_given_once(section: str) -> None:
    values = {"data": {"path": "logs.csv"}, section: {"run": "other"}}
    with pytest.raises(ConfigError, match=rf"{section}\.run is 'other': all stages share one run; give it as run"):
        build(ChampionConfig, values)
    with pytest.raises(ConfigError, match=r"unknown setting tune\.trails"):
        build(ChampionConfig, {"data": {"path": "logs.csv"}, "tune": {"trails": 3}})
