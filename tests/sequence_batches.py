"""A small random batch, and networks that read it: for tests that look at a layer, not at a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch

from dkt_ray.config import build
from dkt_ray.features.batch import SequenceBatch
from dkt_ray.features.collate import Scale
from dkt_ray.models.network import Inputs, Network

NUMBERS = 5
IDS = 9  # ids of the question column and of the concepts

N = TypeVar("N", bound=Network)


def random_batch(past: int, visible: Sequence[Sequence[int]], concepts: int = 1, seed: int = 1) -> SequenceBatch:
    """Past rows and targets without padding; each target reads as many past rows as `visible` says, [B, M]."""
    generator = torch.Generator().manual_seed(seed)
    B, M = len(visible), len(visible[0])

    def ids(*shape: int) -> torch.Tensor:
        return torch.randint(2, IDS, shape, generator=generator)

    return SequenceBatch(
        past_ids=ids(B, past, 1),
        past_concepts=ids(B, past, concepts),
        past_numbers=torch.randn(B, past, NUMBERS, generator=generator),
        past_answer=torch.randint(1, 3, (B, past), generator=generator),
        target_ids=ids(B, M, 1),
        target_concepts=ids(B, M, concepts),
        target_numbers=torch.randn(B, M, NUMBERS, generator=generator),
        visible=torch.tensor(visible),
        correct=torch.ones(B, M),
        rows=torch.arange(B * M).view(B, M),
    )


def without_numbers(batch: SequenceBatch) -> SequenceBatch:
    """The batch as a network with `numbers: false` gets it."""
    return replace(batch, past_numbers=batch.past_numbers[..., :0], target_numbers=batch.target_numbers[..., :0])


def small_network(family: type[N], **settings: Any) -> N:
    """An untrained network of width 8 that reads such batches, in evaluation mode; the same weights each time."""
    config = build(family.settings, {"width": 8, "dropout": 0.0, "embeddings": {"question": 4}} | settings)
    inputs = Inputs({"question": IDS, "concepts": IDS}, Scale(np.zeros(NUMBERS), np.ones(NUMBERS)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return family(config, inputs).eval()
