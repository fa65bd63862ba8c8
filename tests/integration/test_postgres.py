"""The event log on a real PostgreSQL server."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from dkt_ray.events.sql import Events, open_events
from tests.event_promises import PRIVACY, EventPromises
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
