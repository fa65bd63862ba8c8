"""A trial's reports and checkpoints, its settings when they change on the way, and how it fails or is ended."""

from __future__ import annotations

import errno
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from dkt_ray.errors import TrainingError
from dkt_ray.models.catalog import CATALOG
from dkt_ray.training import trial
from dkt_ray.training.progress import Progress
from dkt_ray.training.resources import Resources
from dkt_ray.training.search import CURVE, ITERATION, METRIC, REASON, REFUSED, REPORTS, SCHEDULE
from dkt_ray.training.trial import Care, Reports, Watchdog


def reports_of(folder: Path, care: Care, mutable: dict[str, Any] | None = None) -> Reports:
    return Reports(folder, care, Watchdog(None), mutable or {})


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], Any]]:
    """What a trial tells Tune."""
    calls: list[tuple[dict[str, Any], Any]] = []
    monkeypatch.setattr(trial.tune, "get_checkpoint", lambda: None)
    monkeypatch.setattr(trial.tune, "report", lambda metrics, checkpoint=None: calls.append(({**metrics}, checkpoint)))
    return calls


def at(iteration: int, auc: float | None) -> Progress:
    return Progress(iteration, auc, 0.6, 1e4)


def test_reports_carry_the_best_so_far(reported: list[Any], tmp_path: Path) -> None:
    reports = reports_of(tmp_path, Care(60))
    for progress in (at(25, math.nan), at(50, 0.6), at(75, 0.7), at(100, 0.65), at(125, math.nan)):
        reports(progress)
    assert [call[0][METRIC] for call in reported][1:] == [0.6, 0.7, 0.7, 0.7]
    assert math.isnan(reported[0][0][METRIC])
    assert [call[0]["best_iteration"] for call in reported][1:] == [50, 75, 75, 75]
    assert reported[-1][0][REPORTS] == 5
    assert reported[-1][0][ITERATION] == 125
    assert all(checkpoint is None for _, checkpoint in reported)


def test_a_resumed_trial_goes_on_with_its_curve_and_a_fit_that_begins_again_replaces_it(
    reported: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "first").mkdir()
    reports = reports_of(tmp_path / "first", Care(0))
    (tmp_path / "first" / "model").write_text("weights")
    for progress in (at(1, 0.6), at(2, 0.7), at(3, 0.65)):
        reports(progress)
    saved = tune.Checkpoint.from_directory(tmp_path / "first")
    monkeypatch.setattr(trial.tune, "get_checkpoint", lambda: saved)
    again = reports_of(tmp_path / "second", Care(60))
    assert (tmp_path / "second" / "model").read_text() == "weights"
    again(at(4, 0.68))
    assert reported[-1][0][CURVE] == [0.6, 0.7, 0.7, 0.7]
    assert reported[-1][0]["best_iteration"] == 2
    anew = reports_of(tmp_path / "third", Care(60))
    anew(at(1, 0.61))
    assert reported[-1][0][CURVE] == [0.61]
    assert reported[-1][0][REPORTS] == 1


def test_settings_that_change_at_a_checkpoint_are_told_with_when(
    reported: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "first").mkdir()
    first = reports_of(tmp_path / "first", Care(1e9, every=2), {"rate": 0.1})
    for progress in (at(1, 0.6), at(2, 0.7), at(3, 0.65)):
        first(progress)
    assert [checkpoint is not None for _, checkpoint in reported] == [False, True, False]
    assert SCHEDULE not in reported[-1][0]
    saved = tune.Checkpoint.from_directory(tmp_path / "first")
    monkeypatch.setattr(trial.tune, "get_checkpoint", lambda: saved)
    reports_of(tmp_path / "same", Care(60), {"rate": 0.1})(at(3, 0.65))
    assert SCHEDULE not in reported[-1][0]
    reports_of(tmp_path / "second", Care(60), {"rate": 0.2})(at(3, 0.72))
    schedule = reported[-1][0][SCHEDULE]
    assert schedule == [(0, {"rate": 0.1}), (2, {"rate": 0.2})]


def test_a_refused_checkpoint_is_told_to_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []

    def refuse(metrics: dict[str, Any], checkpoint: Any = None) -> None:
        if checkpoint is not None:
            raise OSError(errno.ENOSPC, "No space left on device")
        told.append(metrics)

    monkeypatch.setattr(trial.tune, "get_checkpoint", lambda: None)
    monkeypatch.setattr(trial.tune, "report", refuse)
    reports_of(tmp_path, Care(0))(at(1, 0.6))
    assert told[-1][REFUSED] == "No space left on device"
    assert math.isnan(told[-1][METRIC])


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TrainingError("loss is nan"), "loss is nan"),
        (MemoryError("std::bad_alloc"), "out of memory (std::bad_alloc); run fewer trials at once (concurrency)"),
    ],
)
def test_what_would_come_again_is_reported_and_not_retried(
    error: Exception, reason: str, reported: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Users:
        def holding_out(self, fold: int) -> tuple[None, None]:
            return None, None

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(trial, "fit", fail)
    users: Any = Users()
    settings = CATALOG["lstm"].config().model_dump(mode="json")
    trial.run_trial({"family": "lstm", "settings": settings}, users, Resources(), Care(60))
    assert reason in reported[-1][0][REASON]
    monkeypatch.setattr(trial, "fit", fail_otherwise)
    with pytest.raises(ZeroDivisionError):  # Tune tries again, and books it
        trial.run_trial({"family": "lstm", "settings": settings}, users, Resources(), Care(60))


def fail_otherwise(*_: Any) -> None:
    raise ZeroDivisionError


HANGS = """
import sys
from dkt_ray.training.trial import Watchdog
with Watchdog(float(sys.argv[1])) as watchdog:
    with watchdog.resting():
        pass
    sum(range(10 ** int(sys.argv[2])))  # holds Python's lock until it ends
print("survived")
"""


@pytest.mark.parametrize(("limit", "digits", "survives"), [("0.2", "12", False), ("3600", "3", True)])
def test_a_process_that_is_silent_for_too_long_ends_and_says_where(limit: str, digits: str, survives: bool) -> None:
    done = subprocess.run([sys.executable, "-c", HANGS, limit, digits], capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == survives == ("survived" in done.stdout)
    assert survives or "Timeout" in done.stderr
