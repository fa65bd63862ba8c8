"""Score every question of the held-out users with a trained model of pyKT: the mean over the concepts of a question.

The models are pyKT's and unchanged. What differs from its own evaluation is the layout (see `layout`): targets stand
behind the history rows, at the place of their question, so the masks and the places that pyKT's forward passes compute
from the index of a row are given instead, and so are the distances in AKT's attention (Ghosh et al. 2020, section 4.2).
`check` compares the result with pyKT's own question-level evaluation.

Legend: B batch, L history rows, M targets, N = L + M, H heads.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, Final
from unittest import mock

import pandas as pd
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from benchmarks.pykt_side import layout
from benchmarks.pykt_side.layout import Batch, History
from benchmarks.pykt_side.toolkit import SETTINGS, akt, saint, sakt

CELLS: Final = 2_000_000  # of a batch's attention matrices, per head
NEVER: Final = -1e32  # pyKT's score of a row that may not be read


@torch.no_grad()
def scores(name: str, model: torch.nn.Module, histories: Sequence[History], stride: int) -> pd.DataFrame:
    """One score per question; 0.5 for a user's first, which pyKT does not score and headline figures do not count.

    Returns:
        user, position, correct, probability; sorted by user and position.
    """
    model.eval()
    windows = [window for history in histories for window in layout.windows(history, stride)]
    parts = [_first(history) for history in histories]
    for batch in layout.batches(windows, CELLS):
        probability = FORWARD[name](model, batch).double().numpy()
        for window, row in zip(batch.windows, probability, strict=True):
            asked = slice(window.first_target, window.last_target)
            columns = {
                "user": window.history.user,
                "position": window.history.position[asked],
                "correct": window.history.correct[asked],
                "probability": row[: asked.stop - asked.start],
            }
            parts.append(pd.DataFrame(columns))
    fused = pd.concat(parts).groupby(["user", "position"], as_index=False)  # sorts
    return fused.agg({"correct": "first", "probability": "mean"})


def _first(history: History) -> pd.DataFrame:
    return pd.DataFrame({"user": [history.user], "position": 0, "correct": history.correct[:1], "probability": 0.5})


def _dkt(model: torch.nn.Module, batch: Batch) -> Tensor:
    """A state predicts all concepts; that of the row before the question is read, [B, M]."""
    states = model(batch.concept, batch.correct)  # [B, L, concepts]
    rows = torch.arange(len(batch.rows))[:, None]
    return states[rows, batch.place - 1, batch.target_concept]


def _sakt(model: torch.nn.Module, batch: Batch) -> Tensor:
    """Queries are the targets, keys the rows before their question, [B, M]."""
    assert len(model.blocks) == 1, "a second block of pyKT's SAKT reads queries as its keys"
    past = torch.arange(batch.concept.shape[1])
    closed = past >= batch.place[..., None]  # [B, M, L]
    with _given(sakt, ut_mask=_per_head(closed, model.num_attn_heads)):
        return model(batch.concept, batch.correct, batch.target_concept)


def _saint(model: torch.nn.Module, batch: Batch) -> Tensor:
    """Encoder and decoder read rows and targets; the decoder's answers are one row late, [B, M]."""
    rows, place = _rows_and_places(batch)
    late = torch.cat([batch.correct[:, :-1], batch.correct.gather(1, batch.place - 1)], 1)
    heads = SETTINGS["saint"].model["num_attn_heads"]
    with _given(saint, ut_mask=_per_head(~_open(batch), heads), pos_encode=lambda length: place):
        question = torch.cat([batch.question, batch.target_question], 1)
        concept = torch.cat([batch.concept, batch.target_concept], 1)
        return model(question, concept, late)[:, rows:]


def _akt(model: torch.nn.Module, batch: Batch) -> Tensor:
    """As `_saint`, with distances between places in place of those between indices, [B, M]."""
    rows, place = _rows_and_places(batch)
    inclusive = _open(batch)[:, None]  # [B, 1, N, N]
    strict = inclusive & ~torch.eye(inclusive.shape[-1], dtype=torch.bool)
    distance = (place[:, :, None] - place[:, None]).abs()[:, None].float()
    with _given(akt, attention=_monotonic(inclusive, strict, distance)):
        question = torch.cat([batch.question, batch.target_question], 1)
        concept = torch.cat([batch.concept, batch.target_concept], 1)
        correct = torch.cat([batch.correct, torch.zeros_like(batch.target_concept)], 1)  # no target's is read
        return model(concept, correct, question)[0][:, rows:]


FORWARD: Final[dict[str, Callable[[torch.nn.Module, Batch], Tensor]]] = {
    "dkt": _dkt,
    "sakt": _sakt,
    "saint": _saint,
    "akt": _akt,
}


def _rows_and_places(batch: Batch) -> tuple[int, Tensor]:
    """L, and the place of each row and target in its window, [B, N]."""
    rows = batch.concept.shape[1]
    past = torch.arange(rows).expand(len(batch.rows), -1)
    return rows, torch.cat([past, batch.place], 1)


def _open(batch: Batch) -> Tensor:
    """What each row and target may read, [B, N, N]: rows up to itself, or rows before its question and itself."""
    rows, place = _rows_and_places(batch)
    size = place.shape[1]
    index = torch.arange(size)
    return ((index < place[..., None]) & (index < rows)) | torch.eye(size, dtype=torch.bool)


def _per_head(closed: Tensor, heads: int) -> Callable[[int], Tensor]:
    """`ut_mask` with this mask, [B, ., .], for every head, as torch's attention reads it."""
    repeated = closed.repeat_interleave(heads, 0)
    return lambda seq_len: repeated


def _monotonic(inclusive: Tensor, strict: Tensor, distance: Tensor) -> Callable[..., Tensor]:
    """AKT's attention with given masks and distances; where rows read strictly, the first of a window reads nothing."""

    def attention(q: Tensor, k: Tensor, v: Tensor, d_k: int, *rest: Any) -> Tensor:
        _mask, _dropout, zero_pad, gamma, _difficulty = rest
        may = strict if zero_pad else inclusive
        raw = q @ k.transpose(-2, -1) / math.sqrt(d_k)
        weight = F.softmax(raw.masked_fill(~may, NEVER), -1) * may
        between = (weight.sum(-1, keepdim=True) - weight.cumsum(-1)) * distance
        decay = (-F.softplus(gamma)[None] * between.clamp(min=0).sqrt()).exp().clamp(1e-5, 1e5)
        weight = F.softmax((raw * decay).masked_fill(~may, NEVER), -1)
        if zero_pad:
            weight = weight * (torch.arange(weight.shape[-2]) > 0)[:, None]
        return weight @ v

    return attention


@contextlib.contextmanager
def _given(module: ModuleType, **replaced: Callable[..., Any]) -> Iterator[None]:
    """Replace functions that a module of pyKT calls, for a while."""
    with contextlib.ExitStack() as stack:
        for name, function in replaced.items():
            stack.enter_context(mock.patch.object(module, name, function))
        yield
