"""LSTM: the state before the first past row, and the states of who scores."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dkt_ray.features.batch import SequenceBatch
from dkt_ray.models.layers import Recurrence
from dkt_ray.models.lstm import Lstm
from tests.sequence_batches import random_batch, small_network, without_numbers


def network(start: str, numbers: bool = True) -> Lstm:
    return small_network(Lstm, start=start, numbers=numbers, layers=2)


@pytest.fixture
def batch() -> SequenceBatch:
    return random_batch(4, [[0, 1, 4], [0, 2, 3]])


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
    lstm(batch if numbers else without_numbers(batch)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in lstm.parameters())
    assert sum(name.startswith(("start", "moved")) for name, _ in lstm.named_parameters()) == parameters


@torch.inference_mode()
@pytest.mark.parametrize("length", [1, 15, 16, 17, 40])
def test_who_scores_gets_the_states_of_who_trains(length: int) -> None:
    torch.manual_seed(0)
    lstm = Recurrence(8, 2, dropout=0.0)
    past, start = torch.randn(3, length, 8), (torch.randn(2, 3, 8), torch.randn(2, 3, 8))
    for begun in (None, start):
        trained = lstm.train().states(past, begun)
        scored = lstm.eval().states(past, begun)
        assert scored.shape == (3, length, 8)
        torch.testing.assert_close(scored, trained, rtol=0, atol=1e-6)
