"""Whatever the members say: weights are on the simplex and optimal, and a blend stays between its members."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dkt_ray.ensemble.blend import blend, fit_simplex, fixed, optimality_gap
from dkt_ray.ensemble.methods import nested, simplex

PROBABILITY = st.floats(0, 1) | st.sampled_from([0.0, 1.0, 0.5, 1e-9])


@st.composite
def scored(draw):
    rows, members = draw(st.integers(1, 30)), draw(st.integers(1, 5))
    p = draw(hnp.arrays(np.float64, (rows, members), elements=PROBABILITY))
    y = draw(hnp.arrays(np.int8, rows, elements=st.integers(0, 1)))
    return p, y


@given(scored())
def test_fitted_weights_are_on_the_simplex_and_optimal(case):
    p, y = case
    weights = fit_simplex(p, y)
    assert (weights >= 0).all()
    assert abs(weights.sum() - 1) < 1e-12
    assert optimality_gap(p, y, weights) < 2e-6


@given(scored(), st.data())
def test_a_blend_lies_between_its_members(case, data):
    p, _ = case
    names = [f"m{k}" for k in range(p.shape[1])]
    parts = data.draw(
        st.lists(st.floats(0, 100), min_size=len(names), max_size=len(names)).filter(lambda v: sum(v) > 0)
    )
    weights = fixed(dict(zip(names, parts, strict=True)), names)
    mixed = blend(p, weights)
    used = p[:, weights > 0]
    assert (mixed >= used.min(1) - 1e-12).all()
    assert (mixed <= used.max(1) + 1e-12).all()
    assert ((mixed >= 0) & (mixed <= 1)).all()


@given(scored(), st.randoms(use_true_random=False))
def test_a_row_is_blended_alike_alone_in_any_order_and_any_layout(case, random):
    p, y = case
    weights = fit_simplex(p, y)
    whole = blend(p, weights)
    order = np.array(random.sample(range(len(p)), len(p)))
    np.testing.assert_array_equal(blend(np.asfortranarray(p[order]), weights), whole[order])
    np.testing.assert_array_equal(blend(p[:1], weights), whole[:1])


@given(scored(), st.integers(1, 4))
def test_nested_scores_are_blends_of_the_members(case, folds):
    p, y = case
    fold = (np.arange(len(p)) % folds).astype(np.int8)
    mixed = nested(simplex, p, y, np.zeros(len(p), np.int32), fold)
    assert ((mixed >= p.min(1) - 1e-12) & (mixed <= p.max(1) + 1e-12)).all()
