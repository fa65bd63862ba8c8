"""Which combination is served: no row's own label, no member without use, and calibration only where it helps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dkt_ray.config import build
from dkt_ray.ensemble import methods
from dkt_ray.ensemble.chain import Boosted, Logistic, logit, sigmoid
from dkt_ray.ensemble.choice import INDIFFERENT, Choice, Members, calibrate, drop, stability
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


def procedure(given: Members, **settings: Any) -> Choice:
    return Choice(given, settings.pop("fits", METHODS), settings.pop("calibration", "best"))


def test_the_whole_procedure_never_reads_labels_of_the_fold_that_it_scores() -> None:
    """Choice of the method, its fit and the calibrator: the chain for fold 1 is the same with other answers there."""
    given = members(900)
    flipped = replace(given, y=np.where(given.fold == 1, 1 - given.y, given.y).astype(np.int8))
    without, other = (procedure(each).chain(frozenset({1})) for each in (given, flipped))
    assert without == other
    assert procedure(given).chain(frozenset({0})) != procedure(flipped).chain(frozenset({0}))
    scored_before, scored_after = (combine(config(at_least=3), each).calibrated for each in (given, flipped))
    np.testing.assert_array_equal(scored_before[given.fold == 1], scored_after[given.fold == 1])


def test_the_simplest_of_methods_that_are_alike_is_chosen() -> None:
    given = members()
    aucs = {name: auc(given.y, given.nested(fit)) for name, fit in METHODS.items()}
    alike = [name for name, value in aucs.items() if value >= max(aucs.values()) - INDIFFERENT - 1e-5]
    assert procedure(given).method() in alike
    twins = {"one": METHODS["logistic"], "two": METHODS["logistic"]}
    assert procedure(given, fits=twins).method() == "one"
    assert procedure(given, fits={"plain": METHODS["equal"], **twins}).method() == "one"  # noise hurts a plain mean


@pytest.mark.parametrize("folds", [1, 2])
def test_few_folds_still_choose_and_calibrate(folds: int) -> None:
    given = members()
    few = replace(given, fold=(given.fold % folds).astype(np.int8))
    chain = procedure(few).chain()
    assert auc(given.y, chain.apply(given.p, given.length)) > auc(given.y, given.p[:, 1])
    made = combine(config(), few)
    if folds == 1:  # nothing else to learn from: its own figures are the plain mean's
        kept = [given.names.index(name) for name in made.chain.members]
        np.testing.assert_allclose(made.calibrated, given.p[:, kept].mean(1), atol=1e-12)


def test_a_copy_is_dropped_and_a_useful_member_stays() -> None:
    given = members()
    kept, removals = drop(METHODS["simplex"], with_column(given, "copy", given.p[:, 0]), 0.0005, 1)
    assert len({"sharp", "copy"} & {*kept.names}) == 1
    assert "dull" in kept.names
    assert "noise" not in kept.names
    dropped = [removal.member for removal in removals if removal.dropped]
    assert {*dropped} == {*NAMES, "copy"} - {*kept.names}
    assert len({removal.member for removal in removals}) == len(removals)
    assert {removal.member for removal in removals} >= {"noise", "dull"}
    assert all(removal.cost < 0.0005 for removal in removals if removal.dropped)
    assert all(removal.cost >= 0.0005 for removal in removals if not removal.dropped)
    kept, removals = drop(METHODS["simplex"], given, 0.0005, 3)  # tried and told, but all three are wanted
    assert kept.names == NAMES
    assert {removal.member for removal in removals} == {*NAMES}
    assert not any(removal.dropped for removal in removals)


def test_a_calibrator_stays_only_where_it_helps() -> None:
    given = members(20_000)
    random = np.random.default_rng(1)
    truth = sigmoid(random.normal(size=20_000))
    y = (random.random(20_000) < truth).astype(np.int8)
    sharpened = sigmoid(2.5 * logit(truth))
    for kind in ("temperature", "isotonic", "best"):
        found = calibrate(kind, sharpened, y, given.fold)
        assert found is not None
        assert log_loss(y, found.apply(sharpened)) < log_loss(y, sharpened) - 0.01
    assert calibrate("none", sharpened, y, given.fold) is None
    assert calibrate("isotonic", truth, y, given.fold) is None  # the truth cannot be bettered, only fitted to
    alone = replace(given, y=y, p=sharpened[:, None], names=("m",))
    made = combine(config(), alone)
    assert made.chain.calibrator is not None
    np.testing.assert_array_equal(made.uncalibrated, sharpened)
    assert log_loss(y, made.calibrated) < log_loss(y, sharpened) - 0.01


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
    assert set(made.chain.members) < {*NAMES}  # the noise went
    for name, kind in (("logistic", Logistic), ("boosted", Boosted)):
        asked = combine(config(method=name, at_least=3), members(900))
        assert asked.method == name
        assert asked.chain.members == NAMES
        assert isinstance(asked.chain.combination, kind)
    fixed = combine(config(method="fixed", ratio={"sharp": 8, "dull": 1, "noise": 1}), given)
    assert fixed.chain.combination.weights == pytest.approx((0.8, 0.1, 0.1))
    assert fixed.removals == []
    alone = combine(config(), given.of(("dull",)))
    assert alone.chain.members == ("dull",)


def test_settings_that_contradict_each_other_are_refused() -> None:
    for settings, message in (
        ({"weights": {"a": 0.5, "b": 0.6}}, r"add up to 1\.1; expected 1"),
        ({"weights": {"a": 1}, "ratio": {"a": 1}}, "not both"),
        ({"method": "fixed"}, "needs a ratio or weights"),
        ({"method": "tuned"}, "set tune_trials to 1 or more"),
        ({"method": "rank"}, "ranks order a table, but one request alone has none"),
        ({"method": "median"}, "method is 'median'"),
        ({"calibrator": "platt"}, "calibrator is 'platt'"),
    ):
        with pytest.raises(ConfigError, match=message):
            config(**settings)
    with pytest.raises(ConfigError, match="missing: noise"):
        combine(config(method="fixed", ratio={"sharp": 1, "dull": 1}), members())
