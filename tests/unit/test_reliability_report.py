"""The report of `make reliability`: what is wrong fails it, what is not reached stands in it, with the raw ledgers."""

import json
from types import SimpleNamespace

import polars as pl
import pytest

from benchmarks import ledger
from benchmarks.ledger import Entry
from tests.reliability import events, forgetting, serving, user
from tests.reliability.head_kill import _share
from tests.reliability.processes import Kill
from tests.reliability.scenarios import Outcome, stray
from tests.reliability.user import User

ENTRIES = [Entry(0, 0, 1.0, 1.0, 1.5, 200, "v", [0.5], ""), Entry(1, 0, 1.0, 1.0, 1.5, 429, "", [], "<b>")]
PROXY = {"outage_s": 31.0, "client_failures": 0}


def test_goals_figures_and_ledgers_are_told(tmp_path):
    told = serving._told("proxy_kill", Outcome("proxy_kill", PROXY, ["<wrong>"], {"raw": ENTRIES}), 40, tmp_path)
    assert told["goals"] == {"back within 5 s": False, "the client sees no failure": True}
    serving._write({"environment": {}, "way_in": "proxy", "bundles": ["a"], "runs": [told]}, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "NOT MET: back within 5 s" in page
    assert "&lt;wrong&gt;" in page
    assert json.loads((tmp_path / "report.json").read_text())["runs"] == [told]
    assert ledger.read(tmp_path / told["ledgers"][0]) == ENTRIES


def test_a_run_that_cannot_go_on_is_wrong_and_reaches_no_goal(tmp_path, monkeypatch):
    def stuck(*_):
        raise TimeoutError("not so after 120 s")

    monkeypatch.setitem(serving.RUNS, "proxy_kill", serving.RUNS["proxy_kill"]._replace(call=stuck))
    outcome = serving._run("proxy_kill", None, tmp_path, None)
    assert "not so after 120 s" in outcome.wrong[0]
    assert not any(serving._told("proxy_kill", outcome, 1, tmp_path)["goals"].values())


@pytest.mark.parametrize(
    ("run", "says", "reached", "missed"),
    [
        ("rollouts", "rollback within 15 s", {"rollback_s": 15.0}, {"rollback_s": 15.1}),
        ("scaling", "scaled up within 15 s of the step", {"up_s": 15.0}, {"up_s": 15.1}),
    ],
)
def test_a_goal_is_met_by_its_figure(run, says, reached, missed, tmp_path):
    told = [serving._told(run, Outcome(run, figures, []), 1, tmp_path)["goals"][says] for figures in (reached, missed)]
    assert told == [True, False]


def asked(monkeypatch, client):
    """A user of a client that is none."""
    monkeypatch.setattr(user, "Client", client)
    world = SimpleNamespace(url="", bodies=[{"targets": ["a"], "history": []}], deadline_s=1.0)
    return User(world, pause_s=0.001)


class Broken:
    def __init__(self, *_, **__):
        pass

    def predict(self, *_):
        raise ValueError("499 is not a valid HTTPStatus")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_whatever_a_client_raises_is_a_call_that_failed(monkeypatch):
    with asked(monkeypatch, Broken) as one:
        one.wait_for(3)
    assert {entry.status for entry in one.entries} == {0}
    assert one.entries[0].error == "ValueError: 499 is not a valid HTTPStatus"
    assert _share(one.entries, one.entries[0].answered) == 0.0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_user_that_died_fails_the_run(monkeypatch):
    one = asked(monkeypatch, lambda *_, **__: 1 / 0)
    with pytest.raises(RuntimeError, match="died after 0 calls"), one:
        one.join()


def test_a_request_that_was_on_its_way_when_the_head_died_counts():
    assert _share([ENTRIES[0], ENTRIES[1]._replace(sent=0.5)], 1.0) == 0.5


def test_a_failure_that_no_kill_explains_is_told():
    kills = [Kill(0.9, 1.1), Kill(3.0, 3.1)]
    later = ENTRIES[1]._replace(sent=1.2, answered=2.9)
    assert stray([*ENTRIES, later], kills) == [later]
    assert stray([later._replace(answered=3.05)], kills) == []


def test_events_that_are_missing_twice_or_changed_are_found():
    wanted = {f"kept {n}": {"event_id": f"e{n}", "question": "q", "correct": 1, "answered_at": n} for n in range(3)}
    rows = [(f"kept {n}", "q", 1, n) for n in range(3)]
    assert events.once(rows, wanted, "the log") == []
    assert events.once(rows[1:], wanted, "the log") == ["the log has lost 1 events"]
    assert events.once([*rows, rows[0]], wanted, "the log") == ["the log holds an event 2 times"]
    assert events.once([*rows, ("other", "q", 1, 0)], wanted, "the log") == ["the log holds an event that nobody sent"]
    assert events.once([*rows[1:], ("kept 0", "q", 0, 0)], wanted, "it") == ["it: event e0 has other content"]


def test_a_trace_is_found_in_a_database_a_log_and_parquet(tmp_path):
    (tmp_path / "events.db-wal").write_bytes(b"..ada..")
    (tmp_path / "replica.err").write_text('{"user": "ada"}')
    pl.DataFrame({"userID": ["ada"] * 99, "answerCode": [1] * 99}).write_parquet(tmp_path / "part.parquet")
    places = {path.name: [path] for path in forgetting.files(tmp_path)}
    assert forgetting.traces(["zoe", "ada"], places) == {"events.db-wal": 1, "part.parquet": 1, "replica.err": 1}
    assert not any(forgetting.traces(["zoe"], places).values())


def test_that_nothing_is_found_proves_nothing_where_the_control_is_not_found_either():
    assert forgetting.proven({"logs": 1, "exports": 3}, {"logs": 0, "exports": 0}, "DELETE") == []
    assert forgetting.proven({"logs": 0, "exports": 3}, {"logs": 0, "exports": 2}, "DELETE") == [
        "logs: the search finds nothing, not even what is there, after DELETE",
        "2 files with traces after DELETE: exports",
    ]
