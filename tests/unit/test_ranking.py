"""Weighted AUROC of many resamples at once: each equals the rows written out; and the quick one over bins."""

import numpy as np
import pytest
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from dkt_ray.ranking import AT_ONCE, Ranked, binned_auc, mid_ranks, within_users

RNG = np.random.default_rng(3)
USERS, ROWS = 12, 400
USER = RNG.integers(0, USERS, ROWS)
P = RNG.random(ROWS)
Y = (RNG.random(ROWS) < P).astype(np.int8)


@pytest.mark.parametrize("p", [P, P.round(1), np.full(ROWS, 0.5)], ids=["distinct", "ties", "constant"])
def test_all_resamples_at_once_are_each_the_rows_written_out(p):
    drawn = RNG.integers(0, 4, (AT_ONCE + 3, USERS)).astype(float)
    found = Ranked.of(Y, p, USER).auc(drawn)
    for value, weight in zip(found, drawn, strict=True):
        rows = np.repeat(np.arange(ROWS), weight[USER].astype(int))
        assert value == pytest.approx(roc_auc_score(Y[rows], p[rows]), abs=1e-12)
        assert value == Ranked.of(Y, p, USER).auc(weight)


def test_a_resample_of_one_kind_of_answer_has_no_figure():
    y, user = np.array([1, 1, 0]), np.array([0, 0, 1])
    found = Ranked.of(y, np.array([0.2, 0.4, 0.3]), user).auc(np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]]))
    assert found[0] == 0.5
    assert np.isnan(found[1:]).all()
    empty = np.empty(0)
    assert np.isnan(Ranked.of(empty, empty, empty.astype(int)).auc(np.ones(1)))


def test_the_quick_one_is_as_good_as_exact():
    assert binned_auc(Y, P) == pytest.approx(roc_auc_score(Y, P), abs=1e-4)
    assert binned_auc(Y, np.where(Y == 1, 1.0, 0.0)) == 1.0
    assert binned_auc(np.ones_like(Y), P) == 0.5


@pytest.mark.parametrize("p", [P, P.round(1), np.full(ROWS, 0.5), P[:1], P[:0]])
def test_ranks_of_those_that_tie_are_their_mean(p):
    assert mid_ranks(p).tolist() == rankdata(p).tolist()


@pytest.mark.parametrize("p", [P, P.round(1), np.full(ROWS, 0.5)], ids=["distinct", "ties", "constant"])
def test_within_users_is_the_figure_of_each_users_rows(p):
    total, rows = within_users(Y, p, USER, np.argsort(p))
    for user in range(USERS):
        own = user == USER
        assert rows[user] == own.sum()
        assert total[user] / rows[user] == pytest.approx(roc_auc_score(Y[own], p[own]), abs=1e-12)


def test_users_with_one_kind_of_answer_do_not_count_within_users():
    y, p, user = np.array([1, 0, 1, 1]), np.array([0.9, 0.1, 0.5, 0.6]), np.array([0, 0, 1, 1])
    total, rows = within_users(y, p, user, np.argsort(p))
    assert total.tolist() == [2.0, 0.0]
    assert rows.tolist() == [2.0, 0.0]
