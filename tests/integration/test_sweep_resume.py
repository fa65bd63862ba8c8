"""A sweep whose driver is killed with -9 half-way: the next run finishes it and repeats nothing that was done."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from dkt_ray.storage import open_store
from tests.sweep_data import SMALL, prepared

__all__ = ["prepared"]  # a fixture

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = 300  # of the family that is still at work when the driver dies
SETTINGS = {
    "trials": 2,
    "families": list(SMALL),
    "run": "killed",
    "checkpoint_s": 0,
    "max_reports": 400,
    "grace_period": 350,  # nothing is stopped early: every trial runs to its end
    "overrides": {
        "lightgbm": SMALL["lightgbm"],
        "lstm_attention": SMALL["lstm_attention"] | {"epochs": EPOCHS, "patience": EPOCHS},
    },
}
DEADLINE_S = 240


class Driver:
    """`dkt tune` in a process of its own, with a Ray of its own."""

    def __init__(self, store: str, folder: Path, name: str) -> None:
        settings = {"store": store, **SETTINGS}
        (folder / "tune.yaml").write_text(json.dumps(settings))  # JSON is YAML
        self.log = folder / f"{name}.log"
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_ADDRESS")}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "jobs/tune.py", "--config", str(folder / "tune.yaml")],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )

    def lines(self) -> list[dict[str, Any]]:
        """The progress lines of trials so far."""
        complete = self.log.read_text().rpartition("\n")[0].splitlines()
        parsed = [json.loads(line) for line in complete if line.startswith("{")]
        return [line for line in parsed if "trial" in line]

    def family_tree(self) -> list[psutil.Process]:
        """The driver's Ray processes."""
        return psutil.Process(self.process.pid).children(recursive=True)


@pytest.fixture
def killed(prepared: str, tmp_path: Path) -> dict[str, Any]:
    """A sweep killed after a trial has finished and while another is training and has a checkpoint."""
    driver = Driver(prepared, tmp_path, "first")
    ray_processes: list[psutil.Process] = []
    try:
        give_up = time.monotonic() + DEADLINE_S
        while not half_way(driver.lines()):
            assert driver.process.poll() is None, driver.log.read_text()[-3000:]
            assert time.monotonic() < give_up, driver.log.read_text()[-3000:]
            time.sleep(0.1)
        ray_processes = driver.family_tree()
        driver.process.send_signal(signal.SIGKILL)
        driver.process.wait(10)
        lines = driver.lines()
    finally:
        driver.process.kill()
        for process in ray_processes:  # a dead driver's Ray ends by itself, but not at once
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    return {"code": driver.process.returncode, "lines": lines, "folder": tmp_path}


def ended(lines: list[dict[str, Any]]) -> set[str]:
    return {line["trial"] for line in lines if ": finished at" in line["message"]}


def half_way(lines: list[dict[str, Any]]) -> bool:
    """Two trials have finished, a second ago or more, and every other one that has reported did so twice."""
    over = ended(lines)
    endings = [datetime.fromisoformat(line["ts"]) for line in lines if ": finished at" in line["message"]]
    training = Counter(
        line["trial"] for line in lines if ": iteration" in line["message"] and line["trial"] not in over
    )
    settled = len(endings) >= 2 and datetime.now(UTC) - endings[1] > timedelta(seconds=1)
    return settled and bool(training) and min(training.values()) >= 2


def test_a_killed_sweep_is_finished_by_the_next_run(prepared: str, killed: dict[str, Any]) -> None:
    store = open_store(prepared)
    assert killed["code"] == -signal.SIGKILL  # the fault fired,
    done = ended(killed["lines"])
    assert 2 <= len(done) < 4  # in the middle,
    assert store.list("runs/killed/members") == []  # and before anything was complete
    assert not store.exists("runs/killed/trials.parquet")

    driver = Driver(prepared, killed["folder"], "second")
    try:
        output, _ = driver.process.communicate(timeout=DEADLINE_S)
    finally:
        driver.process.kill()
    assert driver.process.returncode == 0, driver.log.read_text()[-3000:]
    result = json.loads(output.splitlines()[-1])
    assert result["reused"] is False
    assert {family: summary["trials"] for family, summary in result["families"].items()} == {
        "lightgbm": 2,
        "lstm_attention": 2,
    }
    trials = {trial["trial"]: trial for trial in store.read_table("runs/killed/trials.parquet").to_pylist()}
    assert len(trials) == 4
    assert {trial["status"] for trial in trials.values()} == {"finished"}

    again = {line["trial"] for line in driver.lines()}
    assert done <= set(trials)  # finished trials are in the result,
    assert not done & again  # and were not run again;
    interrupted = {line["trial"] for line in killed["lines"]} - done
    assert interrupted
    assert interrupted <= set(trials)  # those that were training went on from a checkpoint
    resumed = [line["message"] for line in driver.lines() if "goes on after iteration" in line["message"]]
    assert {trial for trial in interrupted if any(f" {trial}: " in line for line in resumed)} == interrupted
    for trial in interrupted:
        assert trials[trial]["iterations"] == EPOCHS
        assert len(trials[trial]["curve"]) == EPOCHS  # without a gap or a repetition
