"""`make reliability` would notice: a lost trial, one that ran twice, other settings, another result."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from dkt_ray.pipelines import sweep
from dkt_ray.storage import open_store
from dkt_ray.training.tuning import TrialResult
from tests.reliability import kill_sweep

FAMILIES = tuple(kill_sweep.OVERRIDES)


def results(run: str) -> list[TrialResult]:
    return [
        TrialResult(family, f"{run}-{family}-{number}", "finished", {"x": number}, 0.7, 3, 2, 1.0, [0.7], "")
        for family in FAMILIES
        for number in range(kill_sweep.TRIALS)
    ]


def wrong(folder: Path, killed: list[TrialResult], finished: list[list[str]]) -> list[str]:
    store = open_store(folder / "store")
    for run, table in (("killed", killed), ("plain", results("plain"))):
        digests = dict.fromkeys(FAMILIES, "d")
        store.write_table(f"runs/{run}/trials.parquet", sweep._trials_table(table, digests))
    codes = [-signal.SIGKILL] * (len(finished) - 1) + [0]
    tries = [tried(code, *names) for code, names in zip(codes, finished, strict=True)]
    return kill_sweep._wrong(folder, "killed", tries, tried(0))


def tried(code: int, *finished: str) -> dict[str, Any]:
    return {"code": code, "killed": code == -signal.SIGKILL, "finished": list(finished)}


def test_nothing_is_wrong_where_nothing_is(tmp_path: Path) -> None:
    names = [result.trial for result in results("killed")]
    assert wrong(tmp_path, results("killed"), [names[:3], [], names[3:]]) == []


@pytest.mark.parametrize(
    ("change", "finished", "says"),
    [
        (lambda all_: all_[1:], [["killed-lightgbm-0"], []], "killed-lightgbm-0 was finished, and is lost"),
        (lambda all_: all_[1:], [[], []], "the families have"),
        (lambda all_: all_, [["killed-lightgbm-0"], ["killed-lightgbm-0"]], "killed-lightgbm-0 finished 2 times"),
        (lambda all_: [*all_[:-1], changed(all_[-1], settings={"x": 99})], [[], []], "other settings were tried"),
        (lambda all_: [*all_[:-1], changed(all_[-1], auc=0.6)], [[], []], "auc 0.6, not 0.7"),
        (lambda all_: [*all_[:-1], changed(all_[-1], status="failed", reason="why")], [[], []], "is failed: why"),
    ],
)
def test_what_is_wrong_is_told(change: Any, finished: list[list[str]], says: str, tmp_path: Path) -> None:
    assert any(says in problem for problem in wrong(tmp_path, change(results("killed")), finished))


def test_a_kill_that_was_not_ours_is_told(tmp_path: Path) -> None:
    wrong(tmp_path, results("killed"), [[]])
    tries = [tried(-signal.SIGKILL) | {"killed": False}, tried(0)]
    assert kill_sweep._wrong(tmp_path, "killed", tries, tried(0)) == ["a driver failed by itself"]


@pytest.mark.parametrize(
    ("endings", "starts", "result"),
    [
        ([tried(-9, "a"), tried(-9), tried(0), tried(0)], 4, {"kills": 2, "kept": 1, "wrong": []}),
        ([tried(-9, "a"), tried(0, "b"), tried(-9), tried(0), tried(0)], 5, {"kills": 2, "kept": 1, "wrong": []}),
        (
            [tried(-9), tried(-9), tried(0), tried(0)],
            4,
            {"kills": 2, "kept": 0, "wrong": ["no trial had finished before a kill: give more --kills"]},
        ),
        (
            [tried(-signal.SIGTERM)] * 3,  # it hangs each time
            3,
            {"kills": 0, "kept": 0, "wrong": ["the sweep did not finish", "0 kills of 2"]},
        ),
    ],
)
def test_kills_are_counted_and_end(
    endings: list[dict[str, Any]],
    starts: int,
    result: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    left = list(endings)
    monkeypatch.setattr(kill_sweep, "_settings", lambda folder: folder)
    monkeypatch.setattr(kill_sweep, "_run", lambda *_, **__: left.pop(0))
    if all(ending["code"] in (0, -9) for ending in endings):
        monkeypatch.setattr(kill_sweep, "_wrong", lambda *_: [])
    assert kill_sweep.main(["--kills", "2"]) == int(bool(result["wrong"]))
    assert len(endings) - len(left) == starts
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {name: told[name] for name in result} == result


def changed(result: TrialResult, **facts: Any) -> TrialResult:
    return TrialResult(**(vars(result) | facts))
