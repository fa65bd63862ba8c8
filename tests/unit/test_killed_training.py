"""A training process that SIGKILL ends within an epoch goes on, in another process, to the bits of one never killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import torch

from dkt_ray.models.lstm import Lstm, LstmConfig
from dkt_ray.models.network import Inputs
from dkt_ray.training import loop
from dkt_ray.training.checkpoint import CHECKPOINT, Run, restore
from dkt_ray.training.progress import FitResult, TrainingData
from tests.contract import world as w

CONFIG = LstmConfig.model_validate(
    {
        "context": 8,
        "width": 4,
        "embeddings": {"question": 4},
        "batch_rows": 128,
        "epochs": 3,
        "averaging": 0.9,
        "checkpoint_s": 0.0,
    }
)
DIES_AT = 12  # step, counted over all epochs


def small() -> TrainingData:
    return w.World.of(w.students(12, seed=1, longest=24), w.EncoderConfig(features=("core",))).data


def fit(data: TrainingData, folder: Path | None) -> FitResult:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # sums are split by threads
    try:
        return loop.train(Lstm, CONFIG, data, checkpoint=folder)
    finally:
        torch.set_num_threads(before)


def die_in_a_step(folder: str) -> None:
    """Train in this process until SIGKILL ends it, between two checkpoints of an epoch."""
    steps: list[float] = []
    real = loop.set_rate

    def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
        steps.append(rate)
        if len(steps) == DIES_AT:
            os.kill(os.getpid(), signal.SIGKILL)
        real(optimizer, rate)

    loop.set_rate = set_rate
    fit(small(), Path(folder))


def test_a_killed_process_is_continued_to_the_same_bits(tmp_path):
    code = f"from {__name__} import die_in_a_step; die_in_a_step({str(tmp_path)!r})"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    assert process.wait(60) == -signal.SIGKILL

    data = small()
    left = Run.of(Lstm(CONFIG, Inputs.of(data.state)))
    restore(left, tmp_path)
    assert left.curve, "it died in the first epoch: the best weights so far would not be tested"
    assert left.tally.steps > 0, "it died between two epochs: this test shows nothing"

    resumed, straight = fit(data, tmp_path), fit(data, None)
    assert [p._replace(rows_per_s=0.0) for p in resumed.curve] == [p._replace(rows_per_s=0.0) for p in straight.curve]
    assert resumed.best_iteration == straight.best_iteration
    for name, tensor in straight.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]
