"""What is posted to the service is in the next dataset, and nothing else: events, export, `dkt prepare` (F72)."""

from collections import Counter

import pytest

from dkt_ray.config import build
from dkt_ray.pipelines import export
from tests.datasets import content, run
from tests.requests import PRIVACY, post

USERS = 30
QUESTIONS = 12


@pytest.fixture
def day(api, tmp_path, monkeypatch):
    """Posts events, exports the log and prepares the export; gives what the dataset has of each user."""
    monkeypatch.setenv("DKT_PRIVACY_KEY", PRIVACY.key.decode())

    def day(events, append=False):
        assert post(api, {"events": events}, "/v1/events").status_code == 200
        settings = {"events": f"sqlite:///{tmp_path}/events.db", "store": str(tmp_path / "store"), "part_rows": 100}
        told = export.run(build(export.ExportConfig, settings))
        made = run(told["path"], tmp_path / "store", append=append)
        assert made["rejected"] == 0
        return {user: row["question"] for user, row in content(tmp_path / "store").items()}

    return day


def answer(user, number, **more):
    at = f"2026-03-{2 + number // 60:02}T16:{number % 60:02}:00Z"
    event = {"event_id": f"{user}-{number}", "user_id": user, "question": f"q{number % QUESTIONS}", "answered_at": at}
    return event | {"correct": number % 2, "concepts": [str(number % 3)], "test": "t"} | more


@pytest.mark.parametrize("append", [False, True])
def test_the_histories_grow_by_exactly_what_was_posted(day, append):
    first = [answer(f"u{user}", number) for user in range(USERS) for number in range(10 + user % 7)]
    before = day(first)
    assert {user: len(rows) for user, rows in before.items()} == sizes(first)
    known = [answer(f"u{user}", 40 + number) for user in range(5) for number in range(user)]
    new = [answer(f"n{user}", number) for user in range(4) for number in range(6)]
    ungraded = [answer("u9", 50, correct=None), answer("later", 0, correct=None)]
    after = day([*first[:40], *known, *new, *ungraded], append)
    grown = sizes([*first, *known, *new])
    assert {user: len(rows) for user, rows in after.items()} == grown
    assert all(after[user][: len(rows)] == rows for user, rows in before.items())
    graded = [ungraded[0] | {"correct": 1}]
    assert {user: len(rows) for user, rows in day(graded, append).items()} == sizes([*first, *known, *new, *graded])


def sizes(events):
    """Stored name -> number of events."""
    return dict(Counter(PRIVACY.user(event["user_id"]) for event in events))
