"""Which combination is served: no row sees its own label, members of no use go, and a calibrator must help."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dkt_ray.config import build
from dkt_ray.ensemble import methods
from dkt_ray.ensemble.chain import logit, sigmoid
from dkt_ray.ensemble.choice import Members, Way, choose, drop, finish, stability
from dkt_ray.ensemble.methods import METHODS, nested, rank_mean
from dkt_ray.errors import ConfigError
from dkt_ray.metrics import auc, log_loss
from dkt_ray.pipelines.combine import CombineConfig, combine
from tests.unit.test_chain import NAMES, scored

FOLDS = 3


def members(rows: int = 3000, seed: int = 0) -> Members:
    p, y, length = scored(rows, seed)
    user = (np.arange(rows) // 10).astype(np.int32)
    return Members(NAMES, p, y, length, (user % FOLDS).astype(np.int8), user)


def with_column(given: Members, name: str, column: Any) -> Members:
    return replace(given, names=(*given.names, name), p=np.column_stack([given.p, column]))


def config(**settings: Any) -> CombineConfig:
    return build(CombineConfig, {"tune_trials": 0} | settings)


@pytest.mark.parametrize("name", METHODS)
def test_no_row_sees_its_own_label(name: str) -> None:
    given = members()
    before = given.nested(METHODS[name])
    flipped = np.where(given.fold == 1, 1 - given.y, given.y).astype(np.int8)
    after = nested(METHODS[name], given.p, flipped, given.length, given.fold)
    np.testing.assert_array_equal(after[given.fold == 1], before[given.fold == 1])
    if name not in ("equal", "logit"):  # the others do learn from labels
        assert (after[given.fold != 1] != before[given.fold != 1]).any()


@pytest.mark.parametrize("name", METHODS)
def test_every_way_ranks_better_than_a_plain_member_and_the_plain_mean(name: str) -> None:
    given = members(20_000)
    found = auc(given.y, given.nested(METHODS[name]))
    assert found > auc(given.y, given.p[:, 1])
    if name not in ("equal", "logit"):  # which cannot leave the noise out
        assert found > auc(given.y, given.nested(METHODS["equal"])) - 0.001


def test_ensemble_selection_leaves_noise_out_and_does_not_depend_on_names() -> None:
    given = members()
    weights = np.array(given.fitted(methods.greedy).weights)
    assert weights[0] > 0.5
    assert weights[2] < 0.2


def test_ranks_are_means_of_ranks() -> None:
    p = np.array([[0.1, 0.9], [0.5, 0.5], [0.9, 0.7]])
    np.testing.assert_allclose(rank_mean(p), [(1 / 3 + 1) / 2, (2 / 3 + 1 / 3) / 2, (1 + 2 / 3) / 2])


def test_the_best_way_is_chosen_without_the_fold_it_is_judged_on() -> None:
    given = members()
    right = np.where(given.y == 1, 0.9, 0.1)
    here = given.fold == 0
    cheat = Way(METHODS["equal"](given.p, given.y, given.length), np.where(here, right, 0.5))  # good on fold 0 only
    plain = Way(METHODS["simplex"](given.p, given.y, given.length), given.nested(METHODS["simplex"]))
    name, column = choose({"plain": plain, "cheat": cheat}, given)
    expected = min(("plain", "cheat"), key=lambda way: log_loss(given.y, {"plain": plain, "cheat": cheat}[way].nested))
    assert name == expected
    np.testing.assert_array_equal(column[here], plain.nested[here])  # elsewhere it was bad, so fold 0 never gets it


def test_a_copy_is_dropped_and_a_useful_member_stays() -> None:
    given = members()
    kept, removals = drop(METHODS["simplex"], with_column(given, "copy", given.p[:, 0]), 0.0005, 1)
    assert len({"sharp", "copy"} & {*kept.names}) == 1
    assert "dull" in kept.names
    assert "noise" not in kept.names
    dropped = [removal.member for removal in removals if removal.dropped]
    assert {*dropped} == {*NAMES, "copy"} - {*kept.names}
    assert {removal.member for removal in removals} == {*NAMES, "copy"}
    assert all(removal.cost < 0.0005 for removal in removals if removal.dropped)
    assert all(removal.cost >= 0.0005 for removal in removals if not removal.dropped)
    assert drop(METHODS["simplex"], given, 0.0005, 3)[1] == []


def test_a_calibrator_stays_only_where_it_helps() -> None:
    given = members(20_000)
    honest = given.p[:, 0]
    sharpened = sigmoid(2.5 * logit(honest))
    alone = given.of(("sharp",))
    way = Way(METHODS["equal"](alone.p, given.y, given.length), sharpened)
    served = finish(way, alone, "best")
    assert served.chain.calibrator is not None
    assert log_loss(given.y, served.nested) < log_loss(given.y, sharpened) - 0.01
    np.testing.assert_array_equal(served.uncalibrated, sharpened)
    truth = with_column(given, "truth", sigmoid(np.random.default_rng(0).normal(size=20_000)))
    y = (np.random.default_rng(1).random(20_000) < truth.p[:, 3]).astype(np.int8)
    calibrated = replace(truth, y=y).of(("truth",))
    kept = finish(Way(METHODS["equal"](calibrated.p, y, given.length), calibrated.p[:, 0]), calibrated, "temperature")
    assert log_loss(y, kept.nested) <= log_loss(y, calibrated.p[:, 0])
    assert finish(way, alone, "none").chain.calibrator is None


def test_calibrated_scores_do_not_see_their_own_fold() -> None:
    given = members().of(("sharp",))
    sharpened = sigmoid(2.5 * logit(given.p[:, 0]))
    way = Way(METHODS["equal"](given.p, given.y, given.length), sharpened)
    before = finish(way, given, "isotonic").nested
    flipped = replace(given, y=np.where(given.fold == 2, 1 - given.y, given.y).astype(np.int8))
    after = finish(way, flipped, "isotonic")
    if after.chain.calibrator is not None:
        np.testing.assert_array_equal(after.nested[given.fold == 2], before[given.fold == 2])


def test_shares_have_intervals_over_users() -> None:
    given = members()
    found = stability(METHODS["simplex"], given, seed=0)
    assert {*found} == {*NAMES}
    for estimate in found.values():
        assert 0 <= estimate["low"] <= estimate["high"] <= 1
    assert found["sharp"]["low"] > found["noise"]["high"]
    assert stability(METHODS["simplex"], given, seed=0) == found


def test_what_is_served_is_what_the_settings_say() -> None:
    given = members()
    made = combine(config(), given)
    assert made.method in METHODS
    assert set(made.ways) == {*METHODS}
    assert made.chosen is not None
    assert set(made.served.chain.members) < {*NAMES}  # the noise went
    for name in METHODS:
        assert combine(config(method=name, drop_below=0, at_least=3), given).served.chain.members == NAMES
    fixed = combine(config(method="fixed", ratio={"sharp": 8, "dull": 1, "noise": 1}), given)
    assert fixed.served.chain.combination.weights == pytest.approx((0.8, 0.1, 0.1))
    assert fixed.served.removals == []
    alone = combine(config(), given.of(("dull",)))
    assert alone.served.chain.members == ("dull",)


def test_settings_that_contradict_each_other_are_refused() -> None:
    for settings, message in (
        ({"weights": {"a": 0.5, "b": 0.6}}, r"add up to 1\.1; expected 1"),
        ({"weights": {"a": 1}, "ratio": {"a": 1}}, "not both"),
        ({"method": "fixed"}, "needs a ratio or weights"),
        ({"method": "tuned"}, "set tune_trials to 1 or more"),
        ({"method": "median"}, "method is 'median'"),
        ({"calibrator": "platt"}, "calibrator is 'platt'"),
    ):
        with pytest.raises(ConfigError, match=message):
            config(**settings)
    with pytest.raises(ConfigError, match="missing: noise"):
        combine(config(method="fixed", ratio={"sharp": 1, "dull": 1}), members())
