"""The share of right answers that lower a concept's mastery, on models whose direction is known."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from dkt_ray.data.history import Coded, Histories
from dkt_ray.ensemble.chain import Chain
from dkt_ray.ensemble.mastery import lowered_share
from dkt_ray.ensemble.scorer import Scorer
from dkt_ray.features.encoder import EncoderConfig, fit_histories
from dkt_ray.features.student import FEATURE

ANSWERS = [1, 1, 0, 1, 1, 0, 1]


@dataclass
class Follows:
    """Believes, or defies, the student's record on the question's concepts."""

    sign: float

    def score(self, past: Any, targets: Any) -> np.ndarray:
        """Log-odds of the record, up or down."""
        own = targets.numbers[:, list(FEATURE).index("user_concept_log_odds")].astype(float)
        return 1 / (1 + np.exp(-self.sign * own))


def history() -> Histories:
    rows = len(ANSWERS)
    questions, concepts = Coded.of(["a", "b"] * 3 + ["a"]), Coded.of(["1", "2"] * 3 + ["1"])
    return Histories(
        np.array(["u", "v"], object), np.array([0, 4, rows]), questions, Coded.constant("", rows), concepts,
        np.array(ANSWERS, np.int8),
    )  # fmt: skip


@pytest.mark.parametrize(("sign", "share"), [(1.0, 0.0), (-1.0, 1.0)])
def test_direction(sign: float, share: float) -> None:
    state = fit_histories(history(), np.zeros(2, np.int8), EncoderConfig(min_count=1))
    scorer = Scorer(state, {"follows": Follows(sign)}, Chain.weighted({"follows": 1.0}))
    probes = {"1": ["a"], "2": ["b"]}
    assert lowered_share(scorer, history(), probes, sample=100, seed=0) == share
    assert lowered_share(scorer, history(), {}, sample=100, seed=0) is None
