"""Learning rates step by step, against tables worked out by hand and against torch's own schedulers."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch

from dkt_ray.models.optimization import OptimizationConfig, ScheduleName
from dkt_ray.training.schedules import SCHEDULES, learning_rate, plateaus

STEPS = 4  # per epoch


def config(schedule: str, **changes: object) -> OptimizationConfig:
    return OptimizationConfig.model_validate({"schedule": schedule, "learning_rate": 0.8, "epochs": 5} | changes)


def rates(settings: OptimizationConfig, epochs: int | None = None) -> list[float]:
    """The rate of every step, as the loop asks for it."""
    return [
        learning_rate(settings, epoch + step / STEPS)
        for epoch in range(epochs or settings.epochs)
        for step in range(STEPS)
    ]


def test_every_name_has_its_schedule():
    assert set(SCHEDULES) | {"plateau"} == set(get_args(ScheduleName))


def test_one_cycle_rises_to_its_peak_and_falls_to_a_hundredth():
    settings = config("one_cycle", learning_rate=0.5, warmup=0.2, epochs=1)
    found = [learning_rate(settings, done) for done in np.linspace(0, 1, 101)]
    assert found[0] == pytest.approx(0.005)
    assert max(found) == found[20] == pytest.approx(0.5)
    assert found[-1] == pytest.approx(0.005)
    assert (np.diff(found[:21]) > 0).all()
    assert (np.diff(found[20:]) < 0).all()
    assert learning_rate(settings, 1.5) == found[-1]  # a refit may go on longer than the schedule


@pytest.mark.parametrize("schedule", ["one_cycle", "linear", "cosine", "cosine_restarts"])
def test_without_warm_up_the_rate_starts_at_its_peak_and_falls(schedule):
    found = rates(config(schedule, warmup=0, cycles=1))
    assert found[0] == pytest.approx(0.8)
    assert (np.diff(found) < 0).all()


def test_linear_step_by_step():
    found = rates(config("linear", warmup=0.25))  # 20 steps: 5 up, 15 down
    assert found[:6] == pytest.approx([0.008, 0.16, 0.32, 0.48, 0.64, 0.8])
    assert found[6:] == pytest.approx([0.8 * (15 - k) / 15 for k in range(1, 15)])
    assert learning_rate(config("linear", warmup=0.25), 7) == 0


def test_cosine_step_by_step():
    found = rates(config("cosine", warmup=0.5, epochs=2))  # 8 steps: 4 up, 4 down
    half = math.sqrt(0.5)
    assert found == pytest.approx([0.008, 0.2, 0.4, 0.6, 0.8, 0.4 * (1 + half), 0.4, 0.4 * (1 - half)])


def test_cosine_restarts_step_by_step():
    settings = config("cosine_restarts", warmup=0.5, cycles=2, epochs=4, rate_decay=0.25)
    first = rates(config("cosine", warmup=0.5, epochs=2))
    found = rates(settings)
    assert found[:8] == pytest.approx(first)
    assert found[8:] == pytest.approx([0.25 * rate for rate in first])


def test_step_falls_exactly_where_an_epoch_begins():
    found = rates(config("step", step_epochs=2, rate_decay=0.5))
    assert found == [0.8] * 8 + [0.4] * 8 + [0.2] * 4
    scheduler = torch.optim.lr_scheduler.StepLR
    assert found[::STEPS] == pytest.approx(by_torch(lambda optimizer: scheduler(optimizer, 2, 0.5), [0.0] * 5))


def test_constant_is_constant():
    assert set(rates(config("constant"), 9)) == {0.8}


AUCS = [0.6, 0.61, 0.61, 0.60, 0.62, 0.5, 0.5, 0.5, 0.5, 0.63, 0.1, 0.2]


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_plateau_falls_as_torch_does_when_it_is_fed_the_current_score(patience):
    settings = config("plateau", rate_decay=0.5)
    found = [learning_rate(settings, 3.25, plateaus(AUCS[:epoch], patience)) for epoch in range(len(AUCS))]

    def scheduler(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.ReduceLROnPlateau:
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", 0.5, patience - 1, threshold=0, eps=0)

    assert found == pytest.approx(by_torch(scheduler, AUCS))
    assert found[0] > found[-1], "it never fell: this test shows nothing"


def test_plateau_is_not_fed_the_best_so_far():
    """With the best score so far in its place, a fall that is followed by a small rise would look the same."""
    assert plateaus([0.7, 0.5, 0.6, 0.65], 3) == 1
    assert plateaus([0.5, 0.6, 0.7, 0.8], 1) == 0
    assert plateaus([0.5, 0.5, 0.5, 0.5], 1) == 3
    assert plateaus([], 1) == 0


def by_torch(make: object, scores: list[float]) -> list[float]:
    """The rate of each epoch under a scheduler of torch; scores come after their epoch."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.8)
    scheduler = make(optimizer)
    found = []
    for score in scores:
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            scheduler.step(score)
        else:
            scheduler.step()
    return found
