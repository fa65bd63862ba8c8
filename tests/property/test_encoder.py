"""The encoder sees no future, and batch, prefix, single and many-target calls agree bit for bit."""

import dataclasses
import itertools
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dkt_ray.data.history import Coded, Histories, Targets
from dkt_ray.features import encoder, plan, quantities
from dkt_ray.features.batch import Rows
from dkt_ray.features.encoder import EncoderConfig, EncoderState, encode, fit_histories
from dkt_ray.features.student import FEATURE
from dkt_ray.schema import UNKNOWN

SWITCHES = list(itertools.product(("shown", "submitted"), ("none", "test_run"), (True, False)))
switches = pytest.mark.parametrize(("timestamp_is", "bundle", "timed"), SWITCHES)
QUESTIONS = [f"A{head:03d}{mid:03d}{tail:03d}" for head in (10, 20) for mid in (1, 2, 3) for tail in (1, 2)] + [
    "free",
    "x",
]
CONCEPTS = ["", "7", "7_9", "11", "11_7_9"]
SEEDS = st.integers(0, 2**32 - 1)


LONGEST = 130
STEPS = [0, 800, 5_000, 40_000, 10**6, 10**7, 3 * 10**8, 3 * 10**9]  # ms: seconds to more than a month
SLOW, FAST = (0.1, 0.2, 0.2, 0.1, 0.2, 0.1, 0.05, 0.05), (0.1, 0.4, 0.2, 0.3, 0, 0, 0, 0)


def random_histories(seed: int, users: int, timed: bool = True) -> Histories:
    """Few questions, so that ids repeat; equal times, hidden answers, empty histories and missing tests occur.

    Most histories are short; the longest ones are of one day and almost of one test, so that every list of last answers
    has more rows than fit into it; the others last longer than every span of time. Time before a row
    grows with its question's number.
    """
    rng = np.random.default_rng(seed)
    long = rng.random(users) < 0.3
    lengths = np.where(long, rng.integers(14, LONGEST, users), rng.integers(0, 14, users))
    crammed = long & (lengths > LONGEST // 2)
    questions = [rng.integers(0, len(QUESTIONS), n) for n in lengths]
    questions = [
        np.where(rng.random(len(q)) < 0.9, q % 4, q) if one else q for one, q in zip(crammed, questions, strict=True)
    ]
    steps = [rng.choice(STEPS, n, p=FAST if one else SLOW) for one, n in zip(crammed, lengths, strict=True)]
    times = [np.cumsum(np.where(step == 5_000, step * (q + 1), step)) for step, q in zip(steps, questions, strict=True)]
    question = np.concatenate([*questions, []]).astype(int)
    return Histories(
        np.array([f"u{i}" for i in range(users)], object),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        Coded.of([QUESTIONS[q] for q in question]),
        Coded.of(["" if q % 5 == 4 else f"t{q // 4}" for q in question]),
        Coded.of([CONCEPTS[q % 5] for q in question]),
        rng.choice([0, 1, UNKNOWN], len(question), p=[0.4, 0.5, 0.1]).astype(np.int8),
        (10**12 + np.concatenate([*times, []])).astype(np.int64) if timed else None,
    )


@cache
def fitted(timestamp_is: str, bundle: str, timed: bool) -> EncoderState:
    train = random_histories(5, 40, timed=timed)
    config = EncoderConfig(timestamp_is=timestamp_is, bundle=bundle, use_time=timed, min_count=3)
    return fit_histories(train, (np.arange(40) % 3).astype(np.int8), config)


@switches
def test_the_drawn_histories_tell_all_columns_apart(timestamp_is: str, bundle: str, timed: bool) -> None:
    """No column is constant or equal to another one: each list of last answers is longer than its n somewhere."""
    state = fitted(timestamp_is, bundle, timed)
    numbers = encode(random_histories(1, 60, timed=timed), None, state).past.numbers
    alike: dict[bytes, list[str]] = {}
    for name, column in zip(state.number_names, numbers.T, strict=True):
        alike.setdefault(column.tobytes(), []).append(name)
        assert len(np.unique(column)) > 1, f"{name} is constant"
    assert [names for names in alike.values() if len(names) > 1] == []


def same(left: Rows, right: Rows, rows: slice = slice(None)) -> None:
    """Bit-equal in everything that a model may read."""
    for name in left.ids:
        np.testing.assert_array_equal(left.ids[name][rows], right.ids[name][rows], err_msg=name)
    unequal = (left.numbers[rows] != right.numbers[rows]).any(0)
    assert not unequal.any(), f"numeric columns {np.flatnonzero(unequal)}"
    for name in ("concepts", "position", "visible"):
        np.testing.assert_array_equal(getattr(left, name)[rows], getattr(right, name)[rows], err_msg=name)


def perturbed(histories: Histories, row: int, rng: np.random.Generator, bundle: str, timestamp_is: str) -> Histories:
    """Change everything that `row` (of the only user) must not see."""
    rows = histories.rows
    visible_until = row
    if bundle == "test_run":
        tests = histories.test.strings()
        while visible_until > 0 and tests[visible_until - 1] == tests[row] != "":
            visible_until -= 1
    correct = histories.correct.copy()
    correct[visible_until:] = rng.choice([0, 1, UNKNOWN], rows - visible_until)
    later = np.arange(rows) > row
    question = histories.question.strings()
    question[later] = rng.choice(QUESTIONS, later.sum())
    test, concepts = histories.test.strings(), histories.concepts.strings()
    test[later] = rng.choice(["t0", "t9", ""], later.sum())
    concepts[later] = rng.choice(CONCEPTS, later.sum())
    timestamp = histories.timestamp
    if timestamp is not None:
        timestamp = timestamp.copy()
        hidden_time = later if timestamp_is == "shown" else np.arange(rows) >= row
        timestamp[hidden_time] += rng.integers(1, 10**9)
    return Histories(
        histories.users, histories.offsets, Coded.of(question), Coded.of(test), Coded.of(concepts), correct, timestamp
    )


def check_no_future(state: EncoderState, seed: int, timed: bool) -> None:
    rng = np.random.default_rng(seed)
    histories = random_histories(seed, 1, timed=timed)
    if not histories.rows:
        return
    before = encode(histories, None, state).past
    row = int(rng.integers(histories.rows))
    changed = perturbed(histories, row, rng, state.config.bundle, state.config.timestamp_is)
    after = encode(changed, None, state).past
    same(before, after, slice(row, row + 1))
    if state.config.bundle == "none":  # with bundles, earlier rows of the same run lose nothing either
        same(before, after, slice(0, row + 1) if state.config.timestamp_is == "shown" else slice(0, row))


@switches
@given(SEEDS)
@settings(max_examples=40, deadline=None)
def test_no_feature_sees_the_future(timestamp_is: str, bundle: str, timed: bool, seed: int) -> None:
    check_no_future(fitted(timestamp_is, bundle, timed), seed, timed)


@switches
@given(SEEDS, st.integers(0, LONGEST))
@settings(max_examples=30, deadline=None)
def test_prefix_of_the_encoding_is_the_encoding_of_the_prefix(
    timestamp_is: str, bundle: str, timed: bool, seed: int, length: int
) -> None:
    state = fitted(timestamp_is, bundle, timed)
    histories = random_histories(seed, 1, timed=timed)
    prefix = histories.head(np.minimum(histories.lengths, length))
    same(encode(histories, None, state).past, encode(prefix, None, state).past, slice(0, prefix.rows))


@switches
@given(SEEDS)
@settings(max_examples=25, deadline=None)
def test_a_batch_of_students_equals_each_student_alone(timestamp_is: str, bundle: str, timed: bool, seed: int) -> None:
    state = fitted(timestamp_is, bundle, timed).excluding(1)
    histories = random_histories(seed, 5, timed=timed)
    together = encode(histories, None, state).past
    for user in range(5):
        alone = encode(histories.select(np.array([user])), None, state).past
        start, stop = histories.offsets[user : user + 2]
        same(together.take(np.arange(start, stop), np.array([0, stop - start])), alone)


@switches
@given(SEEDS)
@settings(max_examples=25, deadline=None)
def test_many_targets_equal_each_alone_and_the_appended_row(
    timestamp_is: str, bundle: str, timed: bool, seed: int
) -> None:
    state = fitted(timestamp_is, bundle, timed)
    histories = random_histories(seed, 3, timed=timed)
    rng = np.random.default_rng(seed)
    asked = rng.integers(0, len(QUESTIONS), 12)
    time = 10**12 + 10**9 + rng.integers(0, 10**6, 12) if timed else None
    targets = Targets(
        np.array([0, 5, 5, 12]),
        Coded.of([QUESTIONS[q] for q in asked]),
        Coded.of([f"t{q // 4}" for q in asked]),
        Coded.of([CONCEPTS[q % 5] for q in asked]),
        time,
    )
    many = encode(histories, targets, state).targets
    assert many is not None
    for index in range(12):
        user = int(np.searchsorted(targets.offsets, index, "right") - 1)
        one = histories.select(np.array([user]))
        appended = Histories(
            one.users,
            np.array([0, one.rows + 1]),
            Coded.of([*one.question.strings(), targets.question.strings()[index]]),
            Coded.of([*one.test.strings(), targets.test.strings()[index]]),
            Coded.of([*one.concepts.strings(), targets.concepts.strings()[index]]),
            np.append(one.correct, np.int8(UNKNOWN)),
            None if time is None or one.timestamp is None else np.append(one.timestamp, time[index]),
        )
        last = encode(appended, None, state).past.take(np.array([one.rows]), np.array([0, 1]))
        single = targets_at(targets, index)
        alone = encode(one, single, state).targets
        assert alone is not None
        same(many.take(np.array([index]), np.array([0, 1])), last)
        same(alone, last)


@switches
@given(SEEDS)
@settings(max_examples=25, deadline=None)
def test_a_target_that_sees_less_equals_the_same_target_after_less(
    timestamp_is: str, bundle: str, timed: bool, seed: int
) -> None:
    state = fitted(timestamp_is, bundle, timed)
    histories = random_histories(seed, 3, timed=timed)
    rng = np.random.default_rng(seed)
    offsets, asked = np.array([0, 7, 7, 15]), rng.integers(0, len(QUESTIONS), 15)
    seen = rng.integers(0, np.repeat(histories.lengths, np.diff(offsets)) + 1)
    targets = Targets(
        offsets,
        Coded.of([QUESTIONS[q] for q in asked]),
        Coded.of([f"t{q // 4}" for q in asked]),
        Coded.of([CONCEPTS[q % 5] for q in asked]),
        10**12 + rng.integers(0, 10**9, 15) if timed else None,
        seen,
    )
    together = encode(histories, targets, state)
    same(together.past, encode(histories, None, state).past)
    assert together.targets is not None
    for index in range(15):
        user = np.array([np.searchsorted(offsets, index, "right") - 1])
        less = histories.select(user).head(seen[[index]])
        alone = encode(less, targets_at(targets, index), state).targets
        assert alone is not None
        same(together.targets.take(np.array([index]), np.array([0, 1])), alone)


def targets_at(targets: Targets, index: int) -> Targets:
    """One of the targets, for one user."""
    pick = np.array([index])
    time = None if targets.timestamp is None else targets.timestamp[pick]
    columns = (targets.question, targets.test, targets.concepts)
    return Targets(np.array([0, 1]), *(column.take(pick) for column in columns), time)


def test_a_right_last_answer_moves_columns_in_their_direction() -> None:
    """`Feature.direction`: what rises never falls, and what moves without a direction is known by name."""
    state = fitted("submitted", "none", True)
    moved = np.zeros((2, len(state.number_names)), bool)  # down, up
    for seed in range(150):
        histories = random_histories(seed, 1)
        if not histories.rows or histories.correct[-1] == UNKNOWN:
            continue
        questions = range(len(QUESTIONS))
        targets = Targets(
            np.array([0, len(QUESTIONS)]),
            Coded.of(QUESTIONS),
            Coded.of([f"t{q // 4}" for q in questions]),
            Coded.of([CONCEPTS[q % 5] for q in questions]),
        )
        wrong, right = (
            encode(dataclasses.replace(histories, correct=np.append(histories.correct[:-1], answer)), targets, state)
            for answer in (np.int8(0), np.int8(1))
        )
        change = right.targets.numbers.astype(float) - wrong.targets.numbers
        moved |= [(change < 0).any(0), (change > 0).any(0)]
    down, up = (set(np.array(state.number_names)[each]) for each in moved)
    rising, falling = ({name for name in state.number_names if FEATURE[name].direction == sign} for sign in (1, -1))
    either = {"similar_surplus", "repeat_rate", "repeat_recent_rate", "repeat_streak", "repeat_vote"}
    assert up - rising == down - falling == either
    assert rising == up - either, "columns that no right answer ever raised"
    assert falling == down - either


# Tests of the tests: leaks that the property above must catch.


def _reads_current_answer(past: quantities.Past) -> np.ndarray:
    row = np.minimum(_start(past) + past.query_visible, len(past.correct) - 1)
    return past.correct[row].astype(float)


def _mean_over_whole_history(past: quantities.Past) -> np.ndarray:
    lengths = np.diff(past.offsets)
    total = np.add.reduceat(np.append(past.correct, 0).astype(float), past.offsets[:-1])
    return np.repeat(np.where(lengths > 0, total / np.maximum(lengths, 1), 0), np.diff(past.query_offsets))


def _own_time(past: quantities.Past) -> np.ndarray:
    row = np.minimum(_start(past) + past.query_visible, len(past.time) - 1)
    return (past.time[row] % 10**6).astype(float)


def _bundle_mates_answer(past: quantities.Past) -> np.ndarray:
    row = np.arange(past.queries)  # queries are the past rows here: reads the row before, visible or not
    return np.where(row > 0, past.correct[np.maximum(row - 1, 0)], -1).astype(float)


def _start(past: quantities.Past) -> np.ndarray:
    return np.repeat(past.offsets[:-1], np.diff(past.query_offsets))


@pytest.mark.parametrize(
    ("leak", "timestamp_is", "bundle"),
    [
        (_reads_current_answer, "shown", "none"),
        (_mean_over_whole_history, "shown", "none"),
        (_own_time, "submitted", "none"),
        (_bundle_mates_answer, "shown", "test_run"),
    ],
)
def test_planted_leaks_are_caught(monkeypatch: pytest.MonkeyPatch, leak, timestamp_is: str, bundle: str) -> None:
    state = fitted(timestamp_is, bundle, True)
    for seed in range(60):
        check_no_future(state, seed, True)  # clean as it is

    def leaky(past: quantities.Past, sources: tuple[quantities.Source, ...]) -> np.ndarray:
        measured = quantities.measure(past, sources)
        measured[:, plan.plan(state.number_names, encoder.READ).column["trace.run"]] = leak(past)
        return measured

    monkeypatch.setattr(plan, "measure", leaky)

    def search() -> None:
        for seed in range(60):
            check_no_future(state, seed, True)

    with pytest.raises(AssertionError):
        search()


def asked_otherwise(
    histories: Histories, rows: np.ndarray, questions: list[str], rng: np.random.Generator
) -> Histories:
    """The given rows with other questions, in any test and on any concepts, other answers and other times.

    Times go on rising from the first such row to the last.
    """

    def drawn(column: Coded, values: list[str]) -> Coded:
        strings = column.strings()
        strings[rows] = rng.choice(values, rows.sum())
        return Coded.of(strings.tolist())

    correct = histories.correct.copy()
    correct[rows] = rng.choice([0, 1, UNKNOWN], rows.sum())
    assert histories.timestamp is not None
    timestamp = histories.timestamp.copy()
    timestamp[rows] = 10**12 + np.cumsum(rng.choice([0, 5_000, 10**9], rows.sum()))
    return dataclasses.replace(
        histories,
        question=drawn(histories.question, questions),
        test=drawn(histories.test, ["t0", "t1", "t2", "t3", ""]),
        concepts=drawn(histories.concepts, CONCEPTS),
        correct=correct,
        timestamp=timestamp,
    )


OWN_QUESTIONS = ["A010001003", "A010001004", "A020002003", "y"]  # nobody else is asked these


@pytest.mark.parametrize("canary", ["answers", "everything", "questions of their own"])
def test_no_statistic_of_a_fold_reaches_its_rows(canary: str) -> None:
    """What users of fold 1 answered, what they were asked and when: only fold 1's own rows may not know.

    Ids are numbered over all folds, so that they are compared only where the fold brings no new one.
    """
    train = random_histories(5, 40)
    fold = np.array([1, 1, 1, 1, 0, 2] * 7)[:40].astype(np.int8)  # enough to change which test a question is mostly in
    theirs = np.repeat(fold, train.lengths) == 1
    if canary == "answers":
        changed = dataclasses.replace(train, correct=np.where(theirs, 1, train.correct).astype(np.int8))
    else:
        questions = QUESTIONS + (OWN_QUESTIONS if canary == "questions of their own" else [])
        changed = asked_otherwise(train, theirs, questions, np.random.default_rng(3))
    config = EncoderConfig(min_count=1)
    before, after = (fit_histories(h, fold, config) for h in (train, changed))
    probe = random_histories(9, 12)
    probe = asked_otherwise(probe, np.arange(probe.rows) % 2 == 0, QUESTIONS + OWN_QUESTIONS, np.random.default_rng(4))
    one, other = (encode(probe, None, state.excluding(1)).past for state in (before, after))
    if canary == "questions of their own":
        assert before.vocabularies["question"] != after.vocabularies["question"]
        np.testing.assert_array_equal(one.numbers, other.numbers)
    else:
        assert before.vocabularies == after.vocabularies
        same(one, other)
    one, other = (encode(probe, None, state.excluding(0)).past for state in (before, after))
    moved = set(np.array(before.number_names)[(one.numbers != other.numbers).any(0)])
    told = {"question_log_odds", "easiness_1pl", "similar_surplus"}
    if canary != "answers":
        told |= {"question_count", "test_size", "pass_number", "expected_time"}
    assert told <= moved, "the canary must be visible from other folds, or this test proves nothing"
