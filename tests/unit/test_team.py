"""Two processes train one network as one process does: the same curve, and the same weights in both."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dkt_ray.models.catalog import CATALOG
from dkt_ray.training import loop
from dkt_ray.training.progress import FitResult, TrainingData
from dkt_ray.training.team import ALONE, Team
from tests.contract import world as w

SETTINGS = {"dropout": 0.0, "unknown_share": 0.0, "epochs": 2, "patience": 2, "batch_rows": 512, "context": 8}


@cache
def data() -> TrainingData:
    return w.World.of(w.students(40, seed=5)).data


def train(family: str, team: Team, **changes: Any) -> FitResult:
    spec = CATALOG[family]
    return loop.train(spec.model, w.tiny(spec, **SETTINGS | changes), data(), team=team)


# a batch of 16 rows holds one segment: the second worker has none of its own
CASES = {
    "plain": ("lstm_attention", {}),
    "last": ("lstm_attention", {"last": 2}),
    "averaged": ("lstm_attention", {"averaging": 0.9}),
    "idle": ("lstm_attention", {"batch_rows": 16, "epochs": 1}),
    "penalty": ("akt", {"last": 1, "question_l2": 30.0, "embedding_rate": 1.0, "context": 24, "learning_rate": 0.02}),
}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        results = {name: train(family, Team.here(), **changes) for name, (family, changes) in CASES.items()}
        found = {name: (result.curve, result.model.state_dict()) for name, result in results.items()}
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def together() -> list[dict[str, Any]]:
    """What each of two workers found, by case."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(worker, (folder,), nprocs=2)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_two_workers_equal_one(case, together):
    (first, mine), (second, theirs) = (found[case] for found in together)
    family, changes = CASES[case]
    alone = train(family, ALONE, **changes)
    assert [p[:3] for p in first] == [p[:3] for p in second]
    for shared, single in zip(first, alone.curve, strict=True):
        assert shared.loss == pytest.approx(single.loss, abs=1e-5)
        assert shared.auc == pytest.approx(single.auc, abs=1e-3)
    for name, weight in alone.model.state_dict().items():
        assert torch.equal(mine[name], theirs[name])
        torch.testing.assert_close(mine[name], weight, rtol=0, atol=1e-3)


def test_each_segment_has_one_worker_and_an_idle_one_gets_no_target():
    parts = np.arange(28).reshape(7, 4)
    shares = [Team(rank, 3).share(parts) for rank in range(3)]
    assert sorted(map(tuple, np.concatenate(shares))) == sorted(map(tuple, parts))
    [idle] = Team(2, 3).share(parts[:2])
    assert idle[2] == idle[3]
    assert Team().share(parts) is parts
