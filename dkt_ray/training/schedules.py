"""Learning rates by schedule, as functions of the epochs that are done; the loop asks before every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from dkt_ray.models.optimization import OptimizationConfig, ScheduleName

LOWEST: Final = 0.01  # share of the peak at which a rise starts, and at which one_cycle ends


def learning_rate(config: OptimizationConfig, done: float, plateaus: int = 0) -> float:
    """The rate of the next step.

    Args:
        config: names the schedule and its numbers.
        done: epochs that are done, with the share of the running one; a refit may go on longer than `config.epochs`.
        plateaus: falls so far of the plateau schedule; see `plateaus`.
    """
    if config.schedule == "plateau":
        return config.learning_rate * config.rate_decay**plateaus
    return config.learning_rate * SCHEDULES[config.schedule](config, done)


def plateaus(scores: Sequence[float], patience: int) -> int:
    """How often `patience` validations in a row brought no better score than the best one before.

    Args:
        scores: of every epoch so far, greater is better; each is read as it is, never the best so far in its place.
        patience: after so many epochs without a better one the rate falls, and counting starts again.
    """
    falls, waited, best = 0, 0, -math.inf
    for score in scores:
        waited = 0 if score > best else waited + 1
        best = max(best, score)
        if waited == patience:
            falls, waited = falls + 1, 0
    return falls


def _one_cycle(config: OptimizationConfig, done: float) -> float:
    """Linear rise to the peak, then half a cosine down to a hundredth of it (after Smith and Topin, 2019)."""
    risen, fallen = _phases(done / config.epochs, config.warmup)
    return risen if fallen == 0 else LOWEST + (1 - LOWEST) * _half_cosine(fallen)


def _linear(config: OptimizationConfig, done: float) -> float:
    """Linear rise to the peak, then linear fall to nothing."""
    risen, fallen = _phases(done / config.epochs, config.warmup)
    return risen if fallen == 0 else 1 - fallen


def _cosine(config: OptimizationConfig, done: float) -> float:
    """Linear rise to the peak, then half a cosine down to nothing (Loshchilov and Hutter, 2017, with warm-up)."""
    risen, fallen = _phases(done / config.epochs, config.warmup)
    return risen if fallen == 0 else _half_cosine(fallen)


def _cosine_restarts(config: OptimizationConfig, done: float) -> float:
    """Cycles of equal length, each a rise and half a cosine to nothing; each peak is `rate_decay` of the one before."""
    cycle, within = divmod(done * config.cycles, config.epochs)
    risen, fallen = _phases(within / config.epochs, config.warmup)
    return config.rate_decay**cycle * (risen if fallen == 0 else _half_cosine(fallen))


def _step(config: OptimizationConfig, done: float) -> float:
    """A fall every `step_epochs` epochs."""
    return config.rate_decay ** (done // config.step_epochs)


def _constant(config: OptimizationConfig, done: float) -> float:
    """The peak, always."""
    return 1.0


SCHEDULES: Final[Mapping[ScheduleName, Callable[[OptimizationConfig, float], float]]] = {
    "one_cycle": _one_cycle,
    "linear": _linear,
    "cosine": _cosine,
    "cosine_restarts": _cosine_restarts,
    "step": _step,
    "constant": _constant,
}


def _phases(progress: float, warmup: float) -> tuple[float, float]:
    """How far the rise is, from LOWEST to 1, and after it the fall, from 0 to 1."""
    if progress < warmup:
        return max(progress / warmup, LOWEST), 0.0
    return 1.0, min((progress - warmup) / (1 - warmup), 1.0)


def _half_cosine(share: float) -> float:
    """1 at 0, 0 at 1."""
    return 0.5 * (1 + math.cos(math.pi * share))
