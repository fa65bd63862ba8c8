"""`dkt runs`: what each run of a store holds, the newest first, whatever of it is there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dkt_ray import cli
from dkt_ray.pipelines import runs
from dkt_ray.pipelines.runs import RunsConfig
from dkt_ray.storage import Store, open_store

AUC = {"value": 0.785, "low": 0.78, "high": 0.79}


def member(name: str, auc: float) -> dict[str, Any]:
    return {"name": name, "family": name.partition("-")[0], "config": {"seed": 1}, "auc": auc, "dataset": "f00d"}


def make_run(store: Store, name: str, changed: float) -> None:
    """A run with trials, two members and an ensemble, last written at a time."""
    folder = store.child(f"runs/{name}")
    status = ["finished", "stopped", "failed", "stopped"]
    folder.write_table("trials.parquet", pa.table({"family": ["lstm", "lstm", "lightgbm", "lstm"], "status": status}))
    for each in (member("lightgbm", 0.77), member("lstm-2", 0.78)):
        folder.write_json(f"members/{each['name']}/member.json", each)
    folder.write_json("blend.json", {"metrics": {"auc": AUC}})
    for key in store.list(f"runs/{name}"):
        os.utime(Path(store.url, key), (changed, changed))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = open_store(tmp_path / "store")
    store.write_json("datasets/ednet/manifest.json", {"fingerprint": "f00d"})
    make_run(store, "old", 1_600_000_000)
    make_run(store, "new", 1_700_000_000)
    return store


def listed(store: Store, **settings: Any) -> list[dict[str, Any]]:
    return runs.run(RunsConfig(store=store.url, **settings))["runs"]


def test_a_run_is_told_with_everything_that_is_known_of_it(store: Store) -> None:
    newest, oldest = listed(store)
    assert (newest["name"], oldest["name"]) == ("new", "old")
    assert newest["changed"] == "2023-11-14T22:13:20+00:00"
    assert (newest["dataset"], newest["families"], newest["best"]) == ("ednet", ["lightgbm", "lstm"], "lstm-2")
    assert newest["trials"] == {"finished": 1, "stopped": 2, "failed": 1}
    assert newest["ensemble"] == AUC
    assert newest["bytes"] == sum(Path(store.url, key).stat().st_size for key in store.list("runs/new"))
    assert listed(store, limit=1) == [newest]


def test_a_run_is_published_while_a_bundle_has_its_members_and_figures(store: Store) -> None:
    members = {name: member(name, auc) | {"origin": "trial 1"} for name, auc in {"lightgbm": 0.77}.items()}
    provenance = {"members": members, "metrics": {"auc": AUC, "mastery_lowered": 0.1}}
    store.write_json(f"bundles/{'a' * 64}/manifest.json", {"provenance": provenance})
    store.write_json("aliases/champion.json", {"bundle": "a" * 64})
    assert [(each["bundle"], each["aliases"]) for each in listed(store)] == [("a" * 64, ["champion"])] * 2
    store.write_json("runs/new/members/lightgbm/member.json", member("lightgbm", 0.76))
    assert {each["name"]: each["bundle"] for each in listed(store)} == {"new": None, "old": "a" * 64}
    store.write_json("runs/old/blend.json", {"metrics": {"auc": AUC | {"value": 0.5}}})
    assert {each["bundle"] for each in listed(store)} == {None}


def test_a_run_under_way_one_of_dkt_train_and_a_damaged_one(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    store.write("runs/searching/tune/x/state.json", b"1")
    fact = {"family": "bert", "auc": 0.7, "dataset": "gone"}
    store.write_json("runs/trained/trained/bert/train.json", fact)
    table = pa.table({"family": ["lightgbm"], "status": ["finished"]})
    store.write_table("runs/automl/automl/trials.parquet", table)
    store.write_json("runs/old/members/lightgbm/member.json", {})
    store.write("runs/new/trials.parquet", b"no table")
    found = {each["name"]: each for each in listed(store)}
    assert set(found) == {"searching", "trained", "automl"}
    assert (found["automl"]["families"], found["automl"]["trials"]) == (["lightgbm"], {"finished": 1})
    assert (found["searching"]["families"], found["searching"]["trials"], found["searching"]["best"]) == ([], {}, None)
    assert (found["trained"]["best"], found["trained"]["dataset"]) == ("bert", "gone")
    left_out = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert any("run old is left out: one of its files has no 'family'" in line for line in left_out)
    assert any("trials.parquet: damaged, not Parquet" in line for line in left_out)


def test_the_last_line_is_json_and_an_empty_store_says_what_to_do(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["runs", store.url]) == 0
    printed = capsys.readouterr()
    assert [each["name"] for each in json.loads(printed.out.splitlines()[-1])["runs"]] == ["new", "old"]
    assert "3 done, 1 failed" in printed.err
    assert "0.7850 (0.7800 – 0.7900)" in printed.err
    assert cli.main(["runs", f"{tmp_path}/nothing"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["runs"] == []
    assert "make one with dkt tune" in printed.err
