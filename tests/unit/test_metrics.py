"""Every figure against an independent one: scikit-learn, or the definition spelled out in a loop."""

import json

import numpy as np
import pytest
from sklearn import metrics as sk

from dkt_ray import metrics
from dkt_ray.errors import InputError

RNG = np.random.default_rng(7)
N, U = 3000, 40
USER = np.sort(RNG.integers(0, U, N))
POSITION = np.concatenate([np.arange(n) for n in np.bincount(USER, minlength=U)])
QUESTION = RNG.integers(0, 60, N)
P = RNG.random(N)
Y = (RNG.random(N) < P).astype(np.int8)
TIED = np.round(P, 1)


@pytest.mark.parametrize("p", [P, TIED, np.full(N, 0.3)])
def test_figures_equal_scikit_learn(p):
    assert metrics.auc(Y, p) == pytest.approx(sk.roc_auc_score(Y, p), abs=1e-12)
    assert metrics.accuracy(Y, p) == pytest.approx(sk.accuracy_score(Y, p >= 0.5), abs=1e-12)
    assert metrics.log_loss(Y, p) == pytest.approx(sk.log_loss(Y, p), abs=1e-12)
    assert metrics.brier(Y, p) == pytest.approx(sk.brier_score_loss(Y, p), abs=1e-12)


def test_auc_of_two_rows_is_their_order():
    y = np.array([0, 1])
    assert metrics.auc(y, np.array([0.2, 0.7])) == 1.0
    assert metrics.auc(y, np.array([0.7, 0.2])) == 0.0
    assert metrics.auc(y, np.array([0.5, 0.5])) == 0.5


def test_ece_is_the_gap_weighted_by_rows():
    p = np.array([0.05, 0.05, 0.95, 0.95])
    y = np.array([0, 1, 1, 1])
    assert metrics.ece(y, p, bins=10) == pytest.approx((2 * 0.45 + 2 * 0.05) / 4)
    assert metrics.ece(np.array([1, 0]), np.array([1.0, 0.0])) == 0.0


@pytest.mark.parametrize("p", [P, TIED])
def test_auc_within_user_is_the_mean_over_users_weighted_by_rows(p):
    y = Y.copy()
    y[USER == 3] = 1  # a user with one kind of answer does not count
    total = rows = 0.0
    for user in range(U):
        mine = user == USER
        if 0 < y[mine].sum() < mine.sum():
            total += mine.sum() * sk.roc_auc_score(y[mine], p[mine])
            rows += mine.sum()
    shuffled = RNG.permutation(N)
    assert metrics.auc_within_user(y, p, USER) == pytest.approx(total / rows, abs=1e-12)
    assert metrics.auc_within_user(y[shuffled], p[shuffled], USER[shuffled] * 17 + 5) == pytest.approx(total / rows)


def test_capped_keeps_the_cap_spread_over_the_history():
    kept = metrics.evenly_capped(USER, 20)
    sizes, left = np.bincount(USER, minlength=U), np.bincount(USER, kept, U)
    np.testing.assert_array_equal(left, np.minimum(sizes, 20))
    heavy = int(np.argmax(sizes))
    places = POSITION[kept & (heavy == USER)]
    assert np.diff(places).max() - np.diff(places).min() <= 1
    assert metrics.auc_capped(Y, P, USER, 20) == pytest.approx(sk.roc_auc_score(Y[kept], P[kept]))
    assert metrics.auc_capped(Y, P, USER, N) == metrics.auc(Y, P)


def test_effective_users():
    assert metrics.effective_users(np.array([4, 4, 9, 9])) == 2.0
    assert metrics.effective_users(np.array([0] * 98 + [1, 2])) == pytest.approx(100**2 / (98**2 + 2))


def test_first_attempts_and_last_answers_match_a_loop():
    seen, first = set(), np.zeros(N, bool)
    for row in range(N):
        first[row] = (USER[row], QUESTION[row]) not in seen
        seen.add((USER[row], QUESTION[row]))
    np.testing.assert_array_equal(metrics.first_attempts(USER, QUESTION), first)
    assert 0 < first.sum() < N
    assert metrics.auc_first_attempts(Y, P, USER, QUESTION) == metrics.auc(Y[first], P[first])
    last = [int(np.flatnonzero(user == USER)[-1]) for user in range(U)]
    np.testing.assert_array_equal(np.flatnonzero(metrics.last_answers(USER, POSITION)), last)
    shuffled = RNG.permutation(N)
    again = metrics.auc_last_answers(Y[shuffled], P[shuffled], USER[shuffled], POSITION[shuffled])
    assert again == metrics.auc(Y[last], P[last])


def test_history_lengths_partition_the_rows():
    position = np.array([0, 0, 1, 5, 6, 20, 21, 100, 101, 5000])
    y, p = np.array([0, 1] * 5), np.array([0.1, 0.9] * 5)
    assert metrics.auc_by_history_length(y, p, position) == {
        "0": 1.0,
        "1-5": 1.0,
        "6-20": 1.0,
        "21-100": 1.0,
        "> 100": 1.0,
    }


def test_a_resample_equals_the_rows_written_out():
    y, p = Y, TIED
    statistics = {
        "auc": (metrics.auc_statistic(y, p, USER), metrics.auc),
        "within": (metrics.within_user_statistic(y, p, USER), None),
        "ece": (metrics.ece_statistic(y, p, USER), metrics.ece),
        "mean": (metrics.mean_statistic((p - y) ** 2, USER), metrics.brier),
    }
    for weight in metrics.resamples(U, 3, seed=1):
        rows = np.repeat(np.arange(N), weight[USER].astype(int))
        clone = np.concatenate([np.arange(int(weight[u])) for u in USER])  # each draw is a user of its own
        for statistic, plain in statistics.values():
            expected = (
                plain(y[rows], p[rows])
                if plain
                else metrics.auc_within_user(y[rows], p[rows], USER[rows] * 100 + clone)
            )
            assert statistic(weight) == pytest.approx(expected, abs=1e-12)


def test_bootstrap_interval_covers_and_is_seeded():
    low, high = metrics.bootstrap_auc(Y, P, USER, samples=200, seed=3)
    assert low < metrics.auc(Y, P) < high
    assert metrics.bootstrap_auc(Y, P, USER * 10, samples=200, seed=3) == (low, high)
    assert metrics.bootstrap_auc(Y, P, USER, samples=200, seed=4) != (low, high)


def test_interval_is_as_wide_as_the_spread_between_users():
    """The standard error of a mean over equal users is known: std / sqrt(U)."""
    rng = np.random.default_rng(0)
    level = rng.random(200)
    user = np.repeat(np.arange(200), 5)
    found = metrics.estimates({"mean": metrics.mean_statistic(level[user], user)}, 200, 2000, 0)["mean"]
    width = (found["high"] - found["low"]) / (2 * 1.96)
    assert width == pytest.approx(level.std() / np.sqrt(200), rel=0.1)


def test_paired_difference_is_sharper_than_two_intervals():
    better = 0.98 * P + 0.02 * Y
    found = metrics.paired_difference(Y, better, P, USER, seed=1)
    assert found["value"] == pytest.approx(metrics.auc(Y, better) - metrics.auc(Y, P))
    assert 0 < found["low"] < found["value"] < found["high"]
    low, high = metrics.bootstrap_auc(Y, P, USER, seed=1)
    assert found["high"] - found["low"] < (high - low) / 2
    assert metrics.paired_difference(Y, P, P, USER) == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_summary_holds_the_whole_set_and_is_json():
    first = metrics.first_attempts(USER, QUESTION)
    found = metrics.summary(Y, P, USER, POSITION, first, last=True, samples=20)
    assert json.loads(json.dumps(found)) == found
    assert found["rows"] == N
    assert found["users"] == U
    assert found["auc"]["value"] == metrics.auc(Y, P)
    assert found["auc_capped"]["value"] == metrics.auc_capped(Y, P, USER)
    assert found["auc_first_attempts"]["value"] == metrics.auc(Y[first], P[first])
    assert found["auc_last_answers"]["value"] == metrics.auc_last_answers(Y, P, USER, POSITION)
    assert found["auc_within_user"]["value"] == metrics.auc_within_user(Y, P, USER)
    assert found["ece"]["value"] == metrics.ece(Y, P)
    lengths = {name: figure["value"] for name, figure in found["auc_by_history_length"].items()}
    assert lengths == metrics.auc_by_history_length(Y, P, POSITION)
    assert all(e["low"] <= e["value"] <= e["high"] for e in (found["auc"], found["log_loss"], found["brier"]))
    plain = metrics.summary(Y, P, USER, POSITION, samples=2)
    assert "auc_last_answers" not in plain
    assert "auc_first_attempts" not in plain


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_degenerate_input_gives_none(rows):
    y, p, user, position = np.ones(rows, int), np.full(rows, 0.9), np.zeros(rows, int), np.arange(rows)
    found = metrics.summary(y, p, user, position, np.ones(rows, bool), last=True, samples=5)
    for name in ("auc", "auc_capped", "auc_first_attempts", "auc_last_answers", "auc_within_user"):
        assert found[name] == {"value": None, "low": None, "high": None}
    assert set(metrics.auc_by_history_length(y, p, position).values()) == {None}
    assert metrics.bootstrap_auc(y, p, user) is None
    assert (metrics.accuracy(y, p) is None) == (rows == 0)
    assert (metrics.effective_users(user) is None) == (rows == 0)


def test_bad_input_is_named():
    with pytest.raises(InputError, match="found -1"):
        metrics.auc(np.array([1, -1]), np.array([0.1, 0.2]))
    with pytest.raises(InputError, match="row 1 is nan"):
        metrics.brier(np.array([1, 0]), np.array([0.1, np.nan]))
    with pytest.raises(InputError, match="one probability per answer"):
        metrics.auc(np.array([1, 0]), np.array([0.1]))


def test_evaluator_aligns_by_id():
    ids = np.array([f"row-{i}" for i in range(N)], object)
    order = RNG.permutation(N)
    found = metrics.evaluate_by_id(ids, Y, ids[order], P[order])
    assert found["auc"] == pytest.approx(sk.roc_auc_score(Y, P), abs=1e-12)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(Y, P >= 0.5), abs=1e-12)


@pytest.mark.parametrize(
    ("predicted", "message"),
    [(["a", "b"], r"1 ids without a prediction \(c\)"), (["a", "b", "c", "d"], r"\(d\)"), (["a", "b", "b"], "id b is")],
)
def test_evaluator_refuses_other_ids(predicted, message):
    with pytest.raises(InputError, match=message):
        metrics.evaluate_by_id(
            np.array(["a", "b", "c"], object), np.array([1, 0, 1]), np.array(predicted, object), np.ones(len(predicted))
        )
