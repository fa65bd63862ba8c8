"""Dropout from cheap bits: the share, the mean, the gradient, and that the seed decides."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dkt_ray.models.dropout import Dropout, chance, dropout, quicken

CPU = torch.device("cpu")


@pytest.mark.parametrize("share", [0.001, 0.2, 0.5, 0.97])
def test_a_share_of_the_elements_is_chosen_each_by_itself(share):
    torch.manual_seed(0)
    drawn = chance(torch.Size([200, 1001]), share, CPU)
    assert drawn.shape == (200, 1001)
    spread = (share * (1 - share) / drawn.numel()) ** 0.5
    assert abs(drawn.float().mean().item() - share) < 4 * spread
    # the four elements of one word, and neighbours in general, know nothing of each other
    flat = drawn.flatten().float() - share
    for apart in (1, 2, 3, 4, 8):
        assert abs((flat[apart:] * flat[:-apart]).mean().item()) < 4 * share * (1 - share) / drawn.numel() ** 0.5
    for place in range(4):
        assert abs(flat[place::4].mean().item()) < 8 * spread


def test_none_and_all():
    assert not chance(torch.Size([7, 9]), 0.0, CPU).any()
    assert chance(torch.Size([7, 9]), 1.0, CPU).all()
    assert chance(torch.Size([0, 9]), 0.5, CPU).shape == (0, 9)


def test_dropped_elements_are_zero_and_the_others_scaled_as_is_the_gradient():
    torch.manual_seed(1)
    x = torch.rand(50, 37) + 1
    x.requires_grad_()
    y = dropout(x, 0.25, True)
    y.sum().backward()
    dropped = y == 0
    assert 0.2 < dropped.float().mean() < 0.3
    torch.testing.assert_close(y[~dropped], x[~dropped] / 0.75)
    torch.testing.assert_close(x.grad, torch.where(dropped, 0.0, 1 / 0.75))
    assert torch.equal(dropout(x, 0.25, False), x)
    assert torch.equal(dropout(x, 0.0, True), x)


def test_the_seed_decides():
    x, drawn = torch.ones(500), []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        drawn.append(dropout(x, 0.5, True))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_the_precision_stays():
    assert dropout(torch.ones(9, dtype=torch.bfloat16), 0.5, True).dtype == torch.bfloat16


def test_the_dropout_of_a_foreign_module_is_replaced():
    module = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(0.3)))
    quicken(module)
    assert isinstance(module[1][0], Dropout)
    assert module[1][0].p == 0.3
    assert not module.eval()[1][0].training
