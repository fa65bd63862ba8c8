"""`dkt demo`, the whole path as a user runs it: simulated data, a real log, a store on S3, a second run, Ctrl-C."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

SMALL = ["--set", "users=60", "--set", "trials=1", "--set", "folds=2", "--set", "bank_fraction=0.1"]
QUICK = {"lstm_attention": {"width": 16, "epochs": 1, "patience": 1}, "lightgbm": {"rounds": 50}}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def command(store: str, *settings: str) -> list[str]:
    overrides = ["--set", f"overrides={json.dumps(QUICK)}", "--set", f"port={free_port()}", "--set", f"store={store}"]
    return [sys.executable, "-m", "dkt_ray.cli", "demo", *SMALL, *overrides, *settings]


def environment() -> dict[str, str]:
    """A Ray of the demo's own, whatever the test session has."""
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


def demo(store: str, *settings: str) -> tuple[dict[str, Any], str]:
    """Run to the end; the JSON line, and what was logged."""
    done = subprocess.run(
        command(store, "--set", "stay=false", *settings), capture_output=True, text=True, timeout=400, env=environment()
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def check(result: dict[str, Any]) -> None:
    auc = result["auc"]
    assert {"lightgbm", "lstm_attention", "ensemble", "counting"} <= set(auc)
    assert all(0.5 < auc[name] < 1 for name in ("lightgbm", "ensemble", "counting"))
    low, high = result["auc_interval"]
    assert low < auc["ensemble"] < high
    assert sum(result["weights"].values()) == pytest.approx(1)
    assert re.fullmatch("[0-9a-f]{64}", result["bundle"])
    assert 0 < result["probability"] < 1


def test_simulated_data_then_a_second_run_that_reuses_everything_and_ends_with_all_that_it_started(
    tmp_path: Path,
) -> None:
    first, _ = demo(str(tmp_path))
    check(first)
    assert first["rows"] > 10_000
    assert first["auc"]["ensemble"] < first["auc"]["oracle"]
    second, log = interrupted_demo(str(tmp_path))
    for name in ("rows", "users", "auc", "weights", "bundle", "probability"):
        assert second[name] == first[name], name
    for stage in ("simulate", "prepare", "tune", "ensemble"):
        assert re.search(rf"stage \d of 7, {stage}: done in [0-9.]+ s \(nothing has changed", log), stage


def interrupted_demo(store: str) -> tuple[dict[str, Any], str]:
    """Run until it serves, look at the page, interrupt; the JSON line, and what was logged."""
    process = subprocess.Popen(
        command(store), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    try:
        assert process.stderr is not None
        log = ""
        for line in process.stderr:
            log += line
            if "serving until" in line:
                break
        page = re.search(r"page: +(http://[^\s\"]+)", log)
        assert page, log[-4000:]
        assert "gradio" in httpx.get(page[1], follow_redirects=True, timeout=30, trust_env=False).text
        started = psutil.Process(process.pid).children(recursive=True)
        assert len(started) > 3, "Ray's processes"
        process.send_signal(signal.SIGINT)
        out, rest = process.communicate(timeout=60)
        _, alive = psutil.wait_procs(started, timeout=20)
        assert [other.name() for other in alive] == []
    finally:
        process.terminate()  # where an assertion failed before the interrupt: nothing may outlive the test
        process.wait(timeout=60)
    assert process.returncode == 0, rest[-4000:]
    return json.loads(out.splitlines()[-1]), log


@pytest.mark.real_data
def test_real_log_on_s3(real_data: Path, seaweedfs: str) -> None:
    result, _ = demo(f"{seaweedfs}/demo", "--set", f"data.path={real_data / 'ednet_kt1_92u.csv.gz'}")
    check(result)
    assert result["users"] == 92
    assert result["rows"] == 77_419
