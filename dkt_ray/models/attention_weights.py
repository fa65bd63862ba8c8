"""The weights of attention over the visible past, and their gradient, in one pass over the scores, on a CPU.

As operations on whole matrices they take a dozen passes over memory, and half of what these compute is masked.

Legend: B batch, H heads, Q queries, K past rows.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd.function import once_differentiable

from dkt_ray.data.history import Int64

Floats = npt.NDArray[np.float32]


def attention_weights(
    scores: Tensor, own: Tensor | None, visible: Tensor, speed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Softmax over the first `visible` past rows and, with `own`, over a query's own row, which stands behind them.

    Args:
        scores: [B, H, Q, K].
        own: [B, H, Q], scores of the queries' own rows; None: they read the past only.
        visible: [B, Q], how many past rows each query reads, at most K.
        speed: [H], positive; scores fade with distance before (see `fading`). None: they do not.

    Returns:
        Weights of the past rows, [B, H, Q, K], and of the own rows, [B, H, Q] (0 without `own`).
    """
    if scores.device.type == "cpu" and scores.dtype == torch.float32 and not torch.compiler.is_compiling():
        if own is None:
            own = scores.new_full(scores.shape[:3], -math.inf)
        found: tuple[Tensor, Tensor] = _Weights.apply(scores, own, visible, speed)  # type: ignore[no-untyped-call]
        return found
    return by_formula(scores, own, visible, speed)


def by_formula(scores: Tensor, own: Tensor | None, visible: Tensor, speed: Tensor | None) -> tuple[Tensor, Tensor]:
    """`attention_weights` as operations on whole matrices, on any device."""
    K, extra = scores.shape[-1], 0 if own is None else 1
    steps = F.pad(visible[:, None, :, None] - torch.arange(K, device=scores.device), (0, extra))
    allowed = F.pad(steps[..., :K] > 0, (0, extra), value=True)
    if own is not None:
        scores = torch.cat([scores, own[..., None]], -1)
    if speed is not None:
        scores = scores * fading(scores, allowed, steps, speed)
    # added, not filled in: on a CPU that is several times faster where the mask is broadcast over the heads
    closed = scores.new_zeros(allowed.shape).masked_fill_(~allowed, -math.inf)
    weights, itself = torch.split(torch.softmax(scores + closed, -1), [K, extra], -1)
    return weights, itself.sum(-1)


def fading(scores: Tensor, allowed: Tensor, steps: Tensor, speed: Tensor) -> Tensor:
    """What distance leaves of scores: exp(-speed * sqrt(distance)), [B, H, Q, K].

    The distance from query t to key j counts the steps between them, weighed by the attention that the rows after j
    would get without fading: those that have to do with the query make it long (section 4.2; the square root is that of
    the authors' code). No gradient flows through it.

    Args:
        scores: [B, H, Q, K].
        allowed: [B or 1, 1, Q, K] or [Q, K], which keys a query reads.
        steps: of the shape of `allowed`, how far back each key stands.
        speed: [H], positive.
    """
    with torch.no_grad():
        share = torch.softmax(scores.masked_fill(~allowed, -math.inf), -1)
        # summed from the end, not as a difference: the root would make its rounding large
        later = F.pad(share.flip(-1).cumsum(-1).flip(-1)[..., 1:], (0, 1))
        distance = later.mul_(steps.clamp(min=0)).sqrt_()
    return torch.exp(-speed[:, None, None] * distance)


class _Weights(torch.autograd.Function):
    """`attention_weights`; distances carry no gradient."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, own: Tensor, visible: Tensor, speed: Tensor | None) -> tuple[Tensor, Tensor]:
        speeds = scores.new_zeros(scores.shape[1]) if speed is None else speed
        given = [x.detach().contiguous() for x in (scores, own, visible, speeds)]
        weights, own_weights = torch.empty_like(given[0]), torch.empty_like(given[1])
        _weigh(*(x.numpy() for x in (*given, weights, own_weights)))
        ctx.save_for_backward(*given, weights, own_weights)
        ctx.fades = speed is not None
        return weights, own_weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scores, own, _, speeds, *_ = ctx.saved_tensors
        made = to_scores, to_own, to_speed = [torch.empty_like(x) for x in (scores, own, speeds)]
        _push(*(x.numpy() for x in (*ctx.saved_tensors, *(x.contiguous() for x in gradients), *made)))
        return to_scores, to_own, None, to_speed if ctx.fades else None


@numba.njit(cache=True, nogil=True)
def _weigh(scores: Floats, own: Floats, visible: Int64, speed: Floats, weights: Floats, own_weights: Floats) -> None:
    """Fill the weights, [B, H, Q, K] and [B, H, Q]; a head of speed 0 does not fade."""
    B, H, Q, K = scores.shape
    left, root, bits = np.empty(K, np.float32), np.empty(K, np.float32), np.empty(K, np.int32)
    steps = np.arange(K, 0, -1).astype(np.float32)
    for b in range(B):
        for h in range(H):
            for q in range(Q):
                seen = visible[b, q]
                score, weight = scores[b, h, q, :seen], weights[b, h, q]
                weight[seen:] = 0
                if speed[h] == 0:
                    own_weights[b, h, q] = _softmax(score, own[b, h, q], weight[:seen], bits)
                    continue
                _fade(score, own[b, h, q], speed[h], left[:seen], root[:seen], bits, steps)
                for k in range(seen):
                    left[k] *= score[k]
                own_weights[b, h, q] = _softmax(left[:seen], own[b, h, q], weight[:seen], bits)


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _push(
    scores: Floats,
    own: Floats,
    visible: Int64,
    speed: Floats,
    weights: Floats,
    own_weights: Floats,
    gradient: Floats,
    own_gradient: Floats,
    to_scores: Floats,
    to_own: Floats,
    to_speed: Floats,
) -> None:
    """Fill the gradients of scores, [B, H, Q, K] and [B, H, Q], and of speeds, [H], from those of the weights."""
    B, H, Q, K = scores.shape
    left, root, bits = np.empty(K, np.float32), np.empty(K, np.float32), np.empty(K, np.int32)
    steps = np.arange(K, 0, -1).astype(np.float32)
    total = np.zeros(H)
    for b in range(B):
        for h in range(H):
            for q in range(Q):
                seen = visible[b, q]
                weight, given, out = weights[b, h, q, :seen], gradient[b, h, q, :seen], to_scores[b, h, q]
                mean = own_weights[b, h, q] * own_gradient[b, h, q]
                for k in range(seen):
                    mean += weight[k] * given[k]
                to_own[b, h, q] = own_weights[b, h, q] * (own_gradient[b, h, q] - mean)
                for k in range(seen):
                    out[k] = weight[k] * (given[k] - mean)
                out[seen:] = 0
                if speed[h] == 0:
                    continue
                score = scores[b, h, q, :seen]
                _fade(score, own[b, h, q], speed[h], left[:seen], root[:seen], bits, steps)
                slope = np.float32(0)
                for k in range(seen):
                    out[k] *= left[k]
                    slope += out[k] * score[k] * root[k]
                total[h] -= slope
    to_speed[:] = total


@numba.njit(cache=True, nogil=True)
def _fade(score: Floats, own: np.float32, speed: np.float32, left: Floats, root: Floats, bits: Int64, steps: Floats) -> None:
    """Fill what distance leaves of each score, and the root of the distance, both [K]."""
    seen = len(score)
    later = _softmax(score, own, left, bits)
    # summed from the end, not as a difference: the root would make its rounding large
    k = seen - 1
    while k >= 3:  # four at a time, so that a sum need not wait for the one before it
        a, b, c, d = left[k], left[k - 1], left[k - 2], left[k - 3]
        ab = a + b
        abc = ab + c
        root[k], root[k - 1], root[k - 2], root[k - 3] = later, later + a, later + ab, later + abc
        later += abc + d
        k -= 4
    while k >= 0:
        root[k] = later
        later += left[k]
        k -= 1
    near = steps[len(steps) - seen :]
    for k in range(seen):
        root[k] = np.sqrt(root[k] * near[k])
    for k in range(seen):
        left[k] = -speed * root[k]
    _exp(left, bits)


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _softmax(score: Floats, own: np.float32, out: Floats, bits: Int64) -> np.float32:
    """Fill weights of rows, [K], and give that of the own row."""
    highest = max(_highest(score), own)
    for k in range(len(score)):
        out[k] = score[k] - highest
    _exp(out, bits)
    itself = np.float32(np.exp(own - highest))
    total = itself
    for k in range(len(score)):
        total += out[k]
    share = np.float32(1) / total
    for k in range(len(score)):
        out[k] *= share
    return itself * share


@numba.njit(cache=True, nogil=True, fastmath={"nnan", "nsz", "reassoc"})
def _highest(score: Floats) -> np.float32:
    highest = np.float32(-np.inf)
    for each in score:
        highest = max(highest, each)
    return highest


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def _exp(x: Floats, bits: Int64) -> None:
    """e to the power of numbers up to 0, in place: 2 ** n times a polynomial (Cephes, expf); vectors, unlike libm's."""
    power = bits.view(np.float32)
    for k in range(len(x)):
        each = max(x[k], np.float32(-87))
        n = np.floor(each * np.float32(1.44269504088896341) + np.float32(0.5))
        bits[k] = (np.int32(n) + np.int32(127)) << np.int32(23)
        r = each - n * np.float32(0.693359375)
        r -= n * np.float32(-2.12194440e-4)
        p = np.float32(1.9875691500e-4)
        p = p * r + np.float32(1.3981999507e-3)
        p = p * r + np.float32(8.3334519073e-3)
        p = p * r + np.float32(4.1665795894e-2)
        p = p * r + np.float32(1.6666665459e-1)
        p = p * r + np.float32(5.0000001201e-1)
        x[k] = (p * r * r + r + np.float32(1)) * power[k]
