"""A degraded ensemble: members that fail are left out, the others' weights made 1 again, and nothing else changes."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from dkt_ray.data.query import Query
from dkt_ray.ensemble import methods
from dkt_ray.ensemble.chain import Chain, Temperature, logit, sigmoid
from dkt_ray.ensemble.scorer import Scorer
from dkt_ray.errors import UnavailableError
from dkt_ray.models.base import Model, ModelConfig
from dkt_ray.serving.batching import Batcher
from dkt_ray.serving.breaker import BreakerConfig, Breakers
from tests import bundles
from tests.unit.test_batching import ask
from tests.unit.test_chain import NAMES, scored

WEIGHTS = {"a": 0.5, "b": 0.3, "c": 0.2}
SAID = {"a": 0.9, "b": 0.6, "c": 0.2}


class Speaks(Model):
    """Says one number, takes its time on a hand-moved clock, and fails when told to."""

    config = ModelConfig()

    def __init__(self, p: float, clock: list[float]) -> None:
        self.p, self.clock, self.takes, self.fails, self.asked = p, clock, 0.0, False, 0

    def score(self, past: Any, targets: Any) -> Any:
        self.asked += 1
        self.clock[0] += self.takes
        if self.fails:
            raise RuntimeError("a student's secret")
        return np.full(targets.rows, self.p)

    def save(self, folder: Any) -> None: ...

    @classmethod
    def load(cls, folder: Any) -> Any: ...


class Ensemble:
    """Three such members behind breakers."""

    def __init__(self, **settings: Any) -> None:
        self.clock = [0.0]
        self.members = {name: Speaks(p, self.clock) for name, p in SAID.items()}
        self.breakers = Breakers(BreakerConfig(**settings), lambda: self.clock[0])
        self.scorer = Scorer(bundles.world().state, self.members, Chain.weighted(WEIGHTS))

    def answer(self, rows: int = 1) -> Any:
        return self.scorer.score_queries([ask("q", rows)], self.breakers)[0]


def mean(*names: str) -> float:
    return sum(WEIGHTS[name] * SAID[name] for name in names) / sum(WEIGHTS[name] for name in names)


def test_whole_it_is_bit_equal_to_the_strict_path():
    ensemble = Ensemble()
    strict = ensemble.scorer.score_queries([ask("q", 3)])[0]
    found = ensemble.answer(3)
    np.testing.assert_array_equal(found.probability, strict.probability)
    assert (found.left_out, list(found.members), ensemble.breakers.counts) == ((), list("abc"), {})


def test_who_is_asked_for_nothing_has_not_failed():
    ensemble = Ensemble(failures=1)
    found = ensemble.scorer.score_queries([Query(question=["q"], correct=[1], target=[])], ensemble.breakers)[0]
    assert (len(found.probability), found.left_out, ensemble.breakers.counts) == (0, (), {})


@pytest.mark.parametrize("bad", [RuntimeError, float("nan"), 1.5])
@pytest.mark.parametrize("out", ["a", "bc", "ac"])
def test_the_others_answer_with_their_weights_made_1_again(bad, out, caplog):
    ensemble = Ensemble()
    for name in out:
        ensemble.members[name].fails, ensemble.members[name].p = bad is RuntimeError, bad
    found, rest = ensemble.answer(), [name for name in "abc" if name not in out]
    assert found.left_out == tuple(out)
    assert found.probability[0] == pytest.approx(mean(*rest), abs=1e-12)
    assert list(found.members) == rest
    assert ensemble.breakers.counts == {(name, "error" if bad is RuntimeError else "value"): 1 for name in out}
    assert "secret" not in caplog.text


def test_nobody_left_is_an_error_of_its_own_and_training_tolerates_nothing():
    ensemble = Ensemble(failures=1)
    ensemble.members["b"].fails = True
    with pytest.raises(RuntimeError):
        ensemble.scorer.score_queries([ask("q")])
    for member in ensemble.members.values():
        member.fails = True
    with pytest.raises(UnavailableError, match="none of the members a, b, c answers"):
        ensemble.answer()
    for member in ensemble.members.values():
        member.fails = False
    assert ensemble.answer().left_out == ()  # all of them rest, hence all are asked


def test_after_failures_in_a_row_a_member_rests_and_then_one_batch_decides():
    ensemble = Ensemble(failures=2, rest_s=10)
    b = ensemble.members["b"]
    for fails in (True, False, True, True):
        b.fails = fails
        assert ensemble.answer().left_out == (("b",) if fails else ())
    assert b.asked == 4
    b.fails = False
    assert ensemble.answer().left_out == ("b",)
    assert b.asked == 4
    ensemble.clock[0], b.fails = 10.0, True
    assert ensemble.answer().left_out == ("b",)  # asked once, failed once: rests again
    ensemble.clock[0] = 19.9
    assert ensemble.answer().left_out == ("b",)
    assert b.asked == 5
    ensemble.clock[0], b.fails = 20.0, False
    assert ensemble.answer().left_out == ()
    assert ensemble.breakers.counts == {("b", "error"): 4, ("b", "resting"): 2}


class Chokes(Speaks):
    """Fails, or says something that is no probability, for students with so many answers."""

    def __init__(self, p: float, clock: list[float], lengths: set[int], bad: float | None) -> None:
        super().__init__(p, clock)
        self.lengths, self.bad = lengths, bad

    def score(self, past: Any, targets: Any) -> Any:
        said = super().score(past, targets)
        said += np.repeat(np.diff(past.offsets), np.diff(targets.offsets)) / 1000  # each student's own
        poisonous = np.isin(np.diff(past.offsets), list(self.lengths))
        if self.bad is None and poisonous.any():
            raise RuntimeError("a student's secret")
        said[np.repeat(poisonous, np.diff(targets.offsets))] = self.bad or 0
        return said


class Sleeps(Chokes):
    """Takes real time."""

    SECONDS = 0.01

    def score(self, past: Any, targets: Any) -> Any:
        time.sleep(self.SECONDS)
        return super().score(past, targets)


def students(*lengths: int) -> list[Query]:
    """A query of a student with so many answers each, for one to three targets."""
    return [
        Query(question=["q"] * length, correct=[1] * length, target=["q"] * (1 + place % 3))
        for place, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("bad", [None, float("nan"), 1.5])
def test_a_student_whom_a_member_cannot_read_takes_it_from_nobody_else_of_a_batch(bad, caplog):
    ensemble = Ensemble(failures=1)
    for name, lengths in (("a", {13}), ("b", {13, 3}), ("c", set())):
        ensemble.members[name] = Chokes(SAID[name], ensemble.clock, lengths, bad)
    queries = students(5, 3, 8, 13, 0, 7, 3)
    for batches in (1, 2):
        found = ensemble.scorer.score_queries(queries, ensemble.breakers)
        for query, scores in zip(queries, found, strict=True):
            out = {13: "ab", 3: "b"}.get(len(query.question), "")
            assert scores.left_out == tuple(out)
            assert list(scores.members) == [name for name in "abc" if name not in out]
            expected = np.full(len(query.target), mean(*scores.members) + len(query.question) / 1000)
            np.testing.assert_allclose(scores.probability, expected, rtol=0, atol=1e-12)
            assert scores.missing == {}
        assert ensemble.breakers.counts == {("a", "some"): batches, ("b", "some"): batches}  # and nobody rests
    told = [record.message.split(":")[0] for record in caplog.records]
    assert told == 2 * ["member a", "member b"]
    assert "secret" not in caplog.text


def test_the_time_of_a_member_that_is_asked_again_is_all_of_it():
    ensemble = Ensemble()
    ensemble.members["a"] = Sleeps(0.9, ensemble.clock, {13}, None)
    scores = ensemble.scorer.score_queries(students(5, 13), ensemble.breakers)[0]
    assert ensemble.members["a"].asked == 3
    assert scores.seconds["a"] >= 3 * Sleeps.SECONDS


def test_whom_no_member_can_read_is_told_so_alone():
    ensemble = Ensemble(failures=10)
    for name, p in SAID.items():
        ensemble.members[name] = Chokes(p, ensemble.clock, {13}, None)

    async def main() -> list[Any]:
        answer = partial(ensemble.scorer.score_queries, ask=ensemble.breakers)
        batcher = Batcher(answer, max_queries=32, max_rows=10_000, max_waiting_rows=10_000)
        return await asyncio.gather(*(batcher(query) for query in students(5, 13, 8)), return_exceptions=True)

    five, thirteen, eight = asyncio.run(main())
    assert isinstance(thirteen, UnavailableError)
    assert (five.left_out, eight.left_out) == ((), ())


def test_a_member_that_cannot_read_many_rests_and_is_not_asked_for_long():
    ensemble = Ensemble(failures=2)
    lengths = range(32)
    ensemble.members["b"] = b = Chokes(0.6, ensemble.clock, set(lengths[::2]), None)
    tries = []
    for _ in range(3):
        before = b.asked
        found = ensemble.scorer.score_queries(students(*lengths), ensemble.breakers)
        tries.append(b.asked - before)
    assert tries == [1 + 4 * 5, 1 + 4 * 5, 0]
    assert {scores.left_out for scores in found} == {("b",)}
    ensemble.clock[0] = 20.0
    ensemble.scorer.score_queries(students(*lengths), ensemble.breakers)
    assert b.asked == sum(tries) + 1  # one batch decides, whole


def test_who_is_looked_for_beyond_a_members_time_is_left_out_and_that_is_not_the_member_being_slow():
    ensemble = Ensemble(member_timeout_s=2.5, failures=1)
    ensemble.members["b"] = b = Chokes(0.6, ensemble.clock, {13}, None)
    b.takes = 1.0
    found = ensemble.scorer.score_queries(students(1, 2, 3, 4, 13, 6, 7, 8), ensemble.breakers)
    assert b.asked == 3  # all, the first four, the others
    assert [scores.left_out for scores in found] == 4 * [()] + 4 * [("b",)]
    assert ensemble.breakers.counts == {("b", "some"): 1, ("b", "error"): 1}


def test_a_slow_answer_is_used_and_counts_as_a_failure_in_proportion_to_the_batch():
    ensemble = Ensemble(failures=1, member_timeout_s=1, rest_s=100)
    ensemble.members["a"].takes = 1.5
    assert ensemble.answer(2000).left_out == ()
    assert ensemble.breakers.counts == {}
    found = ensemble.answer()
    assert found.left_out == ()
    assert found.probability[0] == pytest.approx(mean(*"abc"), abs=1e-12)
    assert ensemble.answer().left_out == ("a",)
    assert ensemble.breakers.counts == {("a", "slow"): 1, ("a", "resting"): 1}


@pytest.mark.parametrize("kind", ["logit", "logistic", "boosted"])
def test_without_a_member_a_stack_is_the_mean_of_log_odds_by_shares_and_its_calibrator_stays(kind):
    combination = methods.METHODS[kind](*scored(300))
    chain = Chain.of(NAMES, combination).model_copy(update={"calibrator": Temperature(temperature=2.0)})
    rest = chain.without(["dull"])
    p, shares = np.array([[0.7, 0.2], [0.4, 0.9]]), np.array([chain.shares["sharp"], chain.shares["noise"]])
    expected = sigmoid(logit(p) @ (shares / shares.sum()) / 2.0)
    np.testing.assert_allclose(rest.apply(p, np.array([3, 9], np.int32)), expected, rtol=0, atol=1e-12)
    assert rest.members == ("sharp", "noise")


def test_members_without_weight_count_alike():
    assert Chain.weighted({"a": 1.0, "b": 0.0, "c": 0.0}).without("a").shares == {"b": 0.5, "c": 0.5}


def test_a_real_bundle_answers_without_one_of_its_members():
    models = bundles.trained()
    scorer = Scorer(bundles.world().state, models, Chain.weighted(bundles.WEIGHTS))
    broken = replace(scorer, members=models | {"lightgbm": Speaks(float("nan"), [0.0])})
    queries = [ask("A000000000", 5), ask("A000001001", 2)]
    found, whole = broken.score_queries(queries, Breakers(BreakerConfig())), scorer.score_queries(queries)
    for degraded, full in zip(found, whole, strict=True):
        assert degraded.left_out == ("lightgbm",)
        np.testing.assert_allclose(degraded.probability, full.members["lstm_attention"], rtol=0, atol=1e-12)
