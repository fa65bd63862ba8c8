"""Memory of one process that trains a network on 20 million interactions: arrays are mapped from files, not loaded.

The logs are simulated and prepared by `dkt prepare`; a process of its own loads the dataset as `dkt train` does (fold 0
validates), and trains for some steps. What counts is the memory that only the process holds, anonymous and shared
(RssAnon + RssShmem of /proc/PID/status, twenty times a second): pages of mapped files are the kernel's to take back.
Beside it stands all that it touched, mapped pages too. The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from benchmarks import ray_job
from benchmarks.environment import environment
from benchmarks.process_tree import run
from benchmarks.throughput_data import ROOT
from dkt_ray.config import build
from dkt_ray.features.dataset import Dataset
from dkt_ray.models.catalog import CATALOG
from dkt_ray.pipelines import prepare
from dkt_ray.storage import open_store
from dkt_ray.training import loop
from dkt_ray.training.fit import fit
from dkt_ray.training.progress import TrainingData

LIMIT_MIB: Final = 4096
EVERY_S: Final = 0.05
WORKER: Final = "import sys; from benchmarks import train_memory; train_memory.worker(sys.argv[1:])"


class EnoughError(Exception):
    """The steps that were asked for are done."""


class Watch(threading.Thread):
    """Remembers the most memory, in MiB, that this process held by itself, until `ended`."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ended = threading.Event()
        self.peak = 0.0

    def run(self) -> None:
        """Look twenty times a second."""
        while not self.ended.wait(EVERY_S):
            self.peak = max(self.peak, held())


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare, train in a process of its own, and print."""
    options = _parser().parse_args(arguments)
    if options.quick:
        options.rows, options.steps = 20_000, 2
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        store = Path(name) / "store"
        ray_job.logs(Path(name) / "logs", options.rows)
        variables = ray_job.ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
        prepare.run(
            build(prepare.PrepareConfig, {"store": str(store), "engine": "local", "data": {"path": f"{name}/logs"}})
        )
        ran = run([sys.executable, "-c", WORKER, str(store), options.family, str(options.steps)], variables)
    about = {"benchmark": "train_memory", "family": options.family, "environment": environment()}
    print(json.dumps(json.loads(ran.stdout.splitlines()[-1]) | {"limit_mib": LIMIT_MIB} | about))


def worker(arguments: Sequence[str]) -> None:
    """Train some steps, and say what that held.

    Args:
        arguments: store, family, steps.
    """
    url, family, steps = arguments[0], arguments[1], int(arguments[2])
    torch.set_num_threads(1)
    watch = Watch()
    watch.start()
    dataset = Dataset.open(open_store(url), "default")
    valid = dataset.load({0}).rows
    train = dataset.load(set(range(1, dataset.manifest.folds))).rows
    loaded = watch.peak
    _stop_after(steps)
    with contextlib.suppress(EnoughError):
        fit(family, build(CATALOG[family].config, {}), TrainingData(train, valid, dataset.state))
    watch.ended.set()
    watch.join()
    touched = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    figures = {"peak_mib": watch.peak, "loading_mib": loaded, "while_training_mib": held(), "touched_mib": touched}
    rows = {
        "rows": train.rows + valid.rows,
        "encoded_mib": round((train.numbers.nbytes + valid.numbers.nbytes) / 2**20),
    }
    print(json.dumps(rows | {name: round(value) for name, value in figures.items()}))


def held() -> float:
    """MiB that this process alone holds: anonymous memory, and shared memory without a file."""
    status = Path("/proc/self/status").read_text()
    found = dict(line.split(":", 1) for line in status.splitlines())
    return sum(int(found[name].split()[0]) for name in ("RssAnon", "RssShmem")) / 1024


def _stop_after(steps: int) -> None:
    """Have the loop end within its first epoch."""
    done: list[float] = []
    real = loop.set_rate

    def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
        done.append(rate)
        if len(done) > steps:
            raise EnoughError
        real(optimizer, rate)

    loop.set_rate = set_rate


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=_count, default=20_000_000, help="about; simulated in cohorts of 2.5 million")
    parser.add_argument("--family", default="lstm", help="a network of the catalog, with its default settings")
    parser.add_argument("--steps", type=int, default=100, help="training steps")
    parser.add_argument("--folder", type=Path, help="for logs and store (deleted); default: that for temporary files")
    parser.add_argument("--quick", action="store_true", help="20,000 rows: shows that it runs")
    return parser


def _count(text: str) -> int:
    return round(float(text.rstrip("m")) * (1e6 if text.endswith("m") else 1))


if __name__ == "__main__":
    main()
