"""The ensemble's arithmetic: the reference ratio, its refusals, and the fitted weights against a fine grid."""

import numpy as np
import pytest

from dkt_ray.ensemble.blend import blend, equal, fit_simplex, fixed, optimality_gap
from dkt_ray.ensemble.methods import nested, simplex
from dkt_ray.errors import ConfigError

REFERENCE = {"bert": 8, "saint": 1, "lightgbm": 0.5, "lstm_attention": 0.5}


def members(rows=4000, seed=0):
    """Two noisy views of one truth, the first one sharper."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=rows)
    y = (rng.random(rows) < 1 / (1 + np.exp(-z))).astype(np.int8)
    return 1 / (1 + np.exp(-(z[:, None] + rng.normal(size=(rows, 2)) * [0.5, 0.9]))), y


def loss(p, y, weights):
    mixed = p @ weights
    return -np.log(np.where(y == 1, mixed, 1 - mixed)).mean()


def test_the_reference_ratio_8_1_05_05():
    weights = fixed(REFERENCE, ["lightgbm", "bert", "lstm_attention", "saint"])
    np.testing.assert_allclose(weights, [0.05, 0.8, 0.05, 0.1], rtol=0, atol=1e-15)
    p = np.array([[0.2, 0.9, 0.4, 0.6]])
    assert blend(p, weights)[0] == pytest.approx((0.5 * 0.2 + 8 * 0.9 + 0.5 * 0.4 + 1 * 0.6) / 10, abs=1e-15)


def test_plain_soft_voting_is_the_mean():
    p, _ = members(50)
    np.testing.assert_allclose(blend(p, equal(2)), p.mean(1), rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("ratio", "message"),
    [
        ({"a": 1}, "missing: b"),
        ({"a": 1, "b": 1, "c": 1}, "not a member: c"),
        ({"a": 1, "b": -1}, "expected numbers >= 0"),
        ({"a": 0, "b": 0}, "at least one of them above 0"),
        ({"a": 1, "b": float("nan")}, "expected numbers"),
        ({}, "names nobody"),
    ],
)
def test_a_ratio_that_does_not_fit_is_refused(ratio, message):
    with pytest.raises(ConfigError, match=message):
        fixed(ratio, ["a", "b"])


def test_fitted_weights_beat_a_fine_grid():
    p, y = members()
    weights = fit_simplex(p, y)
    grid = [np.array([w, 1 - w]) for w in np.linspace(0, 1, 1001)]
    best = min(grid, key=lambda w: loss(p, y, w))
    assert loss(p, y, weights) <= loss(p, y, best)
    assert weights == pytest.approx(best, abs=2e-3)
    assert 0.02 < weights[1] < weights[0]  # both are of use, the sharper one more
    assert optimality_gap(p, y, weights) < 1e-6
    assert optimality_gap(p, y, equal(2)) > 1e-4


def test_a_useless_member_gets_exactly_nothing():
    rng = np.random.default_rng(1)
    truth = rng.random(4000)
    y = (rng.random(4000) < truth).astype(np.int8)
    weights = fit_simplex(np.column_stack([truth, 1 - truth, rng.random(4000)]), y)
    assert weights[1] == 0
    assert weights[0] > 0.97


def test_one_member_or_no_rows_need_no_fit():
    p, y = members(10)
    np.testing.assert_array_equal(fit_simplex(p[:, :1], y), [1.0])
    np.testing.assert_array_equal(fit_simplex(p[:0], y[:0]), [0.5, 0.5])


def test_certain_and_wrong_members_do_not_break_the_fit():
    p, y = np.array([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]]), np.array([1, 0, 1], np.int8)
    weights = fit_simplex(p, y)
    assert np.isfinite(weights).all()
    assert optimality_gap(p, y, weights) < 1e-6


def nested_blend(p, y, fold):
    return nested(simplex, p, y, np.zeros(len(p), np.int32), fold)


def test_nested_weights_never_see_their_own_fold():
    p, y = members(3000)
    fold = (np.arange(3000) % 3).astype(np.int8)
    blended = nested_blend(p, y, fold)
    for k in range(3):
        rows = fold == k
        np.testing.assert_array_equal(blended[rows], blend(p[rows], fit_simplex(p[~rows], y[~rows])))
    flipped = np.where(fold == 1, 1 - y, y).astype(np.int8)
    np.testing.assert_array_equal(nested_blend(p, flipped, fold)[fold == 1], blended[fold == 1])
    assert (nested_blend(p, flipped, fold)[fold == 0] != blended[fold == 0]).any()


def test_nested_with_a_single_fold_falls_back_to_equal_weights():
    p, y = members(20)
    np.testing.assert_array_equal(nested_blend(p, y, np.zeros(20, np.int8)), blend(p, equal(2)))
