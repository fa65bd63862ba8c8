"""Data-parallel training: each worker takes a share of every step's segments, and gradients are summed over all.

One global batch is drawn, whatever the number of workers; without dropout and without hidden ids (`unknown_share`) the
loss curve is that of a single process but for rounding. The soft F1 is the mean of the workers' own, by their answers;
batch normalisation (`batch_norm`) is by each worker's rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from dkt_ray.data.history import Int64


@dataclass(frozen=True)
class Team:
    """The workers that train one network, and which of them this process is; by default it is alone."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process speaks for the team."""
        return self.rank == 0

    @classmethod
    def here(cls) -> Team:
        """The team of the process group that this process has joined, if any."""
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else cls()

    def share(self, parts: Int64) -> Int64:
        """This worker's segments of a step's, every size-th; where there are too few, one without targets."""
        if self.size == 1:
            return parts
        mine = parts[self.rank :: self.size]
        if not len(mine):
            mine = parts[:1].copy()
            mine[:, 2] = mine[:, 3]
        return mine

    def total(self, values: Tensor) -> Tensor:
        """The sum of the workers' values, the same bits for each of them."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace each gradient by the sum of the workers' gradients, all in one message."""
        if self.size == 1:
            return
        held = list(parameters)
        flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in held])
        dist.all_reduce(flat)
        for parameter, gradient in zip(held, torch.split(flat, [p.numel() for p in held]), strict=True):
            parameter.grad = gradient.view_as(parameter)

    def gather(self, probability: Any, parts: Int64) -> Any:
        """Scores of all targets, [N], from each worker's scores of the targets of its share of the segments."""
        if self.size == 1:
            return probability
        kept = np.zeros(len(probability))
        mine = self.share(parts)
        inside = np.zeros(len(probability) + 1, np.int64)
        np.add.at(inside, mine[:, 2], 1)
        np.add.at(inside, mine[:, 3], -1)
        scored = np.cumsum(inside[:-1]) > 0
        kept[scored] = probability[scored]
        return self.total(torch.from_numpy(kept)).numpy()


ALONE: Final = Team()
