"""Several workers train one network: the curve of one process, and what happens when a worker is killed."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import psutil
import pytest

from dkt_ray.config import build
from dkt_ray.data.ingest import DataConfig
from dkt_ray.errors import ConfigError, TrainingError
from dkt_ray.pipelines import prepare, train
from dkt_ray.storage import Store, open_store
from tests import bundles
from tests.runs import write_log

SETTLED = 4  # epochs told; a worker waits with a report until Ray has the one before last: epoch 1 is kept by now
SETTINGS = {"width": 8, "context": 10, "dropout": 0.0, "unknown_share": 0.0, "batch_rows": 512, "patience": 40}


@pytest.fixture(scope="module")
def url(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("workers")
    data = DataConfig(path=str(write_log(folder / "log.csv", bundles.simulate())), folds=3, buckets=2)
    prepare.run(prepare.PrepareConfig(store=str(folder / "store"), data=data, engine="local"))
    return str(folder / "store")


def run(url: str, name: str, workers: int, epochs: int, **settings: Any) -> Store:
    values = {"store": url, "family": "lstm_attention", "name": name, "workers": workers, "samples": 2}
    train.run(build(train.TrainConfig, values | {"settings": SETTINGS | {"epochs": epochs} | settings}))
    return folder(url, name)


def folder(url: str, name: str) -> Store:
    return open_store(url).child(f"runs/default/trained/{name}")


def epochs(kept: Store) -> list[dict[str, Any]]:
    return [json.loads(line) for line in kept.read("epochs.jsonl").splitlines()]


def workers() -> list[psutil.Process]:
    """Ray Train's workers on this machine, below this process's own Ray."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "TrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_two_workers_equal_one_and_a_killed_one_costs_nothing_but_time(url):
    alone = epochs(run(url, "alone", 1, 12))
    killed: list[int] = []
    told: list[dict[str, Any]] = []

    def kill() -> None:
        give_up = time.monotonic() + 240
        place = folder(url, "two")
        while time.monotonic() < give_up:
            if place.exists("epochs.jsonl") and len(seen := epochs(place)) >= SETTLED and (there := workers()):
                there[0].kill()
                killed.append(there[0].pid)
                told.extend(seen)
                return
            time.sleep(0.02)

    thread = threading.Thread(target=kill)
    thread.start()
    two = epochs(run(url, "two", 2, 12))
    thread.join()
    assert killed, "the fault did not fire"
    assert not psutil.pid_exists(killed[0])
    assert [line["iteration"] for line in two] == list(range(1, 13))
    assert told[0] == two[0], "the first epoch was trained again (its `ts` is another): the checkpoint was not used"
    for mine, theirs in zip(two, alone, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert mine["auc"] == pytest.approx(theirs["auc"], abs=1e-3)
    assert folder(url, "two").exists("model/weights.safetensors")
    assert folder(url, "two").list("ray") == []


def test_a_diverging_fit_says_so_once(url):
    with pytest.raises(TrainingError, match=r"loss is .* at step \d+ of epoch \d+"):
        run(url, "diverged", 2, 3, learning_rate=1e6, clip_norm=1e9)


def test_boosters_are_fitted_by_one_process():
    with pytest.raises(ConfigError, match="workers is 2, and lightgbm is fitted by one process"):
        build(train.TrainConfig, {"family": "lightgbm", "workers": 2})
