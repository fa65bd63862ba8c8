"""What is promised of predictions and their outcomes: one class of tests, inherited for SQLite and for PostgreSQL."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sqlalchemy import func, select

from dkt_ray.data.query import Query
from dkt_ray.ensemble.scorer import Scores
from dkt_ray.events import retention
from dkt_ray.events.model import Event
from dkt_ray.events.outcomes import DAY_MS, KEPT_DAYS, OPEN, Outcomes, Prediction, Recommended, figures
from dkt_ray.events.sql import Events
from dkt_ray.events.tables import OUTCOMES, PREDICTIONS, RECOMMENDATIONS
from dkt_ray.serving.events_contract import LoggedEvent
from dkt_ray.serving.journal import Journal
from dkt_ray.serving.memory import Memory
from dkt_ray.serving.series import Meters, Series
from tests.event_promises import ANN, BOB, PRIVACY, until

NOW = 100 * DAY_MS


def foreseen(question: str, p: float, at: int = NOW, user: str = ANN, bundle: str = "b" * 64) -> Prediction:
    return Prediction(user, question, bundle, p, at)


def answered(question: str, correct: int | None, at: int = NOW + 5, user: str = ANN) -> Event:
    return Event(f"{user}{question}{at}", user, question, at, at, correct)


def scores(*probabilities: float) -> Scores:
    return Scores(np.array(probabilities), {}, np.zeros(len(probabilities), bool))


class Meter:
    """Counts."""

    def __init__(self) -> None:
        self.found: Counter[tuple[str, ...]] = Counter()

    def add(self, series: Series, value: float, *labels: str) -> None:
        self.found[series.name, *labels] += value


class OutcomePromises:
    """For a subclass whose module has the fixture `events`."""

    @pytest.fixture
    def outcomes(self, events: Events) -> Outcomes:
        return Outcomes(events.engine, PRIVACY)

    def test_the_latest_prediction_before_an_answer_is_joined_to_it_once(self, outcomes: Outcomes) -> None:
        late = foreseen("q1", 0.9, NOW + 6)
        outcomes.keep([foreseen("q1", 0.1, NOW - 9), foreseen("q1", 0.4, NOW), late, foreseen("q2", 0.7, user=BOB)])
        assert outcomes.join([answered("q1", 1), answered("q2", 0), answered("q3", 1)]) == 1
        assert outcomes.join([answered("q1", 1)]) == 0  # a retry
        assert outcomes.join([answered("q2", None, user=BOB)]) == 0  # no grade yet
        assert outcomes.join([answered("q2", 0, user=BOB)]) == 1
        found = outcomes.latest("b" * 64)
        assert list(zip(found.probability, found.correct, found.at, strict=True)) == [
            (0.7, 0, NOW + 5),
            (0.4, 1, NOW + 5),
        ]
        assert outcomes.join([answered("q1", 0, NOW + 7)]) == 1  # the later one was of this answer

    def test_many_answers_at_once_take_each_its_own_prediction(self, outcomes: Outcomes) -> None:
        pairs = [(f"q{number}", number / 1000) for number in range(900)]
        outcomes.keep([foreseen(question, p, NOW + index) for index, (question, p) in enumerate(pairs)])
        answers = [answered(question, index % 2, NOW + index) for index, (question, _) in enumerate(pairs)]
        assert outcomes.join(answers[::-1]) == 900
        found = outcomes.latest("b" * 64, 899)
        np.testing.assert_array_equal(found.probability, [p for _, p in pairs[:0:-1]])
        np.testing.assert_array_equal(found.correct, [index % 2 for index in range(899, 0, -1)])

    def test_what_is_old_is_no_prediction_and_is_removed(self, outcomes: Outcomes) -> None:
        old = NOW - KEPT_DAYS * DAY_MS
        outcomes.keep([foreseen("q1", 0.5, old), foreseen("q2", 0.5, old - 1), foreseen("q3", 0.5, old)])
        assert outcomes.join([answered("q1", 1, NOW + 1)]) == 0
        assert outcomes.join([answered("q3", 1, NOW)]) == 1
        assert outcomes.expire(NOW) == 1
        assert self.rows(outcomes, PREDICTIONS) == 0

    def test_tables_do_not_grow_without_end(self, outcomes: Outcomes, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(retention, "AT_ONCE", 2)
        for number in range(7):
            outcomes.keep([foreseen("q1", 0.5, NOW + number, bundle=bundle) for bundle in ("a", "b")])
            outcomes.join([answered("q1", number % 2, NOW + number)])
        outcomes.keep(
            [foreseen("q1", number / 100, NOW, bundle=bundle) for bundle in "ab" for number in range(OPEN + 3)]
        )
        outcomes.keep([foreseen("q1", 0.9, user=BOB), foreseen("q2", 0.9), foreseen("q1", 0.9, NOW + 9, bundle="b")])
        assert self.rows(outcomes, PREDICTIONS) == 2 * OPEN + 2
        assert outcomes.expire(NOW, window=3) == 4  # of bundle b, which was asked last before each answer
        assert outcomes.latest("b").at.tolist() == [NOW + 6, NOW + 5, NOW + 4]
        assert outcomes.expire(NOW, window=3) == 0
        assert outcomes.expire(NOW + (KEPT_DAYS + 1) * DAY_MS) == 2 * OPEN + 2

    def test_nothing_is_kept_of_a_deleted_user(self, events: Events, outcomes: Outcomes) -> None:
        shown = [Recommended(user, "q", "b", "band 0.6-0.8 v1", 9, 1, 1.0, NOW) for user in (ANN, BOB)]
        outcomes.keep([foreseen("q1", 0.5), foreseen("q1", 0.5, user=BOB)], shown)
        receipt = events.histories.delete(ANN)
        assert (receipt.removed["predictions"], receipt.removed["recommendations"]) == (1, 1)
        assert outcomes.keep([foreseen("q1", 0.5)], shown) == 1  # of what was on its way, only the other's
        assert self.rows(outcomes, PREDICTIONS) == 1
        assert self.rows(outcomes, RECOMMENDATIONS) == 2
        outcomes.join([answered("q1", 1, user=BOB)])
        assert set(OUTCOMES.c.keys()) == {"number", "bundle", "probability", "correct", "at"}

    def test_bundles_stand_in_the_order_of_their_newest_outcomes(self, outcomes: Outcomes) -> None:
        for question, bundle in (("q1", "old"), ("q2", "new"), ("q3", "old"), ("q4", "new")):
            outcomes.keep([foreseen(question, 0.5, bundle=bundle)])
            outcomes.join([answered(question, 1)])
        assert outcomes.bundles() == ["new", "old"]
        assert figures(outcomes.latest("none")) == {
            "outcomes": 0,
            "log_loss": None,
            "auc": None,
            "ece": None,
            "since": None,
            "until": None,
        }

    @pytest.fixture
    def send(self, events: Events, outcomes: Outcomes) -> Callable[..., int]:
        """Sends an answer to q at a time, as a client does, and says how many outcomes came of it."""
        heard: list[Event] = []
        memory = Memory(events.log, events.histories, PRIVACY, heard=heard.extend)

        def send(number: int, now: int, correct: int | None, **more: Any) -> int:
            event = LoggedEvent(event_id=f"e{number}", user_id="ann", question="q", correct=correct, **more)
            asyncio.run(memory.append([event], "", now))
            joined = outcomes.join(heard)
            heard.clear()
            return joined

        return send

    def test_an_answer_that_is_sent_again_is_no_new_one(self, outcomes: Outcomes, send: Callable[..., int]) -> None:
        outcomes.keep([foreseen("q", 0.1)])
        assert send(1, NOW + 5, 1) == 1
        outcomes.keep([foreseen("q", 0.9, NOW + 10)])
        assert send(1, NOW + 20, 1) == 0  # without a time of its own, the server's clock has gone on
        assert send(2, NOW + 30, 0) == 1
        assert outcomes.latest("b" * 64).correct.tolist() == [0, 1]

    def test_a_grade_that_comes_late_is_of_the_prediction_before_the_answer(
        self, outcomes: Outcomes, send: Callable[..., int]
    ) -> None:
        outcomes.keep([foreseen("q", 0.1)])
        assert send(1, NOW + 5, None) == 0
        outcomes.keep([foreseen("q", 0.9, NOW + 10)])
        assert send(1, NOW + 20, 1) == 1
        found = outcomes.latest("b" * 64)
        assert (found.probability.tolist(), found.at.tolist()) == ([0.1], [NOW + 5])

    def test_a_prediction_that_is_written_after_its_answer_is_of_no_later_one(
        self, outcomes: Outcomes, send: Callable[..., int]
    ) -> None:
        assert send(1, NOW + 5, 1) == 0
        outcomes.keep([foreseen("q", 0.1), foreseen("q", 0.2, user=BOB)])  # another replica's
        assert send(2, NOW + 50, 0) == 0
        outcomes.keep([foreseen("q", 0.3, NOW + 60)])
        assert send(3, NOW + 70, 0) == 1
        assert outcomes.join([answered("q", 1, NOW + 80, BOB)]) == 1

    def test_no_prediction_that_was_made_when_the_answer_was_known_is_joined(
        self, events: Events, outcomes: Outcomes
    ) -> None:
        """Clients whose clocks are wrong, up to a minute either way; the probability says when it was foreseen."""
        random = np.random.default_rng(0)
        questions = [f"q{number}" for number in range(200)]
        made = {question: np.sort(random.choice(60_000, 4, replace=False)) for question in questions}
        outcomes.keep([foreseen(question, at / 1e6, NOW + int(at)) for question, ats in made.items() for at in ats])
        sent = [
            Event(f"{question}{turn}", ANN, question, NOW + int(received + off), NOW + int(received), int(turn))
            for question in questions
            for turn, (received, off) in enumerate(random.integers([0, -60_000], 60_000, (2, 2)))
        ]
        events.log.append(sent)
        assert len({event.answered_at for event in sent}) == len(sent)
        by_time = {event.answered_at: event for event in sent}
        joined = sum(outcomes.join(sent[start : start + 50]) for start in range(0, len(sent), 50))
        found = outcomes.latest("b" * 64)
        ahead = 0
        for probability, correct, at in zip(found.probability, found.correct, found.at, strict=True):
            event, foreseen_at = by_time[at], NOW + round(probability * 1e6)
            assert foreseen_at <= min(event.answered_at, event.received_at)
            assert foreseen_at - NOW in made[event.question]
            assert correct == event.correct
            ahead += event.answered_at > event.received_at
        assert joined == len(found.at) > 50
        assert ahead > 20

    def test_an_answer_whose_clock_is_ahead_stands_where_it_was_received(
        self, events: Events, outcomes: Outcomes
    ) -> None:
        ahead = Event("e1", ANN, "q", NOW + 100, NOW + 15, 1)
        assert events.log.append([ahead]).added == 1
        assert outcomes.join([ahead]) == 0
        outcomes.keep([foreseen("q", 0.1, NOW + 10)])  # another replica's, written after its answer
        later = Event("e2", ANN, "q", NOW + 20, NOW + 20, 0)
        events.log.append([later])
        assert outcomes.join([later]) == 0

    def test_what_no_database_holds_costs_nothing_else(self, outcomes: Outcomes) -> None:
        meter = Meter()
        journal = Journal(outcomes, Meters(meter))
        journal.predicted(ANN, "b", Query([], [], ["q\0", "q\x85", "q"]), scores(0.1, 0.2, 0.3))
        journal.recommended(ANN, "b", "gain v1", 9, ["q", "\0"])
        journal.close()
        assert (meter.found["dkt_predictions", "kept"], meter.found["dkt_predictions", "unfit"]) == (2, 3)
        assert meter.found["dkt_predictions", "dropped"] == 0
        if outcomes.engine.dialect.name == "postgresql":  # what gets past the door ends neither the thread nor the rest
            journal = Journal(outcomes, Meters(meter))
            journal.predicted("\0", "b", Query([], [], ["q"]), scores(0.1))
            until(lambda: meter.found["dkt_predictions", "dropped"] == 1)
            journal.predicted(ANN, "b", Query([], [], ["q"]), scores(0.1))
            journal.close()
            assert (meter.found["dkt_predictions", "kept"], meter.found["dkt_predictions", "dropped"]) == (3, 1)

    @staticmethod
    def rows(outcomes: Outcomes, table: object) -> int:
        with outcomes.engine.connect() as connection:
            return connection.execute(select(func.count()).select_from(table)).scalar_one()
