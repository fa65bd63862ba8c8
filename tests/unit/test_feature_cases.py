"""Features where data are odd: unknown questions, equal and backward times, no heads, long histories; exact folds."""

from __future__ import annotations

import time

import numpy as np
import pytest

from dkt_ray.data.history import Coded, Histories, Targets
from dkt_ray.features.encoder import EncoderConfig, EncoderState, encode, fit_histories
from dkt_ray.features.irt import Curves, fit_curves
from dkt_ray.features.kernels import DAY_MS
from dkt_ray.features.profile import ABILITIES, DURATION_EDGES_MS, profile
from dkt_ray.features.quantities import FITTED
from dkt_ray.features.student import FEATURE
from dkt_ray.schema import UNKNOWN
from tests.builders import START_MS, random_histories
from tests.reference_fit import ability, curve

HOUR = 3_600_000


def one(
    ids: list[str], answers: list[int], ms: list[int], test: str = "t", concepts: list[str] | None = None
) -> Histories:
    """One student of one test."""
    rows = len(ids)
    return Histories(
        np.array(["u"], object), np.array([0, rows]), Coded.of(ids), Coded.of([test] * rows),
        Coded.of(concepts or ["1"] * rows), np.array(answers, np.int8), np.array(ms, np.int64),
    )  # fmt: skip


def fitted(**config: object) -> EncoderState:
    histories = random_histories(np.random.default_rng(8), 30, tests=3)
    return fit_histories(histories, (np.arange(30) % 3).astype(np.int8), EncoderConfig(**{"min_count": 1} | config))


def named(state: EncoderState, numbers: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(state.number_names, numbers.T, strict=True))


def asked(questions: list[str], concepts: list[str], at: int | None = None, test: str = "") -> Targets:
    rows = len(questions)
    time_ = None if at is None else np.full(rows, at, np.int64)
    return Targets(np.array([0, rows]), Coded.of(questions), Coded.of([test] * rows), Coded.of(concepts), time_)


@pytest.mark.parametrize("held_out", [0, 1, 2])
def test_excluding_a_fold_is_fitting_without_its_users(held_out: int) -> None:
    histories = random_histories(np.random.default_rng(11), 45, longest=40, questions=14, tests=3)
    fold = (np.arange(45) % 4 - 1).astype(np.int8)
    config = EncoderConfig(min_count=1)
    others = np.flatnonzero(fold != held_out)
    kept = histories.select(others)
    whole = fit_histories(histories, fold, config)
    without = fit_histories(kept, fold[others], config)
    assert whole.vocabularies == without.vocabularies, "the fold's ids must occur elsewhere for this test to hold"
    columns = [Coded.of([*getattr(histories, n).strings(), "new"]).strings() for n in ("question", "test", "concepts")]
    left, right = whole.excluding(held_out), without
    assert left.base_rate == right.base_rate
    mine, theirs = left.items(*columns), right.items(*columns)
    for name in ("values", "sketch", "expected", "concepts", "tags"):
        np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name), err_msg=name)
    np.testing.assert_array_equal(encode(kept, None, left).past.numbers, encode(kept, None, right).past.numbers)


def test_a_known_question_without_answers_has_its_parents_curve() -> None:
    """In the fold that alone answered a question, nothing is known of it but its test, concepts and head."""
    histories = random_histories(np.random.default_rng(8), 30, tests=3, questions=14)
    lonely = histories.question.strings()
    lonely[0] = "A010001099"  # of user 0, in fold 0
    test, concepts = histories.test.strings()[1], histories.concepts.strings()[1]
    tests, tags = histories.test.strings(), histories.concepts.strings()
    tests[0], tags[0] = test, concepts
    changed = Histories(
        histories.users, histories.offsets, Coded.of(lonely), Coded.of(tests), Coded.of(tags),
        np.where(np.arange(histories.rows) == 0, 1, histories.correct).astype(np.int8), histories.timestamp,
    )  # fmt: skip
    state = fit_histories(changed, (np.arange(30) % 3).astype(np.int8), EncoderConfig(min_count=1)).excluding(0)
    known, new = (np.array(pair, object) for pair in (["A010001099"], ["A010001098"]))  # the other id is unknown
    items = [state.items(each, np.array([test], object), np.array([concepts], object)) for each in (known, new)]
    assert items[0].ids["question"][0] != items[1].ids["question"][0]
    for name in ("easiness", "easiness_2pl", "discrimination", "question_log_odds", "expected_ms"):
        place = FITTED.index(name)
        assert items[0].values[0, place] == items[1].values[0, place], name


def test_two_unknown_questions_of_one_call_are_two_questions() -> None:
    state = fitted(timestamp_is="shown")
    past = one(["new-1", "new-1", "new-2"], [1, 1, 0], [START_MS, START_MS + 1, START_MS + 2], concepts=["x", "x", "y"])
    rows = encode(past, asked(["new-1", "new-2", "new-3"], ["x", "y", "z"], START_MS + 5_000), state).targets
    assert rows is not None
    found = named(state, rows.numbers)
    np.testing.assert_allclose(np.expm1(found["user_question_count"]), [2, 1, 0], atol=1e-6)
    np.testing.assert_allclose(np.expm1(found["user_concept_count"]), [2, 1, 0], atol=1e-6)
    assert found["question_last_answer"].tolist() == [1, 0, -2]
    assert len(set(found["question_log_odds"])) == 1, "nothing is known of any of them"


def test_concepts_are_counted_one_by_one() -> None:
    state = fitted()
    ms = [START_MS, START_MS + 10_000, START_MS + 40_000, START_MS + 50_000]
    past = one(["a", "b", "c", "d"], [1, 0, 1, 1], ms, concepts=["1_2", "1", "1_2", "1_2"])
    found = named(state, encode(past, None, state).past.numbers)
    np.testing.assert_allclose(np.expm1(found["user_concept_count"]), [0, 1, 3, 5], atol=1e-6)
    # before d, concept 1 was met at 0, 10 and 40 s and concept 2 at 0 and 40 s: three pauses, 80 s in all
    np.testing.assert_allclose(np.expm1(found["concept_spacing"][1:]), [np.expm1(-1), 10, 80 / 3], rtol=1e-5)


def test_rows_without_a_head_count_in_no_head() -> None:
    state = fitted()
    past = one(["free", "A010001001", "A010001002", "free", "A020001001"], [1] * 5, [START_MS + i for i in range(5)])
    found = named(state, encode(past, None, state).past.numbers)
    np.testing.assert_allclose(np.expm1(found["user_head_count"]), [0, 0, 1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(np.expm1(found["user_head_cycles"]), [0, 0, 1, 0, 0], atol=1e-6)
    assert found["user_head_rows_per_cycle"].tolist() == [0, 0, 1, 0, 0]
    assert found["head_last_answer"].tolist() == [-2, -2, 1, -2, -2]
    np.testing.assert_allclose(np.expm1(found["user_cycles"]), [0, 1, 1, 1, 1], atol=1e-6)


def test_a_day_ends_at_midnight_utc() -> None:
    state = fitted()
    midnight = START_MS + 90 * DAY_MS  # after the night in which Europe's clocks go forward
    times = [midnight - 2 * HOUR, midnight - 1, midnight, midnight + 23 * HOUR, midnight + 24 * HOUR]
    found = named(state, encode(one(list("abcde"), [1, 0, 1, 1, 1], times), None, state).past.numbers)
    # with times of submission a row's day is that of the last visible row
    np.testing.assert_allclose(np.expm1(found["day_cycle_count"]), [0, 1, 2, 1, 2], atol=1e-6)
    np.testing.assert_allclose(np.expm1(found["user_cycles"]), [0, 1, 1, 2, 2], atol=1e-6)


@pytest.mark.parametrize(("gap_ms", "timed"), [(600_000, True), (600_001, False), (0, True)])
def test_a_pause_is_not_time_spent(gap_ms: int, timed: bool) -> None:
    state = fitted()
    past = one(["a", "b", "c"], [1, 1, 1], [START_MS, START_MS + gap_ms, START_MS + gap_ms])
    assert bool(named(state, encode(past, None, state).past.numbers)["last_tempo"][2]) is timed
    counted = profile(past, np.zeros(1, np.int8), state.counts, submitted=True).column("durations").sum()
    assert counted == (2 if timed else 1)
    assert DURATION_EDGES_MS[-1] == 600_000


@pytest.mark.parametrize(("pause_ms", "sessions"), [(1_800_000, 1), (1_800_001, 2)])
def test_a_session_ends_with_more_than_half_an_hour(pause_ms: int, sessions: int) -> None:
    state = fitted()
    past = one(["a", "b", "c"], [1, 1, 1], [START_MS, START_MS + pause_ms, START_MS + pause_ms])
    last = named(state, encode(past, None, state).past.numbers[2:])
    np.testing.assert_allclose(np.expm1(last["sessions"]), sessions, rtol=1e-6)
    np.testing.assert_allclose(np.expm1(last["session_count"]), 3 - sessions, rtol=1e-6)


@pytest.mark.parametrize("timestamp_is", ["shown", "submitted"])
def test_times_that_stand_still_or_go_back_give_finite_numbers(timestamp_is: str) -> None:
    state = fitted(timestamp_is=timestamp_is)
    times = START_MS + np.array([0, 0, 5 * HOUR, 2 * HOUR, 2 * HOUR, 90 * HOUR, 1, -HOUR])
    concepts = ["1", "1_2", "1", "2", "1_2", "1", "1_2", "2"]
    past = one(list("abababab"), [1, 0, 1, UNKNOWN, 1, 0, 1, 1], times.tolist(), concepts=concepts)
    for at in (None, START_MS - 3 * DAY_MS, START_MS + HOUR, START_MS + 95 * HOUR):
        found = encode(past, asked(["a", "new"], ["1_2", "2"], at, "t"), state)
        assert found.targets is not None
        assert np.isfinite(found.past.numbers).all()
        assert np.isfinite(found.targets.numbers).all()


def test_a_target_without_a_time_is_asked_at_the_last_row() -> None:
    """Its lag is unknown; windows, days and the hour are those of the last visible row."""
    state = fitted(timestamp_is="shown")
    past = one(["a", "b"], [1, 0], [START_MS, START_MS + 3 * HOUR])
    timeless, timed = (encode(past, asked(["c"], ["1"], at, "t"), state).targets for at in (None, START_MS + 3 * HOUR))
    assert timeless is not None
    assert timed is not None
    mine, theirs = named(state, timeless.numbers), named(state, timed.numbers)
    assert {name for name in mine if mine[name] != theirs[name]} == {"lag_log", "lag_capped"}
    assert np.expm1(mine["hour_count"][0]) == pytest.approx(1)
    assert mine["lag_log"][0] == -1
    assert timeless.ids["hour"] == timed.ids["hour"]


def test_a_stretch_that_is_replayed_foretells_its_answers() -> None:
    """Five questions again, in their order and with their answers; the sixth is a new one."""
    state, ids, answers = fitted(), list("abcdef"), [1, 0, 0, 1, 1]
    past = one([*"xy", *"abcde", *"abc"], [1, 1, *answers, *answers[:3]], list(range(10)))
    found = encode(past, asked(ids, ["1"] * 6), state)
    assert found.targets is not None
    target, rows = named(state, found.targets.numbers), named(state, found.past.numbers)
    np.testing.assert_allclose(np.expm1(target["repeat_count"]), 3)
    np.testing.assert_allclose(target["repeat_rate"], 1)
    np.testing.assert_allclose(np.expm1(target["replay_rows"]), [0, 0, 0, 3, 0, 0], atol=1e-6)  # `d` would go on
    np.testing.assert_allclose(target["replay_vote"], [0, 0, 0, np.log(4), 0, 0], atol=1e-6)
    np.testing.assert_allclose(target["repeat_vote"], np.log(4) * np.array([1, -1, -1, 1, 1, 0]), atol=1e-6)
    np.testing.assert_allclose(np.expm1(rows["replay_rows"]), [*[0] * 8, 1, 2], atol=1e-6)
    another = one([*"xy", *"abcde", *"abc"], [1, 1, *answers, 1, 0, 1], list(range(10)))  # `c` came out otherwise
    target = named(state, encode(another, asked(ids, ["1"] * 6), state).targets.numbers)
    np.testing.assert_allclose(target["repeat_rate"], 2 / 3, rtol=1e-6)
    np.testing.assert_allclose(target["repeat_streak"], 0)
    np.testing.assert_allclose(target["replay_vote"][3], np.log(4), rtol=1e-6)  # the order goes on all the same


def test_a_history_of_50_000_rows_takes_ten_times_as_long_as_one_of_5_000() -> None:
    state = fitted(timestamp_is="shown")
    assert "similar_surplus" in state.number_names

    def seconds(rows: int) -> float:
        rng = np.random.default_rng(rows)
        ids = [f"A010001{number:03d}" for number in rng.integers(0, 40, rows)]
        answers = rng.integers(0, 2, rows).tolist()
        ms = (START_MS + np.cumsum(rng.integers(0, 9_000_000, rows))).tolist()
        past = one(ids, answers, ms, concepts=["1_2_3"] * rows)
        best = []
        for _ in range(3):
            started = time.perf_counter()
            encoded = encode(past, asked(ids[:50], ["1_2_3"] * 50, ms[-1] + 1), state)
            best.append(time.perf_counter() - started)
        found = named(state, encoded.past.numbers)
        assert np.isfinite(encoded.past.numbers).all()
        np.testing.assert_allclose(np.expm1(found["user_count"]), np.arange(rows), rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(np.expm1(found["user_right"][-1]), sum(answers[:-1]), rtol=1e-5)
        return min(best)

    seconds(100)
    assert seconds(50_000) < 40 * seconds(5_000)


@pytest.mark.parametrize("slope", [False, True])
@pytest.mark.parametrize("answer", [lambda a: a < a + 1, lambda a: a > a, lambda a: a > 0, lambda a: a < 0])
@pytest.mark.parametrize(("copies", "prior"), [(1, (0.0, 1.0)), (20, (3.0, 1.5)), (20, (-3.0, 0.6)), (60, (9.0, 1.0))])
def test_curves_of_one_sided_answers_are_those_of_scipy(answer, copies: int, prior: tuple[float, float], slope) -> None:
    right = answer(ABILITIES).astype(float) * copies
    start = Curves(*(np.array([each]) for each in prior))
    found = fit_curves(np.full((1, len(ABILITIES)), float(copies)), right[None], ABILITIES, start, slope)
    answers = [(float(a), int(yes > 0)) for a, yes in zip(ABILITIES, right, strict=True) for _ in range(copies)]
    np.testing.assert_allclose(np.concatenate(found), curve(answers, prior, slope), atol=1e-4)


@pytest.mark.parametrize(("share", "level"), [(0.0, 0.98), (1.0, 0.02), (0.45, 0.03), (0.1, 0.95), (0.5, 0.5)])
def test_the_ability_of_a_surprising_student_is_the_mode(share: float, level: float) -> None:
    """Undamped Newton steps would throw a student with 45 % right answers to very hard questions to the lowest bin."""
    rows = 60
    others = Histories(
        np.array([f"u{i}" for i in range(200)], object), np.arange(201), Coded.constant("a", 200),
        Coded.constant("", 200), Coded.constant("", 200), (np.arange(200) < 200 * level).astype(np.int8),
    )  # fmt: skip
    student = one(["a"] * rows, [int(i < share * rows) for i in range(rows)], [START_MS] * rows)
    counts = fit_histories(others, np.zeros(200, np.int8), EncoderConfig(min_count=1)).counts
    graded = profile(student, np.zeros(1, np.int8), counts, submitted=True).column("graded")
    right = round(200 * level)
    rate = (right + 4 * (right + 1) / 202) / 204
    mode = ability([{"question": "a", "correct": int(answer)} for answer in student.correct], {"a": rate})
    nearest = int(np.argmin(np.abs(ABILITIES - mode)))
    assert np.flatnonzero(graded.sum(0)).tolist() == [nearest]


def test_what_a_feature_needs_follows_from_what_it_reads() -> None:
    assert FEATURE["user_head_cycles"].needs == {"head", "test", "time"}
    assert FEATURE["elo_concept"].needs == {"concepts"}
    assert FEATURE["elo_logit"].needs == frozenset()
    assert FEATURE["lag_log"].needs == {"shown", "time"}
    assert FEATURE["concept_hour_count"].needs == {"concepts", "time"}
    assert FEATURE["question_number"].needs == FEATURE["position_log_odds"].needs == {"head"}
    assert FEATURE["expected_time"].needs == {"time"}
