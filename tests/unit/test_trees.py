"""`models.trees` says bit for bit what LightGBM's own package says."""

from __future__ import annotations

import pickle

import lightgbm as lgb
import numpy as np
import pytest

from dkt_ray.errors import ConfigError
from dkt_ray.models.trees import Trees

ROWS, COLUMNS = 400, 5


def fit(**settings):
    random = np.random.default_rng(0)
    matrix = random.normal(size=(ROWS, COLUMNS)).astype(np.float32)
    matrix[random.random(matrix.shape) < 0.1] = np.nan
    right = (np.nan_to_num(matrix[:, 0]) + random.normal(size=ROWS) > 0).astype(float)
    settings = {"objective": "binary", "num_threads": 1, "verbosity": -1, "min_data_in_leaf": 5} | settings
    booster = lgb.train(settings, lgb.Dataset(matrix, right), 12)
    return booster, matrix


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("threads", [0, 1])
def test_trees_say_what_the_package_says(dtype, threads):
    booster, matrix = fit()
    trees, matrix = Trees(booster.model_to_string()), matrix.astype(dtype)
    for say, option in (("probability", None), ("log-odds", "raw_score"), ("contributions", "pred_contrib")):
        expected = booster.predict(matrix, num_threads=threads, **({option: True} if option else {}))
        found = trees.predict(matrix, threads, say)
        np.testing.assert_array_equal(found, expected, strict=True)
        np.testing.assert_array_equal(trees.predict(np.asfortranarray(matrix), threads, say), expected)
        np.testing.assert_array_equal(trees.predict(matrix[7:8], threads, say), expected[7:8])
    for kind in ("gain", "split"):
        np.testing.assert_array_equal(trees.importance(kind), booster.feature_importance(kind))
    assert (trees.rounds, trees.columns) == (booster.num_trees(), COLUMNS)


def test_trees_travel_as_their_text():
    booster, matrix = fit()
    text = booster.model_to_string()
    trees = pickle.loads(pickle.dumps(Trees(text)))
    assert trees.text == text
    np.testing.assert_array_equal(trees.predict(matrix, 1), booster.predict(matrix))


def test_what_cannot_be_scored_is_refused():
    """Never read or written beyond an array: that would end the process, or worse."""
    with pytest.raises(ConfigError, match="LightGBM: Model file doesn't specify"):
        Trees("tree")
    booster, matrix = fit()
    with pytest.raises(ConfigError, match=r"number of features in data \(4\)"):
        Trees(booster.model_to_string()).predict(matrix[:, :4], 1)
    classes, matrix = fit(objective="multiclass", num_class=3)
    with pytest.raises(ConfigError, match=f"the trees say {3 * ROWS} numbers of {ROWS} rows, expected {ROWS}"):
        Trees(classes.model_to_string()).predict(matrix, 1)
