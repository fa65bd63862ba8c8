"""The baselines that stand beside every table: question mean, 1PL, the counting model, and Best-LR.

Each is fitted on the encoded rows of training users and scores the rows of other users; as in every model, a row reads
its `visible` earlier rows and nothing else.

Legend: U users, N rows, P (row, concept) pairs, Q questions, G ability levels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.special import expit, log_expit, logit, softmax
from sklearn.linear_model import LogisticRegression

from dkt_ray.data.history import Int8, Int32, Int64, graded, ranges, right
from dkt_ray.errors import InputError
from dkt_ray.features.batch import PADDING, Rows

Floats = npt.NDArray[np.float64]
Names = Sequence[str]  # of the numeric columns, in order
Baseline = Callable[[Rows, Rows, Names], Floats]  # (training rows, rows to score, names) -> [rows to score]

COUNTING_COLUMNS: Final = (
    "question_log_odds",
    "concept_log_odds",
    "user_log_odds",
    "user_count",
    "user_concept_log_odds",
    "user_concept_count",
)
ABILITIES: Final = np.linspace(-4.0, 4.0, 33)  # quadrature levels of 1PL, in logits
EM_STEPS: Final = 20
FIXED_POINT: Final = 1 << 32
CHUNK: Final = 1 << 16  # rows whose [N, G] tables are held at once


def question_mean(train: Rows, score: Rows, names: Names) -> Floats:
    """The question's smoothed rate of right answers among training users, with the encoder's back-off."""
    del train  # the encoder has counted it
    return expit(_columns(score, names, ("question_log_odds",))[:, 0])


def counting(train: Rows, score: Rows, names: Names) -> Floats:
    """The counting model: logistic regression with intercept on six smoothed log-odds and counts, 7 parameters."""
    return _regress(_columns(train, names, COUNTING_COLUMNS), train.correct, _columns(score, names, COUNTING_COLUMNS))


def best_lr(train: Rows, score: Rows, names: Names) -> Floats:
    """Best-LR (Gervet, Koedinger, Schneider and Mitchell, 2020): L2-regularised logistic regression on counts.

    One weight per question and per concept; per concept, one for log(1 + right) and one for log(1 + wrong) answers of
    the student on it; and one each for log(1 + right) and log(1 + wrong) answers of the student overall.
    """
    del names
    questions = 1 + max(_highest(train.ids["question"]), _highest(score.ids["question"]))
    concepts = 1 + max(_highest(train.concepts), _highest(score.concepts))
    features = _best_lr_features(train, questions, concepts)
    return _regress(features, train.correct, _best_lr_features(score, questions, concepts))


def one_pl(train: Rows, score: Rows, names: Names) -> Floats:
    """1PL (Rasch, 1960): P(right) = sigmoid(ability - difficulty of the question).

    Difficulties by marginal maximum likelihood (Bock and Aitkin, 1981); the probability is averaged over the posterior
    of the student's ability given the visible answers (expected a posteriori; Bock and Mislevy, 1982), so that a new
    student starts from the population.
    """
    del names
    fitted = _fit_one_pl(train, 1 + max(_highest(train.ids["question"]), _highest(score.ids["question"])))
    return np.concatenate([np.empty(0), *(_score_one_pl(part, fitted) for part in _chunks(score))])


BASELINES: Final[Mapping[str, Baseline]] = {
    "question_mean": question_mean,
    "one_pl": one_pl,
    "counting": counting,
    "best_lr": best_lr,
}


def out_of_fold(baseline: Baseline, rows: Rows, fold: Int8, names: Names) -> Floats:
    """Score each fold's users by the baseline fitted on the other folds, [rows.rows].

    Args:
        rows: encoded rows of U users.
        fold: [U] fold of each user.
        names: names of the numeric columns, in order.
    """
    probability = np.empty(rows.rows)
    for held_out in np.unique(fold):
        inside, _ = _rows_of(rows, fold == held_out)
        probability[inside] = baseline(_users(rows, fold != held_out), _users(rows, fold == held_out), names)
    return probability


def _columns(rows: Rows, names: Names, wanted: Names) -> Floats:
    missing = [name for name in wanted if name not in names]
    if missing:
        raise InputError(f"the dataset has no numeric column {', '.join(missing)}; prepare it again with this package")
    return rows.numbers[:, [list(names).index(name) for name in wanted]].astype(np.float64)


def _regress(features: Any, correct: Int8, wanted: Any) -> Floats:
    """Logistic regression on the known answers; the base rate where there is nothing to separate."""
    known = np.flatnonzero(graded(correct))
    answers = right(correct[known])
    if not len(known) or answers.all() or not answers.any():
        return np.full(wanted.shape[0], answers.mean() if len(known) else 0.5)
    model = LogisticRegression(C=1.0, solver="newton-cg").fit(features[known], answers)
    return expit(model.decision_function(wanted)) if wanted.shape[0] else np.empty(0)


# ---- Best-LR --------------------------------------------------------------------------------------------------------


def _best_lr_features(rows: Rows, questions: int, concepts: int) -> sparse.csr_matrix:
    """[N, questions + 3 * concepts + 2] features; the columns are those of the docstring of `best_lr`, in order."""
    everything = np.arange(rows.rows)
    row, slot = np.nonzero(rows.concepts != PADDING)
    concept = rows.concepts[row, slot].astype(np.int64)
    wins, fails = _earlier(rows, row, concept)
    all_wins, all_fails = _earlier(rows, everything, np.zeros(rows.rows, np.int64))
    ones = np.ones(len(row))
    first = questions + np.arange(3) * concepts
    blocks = (
        (everything, rows.ids["question"], np.ones(rows.rows)),
        (row, first[0] + concept, ones),
        (row, first[1] + concept, np.log1p(wins)),
        (row, first[2] + concept, np.log1p(fails)),
        (everything, np.full(rows.rows, questions + 3 * concepts), np.log1p(all_wins)),
        (everything, np.full(rows.rows, questions + 3 * concepts + 1), np.log1p(all_fails)),
    )
    at, column, value = (np.concatenate(part) for part in zip(*blocks, strict=True))
    return sparse.csr_matrix((value, (at, column)), shape=(rows.rows, questions + 3 * concepts + 2))


def _earlier(rows: Rows, row: Int64, code: Int64) -> tuple[Int64, Int64]:
    """Right and wrong answers among the visible earlier rows of the same user with the same code.

    Args:
        row: [P] row of each (row, code) pair.
        code: [P].

    Returns:
        [P] and [P].
    """
    span = np.int64(_highest(rows.position) + 2)
    group = (_owner(rows)[row] * (_highest(code) + 1) + code) * span
    key = group + rows.position[row]
    order = np.argsort(key, kind="stable")
    start, stop = (np.searchsorted(key[order], group + upto) for upto in (0, rows.visible[row]))

    def total(what: npt.NDArray[np.bool_]) -> Int64:
        running = np.concatenate([[0], np.cumsum(what[row[order]])])
        return running[stop] - running[start]

    wins = total(right(rows.correct))
    return wins, total(graded(rows.correct)) - wins


# ---- 1PL ------------------------------------------------------------------------------------------------------------


class _OnePl(NamedTuple):
    difficulty: Floats  # [Q]
    prior: Floats  # [G] log-weights of the abilities


def _fit_one_pl(rows: Rows, questions: int) -> _OnePl:
    """Expectation over abilities, then one Newton step for each difficulty, shrunk to the mean one by a unit normal."""
    known = np.flatnonzero(graded(rows.correct))
    question, owner, answer = rows.ids["question"][known], _owner(rows)[known], right(rows.correct[known])
    shape = (questions, len(rows.offsets) - 1)
    wins = sparse.csr_matrix((answer * 1.0, (question, owner)), shape=shape)
    fails = sparse.csr_matrix((~answer * 1.0, (question, owner)), shape=shape)
    n_wins, n = np.bincount(question, answer, questions), np.bincount(question, minlength=questions)
    centre = -float(logit((n_wins.sum() + 1) / (n.sum() + 2)))
    difficulty, prior = np.full(questions, centre), _normal(1.0)
    for _ in range(EM_STEPS):
        right_odds = ABILITIES - difficulty[:, None]
        posterior = softmax(wins.T @ log_expit(right_odds) + fails.T @ log_expit(-right_odds) + prior, axis=1)
        expected = (wins + fails) @ posterior  # [Q, G] answers to each question at each ability
        chance = expit(right_odds)
        slope = (expected * chance).sum(1) - n_wins - (difficulty - centre)
        difficulty = difficulty + slope / ((expected * chance * (1 - chance)).sum(1) + 1.0)
        centre = float(difficulty[n > 0].mean()) if n.any() else centre
        difficulty[n == 0] = centre
        spread = float((posterior @ ABILITIES**2).mean()) if shape[1] else 1.0
        prior = _normal(max(spread, 0.01))
    return _OnePl(difficulty, prior)


def _score_one_pl(rows: Rows, fitted: _OnePl) -> Floats:
    right_odds = ABILITIES - fitted.difficulty[rows.ids["question"]][:, None]  # [N, G]
    evidence = np.select(
        [right(rows.correct)[:, None], graded(rows.correct)[:, None]], [log_expit(right_odds), log_expit(-right_odds)]
    )
    exact = np.rint(evidence * FIXED_POINT).astype(np.int64)  # a difference of float sums would depend on earlier users
    running = np.concatenate([np.zeros((1, len(ABILITIES)), np.int64), np.cumsum(exact, axis=0)])
    start = np.repeat(rows.offsets[:-1], np.diff(rows.offsets))
    seen = (running[start + rows.visible] - running[start]) / FIXED_POINT
    posterior = softmax(seen + fitted.prior, axis=1)
    return (posterior * expit(right_odds)).sum(1)


def _normal(variance: float) -> Floats:
    weights = -(ABILITIES**2) / (2 * variance)
    return weights - np.log(np.exp(weights).sum())


# ---- rows of some users ---------------------------------------------------------------------------------------------


def _rows_of(rows: Rows, users: npt.NDArray[np.bool_]) -> tuple[Int64, Int64]:
    chosen = np.flatnonzero(users)
    return ranges(rows.offsets[chosen], rows.offsets[chosen + 1])


def _users(rows: Rows, users: npt.NDArray[np.bool_]) -> Rows:
    return rows.take(*_rows_of(rows, users))


def _chunks(rows: Rows) -> Iterator[Rows]:
    """The same users in groups of about CHUNK rows."""
    group = rows.offsets[:-1] // CHUNK
    for number in np.unique(group):
        yield _users(rows, group == number)


def _owner(rows: Rows) -> Int64:
    return np.repeat(np.arange(len(rows.offsets) - 1), np.diff(rows.offsets))


def _highest(values: Int32 | Int64) -> int:
    return int(values.max(initial=0))
