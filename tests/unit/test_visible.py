"""Attention in blocks on a CPU is the formula, forward and backward, whatever queries see and however long rows are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dkt_ray.models import visible as module
from dkt_ray.models.visible import by_formula, read_past

H, K = 3, 37


def inputs(fades: bool, seed: int = 0) -> list[Tensor]:
    """Query, key, value, own key, own value and speed, in the order of `by_formula`."""
    generator = torch.Generator().manual_seed(seed)
    query, key, value, own_key, own_value = (
        (2 * torch.randn(2, n, H, 8, generator=generator)).transpose(1, 2) for n in (11, K, K, 11, 11)
    )
    return [query, key, value, own_key, own_value, *([torch.tensor([0.02, 0.5, 3.0])] if fades else [])]


def seen(least: int) -> Tensor:
    """How many rows 11 queries of 2 students see, few and all among them."""
    generator = torch.Generator().manual_seed(1)
    visible = torch.randint(least, K + 1, (2, 11), generator=generator)
    visible[0, :3], visible[1, -1] = torch.tensor([least, K, 1]), least
    return visible


def gradients(read: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    wanted = torch.randn(read.shape, generator=torch.Generator().manual_seed(2))
    return list(torch.autograd.grad(read, leaves, wanted.to(read.dtype)))


@pytest.mark.parametrize("entries", [1, 4 * H * K, 80_000])
@pytest.mark.parametrize("fades", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_blocks_are_the_formula(own: bool, fades: bool, entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENTRIES", entries)
    results = []
    for dtype in (torch.float32, torch.float64):
        given = [x.to(dtype).requires_grad_() for x in inputs(fades)]
        query, key, value, own_key, own_value = given[:5]
        speed, visible = given[5] if fades else None, seen(0 if own else 1)
        if dtype == torch.float32:
            read = read_past(query, key, value, visible, (own_key, own_value) if own else None, speed)
        else:
            theirs = (own_key, own_value) if own else (None, None)
            read = by_formula(query, key, value, *theirs, speed, visible, 0.0)
        leaves = given[: 5 if own else 3] + given[5:]
        results.append([read.detach(), *gradients(read, leaves)])
    for found, expected in zip(*results, strict=True):
        assert expected.abs().max() > 0.01
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=2e-5)


def test_rows_that_are_not_seen_change_nothing_however_large() -> None:
    query, key, value, own_key, own_value, speed = inputs(True)
    visible = seen(0).clamp(max=20)
    before = read_past(query, key, value, visible, (own_key, own_value), speed)
    key[:, :, 20:], value[:, :, 20:] = 1e9, -1e9
    assert torch.equal(read_past(query, key, value, visible, (own_key, own_value), speed), before)


def test_scores_that_are_far_apart_stay_finite() -> None:
    query, key, value, own_key, own_value, speed = (x.requires_grad_() for x in inputs(True))
    read = read_past(200 * query, key, value, seen(0), (own_key, own_value), speed)
    assert read.isfinite().all()
    assert all(x.isfinite().all() for x in gradients(read, [query, key, value, own_key, own_value, speed]))


def test_without_past_a_query_reads_itself() -> None:
    query, key, value, own_key, own_value, speed = inputs(True)
    visible = torch.zeros(2, 11, dtype=torch.int64)
    read = read_past(query, key[:, :, :0], value[:, :, :0], visible, (own_key, own_value), speed)
    torch.testing.assert_close(read, own_value)


def test_dropout_drops_weights_and_their_gradients() -> None:
    query, key, value, own_key, own_value = inputs(False)
    direction, step = torch.randn(query.shape, generator=torch.Generator().manual_seed(4)), 1e-2

    def read(asked: Tensor, values: Tensor, own_values: Tensor, seed: int) -> Tensor:
        torch.manual_seed(seed)
        return read_past(asked, key, values, seen(5), (own_key, own_values), share=0.4)

    [found] = torch.autograd.grad(read(query.requires_grad_(), value, own_value, 0).sum(), query)
    with torch.no_grad():
        ahead, back = (read(query + x * direction, value, own_value, 0).double().sum() for x in (step, -step))
        assert float((found * direction).sum()) == pytest.approx(float((ahead - back) / (2 * step)), rel=1e-2)
        ones = torch.ones_like(value), torch.ones_like(own_value)
        sums = torch.stack([read(query, *ones, seed)[..., 0] for seed in range(300)])
    assert (sums.std(0) > 0.1).all()
    torch.testing.assert_close(sums.mean(0), torch.ones(2, H, 11), rtol=0, atol=0.25)
