"""Each objective against a slow formula, cell by cell, and proof that masked cells cannot matter."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from dkt_ray.models.optimization import ObjectiveName, OptimizationConfig
from dkt_ray.training.objectives import OBJECTIVES, chosen, objective

CORRECT = torch.tensor(
    [[1.0, 0.0, -1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0, -1.0, -1.0], [-1.0] * 6, [0.0, -1.0, -1.0, -1.0, -1.0, 1.0]]
)
every_objective = pytest.mark.parametrize("name", OBJECTIVES)
every_choice = pytest.mark.parametrize("last", [None, 1, 2, 3])


def config(name: str, **changes: object) -> OptimizationConfig:
    return OptimizationConfig.model_validate({"objective": name, "smoothing": 0.2, "focal_gamma": 1.5} | changes)


def logits(seed: int = 0) -> torch.Tensor:
    return torch.randn(CORRECT.shape, generator=torch.Generator().manual_seed(seed)) * 2


def cells(last: int | None) -> list[tuple[int, int]]:
    """The cells that count, found by walking each row from its end."""
    found = []
    for row, answers in enumerate(CORRECT.tolist()):
        known = [column for column, answer in enumerate(answers) if answer >= 0]
        found += [(row, column) for column in (known if last is None else known[-last:])]
    return found


def slow(name: str, x: torch.Tensor, last: int | None) -> float:
    """The objective by its formula, in plain Python."""
    pairs = [(1 / (1 + math.exp(-x[cell].item())), int(CORRECT[cell])) for cell in cells(last)]
    if name == "f1":
        return 1 - sum(soft_f1([(p if kind else 1 - p, y == kind) for p, y in pairs]) for kind in (0, 1)) / 2
    each = {
        "bce": lambda p, y: -math.log(p if y else 1 - p),
        "label_smoothing": lambda p, y: -((0.9, 0.1)[1 - y] * math.log(p) + (0.9, 0.1)[y] * math.log(1 - p)),
        "focal": lambda p, y: -((1 - (p if y else 1 - p)) ** 1.5) * math.log(p if y else 1 - p),
    }[name]
    return sum(each(p, y) for p, y in pairs) / len(pairs)


def soft_f1(pairs: list[tuple[float, bool]]) -> float:
    hits = sum(p for p, yes in pairs if yes)
    false_alarms = sum(p for p, yes in pairs if not yes)
    misses = sum(1 - p for p, yes in pairs if yes)
    return 2 * hits / (2 * hits + false_alarms + misses) if hits + false_alarms + misses else 0.0


def test_every_name_has_its_objective():
    assert set(OBJECTIVES) == set(get_args(ObjectiveName))


@every_choice
def test_known_answers_are_chosen_from_the_end(last):
    assert chosen(CORRECT, last).nonzero().tolist() == [list(cell) for cell in cells(last)]


@every_objective
@every_choice
def test_the_slow_formula_gives_the_same(name, last):
    found = objective(logits(), CORRECT, config(name, last=last))
    assert found.item() == pytest.approx(slow(name, logits(), last), rel=1e-5)


@every_objective
@every_choice
@pytest.mark.parametrize("wild", [50.0, -1e30, math.inf, math.nan])
def test_masked_cells_cannot_matter(name, last, wild):
    counts = chosen(CORRECT, last)
    plain, noisy = logits().requires_grad_(), torch.where(counts, logits(), wild).requires_grad_()
    settings = config(name, last=last)
    losses = [objective(x, CORRECT, settings) for x in (plain, noisy)]
    for loss in losses:
        loss.backward()
    assert torch.equal(*losses)
    assert torch.equal(plain.grad, noisy.grad)
    assert (plain.grad[~counts] == 0).all()
    assert (plain.grad[counts] != 0).all(), "a chosen answer does not matter: this test would see nothing"


@every_objective
def test_a_better_guess_is_a_smaller_objective(name):
    settings = config(name)
    better = logits() + torch.where(CORRECT == 1, 0.5, -0.5)
    assert objective(better, CORRECT, settings) < objective(logits(), CORRECT, settings) + (0.1 * (name[0] == "l"))


@every_objective
def test_without_any_known_answer_there_is_nothing_to_learn(name):
    x = torch.full((2, 3), 50.0, requires_grad=True)
    loss = objective(x, torch.full((2, 3), -1.0), config(name))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(x.grad, torch.zeros_like(x))


@every_objective
@pytest.mark.parametrize("answer", [0.0, 1.0])
def test_answers_of_one_kind_and_sure_guesses_stay_finite(name, answer):
    x = torch.tensor([[-200.0, 200.0, 0.0]], requires_grad=True)
    objective(x, torch.full((1, 3), answer), config(name)).backward()
    assert torch.isfinite(x.grad).all()


def test_focal_without_focus_and_smoothing_without_smoothing_are_cross_entropy():
    bce = objective(logits(), CORRECT, config("bce"))
    torch.testing.assert_close(objective(logits(), CORRECT, config("focal", focal_gamma=0)), bce)
    torch.testing.assert_close(objective(logits(), CORRECT, config("label_smoothing", smoothing=0)), bce)


def test_half_precision_logits_lose_nothing_on_the_way():
    x = logits().bfloat16()
    assert torch.equal(objective(x, CORRECT, config("bce")), objective(x.float(), CORRECT, config("bce")))
