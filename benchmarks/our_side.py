"""Our half of `train_throughput.py`: one epoch of `training.fit` for every line on standard input."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.turns import clocks, say, since
from dkt_ray.config import build
from dkt_ray.data.history import graded
from dkt_ray.features.dataset import Dataset
from dkt_ray.models.catalog import CATALOG
from dkt_ray.storage import open_store
from dkt_ray.training.fit import fit
from dkt_ray.training.progress import Progress, TrainingData


class Turns:
    """A `Report` that waits for a line after every epoch; the first one warms up."""

    def __init__(self, questions: int) -> None:
        self.questions = questions
        self.started = clocks()

    def __call__(self, progress: Progress) -> None:
        """Say how long the epoch took (after the first: what it holds), and wait."""
        say(**({"questions": self.questions} if progress.iteration == 1 else since(self.started)))
        sys.stdin.readline()
        self.started = clocks()


def main(facts: Mapping[str, Any]) -> None:
    """Train on all users of a store's dataset.

    Args:
        facts: store, family, settings, turns, threads.
    """
    torch.set_num_threads(facts["threads"])
    dataset = Dataset.open(open_store(facts["store"]), "default")
    rows = dataset.load().rows
    data = TrainingData(rows, None, dataset.state)
    config = build(CATALOG[facts["family"]].config, facts["settings"])
    fit(facts["family"], config, data, Turns(int(graded(rows.correct).sum())), iterations=1 + facts["turns"])
