"""`make reliability` would notice: a lost trial, one that ran twice, other settings, another result."""

from __future__ import annotations

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
    tries: list[dict[str, Any]] = [
        {"code": code, "finished": names} for code, names in zip(codes, finished, strict=True)
    ]
    return kill_sweep._wrong(folder, "killed", tries, {"code": 0, "finished": []})


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


def changed(result: TrialResult, **facts: Any) -> TrialResult:
    return TrialResult(**(vars(result) | facts))
