"""The chain as data: rows alone and together, JSON there and back, and what is refused by name."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from dkt_ray.config import build
from dkt_ray.ensemble import methods
from dkt_ray.ensemble.chain import Boosted, Chain, Isotonic, Logistic, Temperature, Weighted, logit, sigmoid
from dkt_ray.errors import ConfigError

ROWS = 3000
NAMES = ("sharp", "dull", "noise")


def scored(rows: int = ROWS, seed: int = 0) -> tuple[Any, Any, Any]:
    """Three members of falling use, the answers, and the lengths of the histories."""
    random = np.random.default_rng(seed)
    z = random.normal(size=rows)
    y = (random.random(rows) < sigmoid(z)).astype(np.int8)
    views = z[:, None] * [1, 1, 0] + random.normal(size=(rows, 3)) * [0.4, 1.0, 1.0]
    return sigmoid(views), y, random.integers(0, 300, rows).astype(np.int32)


def chains() -> dict[str, Chain]:
    p, y, length = scored()
    found = {name: Chain.of(NAMES, fit(p, y, length)) for name, fit in methods.METHODS.items()}
    ends = {name: fit(p[:, 1], y) for name, fit in methods.CALIBRATORS.items()}
    return found | {name: found["simplex"].model_copy(update={"calibrator": end}) for name, end in ends.items()}


@pytest.mark.parametrize("name", [*methods.METHODS, *methods.CALIBRATORS])
def test_a_row_gets_the_same_alone_in_any_order_and_after_json(name: str) -> None:
    chain, (p, _, length) = chains()[name], scored(500, seed=1)
    whole = chain.apply(p, length)
    assert ((whole >= 0) & (whole <= 1)).all()
    order = np.random.default_rng(0).permutation(500)
    again = build(Chain, json.loads(json.dumps(chain.model_dump(mode="json"))))
    assert again == chain
    np.testing.assert_array_equal(again.apply(np.asfortranarray(p[order]), length[order]), whole[order])
    alone = [chain.apply(p[row : row + 1], length[row : row + 1])[0] for row in range(50)]
    np.testing.assert_array_equal(alone, whole[:50])
    assert chain.apply(p[:0], length[:0]).shape == (0,)


@pytest.mark.parametrize("name", [*methods.METHODS, *methods.CALIBRATORS])
def test_shares_are_parts_of_one(name: str) -> None:
    shares = chains()[name].shares
    assert tuple(shares) == NAMES
    assert sum(shares.values()) == pytest.approx(1, abs=1e-12)
    if name not in ("equal", "logit"):
        assert shares["sharp"] > shares["noise"]


def test_means_are_means() -> None:
    p = np.array([[0.2, 0.8], [0.5, 0.9]])
    length = np.zeros(2, np.int32)
    of_logits = Weighted(kind="logit", weights=(0.25, 0.75)).apply(p, length)
    np.testing.assert_allclose(of_logits, sigmoid(0.25 * logit(p[:, 0]) + 0.75 * logit(p[:, 1])), rtol=0, atol=1e-15)
    of_probabilities = Weighted(kind="probability", weights=(0.25, 0.75)).apply(p, length)
    np.testing.assert_allclose(of_probabilities, [0.65, 0.8], rtol=0, atol=1e-15)


def test_a_logistic_stack_is_the_regression_that_it_says() -> None:
    p, length = np.array([[0.3, 0.6]]), np.array([7], np.int32)
    stack = Logistic(intercept=0.1, coefficients=(0.5, 0.4, -0.2, 0.03, 0.02))
    z, rows = logit(p)[0], np.log(8)
    expected = 0.1 + 0.5 * z[0] + 0.4 * z[1] - 0.2 * rows + 0.03 * z[0] * rows + 0.02 * z[1] * rows
    assert stack.apply(p, length)[0] == pytest.approx(sigmoid(np.array(expected)), abs=1e-12)


def test_certain_members_give_finite_results() -> None:
    p, length = np.array([[0.0, 1.0, 0.5], [1.0, 1.0, 1.0]]), np.array([0, 5], np.int32)
    for name, chain in chains().items():
        assert np.isfinite(chain.apply(p, length)).all(), name


@pytest.mark.parametrize("name", methods.CALIBRATORS)
def test_a_calibrator_keeps_the_order(name: str) -> None:
    p, y, _ = scored()
    calibrated = methods.CALIBRATORS[name](p[:, 1], y).apply(np.sort(p[:, 1]))
    assert (np.diff(calibrated) >= 0).all()
    assert len(np.unique(calibrated)) > 0.999 * len(calibrated)  # lines, not steps


MEAN = {"kind": "probability", "weights": [0.5, 0.5]}
WHOLE = {"members": ["a", "b"], "combination": MEAN, "shares": {"a": 0.5, "b": 0.5}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"members": ["a", "a"]}, "expected each once"),
        ({"members": ["a", "b", "c"]}, "combination is of 2 members, there are 3"),
        ({"shares": {"a": 1.0}}, r"shares name \['a'\], the members are \['a', 'b'\]"),
        ({"shares": {"a": float("inf"), "b": 0.5}}, "shares.a"),
        ({"combination": MEAN | {"weights": [0.5, 0.6]}}, r"add up to 1\.1; expected 1"),
        ({"combination": MEAN | {"weights": [float("nan"), 0.6]}}, "nan"),
        ({"combination": {"kind": "median"}}, "median"),
        ({"combination": {"kind": "logistic", "intercept": 0, "coefficients": [1, 2]}}, "expected two per member"),
        ({"combination": {"kind": "boosted", "model": "tree", "members": 2}}, "not LightGBM's text"),
        ({"combination": {"kind": "boosted", "model": "leaf_value=0.1 nan 2", "members": 2}}, "not finite"),
        ({"calibrator": {"kind": "temperature", "temperature": 0}}, "greater than 0"),
        ({"calibrator": {"kind": "isotonic", "at": [0, 1], "becomes": [0.5]}}, "expected as many"),
        ({"calibrator": {"kind": "isotonic", "at": [0, 0.5, 1], "becomes": [0.1, 0.6, 0.5]}}, "must ascend"),
    ],
)
def test_what_is_no_chain_is_refused(change: dict[str, Any], message: str) -> None:
    build(Chain, WHOLE)
    with pytest.raises(ConfigError, match=message):
        build(Chain, WHOLE | change)


def test_a_booster_of_other_columns_is_refused() -> None:
    p, y, length = scored(500)
    model = methods.boosted(p, y, length).model
    with pytest.raises(ValueError, match="reads 4 columns, expected 3"):
        Boosted(model=model, members=2)


def test_calibrators_are_what_they_say() -> None:
    p = np.array([0.2, 0.5, 0.9])
    np.testing.assert_allclose(Temperature(temperature=2).apply(p), sigmoid(logit(p) / 2), rtol=0, atol=1e-15)
    lines = Isotonic(at=(0, 0.5, 1), becomes=(0, 0.4, 1))
    np.testing.assert_allclose(lines.apply(p), [0.16, 0.4, 0.88], rtol=0, atol=1e-12)


def test_tied_scores_are_calibrated_alike_in_any_order() -> None:
    random = np.random.default_rng(0)
    p = random.choice([0.1, 0.3, 0.3000001, 0.6, 0.9], 5000, p=[0.1, 0.5, 0.1, 0.2, 0.1])
    y = (random.random(5000) < p).astype(np.int8)
    order = np.lexsort((y, p))  # within a tie, the wrong answers first
    one, two = methods.isotonic(p, y), methods.isotonic(p[order], y[order])
    np.testing.assert_allclose(one.apply(p), two.apply(p), rtol=0, atol=1e-12)
    np.testing.assert_allclose(one.apply(np.array([0.3, 0.9])), [y[p == 0.3].mean(), y[p == 0.9].mean()], atol=0.01)
