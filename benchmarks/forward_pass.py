"""A network's forward pass as it is, exported (torch.export) and compiled (torch.compile): milliseconds, difference.

The networks of a bundle answer the same prepared requests in three forms, in turns, in one process and one thread.
Loading an exported or compiled form is not counted but told: a replica would pay it at each start. The last line of
output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from benchmarks.environment import environment
from benchmarks.serving_requests import Body, Students, add_source, queries, source
from dkt_ray.features.batch import SequenceBatch
from dkt_ray.models.network import Network
from dkt_ray.registry import bundle as bundles
from dkt_ray.registry.cache import local_copy
from dkt_ray.registry.store import Registry
from dkt_ray.storage import open_store

EVENTS: Final = 340
TARGETS: Final = 100
NAMES: Final = tuple(field.name for field in fields(SequenceBatch))
Forward = Callable[..., Tensor]


class Flat(nn.Module):
    """A network whose batch is given as tensors."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, *tensors: Tensor) -> Tensor:
        """Logits, [B, M]."""
        return self.network(SequenceBatch(*tensors))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        store, digest, log = source(options, Path(folder))
        loaded = bundles.load(local_copy(Registry(open_store(store)), digest))
        students = Students.read(log, options.split, options.fold)
        found = {}
        for name, network in loaded.scorer.members.items():
            if isinstance(network, Network) and (options.quick is False or not found):
                found[name] = _measured(loaded, network, students, options)
    print(json.dumps({"benchmark": "forward_pass", "environment": environment(), "networks": found}))


def _measured(
    loaded: bundles.Bundle, network: Network, students: Students, options: argparse.Namespace
) -> dict[str, Any]:
    asked = {"one": [students.long(EVENTS, 1)], "32": students.bodies(32), "targets": [students.long(EVENTS, TARGETS)]}
    batches = {name: _batch(loaded, network, bodies) for name, bodies in asked.items()}
    forms, starts = _forms(Flat(network).eval(), list(batches.values()), compiled=not options.quick)
    return {"start_s": starts} | {name: _in_turns(forms, batch, options.turns) for name, batch in batches.items()}


def _batch(loaded: bundles.Bundle, network: Network, bodies: Sequence[Body]) -> tuple[Tensor, ...]:
    """The widest batch that the network is given for these requests."""
    seen: list[SequenceBatch] = []
    with network.register_forward_pre_hook(lambda _, given: seen.append(given[0])):
        loaded.scorer.score_queries(queries(bodies))
    widest = max(seen, key=lambda batch: batch.past_answer.numel())
    return tuple(getattr(widest, name).clone() for name in NAMES)


def _forms(
    flat: Flat, batches: Sequence[tuple[Tensor, ...]], compiled: bool
) -> tuple[dict[str, Forward], dict[str, float]]:
    """The forms, and how long each took to be made ready for these batches, in seconds."""
    forms: dict[str, Forward] = {"eager": flat}
    starts = {}
    with torch.inference_mode(False), torch.no_grad():
        started = time.perf_counter()
        forms["exported"] = _exported(flat, batches[-1])
        starts["exported"] = round(time.perf_counter() - started, 1)
        if compiled:
            forms["compiled"] = torch.compile(flat, dynamic=True)
            started = time.perf_counter()
            for batch in batches:
                forms["compiled"](*batch)
            starts["compiled"] = round(time.perf_counter() - started, 1)
    return forms, starts


def _exported(flat: Flat, batch: tuple[Tensor, ...]) -> Forward:
    dims = [dict.fromkeys(range(tensor.dim()), torch.export.Dim.AUTO) for tensor in batch]
    program = torch.export.export(flat, batch, dynamic_shapes=(tuple(dims),), strict=False)
    forward: Forward = program.module()
    return forward


def _in_turns(forms: Mapping[str, Forward], batch: tuple[Tensor, ...], turns: int) -> dict[str, Any]:
    """Median milliseconds of each form, and how far its logits are from the eager ones."""
    with torch.no_grad():
        expected = forms["eager"](*batch)
        found: dict[str, Any] = {"past": list(batch[0].shape[:2]), "targets": list(batch[4].shape[:2])}
        usable, took = {}, dict[str, list[float]]()
        for name, form in forms.items():
            try:
                off = (form(*batch) - expected).abs().max().item()
            except (RuntimeError, AssertionError) as error:  # a form that was specialised to other shapes
                found[name] = {"fails": str(error).partition("\n")[0][:200]}
            else:
                usable[name], took[name] = form, []
                found[name] = {"max_abs_diff": off}
        for _ in range(turns):
            for name, form in usable.items():
                started = time.perf_counter()
                form(*batch)
                took[name].append(1000 * (time.perf_counter() - started))
    for name, values in took.items():
        found[name]["ms"] = round(statistics.median(values), 3)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_source(parser)
    parser.add_argument("--turns", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help="one network, not compiled: shows that it runs")
    return parser


if __name__ == "__main__":
    main()
