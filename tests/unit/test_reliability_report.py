"""The report of `make reliability`: what is wrong fails it, what is not reached stands in it, with the raw ledgers."""

import json

from benchmarks import ledger
from benchmarks.ledger import Entry
from tests.reliability import serving
from tests.reliability.scenarios import Outcome

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
