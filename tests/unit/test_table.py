"""Fitting LightGBM: early stopping, a fixed number of rounds, reproducible trees, categories."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dkt_ray.errors import ConfigError, TrainingError
from dkt_ray.models.lgbm import LightGBM, LightGBMConfig, matrix
from dkt_ray.schema import UNKNOWN
from dkt_ray.training import table
from dkt_ray.training.progress import FitResult, Progress, TrainingData
from tests.contract import world as w

SMALL = {"num_leaves": 7, "min_data_in_leaf": 20}


@pytest.fixture(scope="module")
def data() -> TrainingData:
    return w.World.of(w.students(120, seed=1)).data


def train(data: TrainingData, report=None, iterations=None, **settings) -> FitResult:
    return table.train(LightGBM, LightGBMConfig.model_validate(SMALL | settings), data, report, None, iterations)


def test_it_stops_early_and_keeps_the_best_rounds(data):
    reports: list[Progress] = []
    result = train(data, reports.append, rounds=2000, report_rounds=10, patience=30, learning_rate=0.3)
    assert [progress.iteration for progress in reports] == list(range(10, 10 * len(reports) + 1, 10))
    assert len(reports) < 200, "it never stopped: the test shows nothing"
    best = max(reports, key=lambda progress: progress.auc)
    assert (result.best_iteration, result.auc) == (best.iteration, best.auc)
    assert reports[-1].iteration - best.iteration == 30
    assert result.model.booster.num_trees() == result.best_iteration
    losses = [progress.loss for progress in reports]
    assert losses == sorted(losses, reverse=True)


def test_the_reported_auc_is_that_of_the_counted_validation_rows(data):
    result = train(data, iterations=20)
    counted = table.scored(data.valid)
    p, y = result.model.score(data.valid, data.valid)[counted], data.valid.correct[counted]
    right, wrong = p[y == 1], p[y == 0]
    pairs = (right[:, None] > wrong).mean() + 0.5 * (right[:, None] == wrong).mean()
    assert result.auc == pytest.approx(pairs, abs=1e-9)


def test_a_fixed_number_of_rounds_is_kept_whole(data):
    result = train(data, iterations=33, report_rounds=25, patience=1)
    assert [progress.iteration for progress in result.curve] == [25, 33]
    assert result.best_iteration == result.model.booster.num_trees() == 33
    alone = train(TrainingData(data.train, None, data.state), rounds=30)
    assert alone.best_iteration == 30
    assert alone.auc is None


def test_threads_do_not_change_the_trees(data):
    one, two = (train(data, iterations=30, threads=threads).model for threads in (1, 2))
    np.testing.assert_array_equal(one.score(data.valid, data.valid), two.score(data.valid, data.valid))


def test_hidden_answers_are_not_trained_on(data):
    hide = np.arange(data.train.rows) % 2 == 0
    hidden = dataclasses.replace(data.train, correct=np.where(hide, UNKNOWN, data.train.correct).astype(np.int8))
    kept = data.train.take(np.flatnonzero(~hide), np.array([0, (~hide).sum()]))
    settings = {"iterations": 10}
    with_hidden = train(TrainingData(hidden, None, data.state), **settings).model
    without = train(TrainingData(kept, None, data.state), **settings).model
    np.testing.assert_array_equal(with_hidden.score(data.valid, data.valid), without.score(data.valid, data.valid))
    nothing = dataclasses.replace(data.train, correct=np.full_like(data.train.correct, UNKNOWN))
    with pytest.raises(TrainingError, match="no row with a known answer"):
        train(TrainingData(nothing, None, data.state), iterations=1)


def test_categories_never_seen_are_scored(data):
    model = train(data, iterations=20, columns=("test", "lag"), categorical=("test",)).model
    strange = {name: np.full_like(column, 10**6) for name, column in data.valid.ids.items()}
    scores = model.score(data.valid, dataclasses.replace(data.valid, ids=strange))
    assert ((scores > 0) & (scores < 1)).all()


def test_a_column_that_does_not_exist_is_named(data):
    with pytest.raises(ConfigError, match="columns names 'school'; the encoder has head, hour, lag"):
        train(data, iterations=1, columns=("school",))


def test_the_matrix_holds_numbers_then_ids(data):
    read = matrix(data.valid, ("lag", "test"))
    np.testing.assert_array_equal(read[:, :-2], data.valid.numbers)
    np.testing.assert_array_equal(read[:, -2], data.valid.ids["lag"])
    np.testing.assert_array_equal(read[:, -1], data.valid.ids["test"])
