"""What a data job makes of whole buckets through Ray Data is what a replica makes of one student and one question."""

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dkt_ray.data.history import Histories
from dkt_ray.data.ray_engine import RayEngine
from dkt_ray.features.batch import Rows
from dkt_ray.features.chunks import encode_chunks
from dkt_ray.features.encoder import EncoderState, encode
from dkt_ray.storage import open_store
from tests.builders import random_histories
from tests.datasets import opened, run
from tests.runs import write_log

ROOT = Path(__file__).parents[2]


def digest(rows: Rows, start: int, stop: int) -> str:
    """Hash of everything that a model may read of some rows."""
    found = hashlib.sha256()
    for column in (*(rows.ids[name] for name in sorted(rows.ids)), rows.concepts, rows.numbers, rows.visible):
        found.update(np.ascontiguousarray(column[start:stop]).tobytes())
    return found.hexdigest()


def encode_bucket(item: dict[str, Any], state: Callable[[], EncoderState], store: str) -> dict[str, Any]:
    """A task: the digest of each row of a bucket's users."""
    dataset = opened(store)
    histories = Histories.from_table(dataset.files.read_table(item["histories"]))
    place = {name: index for index, name in enumerate(dataset.split.names)}
    fold = dataset.split.fold[[place[name] for name in histories.users]]
    found = {}
    for users, rows in encode_chunks(histories, fold, state(), chunk_rows=50):
        for index, user in enumerate(users):
            start, stop = rows.offsets[index : index + 2]
            found[histories.users[user]] = [digest(rows, row, row + 1) for row in range(start, stop)]
    return {"digests": json.dumps(found)}


@pytest.mark.parametrize(
    ("timestamp_is", "bundle"), list(itertools.product(("shown", "submitted"), ("none", "test_run")))
)
def test_every_row_of_every_bucket(ray_cluster, tmp_path, timestamp_is, bundle):
    histories = random_histories(np.random.default_rng(3), 24, longest=12)
    encoder = {"timestamp_is": timestamp_is, "bundle": bundle, "min_count": 2}
    run(write_log(tmp_path / "log.csv", histories), tmp_path / "store", encoder=encoder, data={"buckets": 3})
    dataset = opened(tmp_path / "store")
    engine = RayEngine()
    shared, store = engine.share(dataset.state), str(tmp_path / "store")
    items = [{"histories": bucket.histories} for bucket in dataset.manifest.files]
    batch: dict[str, list[str]] = {}
    for report in engine.run(lambda item: encode_bucket(item, shared, store), items, "encode buckets"):
        batch |= json.loads(report["digests"])
    assert len(batch) == len(dataset.split.names)
    for bucket in items:
        everyone = Histories.from_table(dataset.files.read_table(bucket["histories"]))
        for user in range(len(everyone.users)):
            one = everyone.select(np.array([user]))
            fold = dataset.split.fold[list(dataset.split.names).index(one.users[0])]
            state = dataset.state if fold < 0 else dataset.state.excluding(int(fold))
            for row in range(one.rows):
                asked = encode(one.head(np.array([row])), one.targets(np.array([row])), state).targets
                assert asked is not None
                assert digest(asked, 0, 1) == batch[one.users[0]][row], (one.users[0], row)


def test_a_killed_driver_of_a_ray_job_goes_on_from_its_finished_tasks(ray_cluster, tmp_path):
    histories = random_histories(np.random.default_rng(5), 60, longest=20)
    log = write_log(tmp_path / "log.csv", histories)
    settings = {"data.path": log, "data.buckets": 8, "data.folds": 3, "engine": "ray"}
    sets = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "dkt_ray.cli", "prepare", *sets, "--set", f"store={tmp_path / 'store'}"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    driver = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    files = open_store(tmp_path / "store").child("datasets/default")
    give_up = time.monotonic() + 90
    while not any("merge-buckets" in key for key in files.list("tmp")) and time.monotonic() < give_up:
        time.sleep(0.02)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    assert not files.exists("manifest.json"), "it was killed too late to show anything"
    again = subprocess.run(
        [*command, "--set", "engine=local"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert "tasks were finished by an earlier run" in again.stderr
    expected = run(log, tmp_path / "anew", data={"buckets": 8, "folds": 3, "test_fraction": 0.1}, engine="ray")
    assert json.loads(again.stdout.splitlines()[-1])["content"] == expected["content"]
