"""Importance of settings: what decides the score comes first, and nothing is claimed of too little."""

from __future__ import annotations

import numpy as np
import pytest

from dkt_ray.training.sensitivity import LEAST, importance, varied

RNG = np.random.default_rng(5)
SETTINGS = [
    {"rate": float(10 ** RNG.uniform(-4, -1)), "width": int(RNG.choice([32, 64])), "kind": "ab"[k % 2], "same": None}
    for k in range(30)
]


@pytest.mark.parametrize("deciding", ["rate", "width", "kind"])
def test_the_setting_that_decides_the_score_comes_first(deciding: str) -> None:
    worth = {"rate": lambda s: np.log10(s["rate"]), "width": lambda s: s["width"], "kind": lambda s: ord(s["kind"])}
    shares = importance(SETTINGS, [float(worth[deciding](each)) for each in SETTINGS], log=("rate",))
    assert next(iter(shares)) == deciding
    assert shares[deciding] > 0.8
    assert set(shares) == {"rate", "width", "kind"}
    assert sum(shares.values()) == pytest.approx(1)


def test_too_few_trials_equal_scores_and_equal_settings_say_nothing() -> None:
    scores = [float(k) for k in range(len(SETTINGS))]
    assert importance(SETTINGS[: LEAST - 1], scores[: LEAST - 1]) == {}
    assert importance(SETTINGS, [0.7] * len(SETTINGS)) == {}
    assert importance([SETTINGS[0]] * len(SETTINGS), scores) == {}
    assert varied([]) == []
