"""Target modes: what a row predicts by hand, and proof that the predicted answer is never in the row's features."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dkt_ray.data.history import Histories
from dkt_ray.features.batch import Rows
from dkt_ray.features.encoder import EncoderConfig, encode, fit_histories
from dkt_ray.models.lgbm import LightGBMConfig
from dkt_ray.schema import UNKNOWN
from dkt_ray.training import target_modes
from dkt_ray.training.target_modes import MODES, Pairs, compare, groups, mean_by_target, pairs, retargeted
from tests.builders import random_histories
from tests.contract import world as w

#                 user 0, its cycles a b a  | user 1, alone | user 2, two rows
GROUP = np.array([7, 7, 3, 7, 3, 3, 1, 9, 9])


def listed(chosen: Pairs) -> list[tuple[int, int]]:
    return list(zip(chosen.features.tolist(), chosen.target.tolist(), strict=True))


def test_what_each_row_predicts_by_hand():
    assert listed(pairs(GROUP, "row")) == [(row, row) for row in range(9)]
    assert listed(pairs(GROUP, "last")) == [(0, 3), (1, 3), (2, 5), (4, 5), (7, 8)]
    assert listed(pairs(GROUP, "next")) == [(0, 1), (1, 3), (2, 4), (4, 5), (7, 8)]
    for mode in MODES:
        assert listed(pairs(np.empty(0, np.int64), mode)) == []
        assert listed(pairs(np.zeros(1, np.int64), mode)) == ([(0, 0)] if mode == "row" else [])


def test_groups_are_users_or_their_passes_of_a_test():
    histories = w.students(20, seed=5)
    state = fit_histories(histories, np.zeros(20, np.int8), EncoderConfig(min_count=1))
    rows = encode(histories, None, state).past
    owner = np.repeat(np.arange(20), histories.lengths)
    np.testing.assert_array_equal(groups(rows, state, "user"), owner)
    seen: dict[tuple[int, int], int] = {}
    expected = []
    for user, test in zip(owner, histories.test.codes, strict=True):
        count = seen.get((user, test), 0)
        seen[user, test] = count + 1
        expected.append((user, test, count // w.PER_TEST))
    found = groups(rows, state, "cycle")
    assert len(set(zip(found, expected, strict=True))) == len(set(found)) == len(set(expected))
    assert max(passes for *_, passes in expected) > 0, "nobody came back to a test: the test shows nothing"


def other_answers(histories: Histories, chosen: np.ndarray) -> Histories:
    """The histories with other answers in the chosen rows, hidden ones included."""
    answers = np.where(histories.correct == UNKNOWN, 1, 1 - histories.correct)
    return dataclasses.replace(histories, correct=np.where(chosen, answers, histories.correct).astype(np.int8))


def same_features(before: Rows, after: Rows, rows: np.ndarray) -> bool:
    ids = all((before.ids[name][rows] == after.ids[name][rows]).all() for name in before.ids)
    return ids and bool((before.numbers[rows] == after.numbers[rows]).all())


@pytest.mark.parametrize("key", ["user", "cycle"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bundle", ["none", "test_run"])
def test_the_predicted_answer_is_never_in_the_features(key, mode, bundle):
    """Whatever a user's predicted answer is, and whatever is answered from the row on, the row's features stay."""
    checked = moved = 0
    for seed in range(12):
        histories = random_histories(np.random.default_rng(seed), 6)
        state = fit_histories(histories, np.arange(6, dtype=np.int8) % 3, EncoderConfig(bundle=bundle, min_count=1))
        state = state.excluding(0)
        histories = histories.select(np.array([0, 3]))  # of the fold that the state leaves out
        before = encode(histories, None, state).past
        chosen = pairs(groups(before, state, key), mode)
        for feature, target in zip(chosen.features[::5], chosen.target[::5], strict=True):
            assert feature <= target < before.offsets[np.searchsorted(before.offsets, feature, "right")]
            at, row = np.arange(before.rows), np.array([feature])
            for changed in (at == target, at >= feature):
                after = encode(other_answers(histories, changed), None, state).past
                assert same_features(before, after, row)
            earlier = encode(other_answers(histories, at < feature), None, state).past
            moved += not same_features(before, earlier, row)
            checked += 1
    assert checked > 20
    assert moved > checked / 2, "no answer moves any feature: the test shows nothing"


def test_retargeted_rows_keep_their_users_and_get_other_answers():
    histories = w.students(9, seed=6)
    state = fit_histories(histories, np.zeros(9, np.int8), EncoderConfig(min_count=1))
    rows = encode(histories, None, state).past
    chosen = pairs(groups(rows, state, "user"), "last")
    found = retargeted(rows, chosen)
    np.testing.assert_array_equal(np.diff(found.offsets), histories.lengths - 1)
    np.testing.assert_array_equal(found.numbers, rows.numbers[chosen.features])
    last = histories.correct[histories.offsets[1:] - 1]
    np.testing.assert_array_equal(found.correct, np.repeat(last, histories.lengths - 1))
    few = retargeted(rows, Pairs(chosen.features[-2:], chosen.target[-2:]))
    assert (few.rows, len(few.offsets)) == (2, 10), "users without a pair stay"


def test_the_mean_is_taken_over_the_rows_of_each_target():
    mean = mean_by_target(np.array([0.2, 0.9, 0.4, 0.6]), np.array([5, 8, 5, 8]), np.array([5, 8]))
    np.testing.assert_allclose(mean, [0.3, 0.75])


def test_a_users_last_answer_is_the_mean_over_the_rows_of_the_final_cycle():
    histories = w.students(20, seed=5)
    state = fit_histories(histories, np.zeros(20, np.int8), EncoderConfig(min_count=1))
    rows = encode(histories, None, state).past
    group, p = groups(rows, state, "cycle"), np.random.default_rng(0).random(rows.rows)
    final = rows.offsets[1:] - 1
    chosen = pairs(group, "last")
    mine = np.isin(chosen.target, final)
    asked = np.unique(chosen.target[mine])
    found = mean_by_target(p[chosen.features[mine]], chosen.target[mine], asked)
    expected = []
    for last in final:
        others = [p[row] for row in range(rows.rows) if group[row] == group[last] and row != last]
        expected += [sum(others) / len(others)] if others else []
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert 5 < len(found) < 20


@pytest.mark.parametrize("key", ["user", "cycle"])
def test_modes_are_compared_on_the_same_last_answers(key, monkeypatch):
    data = w.World.of(w.students(500, seed=1)).data
    valid = data.valid
    hidden = valid.correct.copy()
    hidden[valid.offsets[1] - 1] = UNKNOWN  # the first user's last answer is not known
    data = dataclasses.replace(data, valid=dataclasses.replace(valid, correct=hidden))
    fitted: list[Rows] = []
    train = target_modes.train

    def watched(family, config, taught, **options):
        fitted.append(taught.train)
        assert taught.valid is None, "no held-out answer may decide when a fit ends"
        return train(family, config, taught, **options)

    monkeypatch.setattr(target_modes, "train", watched)
    found = compare(LightGBMConfig(rounds=40, num_leaves=7, min_data_in_leaf=20), data, key)
    assert list(found) == list(MODES)
    assert len({outcome.users for outcome in found.values()}) == 1
    asked = groups(data.valid, data.state, key)
    final = data.valid.offsets[1:] - 1
    counted = (np.bincount(asked)[asked[final]] > 1) & (data.valid.correct[final] != UNKNOWN)
    assert 50 < counted.sum() == found["row"].users < len(final)
    assert [rows.rows for rows in fitted] == [
        len(pairs(groups(data.train, data.state, key), m).features) for m in MODES
    ]
    assert found["row"].auc > max(found["last"].auc, found["next"].auc), "the target's own question tells more"
    assert min(found["last"].auc, found["next"].auc) > 0.5
