"""`ensemble.shift`: the oldest rows are dropped, the answer is never read, and one shift is the network itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dkt_ray.data.history import Histories, ranges
from dkt_ray.ensemble import member
from dkt_ray.ensemble.shift import Shifted
from dkt_ray.errors import ConfigError
from dkt_ray.features.encoder import EncoderConfig, encode
from dkt_ray.models.catalog import CATALOG
from dkt_ray.models.network import Network
from dkt_ray.training.fit import fit
from tests import bundles
from tests.contract import world as w

FAMILIES = ("lstm_attention", "saint")
CONTEXT = w.TINY["context"]
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def world() -> w.World:
    return w.World.of(w.students(60, seed=11), EncoderConfig(bundle="test_run"))


@pytest.fixture(scope="module")
def networks(world: w.World) -> dict[str, Network]:
    return {name: fit(name, w.tiny(CATALOG[name], epochs=1), world.data).model for name in FAMILIES}


@pytest.fixture(scope="module")
def others() -> Histories:
    """Students whom no network has seen, the first with one row."""
    histories = w.students(12, seed=12)
    return histories.head(np.append(1, histories.lengths[1:]))


@every_family
def test_one_shift_is_the_network_bit_for_bit(family, networks, world, others):
    rows = encode(others, None, world.state).past
    expected = networks[family].score(rows, rows)
    np.testing.assert_array_equal(Shifted.of(networks[family], 1).score(rows, rows), expected)
    np.testing.assert_array_equal(Shifted.of(networks[family], 3, [2, 0, 0]).score(rows, rows), expected)
    assert (Shifted.of(networks[family], 3).score(rows, rows) != expected).mean() > 0.5


@every_family
def test_neither_the_own_answer_nor_anything_later_is_read(family, networks, world):
    """Row 8.1 of the reference: two of its three averaged probabilities had read the answer to be predicted."""
    shifted = Shifted.of(networks[family], 3)
    w.check_future_property(shifted, w.students(24, seed=4), world.state)
    w.check_many_targets(shifted, w.students(24, seed=4), world.state)


class Rolled(Shifted):
    """The reference's: the answers move to the left, and the target's own one into the rows that it reads."""

    def score(self, past, targets):
        rolled = replace(past, correct=np.roll(past.correct, -1))
        return (super().score(rolled, rolled if targets is past else targets) + super().score(past, targets)) / 2


def test_the_leak_of_the_reference_is_found(networks, world):
    with pytest.raises(AssertionError, match="an answer moved a row that may not read it"):
        w.check_future_property(Rolled.of(networks["saint"], 2), w.students(24, seed=4), world.state)


@every_family
def test_a_shift_is_the_history_without_its_oldest_rows(family, networks, world, others):
    """Against copies that lack the rows, of histories that lie in one context."""
    short = others.head(np.minimum(others.lengths, CONTEXT - 1))
    encoded = encode(short, w.candidates(short, 3, seed=6), world.state)
    expected = np.zeros(encoded.targets.rows)
    for dropped in range(3):
        start = np.minimum(encoded.past.offsets[:-1] + dropped, encoded.past.offsets[1:])
        truncated = encoded.past.take(*ranges(start, encoded.past.offsets[1:]))
        expected += networks[family].score(truncated, encoded.targets) / 3
    found = Shifted.of(networks[family], 3).score(encoded.past, encoded.targets)
    np.testing.assert_allclose(found, expected, **w.EQUAL)


@every_family
def test_of_a_long_history_the_oldest_rows_that_are_read_are_dropped(family, networks, world, others):
    """Target by target, by the context rule: position t reads rows from (floor(t / C) - 1) * C on."""
    network, weights = networks[family], np.array([0.5, 0.3, 0.2])
    rows = encode(others.select(np.array([int(others.lengths.argmax())])), None, world.state).past
    assert rows.rows > 2 * CONTEXT
    flat = network.flatten(rows)
    expected = []
    for t in range(rows.rows):
        start = max(t // CONTEXT - 1, 0) * CONTEXT
        parts = [np.array([[min(start + s, t), t, t, t + 1]]) for s in range(3)]
        expected.append(weights @ [network.probabilities(flat, flat, part)[t] for part in parts])
    found = Shifted.of(network, 3, weights).score(rows, rows)
    np.testing.assert_allclose(found, expected, **w.EQUAL)


@every_family
def test_more_shifts_than_rows_leave_an_empty_past(family, networks, world, others):
    nothing = others.head(np.zeros(len(others.users), np.int64))
    cold = encode(nothing, w.candidates(others, 1, seed=6), world.state)
    encoded = encode(others, w.candidates(others, 1, seed=6), world.state)
    many = Shifted.of(networks[family], 40, [0] * 39 + [1])
    assert others.lengths.min() == 1
    blank = encoded.past.take(np.empty(0, np.int64), np.zeros_like(encoded.past.offsets))
    expected = networks[family].score(blank, encoded.targets)
    np.testing.assert_allclose(many.score(encoded.past, encoded.targets), expected, **w.EQUAL)
    assert np.isfinite(many.score(cold.past, cold.targets)).all()


@pytest.mark.parametrize("weights", [None, [3, 1]])
def test_a_shift_form_comes_back(weights, networks, world, others, tmp_path):
    rows = encode(others, None, world.state).past
    shifted = Shifted.of(networks["saint"], 2, weights)
    member.save(shifted, tmp_path)
    again = member.load(tmp_path)
    assert isinstance(again, Shifted)
    np.testing.assert_array_equal(again.score(rows, rows), shifted.score(rows, rows))
    assert (tmp_path / "0" / "network.json").exists()
    with pytest.raises(ConfigError, match="the encoder has other"):
        again.check(["other"])


@pytest.mark.parametrize(
    ("shifts", "weights", "message"),
    [
        (0, None, "shifts is 0"),
        (2, [1.0], r"weights \[1.0\] of 2 shifts"),
        (2, [1.0, -1.0], "give 2 numbers >= 0"),
        (2, [0.0, 0.0], "not all 0"),
        (2, [float("nan"), 1.0], "give 2 numbers"),
    ],
)
def test_impossible_shifts_are_refused(shifts, weights, message, networks):
    with pytest.raises(ConfigError, match=message):
        Shifted.of(networks["saint"], shifts, weights)


def test_only_networks_have_a_shift_form():
    with pytest.raises(ConfigError, match="LightGBM reads no rows of the past one by one"):
        Shifted.of(bundles.trained()["lightgbm"], 3)
