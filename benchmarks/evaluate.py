"""Full-history scoring in one pass against scoring each position alone, under the same context rule, by the same model.

The model and the users are those of a `dkt train` (its validation fold), or, without options, a network that is trained
for a moment on simulated students. Positions alone are batched as well as positions together; each brings its own past.
The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from benchmarks.environment import environment, seconds_of
from dkt_ray.config import build
from dkt_ray.data.history import Int64
from dkt_ray.data.simulate import SimulateConfig
from dkt_ray.features.batch import Rows
from dkt_ray.features.collate import FlatRows, segments, split_targets
from dkt_ray.features.dataset import Dataset
from dkt_ray.models.network import Network
from dkt_ray.pipelines import prepare, simulate, train, trained
from dkt_ray.storage import open_store

TOLERANCE: Final = 1e-5


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    name = options.model or options.family
    with tempfile.TemporaryDirectory() as folder:
        store = options.store or _simulated(Path(folder), options.family, 40 if options.quick else 600)
        network, rows = _trained(store, options.dataset, options.run, name)
    figures = measure(network, rows, 500 if options.quick else options.positions, options.repeats)
    print(json.dumps({"benchmark": "evaluate", "environment": environment(), "model": name, **figures}))


def measure(network: Network, rows: Rows, positions: int, repeats: int) -> dict[str, Any]:
    """Seconds per position both ways, their ratio, and the greatest difference of the probabilities.

    Args:
        rows: encoded histories.
        positions: how many are also scored alone, drawn at random; 0: all.
        repeats: of both ways, in turns; medians are compared.

    Raises:
        AssertionError: the two ways give other probabilities.
    """
    flat = network.flatten(rows)
    together = segments(rows, rows, network.config.context)
    alone = _alone(rows, together, positions)
    target = alone[:, 2]
    times: dict[str, list[float]] = {"together": [], "alone": []}
    for _ in range(repeats):
        seconds, whole = seconds_of(lambda: network.probabilities(flat, flat, together))
        times["together"].append(seconds / rows.rows)
        seconds, single = seconds_of(lambda: _single(network, flat, alone))
        times["alone"].append(seconds / len(alone))
    difference = float(np.abs(whole[target] - single[target]).max())
    assert difference <= TOLERANCE, f"scored alone, a probability differs by {difference:.2g}"
    per_position = {name: statistics.median(found) for name, found in times.items()}
    return {
        "speedup": round(per_position["alone"] / per_position["together"], 1),
        "max_abs_diff": difference,
        "positions": rows.rows,
        "positions_alone": len(alone),
        "questions_per_s": round(1 / per_position["together"]),
        "questions_per_s_alone": round(1 / per_position["alone"]),
        "context": network.config.context,
    }


def _alone(rows: Rows, together: Int64, positions: int) -> Int64:
    """A segment for each of some positions: the position alone, and the past that it reads."""
    parts = split_targets(together, 1)
    if positions and positions < len(parts):
        parts = parts[np.sort(np.random.default_rng(0).choice(len(parts), positions, replace=False))]
    first = np.repeat(rows.offsets[:-1], np.diff(rows.offsets))[parts[:, 2]]
    parts[:, 1] = np.clip(first + rows.visible[parts[:, 2]], parts[:, 0], parts[:, 1])
    return parts


def _single(network: Network, flat: FlatRows, alone: Int64) -> Any:
    return network.probabilities(flat, flat, alone)


def _simulated(folder: Path, family: str, users: int) -> str:
    """A store with a small simulated dataset and a network that was trained for one epoch."""
    simulate.run(SimulateConfig(users=users, bank_fraction=0.1, out=str(folder / "logs")))
    store, data = str(folder / "store"), {"path": str(folder / "logs" / "train_data.csv"), "test_fraction": 0.0}
    prepare.run(build(prepare.PrepareConfig, {"store": store, "data": data, "engine": "local"}))
    train.run(build(train.TrainConfig, {"store": store, "family": family, "settings": {"epochs": 1}, "samples": 1}))
    return store


def _trained(store: str, dataset_name: str, run: str, name: str) -> tuple[Network, Rows]:
    """A model of `dkt train`, and the encoded users of its validation fold."""
    opened = open_store(store)
    dataset, folder = Dataset.open(opened, dataset_name), opened.child(f"runs/{run}")
    facts = trained.models(folder)[name]
    network = trained.load(folder, dataset, [name])[name]
    assert isinstance(network, Network), f"{name} is no network"
    return network, dataset.load({facts["fold"]}).rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", help="of a `dkt train`; without it, simulated students")
    parser.add_argument("--dataset", default="default")
    parser.add_argument("--run", default="default")
    parser.add_argument("--model", help="name of the model in the run; default: the family's")
    parser.add_argument("--family", default="lstm_attention", help="of the network trained on simulated students")
    parser.add_argument("--positions", type=int, default=20_000, help="scored alone as well; 0: all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it runs, not how fast")
    return parser


if __name__ == "__main__":
    main()
