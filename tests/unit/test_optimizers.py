"""Every optimizer decays, learns and remembers what it should; what it remembers survives a checkpoint exactly."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import nn

from dkt_ray.models.optimization import OptimizationConfig, OptimizerName
from dkt_ray.training.averaging import MovingAverage
from dkt_ray.training.optimizers import OPTIMIZERS, make_optimizer, parameter_groups, put_state, set_rate, state_of

every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def config(name: str = "adamw", **changes: object) -> OptimizationConfig:
    return OptimizationConfig.model_validate({"optimizer": name} | changes)


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Embedding(7, 4, padding_idx=0), nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 1))


def advance(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int, rate: float = 0.01, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        set_rate(optimizer, rate)
        optimizer.zero_grad(set_to_none=True)
        ids = torch.randint(0, 7, (16,), generator=generator)
        (module(ids).squeeze(-1) - ids.float()).square().mean().backward()
        optimizer.step()


def test_every_name_has_its_optimizer():
    assert set(OPTIMIZERS) == set(get_args(OptimizerName))


def test_only_weight_matrices_decay_and_embeddings_go_slower():
    module = network()
    matrices, vectors, tables = parameter_groups(module, config(weight_decay=0.3, embedding_rate=0.2))
    assert (matrices["weight_decay"], vectors["weight_decay"], tables["weight_decay"]) == (0.3, 0.0, 0.0)
    assert (matrices["share"], vectors["share"], tables["share"]) == (1.0, 1.0, 0.2)
    everything = [id(p) for group in (matrices, vectors, tables) for p in group["params"]]
    assert sorted(everything) == sorted(id(p) for p in module.parameters())
    assert tables["params"] == [module[0].weight]
    assert {id(p) for p in matrices["params"]} == {id(module[1].weight), id(module[3].weight)}


@every_optimizer
def test_the_loss_falls(name):
    module = network()
    optimizer = make_optimizer(module, config(name, embedding_rate=1.0))
    ids = torch.arange(1, 7)
    before = (module(ids).squeeze(-1) - ids.float()).square().mean()
    advance(module, optimizer, 200, rate=0.02)
    assert (module(ids).squeeze(-1) - ids.float()).square().mean() < before / 2


def moved(steps: int, settings: OptimizationConfig) -> list[torch.Tensor]:
    """How far each weight gets."""
    module = network()
    start = [p.detach().clone() for p in module.parameters()]
    advance(module, make_optimizer(module, settings), steps)
    return [p.detach() - before for p, before in zip(module.parameters(), start, strict=True)]


@every_optimizer
def test_only_embeddings_have_their_share_of_the_rate(name):
    slow, fast = (moved(1, config(name, embedding_rate=share)) for share in (0.1, 0.2))
    # madgrad's first step goes with the rate to the power of 2 / 3
    ratio = 2 ** (2 / 3) if name == "madgrad" else 2
    torch.testing.assert_close(fast[0], slow[0] * ratio, rtol=0.01, atol=1e-6)
    assert all(torch.equal(one, other) for one, other in zip(slow[1:], fast[1:], strict=True))


@every_optimizer
def test_decay_pulls_matrices_to_zero(name):
    before = network()[3].weight.detach()
    plain, decayed = (moved(20, config(name, weight_decay=decay))[5] for decay in (0.0, 2.0))
    assert (before + decayed).norm() < (before + plain).norm()


@every_optimizer
def test_what_it_remembers_survives_exactly(name):
    settings = config(name, weight_decay=0.1)
    straight, broken = network(), network()
    advance(straight, one := make_optimizer(straight, settings), 5)
    advance(broken, before := make_optimizer(broken, settings), 5)
    tensors, groups = state_of(before)
    resumed = network()
    resumed.load_state_dict(broken.state_dict())
    after = make_optimizer(resumed, settings)
    put_state(after, {key: tensor.clone() for key, tensor in tensors.items()}, groups)
    forgetful = network()
    forgetful.load_state_dict(broken.state_dict())
    for module, optimizer in ((straight, one), (resumed, after), (forgetful, make_optimizer(forgetful, settings))):
        advance(module, optimizer, 5, seed=1)
    for kept, found, lost in zip(straight.parameters(), resumed.parameters(), forgetful.parameters(), strict=True):
        assert torch.equal(kept, found)
        assert not torch.equal(kept, lost), "without its memory it goes on the same: this test shows nothing"


class Counting(nn.Module):
    """One weight, a running statistic and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


def test_the_average_follows_the_slow_formula_and_copies_counts():
    module = Counting()
    average = MovingAverage(module, 0.7)
    expected = 0.0
    for step in range(30):
        with torch.no_grad():
            module.weight.copy_(torch.tensor([step**0.5, -1.0]))
            module.mean.fill_(step**0.5)
            module.count += 1
        average.update(module, step)
        decay = min(0.7, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step**0.5
        assert average.network.weight[0].item() == pytest.approx(expected, rel=1e-5)
        assert average.network.mean.item() == pytest.approx(expected, rel=1e-5)
        assert average.network.count == step + 1
    assert module.weight[0] == 29**0.5
    assert not average.network.weight.requires_grad
