"""Last-Query: a request costs the length of its history; the plain encoder knows no positions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dkt_ray.errors import ConfigError
from dkt_ray.features.batch import SequenceBatch
from dkt_ray.models.last_query import LastQuery
from tests.sequence_batches import random_batch, small_network, without_numbers

PAST = ("past_ids", "past_concepts", "past_numbers", "past_answer")


def operations(past: int, **settings: Any) -> int:
    """Arithmetic of one target over so many past rows, without that of the LSTM, which reads row by row."""
    network, batch = small_network(LastQuery, **settings), random_batch(past, [[past]])
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), counter:  # of a faster kernel the counter knows nothing
        network(batch)
    return counter.get_total_flops()


def test_one_target_costs_the_length_of_its_past() -> None:
    short, middle, long = (operations(rows) for rows in (200, 400, 800))
    assert long - middle == 2 * (middle - short) > 0
    square, twice = (operations(rows, variant="riiid_7") for rows in (400, 800))
    assert twice > 3 * square, "the count would not see an attention of past rows"


def reordered(batch: SequenceBatch) -> SequenceBatch:
    return replace(batch, **{name: getattr(batch, name).flip(1) for name in PAST})


@torch.inference_mode()
def test_only_the_lstm_knows_the_order_of_the_past() -> None:
    batch = random_batch(6, [[6, 6], [6, 6]])
    plain = small_network(LastQuery, variant="riiid_7")
    torch.testing.assert_close(plain(reordered(batch)), plain(batch), rtol=0, atol=1e-6)
    ours = small_network(LastQuery)
    assert (ours(reordered(batch)) - ours(batch)).abs().min() > 1e-5
    ours.body.lstm.weight_hh_l0.zero_()  # a state of the last row only
    last = replace(batch, **{name: getattr(batch, name)[:, [4, 2, 0, 1, 3, 5]] for name in PAST})
    for gate in (ours.body.lstm.bias_ih_l0, ours.body.lstm.bias_hh_l0):
        gate[8:16] = -100.0  # forget everything before it
    torch.testing.assert_close(ours(last), ours(batch), rtol=0, atol=1e-6)


@pytest.mark.parametrize("numbers", [True, False])
@pytest.mark.parametrize("variant", ["last_query", "riiid_7"])
def test_every_weight_is_trained(variant: str, numbers: bool) -> None:
    network = small_network(LastQuery, variant=variant, numbers=numbers, layers=2)
    batch = random_batch(6, [[0, 3, 6], [6, 1, 4]])
    network(batch if numbers else without_numbers(batch)).square().sum().backward()
    unused = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="width 8 is not a multiple of heads 3"):
        small_network(LastQuery, heads=3)
    with pytest.raises(ConfigError, match=r"variant.*'saint'"):
        small_network(LastQuery, variant="saint")
