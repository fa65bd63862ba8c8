"""The optimizers by name, over groups of weights that decay or not and learn at their own share of the rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from dkt_ray.models.optimization import OptimizationConfig, OptimizerName

Groups = list[dict[str, Any]]


OF_CONFIG: Final = ("weight_decay", "share")  # what the config says of a group, beside the rate of each step


def parameter_groups(network: nn.Module, config: OptimizationConfig) -> Groups:
    """Weight matrices decay; embeddings (at their own share of the rate), biases, norms and other vectors do not."""
    tables = [module.weight for module in network.modules() if isinstance(module, nn.Embedding)]
    embeddings = {id(table) for table in tables}
    others = [p for p in network.parameters() if id(p) not in embeddings]
    return [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": config.weight_decay, "share": 1.0},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0, "share": 1.0},
        {"params": tables, "weight_decay": 0.0, "share": config.embedding_rate},
    ]


def make_optimizer(network: nn.Module, config: OptimizationConfig) -> torch.optim.Optimizer:
    """A new optimizer of the config's kind; the rate of its groups is set by `set_rate` before each step."""
    return OPTIMIZERS[config.optimizer](parameter_groups(network, config))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]


def state_of(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Everything that the optimizer remembers: tensors by name, and the numbers of each group.

    Some keep a tensor for all weights together, or count their steps in the group.
    """
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    for index, moments in state["state"].items():
        one = isinstance(moments, Tensor)
        tensors |= {str(index): moments} if one else {f"{index}.{name}": value for name, value in moments.items()}
    return tensors, [_numbers(group) for group in state["param_groups"]]


def put_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], groups: list[dict[str, float]]) -> None:
    """Give the optimizer what `state_of` took from one of the same kind over the same network."""
    state: dict[int | str, Any] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        if name:
            state.setdefault(int(index), {})[name] = tensor
        else:
            state[index] = tensor
    now = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict(
        {"state": state, "param_groups": [group | before for group, before in zip(now, groups, strict=True)]}
    )


def _numbers(group: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in group.items() if isinstance(value, int | float)}


def _adam(groups: Groups) -> torch.optim.Optimizer:
    """Kingma and Ba, 2015; decay is added to the gradient."""
    return torch.optim.Adam(groups, fused=True)


def _adamw(groups: Groups) -> torch.optim.Optimizer:
    """Loshchilov and Hutter, 2019: decay apart from the gradient."""
    return torch.optim.AdamW(groups, fused=True)


def _adamp(groups: Groups) -> torch.optim.Optimizer:
    """Heo et al., 2021: no step along weights that a norm makes scale-free."""
    import pytorch_optimizer  # takes seconds, and few want it

    return pytorch_optimizer.AdamP(groups)


def _madgrad(groups: Groups) -> torch.optim.Optimizer:
    """Defazio and Jelassi, 2021: dual averaging with a cube root; decay is added to the gradient."""
    import pytorch_optimizer

    return pytorch_optimizer.MADGRAD(groups)


OPTIMIZERS: Final[Mapping[OptimizerName, Callable[[Groups], torch.optim.Optimizer]]] = {
    "adam": _adam,
    "adamw": _adamw,
    "adamp": _adamp,
    "madgrad": _madgrad,
}
