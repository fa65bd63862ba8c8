"""Recursive feature elimination: noise goes first, what matters stays, and no held-out row takes part in selection."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dkt_ray.errors import ConfigError
from dkt_ray.features.batch import Rows
from dkt_ray.models.lgbm import LightGBMConfig
from dkt_ray.training import elimination
from dkt_ray.training.elimination import eliminate, restricted, step_sizes
from dkt_ray.training.progress import TrainingData
from tests.contract import world as w

STRONG, NOISE = "user_test_count", ("test_size", "concept_graded", "elo_user")  # columns whose values are planted
CONFIG = LightGBMConfig(
    number_names=("question_log_odds", "user_log_odds", *NOISE, "user_concept_log_odds", STRONG),
    columns=("test",),
    categorical=("test",),
    cat_smooth=5,
    cat_l2=5,
    min_data_per_group=20,
    rounds=30,
    num_leaves=7,
    min_data_in_leaf=10,
)


def planted(data: TrainingData) -> TrainingData:
    """One column that nearly tells the answer, and three that tell nothing."""
    names = data.state.number_names

    def written(rows: Rows, seed: int) -> Rows:
        rng, numbers = np.random.default_rng(seed), rows.numbers.copy()
        numbers[:, names.index(STRONG)] = (rows.correct == 1) + rng.normal(0, 0.7, rows.rows)
        numbers[:, [names.index(name) for name in NOISE]] = rng.normal(0, 1, (rows.rows, len(NOISE)))
        return dataclasses.replace(rows, numbers=numbers)

    return dataclasses.replace(data, train=written(data.train, 1), valid=written(data.valid, 2))


@pytest.fixture(scope="module")
def folds() -> list[TrainingData]:
    return [planted(w.World.of(w.students(150, seed=seed)).data) for seed in (1, 2)]


def test_without_time_every_fold_takes_its_first_step_only(folds):
    found = eliminate(CONFIG, iter(folds), folds[0], share=0, fold_s=0.0)
    assert found.sizes == (8,)
    assert found.auc.shape == (2, 1)
    assert sorted(found.columns) == sorted([*CONFIG.number_names, *CONFIG.columns])
    assert found.dropped == ()


def test_noise_goes_first_and_what_matters_stays(folds):
    found = eliminate(CONFIG, iter(folds), folds[0], share=0)
    assert found.sizes == (8, 7, 6, 5, 4, 3, 2, 1)
    assert found.auc.shape == (2, 8)
    assert found.curve[found.size] == max(found.curve.values())
    assert len(found.columns) == found.size
    assert sorted([*found.columns, *found.dropped]) == sorted([*CONFIG.number_names, *CONFIG.columns])
    assert STRONG in found.columns
    assert set(found.dropped[:3]) == set(NOISE)
    alone = list(elimination._steps(CONFIG, folds[0], found.sizes))[-1]
    assert alone.columns.names == [STRONG]
    assert found.nested_auc <= found.curve[found.size]


def test_no_held_out_row_takes_part_in_selection(folds, monkeypatch):
    """Other held-out answers, other held-out rows: each fold drops the same columns, and only its own curve changes."""
    orders: list[list[str]] = []
    steps = elimination._steps

    def watched(config: LightGBMConfig, data: TrainingData, sizes: tuple[int, ...]):
        for model in steps(config, data, sizes):
            orders.append(model.columns.names)
            yield model

    monkeypatch.setattr(elimination, "_steps", watched)
    before, seen = eliminate(CONFIG, folds, folds[0]), list(orders)
    orders.clear()
    valid = folds[0].valid
    other = dataclasses.replace(valid, correct=(1 - valid.correct), numbers=valid.numbers[::-1].copy())
    after = eliminate(CONFIG, [dataclasses.replace(folds[0], valid=other), folds[1]], folds[0])
    in_folds = 2 * len(before.sizes)
    assert orders[:in_folds] == seen[:in_folds]
    assert (before.auc[0] != after.auc[0]).all()
    np.testing.assert_array_equal(before.auc[1], after.auc[1])
    # a fold that would look at its held-out answers is found
    monkeypatch.setattr(elimination, "replace", lambda data, valid: dataclasses.replace(data, train=data.valid))
    orders.clear()
    eliminate(CONFIG, [dataclasses.replace(folds[0], valid=other), folds[1]], folds[0])
    assert orders[:in_folds] != seen[:in_folds]


def test_the_nested_figure_of_a_fold_is_taken_where_the_others_peak():
    curves = np.array([[0.6, 0.9, 0.5], [0.8, 0.7, 0.5], [0.8, 0.7, 0.5]])
    assert elimination._best(curves) == 1
    assert elimination._nested(curves) == pytest.approx((0.6 + 0.7 + 0.7) / 3)
    assert elimination._best(np.array([[0.5, 0.7, 0.7]])) == 2, "the fewest columns among equals"


def test_one_fold_and_a_fold_without_an_auc_are_refused(folds):
    with pytest.raises(ConfigError, match="got 1 folds; it needs at least 2"):
        eliminate(CONFIG, folds[:1], folds[0], share=0.9)
    valid = folds[1].valid
    right = dataclasses.replace(valid, correct=np.ones_like(valid.correct))
    with pytest.raises(ConfigError, match=r"fold 1 holds out \d+ answers, right or wrong ones only"):
        eliminate(CONFIG, [folds[0], dataclasses.replace(folds[1], valid=right)], folds[0], share=0.9)


def test_sizes_fall_to_one_by_a_share():
    assert step_sizes(10, 0.3) == (10, 7, 5, 4, 3, 2, 1)
    assert step_sizes(4, 0.0) == (4, 3, 2, 1)
    assert step_sizes(1, 0.5) == (1,)


def test_restricted_settings_keep_their_order():
    kept = restricted(CONFIG, CONFIG.number_names, ["test", "user_log_odds", "question_log_odds"])
    assert (kept.number_names, kept.columns, kept.categorical) == (
        ("question_log_odds", "user_log_odds"),
        ("test",),
        ("test",),
    )
    assert restricted(CONFIG, CONFIG.number_names, ["user_log_odds"]).categorical == ()
