"""`ensemble.neighbours`: the nearest rows by hand, ties by row, and what a model's folder promises."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dkt_ray.ensemble import neighbours
from dkt_ray.ensemble.neighbours import CLIP, STEPS, Neighbours, NeighboursConfig
from dkt_ray.errors import ConfigError, TrainingError
from dkt_ray.features.batch import Rows
from dkt_ray.features.encoder import encode
from dkt_ray.metrics import auc
from dkt_ray.training.fit import TrainingData, fit
from tests.contract import world as w


@pytest.fixture(scope="module")
def world() -> w.World:
    return w.World.of(w.students(60, seed=11))


def in_heads(rows: Rows, heads: int) -> Rows:
    """The rows as if their questions were of several heads, the last of them rare."""
    head = np.minimum(rows.ids["question"] % 7, heads - 1)
    head = np.where(np.arange(rows.rows) % 500 == 3, 40, head).astype(np.int32)
    return replace(rows, ids=rows.ids | {"head": head})


def one_by_one(config: NeighboursConfig, train: Rows, asked: Rows, state) -> np.ndarray:
    """Every distance by hand, in whole numbers."""
    places = [state.number_names.index(name) for name in config.number_names]

    def steps(rows: Rows) -> np.ndarray:
        scaled = (rows.numbers[:, places] - state.mean[places]) / state.std[places]
        return np.rint(scaled.clip(-CLIP, CLIP) * STEPS).astype(np.int64)

    there, here, answers = steps(train), steps(asked), train.correct.astype(float)
    known = [row for row in range(train.rows) if train.correct[row] >= 0]
    overall = answers[known].mean()
    out = []
    for row in range(asked.rows):
        mine = [each for each in known if train.ids["head"][each] == asked.ids["head"][row]]
        rate = (answers[mine].sum() + config.prior * overall) / (len(mine) + config.prior)
        distance = {each: int(((there[each] - here[row]) ** 2).sum()) for each in mine}
        near = sorted(mine, key=lambda each: (distance[each], each))[: config.k]
        out.append((answers[near].sum() + config.prior * rate) / (len(near) + config.prior))
    return np.array(out)


@pytest.mark.parametrize("k", [1, 9])
def test_the_nearest_rows_of_the_head_by_brute_force(k, world, monkeypatch):
    train, asked = in_heads(world.data.train, 3), in_heads(world.data.valid, 4)
    hidden = np.where(np.arange(train.rows) % 11 == 0, -1, train.correct).astype(np.int8)
    train, config = replace(train, correct=hidden), NeighboursConfig(k=k, prior=0.5)
    model = Neighbours.fit(config, train, world.state)
    assert set(asked.ids["head"]) > set(train.ids["head"]), "every head is known: back-off is not seen"
    assert min(np.bincount(train.ids["head"][hidden >= 0])[[40]]) < 9, "no head is short of rows"
    expected = one_by_one(config, train, asked, world.state)
    np.testing.assert_array_equal(model.score(asked, asked), expected)
    monkeypatch.setattr(neighbours, "CELLS", 1)  # one row at a time
    np.testing.assert_array_equal(model.score(asked, asked), expected)


def test_of_rows_equally_far_the_first_is_nearer(world):
    train = world.data.train
    same = replace(train, numbers=np.repeat(train.numbers[:1], train.rows, axis=0))
    answers = np.zeros(train.rows, np.int8)
    answers[:5] = 1
    model = Neighbours.fit(NeighboursConfig(k=5, prior=1e-9), replace(same, correct=answers), world.state)
    np.testing.assert_allclose(model.score(same, same), 1.0, atol=1e-6)


def test_a_sample_of_a_head_is_drawn_by_seed(world):
    train = in_heads(world.data.train, 3)
    configs = [NeighboursConfig(reference_rows=50, seed=seed) for seed in (0, 0, 1)]
    each = [Neighbours.fit(config, train, world.state).references for config in configs]
    assert np.diff(each[0].offsets).max() == 50
    np.testing.assert_array_equal(each[0].grid, each[1].grid)
    assert (each[0].grid != each[2].grid).any()
    np.testing.assert_array_equal(each[0].rates, each[2].rates)


def test_the_future_and_other_targets_do_not_matter(world):
    model = Neighbours.fit(NeighboursConfig(), world.data.train, world.state)
    w.check_many_targets(model, w.students(24, seed=4), world.state)
    w.check_future_property(model, w.students(24, seed=4), world.state)


def test_it_is_fitted_like_a_family_and_comes_back(world, tmp_path):
    seen = []
    result = fit("neighbours", NeighboursConfig(k=20), world.data, seen.append)
    assert (result.best_iteration, result.curve) == (1, seen)
    p = result.model.score(world.data.valid, world.data.valid)
    assert ((p > 0) & (p < 1)).all()
    assert auc(world.data.valid.correct, p) > 0.6
    result.model.save(tmp_path)
    again = Neighbours.load(tmp_path)
    assert again.config == result.model.config
    np.testing.assert_array_equal(again.score(world.data.valid, world.data.valid), p)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    with pytest.raises(ConfigError, match="the encoder has other"):
        again.check(["other"])
    empty = encode(world.histories.head(np.zeros(60, np.int64)), None, world.state).past
    assert again.score(empty, empty).shape == (0,)


def test_what_cannot_be_fitted_is_named(world):
    with pytest.raises(ConfigError, match="number_names names 'mood'; the encoder has question_log_odds"):
        fit("neighbours", NeighboursConfig(number_names=("mood",)), world.data)
    unknown = replace(world.data.train, correct=np.full(world.data.train.rows, -1, np.int8))
    with pytest.raises(TrainingError, match="no row with a known answer to keep"):
        fit("neighbours", NeighboursConfig(), TrainingData(unknown, None, world.state))
