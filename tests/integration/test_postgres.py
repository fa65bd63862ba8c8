"""The event log on a real PostgreSQL server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from benchmarks import event_log
from dkt_ray.errors import UnavailableError
from dkt_ray.events import database, retention
from dkt_ray.events.database import writing
from dkt_ray.events.sql import Events, open_events
from tests.event_promises import ANN, PRIVACY, EventPromises, answer
from tests.outcome_promises import OutcomePromises

pytestmark = pytest.mark.postgres


@pytest.fixture
def empty(postgres: Callable[[], str]) -> Callable[[], str]:
    return postgres


@pytest.fixture
def url(empty: Callable[[], str]) -> str:
    return empty()


@pytest.fixture
def events(url: str) -> Iterator[Events]:
    opened = open_events(url, PRIVACY)
    yield opened
    opened.close()


class TestPostgres(EventPromises):
    pass


class TestOutcomes(OutcomePromises):
    pass


def test_a_writer_that_stands_still_is_ended(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that is paused or cut off, with the one writer's lock in its hands."""
    monkeypatch.setattr(database, "IDLE_S", 1)
    still = open_events(url, PRIVACY)
    monkeypatch.undo()
    other = open_events(url, PRIVACY)
    with pytest.raises(DBAPIError), writing(still.engine):
        assert other.log.append([answer(1)]).added == 1
    assert still.log.append([answer(1)]).repeated == 1  # by a new connection
    still.close()
    other.close()


def test_a_read_is_of_one_moment(events: Events, url: str) -> None:
    events.log.append([answer(number) for number in range(20)])
    reader, meanwhile = open_events(url, PRIVACY), []

    def expire(connection: object, cursor: object, statement: str, *_: object) -> None:
        if "ORDER BY" in statement and not meanwhile:
            meanwhile.append(retention.expire(events.engine, 1_015)["events"])

    event.listen(reader.engine, "after_cursor_execute", expire)
    found = reader.histories.get(ANN, 12)
    assert (len(found.question), found.older, meanwhile) == (12, 8, [15])
    reader.close()


def test_a_server_that_only_reads_is_unavailable(events: Events, url: str, caplog: pytest.LogCaptureFixture) -> None:
    """As after a failover."""
    name = events.engine.url.database
    with events.engine.connect() as connection:
        connection.exec_driver_sql(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        connection.commit()
    reader = open_events(url, PRIVACY)
    with pytest.raises(UnavailableError, match="try again"):
        reader.log.append([answer(1)])
    assert "read-only" in caplog.text
    reader.close()


def test_a_copy_that_was_made_while_events_came_in_is_put_back(events: Events, url: str, tmp_path: Path) -> None:
    """As the runbook says; the copy is compared with the log event by event."""
    found = event_log.recovered(events, url, tmp_path, kept=300)
    assert found["events"] > 300
    assert found["events"] + found["lost"] == events.log.count()
