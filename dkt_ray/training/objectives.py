"""Training objectives of the sequence families.

Legend: B batch, M targets.
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def chosen(correct: Tensor, last: int | None) -> Tensor:
    """Where an answer counts: everywhere it is known, or the last K known ones of each segment.

    Args:
        correct: [B, M] 1 or 0; -1 where hidden or padding.
        last: K, or None for all.

    Returns:
        [B, M] booleans.
    """
    known = correct >= 0
    if last is None:
        return known
    from_the_end = known.flip(1).cumsum(1).flip(1)
    return known & (from_the_end <= last)


def log_loss(logits: Tensor, correct: Tensor, last: int | None = None) -> Tensor:
    """Mean binary cross-entropy over the chosen answers (0 where there are none); see `chosen`."""
    weight = chosen(correct, last).to(logits.dtype)
    each = F.binary_cross_entropy_with_logits(logits, correct.clamp(min=0), reduction="none")
    return (each * weight).sum() / weight.sum().clamp(min=1)
