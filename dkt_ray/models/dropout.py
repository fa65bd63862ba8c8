"""Dropout from cheap random bits: on a CPU torch draws each element by itself, which takes longer than a layer does.

Both draw from torch's own generator, so a seed decides them.
"""

from __future__ import annotations

import math
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

_STEPS: Final = 1 << 16  # values of the 16 bits that decide an element


def chance(shape: torch.Size, share: float, device: torch.device) -> Tensor:
    """Booleans of the given shape, each true with the probability `share` (on a CPU in steps of 2 ** -16)."""
    if device.type != "cpu" or torch.compiler.is_compiling():
        return torch.rand(shape, device=device) < share
    count = math.prod(shape)
    words = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    threshold = round(share * _STEPS) - _STEPS // 2
    if threshold == _STEPS // 2:  # past the largest of the 16 bits' values
        return torch.ones(shape, dtype=torch.bool)
    return (words.view(torch.int16)[:count] < threshold).view(shape)


def dropout(x: Tensor, share: float, training: bool) -> Tensor:
    """Zero a share of the elements in training, and scale the others so that the mean stays (Srivastava et al., 2014).

    Args:
        x: any shape.
        share: below 1.
        training: False: x as it is.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, share, training)
    if not (training and share):
        return x
    kept = ~chance(x.shape, share, x.device)
    return x * kept.to(x.dtype).mul_(1 / (1 - share))


class Dropout(nn.Dropout):
    """`dropout` as a layer."""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape."""
        return dropout(input, self.p, self.training)


def quicken(module: nn.Module) -> None:
    """Put this dropout in place of torch's in a module that somebody else wrote."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Dropout):
                setattr(parent, name, Dropout(child.p))
