"""Attention over the visible past; on a CPU a block of queries at a time, so that its scores stay in the cache.

As operations on whole matrices, [B, H, Q, K], that is a dozen trips to memory, and half of what they compute is masked.

Legend: B batch, H heads, Q queries, K past rows, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd.function import once_differentiable

from dkt_ray.data.history import Int32, Int64
from dkt_ray.models.dropout import dropout

ENTRIES: Final = 80_000  # scores of a block, all heads together: a few such matrices fit the cache of a core

Floats = npt.NDArray[np.float32]


def read_past(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: Tensor,
    own: tuple[Tensor, Tensor] | None = None,
    speed: Tensor | None = None,
    share: float = 0.0,
) -> Tensor:
    """What queries read of the first `visible` past rows and, with `own`, of their own row, which stands behind these.

    Args:
        query: [B, H, Q, D / H], so long that its products with keys are the scores.
        key: [B, H, K, D / H], as value.
        visible: [B, Q], how many past rows each query reads, at most K; without `own` at least 1.
        own: key and value of the queries' own rows, [B, H, Q, D / H] each; None: they read the past only.
        speed: [H], positive; scores fade with distance (see `fading`). None: they do not.
        share: of the weights that are dropped.

    Returns:
        [B, H, Q, D / H].
    """
    given = (query, key, value, *(own or (None, None)), speed, visible, share)
    if query.device.type != "cpu" or query.dtype != torch.float32 or torch.compiler.is_compiling():
        return by_formula(*given)
    found: Tensor = _ReadPast.apply(*given)  # type: ignore[no-untyped-call]
    return found


def by_formula(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    own_key: Tensor | None,
    own_value: Tensor | None,
    speed: Tensor | None,
    visible: Tensor,
    share: float,
) -> Tensor:
    """`read_past` as operations on whole matrices, on any device."""
    K = key.shape[-2]
    scores = query @ key.transpose(-1, -2)
    steps = visible[:, None, :, None] - torch.arange(K, device=key.device)
    allowed = steps > 0
    if own_key is not None:
        scores = torch.cat([scores, (query * own_key).sum(-1, keepdim=True)], -1)
        steps, allowed = F.pad(steps, (0, 1)), F.pad(allowed, (0, 1), value=True)
    if speed is not None:
        scores = scores * fading(scores, allowed, steps, speed)
    # added, not filled in: the mask is broadcast over the heads
    closed = scores.new_zeros(allowed.shape).masked_fill_(~allowed, -math.inf)
    weights = dropout(torch.softmax(scores + closed, -1), share, share > 0)
    read = weights[..., :K] @ value
    return read if own_value is None else read + weights[..., K:] * own_value


def fading(scores: Tensor, allowed: Tensor, steps: Tensor, speed: Tensor) -> Tensor:
    """What distance leaves of scores: exp(-speed * sqrt(distance)), [B, H, Q, K].

    The distance from query t to key j counts the steps between them, weighed by the attention that the rows after j
    would get without fading: those that have to do with the query make it long (Ghosh et al., 2020, section 4.2; the
    square root is that of the authors' code). No gradient flows through it.

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


class _Block(NamedTuple):
    """Some queries of one student, and the past rows that one of them reads."""

    b: int
    queries: slice
    past: int

    @classmethod
    def all(cls, visible: Int64, heads: int, past: int) -> Iterator[_Block]:
        """The blocks of queries, [B, Q]."""
        assert not visible.size or 0 <= visible.min() <= visible.max() <= past, "the kernels check no bounds"
        size = max(1, ENTRIES // (heads * max(1, past)))
        for b, seen in enumerate(visible):
            for start in range(0, len(seen), size):
                yield cls(b, slice(start, start + size), int(seen[start : start + size].max()))


class _ReadPast(torch.autograd.Function):
    """`read_past`; distances carry no gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        own_key: Tensor | None,
        own_value: Tensor | None,
        speed: Tensor | None,
        visible: Tensor,
        share: float,
    ) -> Tensor:
        B, H, Q, _ = query.shape
        out = torch.empty_like(query.transpose(1, 2)).transpose(1, 2)
        own = query.new_full((B, H, Q), -math.inf) if own_key is None else (query * own_key).sum(-1).contiguous()
        own_weights = torch.empty_like(own)
        speeds = query.new_zeros(H) if speed is None else speed.detach()
        whole = [x.detach().numpy() for x in (own, visible.contiguous(), speeds, own_weights)]
        ctx.blocks, learns = [], any(ctx.needs_input_grad)
        for block in _Block.all(whole[1], H, key.shape[2]):
            b, queries, past = block
            scores = torch.bmm(query[b, :, queries], key[b, :, :past].transpose(1, 2))
            weights = scores if speed is None else torch.empty_like(scores)
            _weigh(b, queries.start, scores.numpy(), weights.numpy(), *whole)
            read = dropout(weights, share, share > 0)
            out[b, :, queries] = torch.bmm(read, value[b, :, :past])
            if learns:
                ctx.blocks.append((block, scores, weights, read))
        own_read = dropout(own_weights, share, share > 0)
        if own_value is not None:
            out.addcmul_(own_read[..., None], own_value)
        ctx.fades = speed is not None
        ctx.save_for_backward(
            query, key, value, own_key, own_value, out, own, visible.contiguous(), speeds, own_weights, own_read
        )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, own_key, own_value, out, own, visible, speeds, own_weights, own_read = ctx.saved_tensors
        mean = (gradient * out).sum(-1)
        to_query, to_key, to_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        to_speed = torch.zeros_like(speeds)
        whole = [x.numpy() for x in (own, visible, speeds, mean.contiguous(), to_speed)]
        for (b, queries, past), scores, weights, read in ctx.blocks:
            asked, wanted = query[b, :, queries], gradient[b, :, queries]
            change = torch.bmm(wanted, value[b, :, :past].transpose(1, 2))
            _push(b, queries.start, *(x.numpy() for x in (scores, weights, read, change)), *whole)
            to_query[b, :, queries] = torch.bmm(change, key[b, :, :past])
            to_key[b, :, :past] += torch.bmm(change.transpose(1, 2), asked)
            to_value[b, :, :past] += torch.bmm(read.transpose(1, 2), wanted)
        to_own_key = to_own_value = None
        if own_key is not None:
            change = ((gradient * own_value).sum(-1).mul_(own_read).sub_(own_weights * mean))[..., None]
            to_query.addcmul_(change, own_key)
            to_own_key, to_own_value = change * query, own_read[..., None] * gradient
        return to_query, to_key, to_value, to_own_key, to_own_value, to_speed if ctx.fades else None, None, None


@numba.njit(cache=True, nogil=True)
def _weigh(
    b: int,
    start: int,
    scores: Floats,
    weights: Floats,
    own: Floats,
    visible: Int64,
    speed: Floats,
    own_weights: Floats,
) -> None:
    """Fill the weights of a block, [H, Q, K], which may be its scores if these do not fade (speed 0), and of own rows.

    Args:
        b: the student.
        start: its query that is the first of the block.
        scores: [H, Q, K].
        weights: of the same shape.
        own: [B, H, Q], as own_weights.
        visible: [B, Q].
        speed: [H].
        own_weights: the block's are filled.
    """
    H, Q, K = scores.shape
    left, root, bits = np.empty(K, np.float32), np.empty(K, np.float32), np.empty(K, np.int32)
    steps = np.arange(K, 0, -1).astype(np.float32)
    for h in range(H):
        for q in range(Q):
            seen, itself = visible[b, start + q], own[b, h, start + q]
            score, weight = scores[h, q, :seen], weights[h, q]
            if speed[h] == 0:
                own_weights[b, h, start + q] = _softmax(score, itself, weight[:seen], bits)
            else:
                _fade(score, itself, speed[h], left[:seen], root[:seen], bits, steps)
                for k in range(seen):
                    left[k] *= score[k]
                own_weights[b, h, start + q] = _softmax(left[:seen], itself, weight[:seen], bits)
            weight[seen:] = 0


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _push(
    b: int,
    start: int,
    scores: Floats,
    weights: Floats,
    read: Floats,
    change: Floats,
    own: Floats,
    visible: Int64,
    speed: Floats,
    mean: Floats,
    to_speed: Floats,
) -> None:
    """Turn the gradients of a block's weights, `change` [H, Q, K], into those of its scores, and add to that of speed.

    Args:
        b: the student.
        start: its query that is the first of the block.
        scores: [H, Q, K].
        weights: of the same shape, before dropout.
        read: those that dropout left.
        change: is overwritten.
        own: [B, H, Q], scores of own rows.
        visible: [B, Q].
        speed: [H].
        mean: [B, H, Q], the gradients of a query's weights, each times its weight, summed.
        to_speed: [H].
    """
    H, Q, K = scores.shape
    left, root, bits = np.empty(K, np.float32), np.empty(K, np.float32), np.empty(K, np.int32)
    steps = np.arange(K, 0, -1).astype(np.float32)
    for h in range(H):
        for q in range(Q):
            seen, less = visible[b, start + q], mean[b, h, start + q]
            out, weight, kept = change[h, q], weights[h, q], read[h, q]
            for k in range(seen):
                out[k] = kept[k] * out[k] - weight[k] * less
            out[seen:] = 0
            if speed[h] == 0:
                continue
            score = scores[h, q, :seen]
            _fade(score, own[b, h, start + q], speed[h], left[:seen], root[:seen], bits, steps)
            slope = np.float32(0)
            for k in range(seen):
                out[k] *= left[k]
                slope += out[k] * score[k] * root[k]
            to_speed[h] -= slope


@numba.njit(cache=True, nogil=True)
def _fade(
    score: Floats, own: np.float32, speed: np.float32, left: Floats, root: Floats, bits: Int32, steps: Floats
) -> None:
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
def _softmax(score: Floats, own: np.float32, out: Floats, bits: Int32) -> np.float32:
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
def _exp(x: Floats, bits: Int32) -> None:
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
