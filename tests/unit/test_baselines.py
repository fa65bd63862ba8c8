"""Baselines against loops, against a world that they describe exactly, and against looking ahead."""

import dataclasses

import numpy as np
import pytest
from scipy.special import expit, logit

from dkt_ray import metrics
from dkt_ray.data.history import Coded, Histories
from dkt_ray.errors import InputError
from dkt_ray.features.encoder import EncoderConfig, encode, fit_histories
from dkt_ray.schema import UNKNOWN
from dkt_ray.training import baselines
from dkt_ray.training.baselines import BASELINES, COUNTING_COLUMNS, out_of_fold
from tests.builders import random_histories

QUESTIONS = 40


def encoded(histories, fold=None, bundle="none"):
    """Rows and the names of their numeric columns."""
    fold = np.zeros(len(histories.users), np.int8) if fold is None else fold
    state = fit_histories(histories, fold, EncoderConfig(bundle=bundle))
    return encode(histories, None, state).past, state.number_names


def rasch(users, seed, spread=1.0):
    """A world in which 1PL is true; also the true probabilities."""
    rng = np.random.default_rng(seed)
    difficulty = np.linspace(-2, 2, QUESTIONS)
    lengths = rng.integers(5, 80, users)
    rows = int(lengths.sum())
    question = rng.integers(0, QUESTIONS, rows).astype(np.int32)
    truth = expit(np.repeat(rng.normal(0, spread, users), lengths) - difficulty[question])
    histories = Histories(
        np.array([f"u{k}" for k in range(users)], object),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        Coded(question, np.array([f"q{k:02d}" for k in range(QUESTIONS)], object)),
        Coded.constant("t", rows),
        Coded((question % 4).astype(np.int32), np.array(list("abcd"), object)),
        (rng.random(rows) < truth).astype(np.int8),
    )
    return histories, truth, difficulty


@pytest.mark.parametrize("bundle", ["none", "test_run"])
def test_best_lr_features_match_a_loop(bundle):
    histories = random_histories(np.random.default_rng(5), 12, tests=2)
    rows, _ = encoded(histories, bundle=bundle)
    questions, concepts = rows.ids["question"].max() + 1, rows.concepts.max() + 1
    expected = np.zeros((rows.rows, questions + 3 * concepts + 2))
    for user in range(12):
        for row in range(*rows.offsets[user : user + 2]):
            seen = np.arange(rows.offsets[user], rows.offsets[user] + rows.visible[row])
            expected[row, rows.ids["question"][row]] = 1
            for concept in set(rows.concepts[row]) - {0}:
                # a tag that stands twice on a question (two rare tags, one id) counts twice, in the past and now
                times = (rows.concepts[row] == concept).sum()
                on_it = (rows.concepts[seen] == concept).sum(1)
                wins, fails = ((rows.correct[seen] == answer) @ on_it for answer in (1, 0))
                at = questions + concept
                expected[row, [at, at + concepts, at + 2 * concepts]] = (
                    np.array([1, np.log1p(wins), np.log1p(fails)]) * times
                )
            expected[row, -2:] = [np.log1p((rows.correct[seen] == answer).sum()) for answer in (1, 0)]
    found = baselines._best_lr_features(rows, questions, concepts).toarray()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert (rows.visible < rows.position).any() == (bundle == "test_run")


def test_one_pl_recovers_its_own_world():
    train, _, difficulty = rasch(300, seed=0, spread=0.7)
    score, truth, _ = rasch(200, seed=1, spread=0.7)
    fold = np.zeros(300, np.int8)
    state = fit_histories(train, fold, EncoderConfig())
    past, new = encode(train, None, state).past, encode(score, None, state).past
    fitted = baselines._fit_one_pl(past, 2 + QUESTIONS)
    np.testing.assert_allclose(fitted.difficulty[2:], difficulty, atol=0.45)
    assert np.abs(fitted.difficulty[2:] - difficulty).mean() < 0.12
    variance = float(np.exp(fitted.prior) @ baselines.ABILITIES**2)
    assert variance == pytest.approx(0.49, rel=0.2)
    p = baselines.one_pl(past, new, state.number_names)
    late = new.position >= 30  # the ability is known by then
    known = metrics.auc(score.correct[late], truth[late])
    assert known - 0.02 < metrics.auc(score.correct[late], p[late]) < known + 0.005
    assert metrics.ece(score.correct, p) < 0.02
    first = new.position == 0  # nothing is known: the population's average
    ability = np.random.default_rng(2).normal(0, 0.7, 20_000)
    asked = score.question.codes[new.offsets[:-1]]
    np.testing.assert_allclose(p[first], expit(ability[:, None] - difficulty[asked]).mean(0), atol=0.09)


def test_counting_finds_the_weights_that_made_the_answers():
    histories, _, _ = rasch(400, seed=2)
    rows, names = encoded(histories)
    weights = np.array([0.8, -0.3, 0.5, 0.1, 0.4, -0.2])
    columns = rows.numbers[:, [names.index(name) for name in COUNTING_COLUMNS]].astype(float)
    truth = expit(0.3 + columns @ weights)
    answers = (np.random.default_rng(0).random(rows.rows) < truth).astype(np.int8)
    p = baselines.counting(dataclasses.replace(rows, correct=answers), rows, names)
    design = np.column_stack([np.ones(rows.rows), columns])
    found, *_ = np.linalg.lstsq(design, logit(p), rcond=None)
    np.testing.assert_allclose(design @ found, logit(p), atol=1e-8)  # 7 parameters and nothing else
    np.testing.assert_allclose(p, truth, atol=0.05)


def test_question_mean_is_the_encoders_rate():
    rows, names = encoded(random_histories(np.random.default_rng(1), 20))
    p = baselines.question_mean(rows, rows, names)
    np.testing.assert_allclose(logit(p), rows.numbers[:, names.index("question_log_odds")], atol=1e-5)


@pytest.mark.parametrize("name", BASELINES)
def test_beats_guessing_where_there_is_something_to_learn(name):
    histories, truth, _ = rasch(150, seed=3)
    fold = (np.arange(150) % 3).astype(np.int8)
    rows, names = encoded(histories, fold)
    p = out_of_fold(BASELINES[name], rows, fold, names)
    assert metrics.auc(histories.correct, p) > 0.65
    assert metrics.auc(histories.correct, p) < metrics.auc(histories.correct, truth)
    assert ((p > 0) & (p < 1)).all()


@pytest.mark.parametrize("name", ["one_pl", "best_lr", "counting"])
@pytest.mark.parametrize("bundle", ["none", "test_run"])
def test_a_row_reads_no_answer_of_its_own_or_later(name, bundle):
    histories = random_histories(np.random.default_rng(7), 30, tests=2)
    fold = (np.arange(30) % 2).astype(np.int8)
    state = fit_histories(histories, fold, EncoderConfig(bundle=bundle))
    correct = histories.correct.copy()
    owner = np.repeat(np.arange(30), histories.lengths)
    middle = histories.offsets[:-1] + histories.lengths // 2
    late = np.arange(histories.rows) >= middle[owner]
    correct[late & (fold[owner] == 0) & (correct >= 0)] ^= 1
    one, two = (
        encode(dataclasses.replace(histories, correct=answers), None, state).past
        for answers in (histories.correct, correct)
    )
    p, q = (out_of_fold(BASELINES[name], rows, fold, state.number_names) for rows in (one, two))
    unaffected = (fold[owner] == 0) & (np.arange(histories.rows) <= middle[owner])
    np.testing.assert_array_equal(p[unaffected], q[unaffected])
    assert (p[fold[owner] == 1] != q[fold[owner] == 1]).any()  # whose models were fitted on the changed answers


@pytest.mark.parametrize("name", BASELINES)
def test_hidden_answers_are_scored_but_teach_nothing(name):
    histories, _, _ = rasch(40, seed=4)
    hidden = np.arange(histories.rows) % 5 == 0
    fold = (np.arange(40) % 2).astype(np.int8)
    masked = dataclasses.replace(histories, correct=np.where(hidden, UNKNOWN, histories.correct).astype(np.int8))
    rows, names = encoded(masked, fold)
    p = out_of_fold(BASELINES[name], rows, fold, names)
    assert np.isfinite(p).all()
    assert metrics.auc(histories.correct[hidden], p[hidden]) > 0.6


@pytest.mark.parametrize("name", ["one_pl", "best_lr", "counting"])
def test_one_kind_of_answer_gives_no_error(name):
    histories, _, _ = rasch(10, seed=5)
    rows, names = encoded(dataclasses.replace(histories, correct=np.ones(histories.rows, np.int8)))
    p = BASELINES[name](rows, rows, names)
    assert ((p > 0.5) & (p <= 1)).all()


def test_chunks_change_nothing(monkeypatch):
    histories, _, _ = rasch(60, seed=6)
    rows, names = encoded(histories)
    whole = baselines.one_pl(rows, rows, names)
    monkeypatch.setattr(baselines, "CHUNK", 100)
    np.testing.assert_array_equal(baselines.one_pl(rows, rows, names), whole)


def test_a_dataset_without_the_columns_is_refused():
    rows, names = encoded(random_histories(np.random.default_rng(1), 5))
    with pytest.raises(InputError, match="no numeric column user_log_odds"):
        baselines.counting(rows, rows, ["other" if name == "user_log_odds" else name for name in names])
