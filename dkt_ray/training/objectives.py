"""Training objectives of the sequence families.

Legend: B batch, M targets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from dkt_ray.models.optimization import ObjectiveName, OptimizationConfig


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


def objective(logits: Tensor, correct: Tensor, config: OptimizationConfig) -> Tensor:
    """What training makes small, over the chosen answers (0 where there are none); see `chosen`.

    Args:
        logits: [B, M], of no meaning where no answer is chosen.
        correct: [B, M] 1 or 0; -1 where hidden or padding.
        config: names the objective and its numbers.
    """
    counts = chosen(correct, config.last)
    # cells that do not count hold numbers that may not even be finite: they are replaced, not multiplied by 0
    logits, answers = torch.where(counts, logits.float(), 0.0), correct.float() * counts
    return OBJECTIVES[config.objective](logits, answers, counts.float(), config)


def _cross_entropy(logits: Tensor, answers: Tensor, weight: Tensor, config: OptimizationConfig) -> Tensor:
    """Mean binary cross-entropy."""
    return _mean(F.binary_cross_entropy_with_logits(logits, answers, reduction="none"), weight)


def _label_smoothing(logits: Tensor, answers: Tensor, weight: Tensor, config: OptimizationConfig) -> Tensor:
    """Cross-entropy with y (1 - s) + s / 2 in place of the answer y (Szegedy et al., 2016, section 7)."""
    soft = answers * (1 - config.smoothing) + config.smoothing / 2
    return _mean(F.binary_cross_entropy_with_logits(logits, soft, reduction="none"), weight)


def _focal(logits: Tensor, answers: Tensor, weight: Tensor, config: OptimizationConfig) -> Tensor:
    """Mean of -(1 - q) ** gamma * log(q), q being what the answer was given (Lin et al., 2017, equation 4)."""
    surprise = F.binary_cross_entropy_with_logits(logits, answers, reduction="none")  # -log(q)
    doubt = torch.sigmoid(logits * (1 - 2 * answers))  # 1 - q
    return _mean(doubt**config.focal_gamma * surprise, weight)


def _soft_f1(logits: Tensor, answers: Tensor, weight: Tensor, config: OptimizationConfig) -> Tensor:
    """1 - F1 with probabilities in place of decisions, the mean of that of right and of wrong answers.

    F1 = 2 TP / (2 TP + FP + FN), of which the denominator is the number of answers of the kind and of guesses of it.
    """
    guess = torch.sigmoid(logits)

    def f1(guess: Tensor, answers: Tensor) -> Tensor:
        whole = (weight * (guess + answers)).sum()
        return 2 * (weight * guess * answers).sum() / whole.clamp(min=torch.finfo(guess.dtype).tiny)

    both = 0.5 * (f1(guess, answers) + f1(1 - guess, 1 - answers))
    return (1 - both) * (weight.sum() > 0)


def _mean(each: Tensor, weight: Tensor) -> Tensor:
    return (each * weight).sum() / weight.sum().clamp(min=1)


OBJECTIVES: Final[Mapping[ObjectiveName, Callable[[Tensor, Tensor, Tensor, OptimizationConfig], Tensor]]] = {
    "bce": _cross_entropy,
    "label_smoothing": _label_smoothing,
    "focal": _focal,
    "f1": _soft_f1,
}
