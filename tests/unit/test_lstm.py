"""LSTM: the state before the first past row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dkt_ray.features.batch import SequenceBatch
from dkt_ray.features.collate import Scale
from dkt_ray.models.lstm import Lstm, LstmConfig
from dkt_ray.models.network import Inputs

B, T, M, F = 2, 4, 3, 5


def network(start: str, numbers: bool = True) -> Lstm:
    config = LstmConfig.model_validate(
        {"start": start, "numbers": numbers, "layers": 2, "width": 8, "dropout": 0.0, "embeddings": {"question": 4}}
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Lstm(config, Inputs({"question": 9, "concepts": 9}, Scale(np.zeros(F), np.ones(F)))).eval()


@pytest.fixture
def batch() -> SequenceBatch:
    generator = torch.Generator().manual_seed(1)

    def ids(*shape: int) -> torch.Tensor:
        return torch.randint(2, 9, shape, generator=generator)

    return SequenceBatch(
        past_ids=ids(B, T, 1),
        past_concepts=ids(B, T, 1),
        past_numbers=torch.randn(B, T, F, generator=generator),
        past_answer=torch.randint(1, 3, (B, T), generator=generator),
        target_ids=ids(B, M, 1),
        target_concepts=ids(B, M, 1),
        target_numbers=torch.randn(B, M, F, generator=generator),
        visible=torch.tensor([[0, 1, 4], [0, 2, 3]]),
        correct=torch.ones(B, M),
        rows=torch.arange(B * M).view(B, M),
    )


@torch.inference_mode()
def test_the_numbers_of_the_first_past_row_move_the_start_of_those_who_may_read_it(batch: SequenceBatch) -> None:
    lstm = network("numbers")
    with torch.no_grad():  # the only way from the numbers to a logit: the start
        for linear in (lstm.inputs.past_row.numbers, lstm.inputs.target_row.numbers):
            linear.weight.zero_()
    other = batch.past_numbers.clone()
    other[:, 0] += 1
    before, after = lstm(batch), lstm(replace(batch, past_numbers=other))
    assert torch.equal(after[:, 0], before[:, 0])
    assert (after[:, 1:] != before[:, 1:]).all()
    later = batch.past_numbers.clone()
    later[:, 1:] += 1
    assert torch.equal(lstm(replace(batch, past_numbers=later)), before)


@pytest.mark.parametrize(
    ("start", "numbers", "parameters"),
    [("zero", True, 0), ("learned", True, 1), ("numbers", True, 3), ("numbers", False, 1)],
)
def test_every_weight_of_every_start_is_trained(
    start: str, numbers: bool, parameters: int, batch: SequenceBatch
) -> None:
    lstm = network(start, numbers)
    kept = batch if numbers else replace(batch, past_numbers=torch.empty(B, T, 0), target_numbers=torch.empty(B, M, 0))
    lstm(kept).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in lstm.parameters())
    assert sum(name.startswith(("start", "moved")) for name, _ in lstm.named_parameters()) == parameters
