"""What every database of events promises: one class of tests, inherited for SQLite and for PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, Engine, insert

from dkt_ray.errors import ConfigError
from dkt_ray.events import histories, retention
from dkt_ray.events.database import writing, written
from dkt_ray.events.model import Event, EventConflictError, ForgottenError, Graded, History
from dkt_ray.events.sql import Events, open_events
from dkt_ray.events.tables import EVENTS, METADATA, RETENTIONS
from dkt_ray.privacy import Privacy

PRIVACY = Privacy(b"a key of the tests")
ANN, BOB = PRIVACY.user("ann"), PRIVACY.user("bob")


def answer(number: int, user: str = ANN, correct: int | None = 1, at: int | None = None) -> Event:
    """An event; without a time, events are in the order of their numbers."""
    answered_at = 1_000 + number if at is None else at
    return Event(f"e{number}", user, f"q{number}", answered_at, 9_000, correct, f"option {number}", None, "t", "1_2")


def questions(history: History) -> list[str]:
    return list(history.question)


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread or process does."""
    give_up = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def vars_of(event: Event) -> dict[str, object]:
    """The fields of an event."""
    return {name: getattr(event, name) for name in Event.__dataclass_fields__}


# Appends events 0 to COUNT in small batches, each several times, as writers do that see no reply.
WRITER = """
import sys
from tests.event_promises import PRIVACY, answer
from dkt_ray.events.sql import open_events
url, count = sys.argv[1], int(sys.argv[2])
events = open_events(url, PRIVACY)
for start in range(0, count, 10):
    for _ in range(2):
        events.log.append([answer(number) for number in range(start, start + 10)])
events.close()
"""


class EventPromises:
    """Inherit it, with fixtures `url` (of an empty database) and `events` (it, opened)."""

    def test_an_event_is_read_as_it_was_appended(self, events: Events) -> None:
        given = [answer(1), Event("bare", BOB, "q", 5, 6, 0)]
        assert events.log.append(given)[:3] == (2, 0, 0)
        assert events.log.read(0, 10) == [Graded(1, given[0]), Graded(2, given[1])]
        assert events.log.read(1, 10) == [Graded(2, given[1])]
        assert events.log.read(0, 1) == [Graded(1, given[0])]
        assert events.log.count() == 2

    def test_a_retry_changes_nothing(self, events: Events) -> None:
        events.log.append([answer(1)])
        later = replace(answer(1), received_at=99_000)
        assert events.log.append([later, answer(2), answer(2)])[:3] == (1, 0, 2)
        assert [graded.event for graded in events.log.read(0, 10)] == [answer(1), answer(2)]

    @pytest.mark.parametrize("change", [{"question": "other"}, {"user": BOB}, {"correct": 0}, {"answered_at": 1}])
    def test_an_id_of_other_content_is_refused_with_all_that_came_with_it(self, events: Events, change: dict) -> None:
        events.log.append([answer(1)])
        with pytest.raises(EventConflictError, match="event 1") as refused:
            events.log.append([answer(2), replace(answer(1), **change)])
        assert refused.value.index == 1
        assert events.log.count() == 1

    def test_an_answer_waits_for_its_grade(self, events: Events) -> None:
        ungraded = answer(1, correct=None)
        assert events.log.append([ungraded, ungraded])[:3] == (0, 1, 1)
        assert events.log.read(0, 10) == []
        assert questions(events.histories.get(ANN, 5)) == []
        grade = replace(answer(1, correct=0), answer=None, test="", received_at=99_000)
        assert events.log.append([grade]) == (1, 0, 0, [answer(1, correct=0)])
        assert [graded.event for graded in events.log.read(0, 10)] == [answer(1, correct=0)]
        assert events.log.append([ungraded, answer(1, correct=0)])[:3] == (0, 0, 2)
        with pytest.raises(EventConflictError):
            events.log.append([answer(1, correct=1)])

    def test_an_answer_and_its_grade_may_come_together(self, events: Events) -> None:
        assert events.log.append([answer(1, correct=None), answer(1)])[:3] == (1, 0, 0)
        assert events.log.count() == 1
        assert questions(events.histories.get(ANN, 5)) == ["q1"]

    def test_a_history_is_in_the_order_of_the_answers_however_late_they_come(self, events: Events) -> None:
        events.log.append([answer(5), answer(3)])
        assert questions(events.histories.get(ANN, 10)) == ["q3", "q5"]
        events.log.append([answer(4), answer(7), answer(6, at=1_003)])
        found = events.histories.get(ANN, 10)
        assert questions(found) == ["q3", "q6", "q4", "q5", "q7"]
        assert list(found.timestamp) == [1_003, 1_003, 1_004, 1_005, 1_007]
        assert (set(found.correct), set(found.test), set(found.concepts), found.older) == ({1}, {"t"}, {"1_2"}, 0)

    @pytest.mark.parametrize("limit", [1, 3, 7, 20])
    def test_what_is_remembered_is_what_would_be_read(self, events: Events, url: str, limit: int) -> None:
        order = [11, 3, 12, 2, 1, 13, 9, 4, 14, 5, 15, 8]
        for step, number in enumerate(order, 1):
            events.log.append([answer(number)])
            remembered = events.histories.get(ANN, limit)
            expected = [f"q{n}" for n in sorted(order[:step])][-limit:]
            assert (questions(remembered), remembered.older) == (expected, step - len(expected))
        events.log.append([answer(number) for number in range(20, 60)])  # more than is read one by one
        assert questions(events.histories.get(ANN, limit))[-1] == "q59"
        assert events.histories.get(ANN, 60) == events.histories.get(ANN, 100)  # asked for more than is remembered
        fresh = open_events(url, PRIVACY)
        assert fresh.histories.get(ANN, limit) == events.histories.get(ANN, limit)
        fresh.close()

    def test_an_event_that_another_process_took_is_in_the_next_read(self, events: Events, url: str) -> None:
        other = open_events(url, PRIVACY)
        for number in range(5):
            events.log.append([answer(number)])
            assert len(other.histories.get(ANN, 10).question) == number + 1
        other.close()

    def test_memory_is_bounded_in_rows(self, events: Events) -> None:
        users = [f"u{number}" for number in range(30)]
        for place, user in enumerate(users):
            events.log.append([answer(place * 10 + n, user) for n in range(10)])
        small = histories.SqlHistories(events.engine, PRIVACY, remembered_rows=100)
        for user in [*users, *users]:
            assert len(small.get(user, 50).question) == 10
        assert 0 < sum(known.cost for known in small._known.values()) == small._cost <= 100
        small.close()

    def test_nothing_is_ever_added_before_what_was_read(self, events: Events, url: str) -> None:
        """A transaction that drew its number first and commits last is not skipped by the cursor."""
        values = [{**vars_of(answer(n)), "event_id": f"slow{n}"} for n in range(3)]
        with ThreadPoolExecutor(1) as pool:
            with writing(events.engine) as slow:
                slow.execute(insert(EVENTS), values)
                fast = pool.submit(lambda: events.log.append([answer(50)]))
                assert not wait(
                    [fast], timeout=0.5
                ).done  # it waits its turn; else it would be read before the slow one
                cursor = max((graded.sequence for graded in events.log.read(0, 10)), default=0)
            assert fast.result().added == 1
        found = [graded.event.event_id for graded in events.log.read(cursor, 10)]
        assert cursor == 0
        assert found == ["slow0", "slow1", "slow2", "e50"]

    def test_many_writers_lose_nothing_and_repeat_nothing(self, events: Events, url: str) -> None:
        count = 200
        writers = [subprocess.Popen([sys.executable, "-c", WRITER, url, str(count)]) for _ in range(2)]
        with ThreadPoolExecutor(4) as pool:  # the same events, and others, in other batches
            for start in range(0, count, 40):
                list(pool.map(events.log.append, [[answer(n) for n in range(start, start + 40)]] * 4))
        seen: list[int] = []
        while any(writer.poll() is None for writer in writers):
            seen += [graded.sequence for graded in events.log.read(seen[-1] if seen else 0, 17)]
        assert [writer.returncode for writer in writers] == [0, 0]
        while more := events.log.read(seen[-1] if seen else 0, 17):
            seen += [graded.sequence for graded in more]
        everything = events.log.read(0, 10 * count)
        assert sorted(int(graded.event.event_id[1:]) for graded in everything) == list(range(count))
        assert seen == [graded.sequence for graded in everything]

    def test_a_deleted_user_leaves_a_tombstone_only(self, events: Events, url: str) -> None:
        other = open_events(url, PRIVACY)
        events.log.append([answer(1), answer(2, correct=None), answer(3, BOB)])
        assert questions(other.histories.get(ANN, 5)) == ["q1"]
        receipt = events.histories.delete(ANN)
        assert receipt.mark == PRIVACY.mark(ANN)
        assert {name: rows for name, rows in receipt.removed.items() if rows} == {"events": 1, "waiting": 1}
        again = other.histories.delete(ANN)
        assert (again.mark, again.deleted_at, set(again.removed.values())) == (*receipt[:2], {0})
        for store in (events.histories, other.histories):
            with pytest.raises(ForgottenError):
                store.get(ANN, 5)
        with pytest.raises(ForgottenError, match="event 1"):
            events.log.append([answer(9, BOB), answer(1)])
        assert [graded.event for graded in events.log.read(0, 9)] == [answer(3, BOB)]
        other.close()

    def test_a_deletion_leaves_the_memory_of_processes_that_are_not_asked(self, events: Events, url: str) -> None:
        other = open_events(url, PRIVACY)
        events.log.append([answer(1), answer(2, BOB)])
        for user in (ANN, BOB):
            other.histories.get(user, 5)
        events.histories.delete(ANN)
        until(lambda: list(other.histories._known) == [PRIVACY.mark(BOB)])
        with writing(events.engine) as connection:  # as `dkt forget` does after it removed what is old
            connection.execute(insert(RETENTIONS), {"kept_from": 1, "removed_at": 1})
        until(lambda: not other.histories._known)
        other.close()

    def test_a_read_that_is_under_way_does_not_bring_a_deleted_user_back(
        self, events: Events, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        events.log.append([answer(1)])
        read = histories._read

        def and_deleted_meanwhile(*arguments: object) -> object:
            found = read(*arguments)  # type: ignore[arg-type]
            events.histories.delete(ANN)
            return found

        monkeypatch.setattr(histories, "_read", and_deleted_meanwhile)
        events.histories.get(ANN, 5)
        assert not events.histories._known

    def test_a_place_in_the_log_is_never_given_again(self, events: Events) -> None:
        events.log.append([answer(number) for number in range(3)])
        events.histories.delete(ANN)
        assert (events.log.end(), events.log.count()) == (3, 0)
        events.log.append([answer(9, BOB)])
        assert (events.log.end(), events.log.read(0, 5)[0].sequence) == (4, 4)

    def test_what_is_old_goes_from_every_table(self, events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(retention, "AT_ONCE", 2)
        events.log.append([answer(number, correct=None if number % 2 else 1) for number in range(10)])
        removed = retention.expire(events.engine, 1_007)
        assert {name: rows for name, rows in removed.items() if rows} == {"events": 4, "waiting": 3}
        assert questions(events.histories.get(ANN, 10)) == ["q8"]
        assert sum(retention.expire(events.engine, 1_007).values()) == 0

    def test_whoever_is_killed_at_it_has_told_of_what_is_gone(
        self, events: Events, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(retention, "AT_ONCE", 2)
        events.log.append([answer(number) for number in range(6)])
        other = open_events(url, PRIVACY)
        assert len(other.histories.get(ANN, 10).question) == 6
        gone: list[int] = []

        def killed_after_a_batch(engine: Engine, work: Callable[[Connection], int]) -> int:
            if any(gone):
                raise KeyboardInterrupt
            gone.append(written(engine, work))
            return gone[-1]

        monkeypatch.setattr(retention, "written", killed_after_a_batch)
        with pytest.raises(KeyboardInterrupt):
            retention.expire(events.engine, 1_004)
        other.histories._meet_deletions()
        assert len(other.histories.get(ANN, 10).question) == 4
        other.close()

    def test_the_migrations_make_the_tables_that_the_code_knows(self, events: Events) -> None:
        with events.engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert compare_metadata(context, METADATA) == []

    def test_a_newer_versions_tables_are_left_alone(self, events: Events, url: str) -> None:
        with writing(events.engine) as connection:
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
        with pytest.raises(ConfigError, match="newer version"):
            open_events(url, PRIVACY)

    def test_processes_that_start_together_make_the_tables_once(self, empty: Callable[[], str]) -> None:
        url = empty()
        with ThreadPoolExecutor(4) as pool:
            opened = list(pool.map(lambda _: open_events(url, PRIVACY), range(4)))
        assert [each.log.count() for each in opened] == [0] * 4
        for each in opened:
            each.close()
