"""The event log on SQLite, and what a url may be."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import DatabaseError

from dkt_ray.errors import ConfigError, UnavailableError
from dkt_ray.events import copies, database, histories, scrub
from dkt_ray.events.database import check_shared, events_url, open_engine, writing
from dkt_ray.events.sql import Events, open_events
from dkt_ray.events.tables import EVENTS, UNSCRUBBED
from dkt_ray.privacy import Privacy
from tests.event_promises import ANN, BOB, PRIVACY, EventPromises, answer, until


@pytest.fixture
def empty(tmp_path: Path) -> Callable[[], str]:
    numbers = count()
    return lambda: f"sqlite:///{tmp_path}/events{next(numbers)}.db"


@pytest.fixture
def url(empty: Callable[[], str]) -> str:
    return empty()


@pytest.fixture
def events(url: str) -> Iterator[Events]:
    opened = open_events(url, PRIVACY)
    yield opened
    opened.close()


class TestSqlite(EventPromises):
    pass


def test_a_deleted_user_leaves_no_byte_in_the_files(events: Events, tmp_path: Path) -> None:
    """Beside many others, whose rows move when pages are joined."""
    users = [PRIVACY.user(f"user {number}") for number in range(300)]
    for turn in range(3):
        events.log.append([answer(turn * 300 + place, user, place % 2) for place, user in enumerate(users)])
    events.log.append([answer(5000 + place, user, None) for place, user in enumerate(users)])
    deleted, kept = users[::3], set(users) - set(users[::3])
    for user in deleted:
        events.histories.get(user, 10)
        events.histories.delete(user)
    until(lambda: not unscrubbed(events))
    on_disk = b"".join(path.read_bytes() for path in tmp_path.glob("events0.db*"))
    assert [user for user in deleted if user.encode() in on_disk] == []
    assert all(user.encode() in on_disk for user in kept)


def unscrubbed(events: Events) -> int:
    """How many deletions were not searched for copies yet."""
    with events.engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(UNSCRUBBED)).scalar_one()


def delete_carelessly(events: Events, file: Path) -> None:
    """Leave copies of Ann's rows in a file, among Bob's."""
    events.log.append([answer(number, ANN if number % 2 else BOB) for number in range(40)])
    with closing(sqlite3.connect(file)) as careless:
        careless.execute("PRAGMA secure_delete=OFF")
        careless.execute("DELETE FROM events WHERE user = ?", [ANN])
        careless.commit()
        careless.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert copies.found(file, [ANN])


def test_stale_copies_in_the_file_are_found_and_removed(events: Events, tmp_path: Path) -> None:
    """What SQLite may leave where it moved rows between pages: made here by a deletion that overwrites nothing."""
    delete_carelessly(events, tmp_path / "events0.db")
    events.histories.delete(ANN)
    until(lambda: not unscrubbed(events))
    assert not copies.found(tmp_path / "events0.db", [ANN])
    assert copies.found(tmp_path / "events0.db", ["nobody", BOB])
    assert events.log.end() == 40
    assert len(events.histories.get(BOB, 50).question) == 20


def test_after_a_deletion_the_log_survives_the_leaving_of_another_process(
    events: Events, url: str, tmp_path: Path
) -> None:
    """A process that opened the database's file by itself would have lost its locks; the other one deletes the log."""
    delete_carelessly(events, tmp_path / "events0.db")
    events.histories.delete(ANN)
    until(lambda: not unscrubbed(events))
    other = "import sys; from dkt_ray.events.sql import open_events; e = open_events(sys.argv[1]); print(e.log.count())"

    def seen_by_another() -> int:
        program = f"{other}; e.close()"
        return int(subprocess.run([sys.executable, "-c", program, url], capture_output=True, check=True).stdout)

    assert seen_by_another() == 20
    events.log.append([answer(number, BOB) for number in range(100, 110)])
    assert seen_by_another() == events.log.count() == 30


def test_a_reader_stops_no_deletion_and_what_is_left_is_scrubbed_after_it(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "WAIT_S", 0)  # the scrubber's turns end at once
    events = open_events(url, PRIVACY)
    events.log.append([answer(1), answer(2, BOB)])
    with events.engine.connect() as reader:
        assert reader.execute(select(func.count()).select_from(EVENTS)).scalar_one() == 2
        assert events.histories.delete(ANN).removed["events"] == 1
        assert unscrubbed(events) == 1
    until(lambda: not unscrubbed(events))
    events.close()


def test_what_a_process_left_behind_is_scrubbed_at_the_next_start(
    events: Events, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    until(lambda: not events.histories._scrubber._left_behind)
    with monkeypatch.context() as killed:
        killed.setattr(scrub.Scrubber, "add", lambda *_: None)
        delete_carelessly(events, tmp_path / "events0.db")
        events.histories.delete(ANN)
        events.close()
    assert copies.found(tmp_path / "events0.db", [ANN])
    again = open_events(url, PRIVACY)
    until(lambda: not unscrubbed(again))
    assert not copies.found(tmp_path / "events0.db", [ANN])
    again.close()


def test_without_a_key_a_short_name_is_not_taken_for_a_part_of_others(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[object] = []
    monkeypatch.setattr(scrub, "vacuum", built.append)
    events = open_events(url, Privacy())
    until(lambda: not events.histories._scrubber._left_behind)
    events.log.append([answer(number, user) for number, user in enumerate(["17", "117", "1170", "long-" * 5])])
    events.histories.delete("17")
    until(lambda: not unscrubbed(events))
    assert not built
    assert [graded.event.user for graded in events.log.read(0, 9)] == ["117", "1170", "long-" * 5]
    events.close()


def test_a_database_that_cannot_be_reached_at_the_start_is_opened_when_it_can(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/later/events.db"  # no such folder yet
    with pytest.raises(UnavailableError):
        open_events(url, PRIVACY)
    events = open_events(url, PRIVACY, now=False)
    for ask in (events.log.count, lambda: events.histories.get(ANN, 5), lambda: events.log.append([answer(1)])):
        with pytest.raises(UnavailableError, match="does not answer"):
            ask()
    (tmp_path / "later").mkdir()
    until(lambda: appended(events))
    assert events.histories.get(ANN, 5).question == ("q1",)
    until(lambda: events.histories._met == (0, 0))
    events.close()


def appended(events: Events) -> bool:
    try:
        return events.log.append([answer(1)]).added == 1
    except UnavailableError:
        return False


def test_what_no_later_attempt_can_open_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match="sqlite:///"):
        open_events("mysql://host/db", PRIVACY, now=False)


def test_a_word_is_found_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "CHUNK", 16)
    for place in range(40):
        (tmp_path / "file").write_bytes(b"\xff" * place + "Zoë".encode() + b"\x00" * 10)
        assert copies.holds(tmp_path / "file", ["ann", "Zoë"])
        assert not copies.holds(tmp_path / "file", ["ann", "Zoe"])


def test_a_database_that_stays_locked_is_unavailable(
    events: Events, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(database, "WAIT_S", 0)
    other = open_events(str(events.engine.url), PRIVACY)
    with writing(events.engine), pytest.raises(UnavailableError, match="try again"):
        other.log.append([answer(1)])
    assert "locked" in caplog.text
    assert other.log.append([answer(1)]).added == 1
    other.close()


def test_what_went_wrong_names_no_user(events: Events, caplog: pytest.LogCaptureFixture) -> None:
    with writing(events.engine) as connection:
        connection.exec_driver_sql("DROP TABLE waiting")
    with pytest.raises(UnavailableError):
        events.log.append([answer(1)])
    assert "no such table" in caplog.text
    assert ANN not in caplog.text


@pytest.mark.parametrize("url", ["", "events.db", "mysql://host/db", "nonsense://x", "sqlite://", "sqlite:///:memory:"])
def test_what_is_no_url_of_a_database_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="sqlite:///"):
        open_engine(url)


def test_a_file_is_not_shared_by_machines() -> None:
    check_shared("sqlite:////data/events.db", 1)
    check_shared("postgresql+psycopg://host/events", 2)
    with pytest.raises(ConfigError, match="2 machines"):
        check_shared("sqlite:////data/events.db", 2)


def test_a_password_stays_out_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DKT_EVENTS_URL", raising=False)
    assert events_url(None) is None
    assert events_url("sqlite:///a.db") == "sqlite:///a.db"
    secret = "postgresql+psycopg://dkt:secret@host/events"
    with pytest.raises(ConfigError, match="PGPASSWORD") as refused:
        events_url(secret)
    assert "secret" not in str(refused.value)
    with pytest.raises(ConfigError, match="PGPASSWORD"):
        events_url("postgresql+psycopg://host/events?user=dkt&password=secret")
    monkeypatch.setenv("DKT_EVENTS_URL", secret)
    assert events_url("sqlite:///a.db") == secret


def test_who_looks_for_deletions_survives_whatever_the_database_says(
    events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[int] = []

    def damaged(engine: object) -> None:
        met.append(1)
        raise DatabaseError("SELECT", {}, Exception("malformed"))

    monkeypatch.setattr(histories, "POLL_S", 0.01)
    monkeypatch.setattr(histories, "_newest", damaged)
    until(lambda: len(met) >= 2 * database.ATTEMPTS)
    monkeypatch.undo()
    other = open_events(str(events.engine.url), PRIVACY)
    events.log.append([answer(1)])
    events.histories.get(ANN, 5)
    other.histories.delete(ANN)
    until(lambda: not events.histories._known)
    other.close()
