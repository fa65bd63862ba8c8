"""What the options of `lightgbm` do on a prepared dataset: target modes, elimination, monotone columns, memory.

Users of one fold are held out (elimination: of every fold in turn); test users are not read. Without `--store`,
simulated students stand in. Memory is that of binning rows that are mapped from a file of random numbers, as one matrix
and streamed, in a process each. The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import lightgbm as lgb
import numpy as np

from benchmarks.environment import environment, seconds_of
from dkt_ray.config import build
from dkt_ray.data.simulate import SimulateConfig
from dkt_ray.ensemble.chain import Chain
from dkt_ray.ensemble.mastery import lowered_share
from dkt_ray.ensemble.scorer import Scorer
from dkt_ray.features.batch import Rows
from dkt_ray.features.dataset import Dataset
from dkt_ray.features.student import FEATURE
from dkt_ray.metrics import auc
from dkt_ray.models.lgbm import Columns, LightGBM, LightGBMConfig
from dkt_ray.pipelines import prepare, simulate
from dkt_ray.registry import catalogue
from dkt_ray.storage import open_store
from dkt_ray.training.elimination import eliminate
from dkt_ray.training.folds import TrainingUsers
from dkt_ray.training.progress import TrainingData, scored
from dkt_ray.training.table import dataset, train
from dkt_ray.training.target_modes import compare

SAMPLE: Final = 3000  # right answers that are looked at
MIB: Final = 2**20


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = _parser().parse_args(arguments)
    if options.bin is not None:
        print(_bin(Path(options.bin), options.streamed))
        return
    with tempfile.TemporaryDirectory() as folder:
        store = options.store or _simulated(Path(folder), 60 if options.quick else 1000)
        prepared = Dataset.open(open_store(store), options.dataset)
        users = TrainingUsers(prepared.load(), prepared.state)
        settings: dict[str, Any] = {"rounds": 20} if options.quick else json.loads(options.settings)
        config = build(LightGBMConfig, settings)
        parts: Mapping[str, Callable[[], Any]] = {
            "modes": lambda: _modes(users, config, options.fold),
            "elimination": lambda: _elimination(users, config, options.share, prepared.manifest.folds),
            "monotone": lambda: _monotone(users, prepared, config, options.fold),
            "memory": lambda: _memory(Path(folder), 50_000 if options.quick else options.rows),
        }
        figures = {name: parts[name]() for name in options.parts}
    print(json.dumps({"benchmark": "table_model", "environment": environment(), **figures}))


def _modes(users: TrainingUsers, config: LightGBMConfig, fold: int) -> dict[str, Any]:
    """AUC of last answers by target mode, with the last, or the last of its cycle, as the target."""
    data, _ = users.holding_out(fold)
    return {
        key: {mode: found._asdict() for mode, found in compare(config, data, key).items()} for key in ("user", "cycle")
    }


def _elimination(users: TrainingUsers, config: LightGBMConfig, share: float, folds: int) -> dict[str, Any]:
    """Held-out AUC by number of columns, and what is kept."""
    everyone = TrainingData(users.split.rows, None, users.state)
    held_out = (users.holding_out(fold)[0] for fold in range(folds))
    found = eliminate(config, held_out, everyone, share)
    curve = {str(size): round(value, 5) for size, value in found.curve.items()}
    return {"curve": curve, "nested_auc": round(found.nested_auc, 5), "size": found.size, "columns": found.columns}


def _monotone(users: TrainingUsers, prepared: Dataset, config: LightGBMConfig, fold: int) -> dict[str, Any]:
    """AUC, and the share of right answers that lower the mastery of their concept, free and bound."""
    data, _ = users.holding_out(fold)
    assert data.valid is not None
    counted = scored(data.valid)
    histories, _ = prepared.load_histories({fold})
    questions = catalogue.Catalogue(catalogue.table(users.state))
    state = users.state.excluding(fold)
    figures = {}
    for name, monotone in (("free", False), ("bound", True)):
        settings = config.model_copy(update={"monotone": monotone})
        model = train(LightGBM, settings, replace(data, valid=None), iterations=config.rounds).model
        probability = model.score(data.valid, data.valid)
        scorer = Scorer(state, {"lightgbm": model}, Chain.weighted({"lightgbm": 1.0}))
        figures[name] = {
            "auc": auc(data.valid.correct[counted], probability[counted]),
            "lowered": lowered_share(scorer, histories, questions.probes(questions.concepts), SAMPLE, 0),
        }
    return figures


def _memory(folder: Path, rows: int) -> dict[str, Any]:
    """Peak memory and seconds of binning mapped rows, both ways."""
    rng, path = np.random.default_rng(0), folder / "numbers.npy"
    mapped = np.lib.format.open_memmap(path, "w+", np.float32, (rows, len(FEATURE)))
    for start in range(0, rows, 1 << 16):
        mapped[start : start + (1 << 16)] = rng.normal(size=mapped[start : start + (1 << 16)].shape)
    mapped.flush()
    del mapped
    figures: dict[str, Any] = {"rows": rows, "columns": len(FEATURE), "matrix_mib": rows * len(FEATURE) * 4 // MIB}
    for name, flags in (("matrix", []), ("streamed", ["--streamed"])):
        command = [sys.executable, __file__, "--bin", str(path), *flags]
        figures[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return figures


def _bin(path: Path, streamed: bool) -> str:
    """Bin the rows of a file (in a process of its own), and say what it took."""
    numbers = np.load(path, mmap_mode="r")
    some = np.zeros(len(numbers), np.int32)
    rows = Rows(
        np.array([0, len(numbers)]),
        {},
        some[:, None],
        numbers,
        (some + np.arange(len(some)) % 2).astype(np.int8),
        some,
        some,
    )
    config = LightGBMConfig(columns=())
    columns = Columns(config, tuple(FEATURE))

    def binned() -> lgb.Dataset:
        if streamed:
            return dataset(rows, np.arange(rows.rows), config, columns).construct()
        return lgb.Dataset(columns.read(rows), rows.correct, params=config.parameters(columns.names)).construct()

    with _AnonymousMemory() as memory:
        seconds, _ = seconds_of(binned)
    return json.dumps({"peak_mib": memory.peak_kib // 1024, "seconds": round(seconds, 1)})


class _AnonymousMemory(threading.Thread):
    """The most anonymous memory above that at the start; mapped pages can be dropped at any time and do not count."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before, self.peak_kib, self.done = self._now(), 0, threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.005):
            self.peak_kib = max(self.peak_kib, self._now() - self.before)

    def __enter__(self) -> _AnonymousMemory:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.join()

    @staticmethod
    def _now() -> int:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def _simulated(folder: Path, users: int) -> str:
    """A store with a small simulated dataset."""
    simulate.run(SimulateConfig(users=users, bank_fraction=0.1, out=str(folder / "logs")))
    store, data = str(folder / "store"), {"path": str(folder / "logs" / "train_data.csv"), "test_fraction": 0.0}
    prepare.run(build(prepare.PrepareConfig, {"store": store, "data": data, "engine": "local"}))
    return store


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", help="of a prepared dataset; without it, simulated students")
    parser.add_argument("--dataset", default="default")
    parser.add_argument("--parts", nargs="+", default=["modes", "elimination", "monotone", "memory"])
    parser.add_argument("--settings", default='{"rounds": 300, "learning_rate": 0.05}', help="of lightgbm, as JSON")
    parser.add_argument("--fold", type=int, default=0, help="held out by modes and monotone")
    parser.add_argument("--share", type=float, default=0.25, help="of the columns that a step of the elimination drops")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the memory part")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it runs")
    parser.add_argument("--bin", help=argparse.SUPPRESS)
    parser.add_argument("--streamed", action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
