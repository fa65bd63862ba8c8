"""`dkt tune` killed with -9 at random moments, and run again each time: no trial is lost, and none runs twice."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import polars as pl
import psutil

from dkt_ray.data.ingest import DataConfig
from dkt_ray.data.simulate import SimulateConfig, simulate, write
from dkt_ray.pipelines import prepare
from dkt_ray.session import EVERYWHERE, ON_THIS_MACHINE
from dkt_ray.storage import open_store

ROOT: Final = Path(__file__).resolve().parents[2]
USERS: Final = 60
ANSWERS: Final = 60  # of each, at most
TRIALS: Final = 6
EPOCHS: Final = 40
DEADLINE_S: Final = 900  # of one driver
WRITTEN: Final = timedelta(seconds=10)  # after its line, a trial's end is in the store; before, it may run again
ENDED: Final = ": finished at"
OVERRIDES: Final[dict[str, dict[str, Any]]] = {
    "lightgbm": {"rounds": 100, "report_rounds": 10, "min_data_in_leaf": 20, "patience": 100},
    "lstm_attention": {"context": 32, "batch_rows": 4096, "epochs": EPOCHS, "patience": EPOCHS},
}


def main(argv: list[str] | None = None) -> int:
    """Kill and go on until the sweep has finished; 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=20.0, help="most seconds between a trial's line and a kill")
    options = parser.parse_args(argv)
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="dkt-kill-") as name:
        folder = Path(name)
        settings = _settings(folder)
        runs: dict[str, list[dict[str, Any]]] = {"killed-1": []}
        kills = 0
        while kills < options.kills:
            run = f"killed-{len(runs)}"
            tried = _run(folder, settings, run, chance.uniform(0, options.longest), late=not kills)
            runs[run].append(tried)
            kills += tried["killed"]
            if tried["code"] == 0:  # it ended before it was killed: kill another one
                runs[f"killed-{len(runs) + 1}"] = []
            elif not tried["killed"]:
                break
        if not runs[run] or runs[run][-1]["code"] != 0:
            runs[run].append(_run(folder, settings, run, None))
        plain = _run(folder, settings, "plain", None)
        wrong = [problem for run, tries in runs.items() for problem in _wrong(folder, run, tries, plain)]
    tries = [each for several in runs.values() for each in several]
    finishes = sum(each["code"] == 0 for each in tries)
    kept = sum(len(each["finished"]) for each in tries if each["killed"])
    if kills < options.kills:
        wrong.append(f"{kills} kills of {options.kills}")
    elif not kept:
        wrong.append("no trial had finished before a kill: give more --kills")
    for problem in wrong:
        print(f"wrong: {problem}")
    print(json.dumps({"kills": kills, "kept": kept, "starts": len(tries), "finishes": finishes, "wrong": wrong}))
    return int(bool(wrong))


def _settings(folder: Path) -> Path:
    """A small dataset, and the file with the settings of a sweep that stops nothing early."""
    write(simulate(SimulateConfig(users=USERS, bank_fraction=0.1, out=str(folder))), open_store(folder))
    logs = pl.read_csv(folder / "train_data.csv", infer_schema=False)
    logs.filter(pl.int_range(pl.len()).over("userID") < ANSWERS).write_csv(folder / "short.csv")
    data = DataConfig(path=str(folder / "short.csv"), folds=3, test_fraction=0.1)
    prepare.run(prepare.PrepareConfig(store=str(folder / "store"), data=data, context=32, engine="local"))
    settings = {
        "store": str(folder / "store"),
        "families": list(OVERRIDES),
        "overrides": OVERRIDES,
        "trials": TRIALS,
        "scheduler": "none",
        "searcher": "random",  # a list drawn beforehand: a kill must not change it
        "checkpoint_s": 0,
    }
    (folder / "tune.yaml").write_text(json.dumps(settings))
    return folder / "tune.yaml"


def _run(folder: Path, settings: Path, run: str, after_s: float | None, late: bool = False) -> dict[str, Any]:
    """One driver; killed that long after its first line about a trial, unless it has ended before.

    Args:
        late: only when a trial's end is written down.

    Returns:
        {"code", "killed", "finished"}: how it ended, whether we did that, and the trials whose end it had time to write
        down.
    """
    log = folder / "driver.log"
    with log.open("wb") as errors:
        driver = subprocess.Popen(
            [sys.executable, "jobs/tune.py", "--config", str(settings), "--set", f"run={run}"],
            cwd=ROOT,
            env=os.environ | EVERYWHERE | ON_THIS_MACHINE | {"PYTHONPATH": str(ROOT), "RAY_worker_niceness": "0"},
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
    due: float | None = None
    give_up = time.monotonic() + DEADLINE_S
    while driver.poll() is None and (due is None or time.monotonic() < due):
        if time.monotonic() > give_up:
            print(f"{run}: no end after {DEADLINE_S} s\n{log.read_text()[-2000:]}")
            driver.terminate()
            driver.wait(60)
        if due is None and after_s is not None and any(not late or ENDED in line["message"] for line in _lines(log)):
            due = time.monotonic() + after_s + late * WRITTEN.total_seconds()
        time.sleep(0.05)
    running = driver.poll() is None
    left = psutil.Process(driver.pid).children(recursive=True) if running else []
    driver.kill()
    ended = datetime.now(UTC)
    driver.wait()
    for process in left:  # a dead driver's Ray ends by itself, but not at once
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=30)
    lines = _lines(log)
    done = [line for line in lines if ENDED in line["message"]]
    print(f"{run}: ended with {driver.returncode}; {len(done)} trials finished here", flush=True)
    if driver.returncode > 0:
        print(log.read_text()[-2000:])
    late = ended - WRITTEN if driver.returncode else ended
    written = [line["trial"] for line in done if datetime.fromisoformat(line["ts"]) <= late]
    killed = running and driver.returncode == -signal.SIGKILL
    return {"code": driver.returncode, "killed": killed, "finished": written}


def _lines(log: Path) -> list[dict[str, Any]]:
    """What a driver has said of trials so far."""
    complete = log.read_text().rpartition("\n")[0].splitlines()
    parsed = [json.loads(line) for line in complete if line.startswith("{")]
    return [line for line in parsed if "trial" in line]


def _wrong(folder: Path, run: str, tries: list[dict[str, Any]], plain: dict[str, Any]) -> list[str]:
    """What should not be, in words."""
    found = []
    if tries[-1]["code"] != 0 or plain["code"] != 0:
        return ["the sweep did not finish"]
    if any(each["code"] != 0 and not each["killed"] for each in tries):
        found.append("a driver failed by itself")
    endings = Counter(trial for each in tries for trial in each["finished"])
    store = open_store(folder / "store")
    trials, expected = (store.read_table(f"runs/{name}/trials.parquet").to_pylist() for name in (run, "plain"))
    names = [trial["trial"] for trial in trials]
    if Counter(trial["family"] for trial in trials) != dict.fromkeys(OVERRIDES, TRIALS):
        found.append(f"the families have {dict(Counter(trial['family'] for trial in trials))} trials")
    found += [f"trial {name} was finished, and is lost" for name in endings if name not in names]
    found += [f"trial {name} finished {times} times" for name, times in endings.items() if times > 1]
    found += [f"trial {t['trial']} is {t['status']}: {t['reason']}" for t in trials if t["status"] != "finished"]
    killed_set, plain_set = (sorted((t["family"], t["config"]) for t in table) for table in (trials, expected))
    if killed_set != plain_set:
        found.append("other settings were tried than without a kill")
    aucs, plain_aucs = ({(t["family"], t["config"]): t["auc"] for t in table} for table in (trials, expected))
    both = aucs.keys() & plain_aucs.keys()
    found += [f"{key[0]}: auc {aucs[key]}, not {plain_aucs[key]}" for key in both if aucs[key] != plain_aucs[key]]
    return found


if __name__ == "__main__":
    sys.exit(main())
