"""The moving average of a network's weights, which validates better than the weights of the last step do."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

N = TypeVar("N", bound=nn.Module)


class MovingAverage(Generic[N]):
    """An exponential moving average of the weights and the running statistics (Polyak and Juditsky, 1992).

    Early steps weigh more: after n steps the decay is min(decay, (1 + n) / (10 + n)), so that the first weights, which
    are random, are soon forgotten.
    """

    def __init__(self, network: N, decay: float) -> None:
        """Start at the network's weights."""
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, steps: int) -> None:
        """Take in the weights after so many steps."""
        kept, now = list(self.network.state_dict().values()), list(network.state_dict().values())
        share = 1 - min(self.decay, (1 + steps) / (10 + steps))
        real = [tensor.is_floating_point() for tensor in kept]
        torch._foreach_lerp_(
            [tensor for tensor, yes in zip(kept, real, strict=True) if yes],
            [tensor for tensor, yes in zip(now, real, strict=True) if yes],
            share,
        )
        for tensor, latest, yes in zip(kept, now, real, strict=True):
            if not yes:
                tensor.copy_(latest)
