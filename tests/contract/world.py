"""Encoded students for the contract tests, and the checks that every model must pass."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dkt_ray.config import Config
from dkt_ray.data.history import Coded, Histories, Targets
from dkt_ray.features.batch import Rows
from dkt_ray.features.chunks import encode_users
from dkt_ray.features.encoder import EncoderConfig, EncoderState, encode, fit_histories, moments
from dkt_ray.models.base import Model, ModelSpec, Probabilities
from dkt_ray.training.fit import TrainingData

# Small values of the settings that cost time; each family takes those that it has.
TINY = {"context": 8, "width": 16, "heads": 2, "inner": 32, "batch_rows": 2048, "rounds": 60, "min_data_in_leaf": 20}
TESTS, PER_TEST, CONCEPTS = 30, 4, 10
EQUAL = {"rtol": 0, "atol": 1e-6}  # batches of another shape: the last bits of a matrix product may differ


def tiny(spec: ModelSpec, **changes: object) -> Config:
    """A small config of the family, with those of the changes that it has a setting for."""
    known = {name: value for name, value in (TINY | changes).items() if name in spec.config.model_fields}
    return spec.config.model_validate(known)


def students(users: int, seed: int, longest: int = 48) -> Histories:
    """A small platform: abilities per concept that grow with practice, and tests that are answered as runs."""
    world, rng = np.random.default_rng(1), np.random.default_rng(seed)
    difficulty = world.normal(0, 1.2, TESTS * PER_TEST)
    concept = np.arange(TESTS * PER_TEST) // PER_TEST % CONCEPTS
    lengths = rng.integers(4, longest // PER_TEST + 1, users) * PER_TEST + rng.integers(0, PER_TEST, users)
    tests = rng.integers(0, TESTS, (users, longest // PER_TEST + 1))
    asked = (tests[..., None] * PER_TEST + np.arange(PER_TEST)).reshape(users, -1)  # [U, time]
    ability = rng.normal(0, 1, (users, 1)) + rng.normal(0, 1, (users, CONCEPTS))
    correct = np.empty(asked.shape, np.int8)
    for time, question in enumerate(asked.T):
        own = np.arange(users), concept[question]
        right = rng.random(users) < 1 / (1 + np.exp(difficulty[question] - ability[own]))
        correct[:, time], ability[own] = right, ability[own] + 0.15
    taken = np.arange(asked.shape[1]) < lengths[:, None]
    question = asked[taken]
    seconds = rng.integers(5, 90, asked.shape).cumsum(1)[taken]
    return Histories(
        users=np.array([f"s{index}" for index in range(users)], object),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        question=Coded(question.astype(np.int32), np.array([f"q{i}" for i in range(len(difficulty))], object)),
        test=Coded((question // PER_TEST).astype(np.int32), np.array([f"t{i}" for i in range(TESTS)], object)),
        concepts=Coded(concept[question].astype(np.int32), np.array([f"{i}_x" for i in range(CONCEPTS)], object)),
        correct=correct[taken],
        timestamp=1_600_000_000_000 + 1000 * seconds,
    )


@dataclass(frozen=True, eq=False)
class World:
    """Three folds of students; the last one validates."""

    histories: Histories
    fold: np.ndarray
    data: TrainingData

    @classmethod
    def of(cls, histories: Histories, config: EncoderConfig | None = None) -> World:
        """Encode each fold with the state that leaves it out."""
        fold = (np.arange(len(histories.users)) % 3).astype(np.int8)
        state = fit_histories(histories, fold, config or EncoderConfig())
        valid = encode(histories.select(np.flatnonzero(fold == 2)), None, state.excluding(2)).past
        users = np.concatenate([np.flatnonzero(fold == k) for k in range(2)])
        train = encode_users(histories.select(users), fold[users], state)
        return cls(histories, fold, TrainingData(train, valid, state.with_scaler(moments(train))))

    @property
    def state(self) -> EncoderState:
        """The full state, with its scaler."""
        return self.data.state


def score_history(model: Model, histories: Histories, state: EncoderState) -> tuple[Rows, Probabilities]:
    """Every row of the histories, scored."""
    rows = encode(histories, None, state).past
    return rows, model.score(rows, rows)


def check_future_property(model: Model, histories: Histories, state: EncoderState, seed: int = 0) -> None:
    """Other answers from some row on, or other later rows, must not change one bit of what earlier rows are given."""
    rng = np.random.default_rng(seed)
    rows, before = score_history(model, histories, state)
    # [U] the first changed position of each user: where the past of some row ends, for there a leak by one row shows
    cut = rows.visible[histories.offsets[:-1] + rng.integers(0, histories.lengths)]
    changed = rows.position >= np.repeat(cut, histories.lengths)
    readers = rows.visible > np.repeat(cut, histories.lengths)
    blind = ~readers

    answers = replace(histories, correct=np.where(changed, 1 - histories.correct, histories.correct))
    _, after = score_history(model, answers, state)
    np.testing.assert_array_equal(after[blind], before[blind], err_msg="an answer moved a row that may not read it")
    assert (after[readers] != before[readers]).mean() > 0.9, "answers do not matter: this test would see nothing"

    # other questions of the same tests (so that the runs of one test stay as they are), later, and with other answers
    codes = histories.question.codes
    neighbour = codes // PER_TEST * PER_TEST + (codes + 1) % PER_TEST
    later = replace(
        answers,
        question=Coded(np.where(changed, neighbour, codes), histories.question.values),
        timestamp=histories.timestamp + np.where(changed, 3_600_000, 0),
    )
    _, after = score_history(model, later, state)
    blind &= ~changed
    np.testing.assert_array_equal(after[blind], before[blind], err_msg="a later row moved an earlier one")


def check_many_targets(model: Model, histories: Histories, state: EncoderState, each: int = 7) -> None:
    """Targets that are scored together get what each of them gets alone, and as the last row of its history."""
    targets = candidates(histories, each, seed=5)
    encoded = encode(histories, targets, state)
    together = model.score(encoded.past, encoded.targets).reshape(-1, each)
    for index in range(each):
        single = one_target(targets, index)
        alone = encode(histories, single, state)
        np.testing.assert_allclose(model.score(alone.past, alone.targets), together[:, index], **EQUAL)
        rows, batch_path = score_history(model, appended(histories, single), state)
        np.testing.assert_allclose(batch_path[rows.offsets[1:] - 1], together[:, index], **EQUAL)


def check_targets_that_see_less(model: Model, histories: Histories, state: EncoderState, each: int = 9) -> None:
    """Targets after some of the rows get what they get after a history that ends there; they stand in no order."""
    targets = candidates(histories, each, seed=6)
    lengths = np.repeat(histories.lengths, each)
    seen = np.random.default_rng(7).integers(0, lengths + 1)
    encoded = encode(histories, replace(targets, seen=seen), state)
    together = model.score(encoded.past, encoded.targets).reshape(-1, each)
    for index in range(each):
        less = histories.head(seen[index::each])
        alone = encode(less, one_target(targets, index), state)
        np.testing.assert_allclose(model.score(alone.past, alone.targets), together[:, index], **EQUAL)


def candidates(histories: Histories, each: int, seed: int) -> Targets:
    """`each` questions to be scored for every user, all standing after the last row."""
    rng = np.random.default_rng(seed)
    users = len(histories.users)
    question = rng.integers(0, TESTS * PER_TEST, users * each).astype(np.int32)
    # the first one belongs to the test that the user answered last: with `test_run` it is shown together with it
    question[::each] = histories.question.codes[histories.offsets[1:] - 1]
    concept = (question // PER_TEST % CONCEPTS).astype(np.int32)
    return Targets(
        offsets=np.arange(users + 1, dtype=np.int64) * each,
        question=Coded(question, histories.question.values),
        test=Coded((question // PER_TEST).astype(np.int32), histories.test.values),
        concepts=Coded(concept, histories.concepts.values),
        timestamp=np.repeat(histories.timestamp[histories.offsets[1:] - 1] + 60_000, each),
    )


def one_target(targets: Targets, index: int) -> Targets:
    """The index-th target of every user."""
    each = targets.offsets[1]
    rows = targets.offsets[:-1] + index
    return Targets(
        targets.offsets // each,
        targets.question.take(rows),
        targets.test.take(rows),
        targets.concepts.take(rows),
        targets.timestamp[rows],
    )


def appended(histories: Histories, targets: Targets) -> Histories:
    """Histories with one more row: each user's single target, its answer hidden."""
    at = np.repeat(histories.offsets[1:], 1)

    def column(past: Coded, asked: Coded) -> Coded:
        return Coded(np.insert(past.codes, at, asked.codes), past.values)

    return Histories(
        histories.users,
        histories.offsets + np.arange(len(histories.offsets)),
        column(histories.question, targets.question),
        column(histories.test, targets.test),
        column(histories.concepts, targets.concepts),
        np.insert(histories.correct, at, -1),
        np.insert(histories.timestamp, at, targets.timestamp),
    )
