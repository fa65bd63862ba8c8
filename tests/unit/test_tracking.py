"""The line that `dkt train` logs for every epoch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from dkt_ray.storage import open_store
from dkt_ray.training import tracking
from dkt_ray.training.progress import Progress


class Told(NamedTuple):
    """A report and when it came, in seconds since the start."""

    at: float
    iteration: int
    auc: float | None
    loss: float = 0.61234


def lines(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, longest: int, *reports: Told
) -> list[str]:
    """What a process tells of these reports, on a clock moved by hand."""
    clock = [1000.0]
    monkeypatch.setattr(tracking, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    caplog.clear()
    with (
        caplog.at_level("INFO", tracking.logger.name),
        tracking.Tracker(open_store(folder / "store"), folder, "lstm", longest, 1e9) as tracker,
    ):
        for told in reports:
            clock[0] = 1000.0 + told.at
            tracker(Progress(told.iteration, told.auc, told.loss, 12_345.6))
    return caplog.messages


@pytest.fixture
def told(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """`lines` of a run that several processes may go on with."""
    return partial(lines, tmp_path, caplog, monkeypatch)


def test_every_epoch_has_a_line_with_auc_best_pace_and_eta(told):
    reports = (Told(40, 1, 0.7), Told(50, 2, 0.8, 0.5), Told(60, 3, 0.75), Told(70, 4, 0.76))
    assert told(4, *reports) == [
        "lstm 1/4: auc 0.7000 (best 0.7000), loss 0.6123, 12,346 questions/s, eta 2 min at most",
        "lstm 2/4: auc 0.8000 (best 0.8000), loss 0.5000, 12,346 questions/s, eta 50 s at most",
        "lstm 3/4: auc 0.7500 (best 0.8000), loss 0.6123, 12,346 questions/s, eta 20 s at most",
        "lstm 4/4: auc 0.7600 (best 0.8000), loss 0.6123, 12,346 questions/s",
    ]


def test_without_validation_users_the_line_has_no_auc(told):
    assert told(2, Told(8, 1, None)) == [
        "lstm 1/2: loss 0.6123, 12,346 questions/s, eta 8.0 s at most",
    ]


def test_a_run_that_goes_on_knows_its_best_and_judges_its_pace_by_whole_epochs(told):
    """The epoch that was interrupted takes a part of its time only, so it says nothing of those to come."""
    told(9, Told(10, 1, 0.7), Told(20, 2, 0.9))
    assert told(9, Told(1, 3, 0.8), Told(21, 4, 0.8), Told(41, 5, 0.8)) == [
        "lstm 3/9: auc 0.8000 (best 0.9000), loss 0.6123, 12,346 questions/s",
        "lstm 4/9: auc 0.8000 (best 0.9000), loss 0.6123, 12,346 questions/s, eta 2 min at most",
        "lstm 5/9: auc 0.8000 (best 0.9000), loss 0.6123, 12,346 questions/s, eta 80 s at most",
    ]
