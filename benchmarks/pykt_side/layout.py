"""Which rows a question is scored from: its concepts are predicted from the state before the first of them.

pyKT's question-level evaluation (`expand_question`, `generate_question_sequences`) writes a sequence of its own for
each concept of each question: the rows before the question, the last 199 of them, and the one concept. Here the
concepts of a run of questions share one window: the rows before them once, and behind these every concept as a target
that reads the rows before its question and itself. A history of up to 200 rows is one window, and its scores are
pyKT's; of a longer one, a window holds `stride` rows of targets, which read the last 200 - stride to 199 rows before
their question (with a stride of 1, always 199, as in pyKT).

Legend: R rows (concepts of questions) of a user, W windows; B batch, L history rows, M targets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

MAXLEN: Final = 200  # rows of pyKT's windows, a row being one concept of one question

Ints = npt.NDArray[np.int64]


class History(NamedTuple):
    """A user's rows."""

    user: str
    question: Ints  # [R]
    concept: Ints  # [R]
    correct: Ints  # [R]
    first: Ints  # [R] row of the first concept of the row's question
    position: Ints  # [R] number of earlier questions


class Window(NamedTuple):
    """Targets `first_target` to `last_target` (not included), which read rows from `start` on."""

    history: History
    start: int
    first_target: int
    last_target: int


class Batch(NamedTuple):
    """Padded windows: history rows, and targets that stand where the first concept of their question stands."""

    question: torch.Tensor  # [B, L]
    concept: torch.Tensor  # [B, L]
    correct: torch.Tensor  # [B, L]
    rows: torch.Tensor  # [B] history rows that are real
    target_question: torch.Tensor  # [B, M]
    target_concept: torch.Tensor  # [B, M]
    place: torch.Tensor  # [B, M] history rows before the question, >= 1
    windows: Sequence[Window]


def histories(table: pd.DataFrame) -> list[History]:
    """The users of `sequences.HISTORIES`."""
    return [_history(row) for row in table.itertuples()]


def _history(row: Any) -> History:
    new = np.asarray(row.is_repeat) == 0
    position = np.cumsum(new) - 1
    columns = (np.asarray(column, np.int64) for column in (row.questions, row.concepts, row.responses))
    return History(str(row.user), *columns, np.flatnonzero(new)[position], position)


def windows(history: History, stride: int) -> list[Window]:
    """The windows that hold each target once; the first question of a history is none."""
    rows = len(history.first)
    edges = [0, *range(MAXLEN, rows, stride), rows] if rows > MAXLEN else [0, rows]
    found = []
    for low, high in pairwise(edges):
        first, last = np.searchsorted(history.first, (max(low, 1), high))
        if last > first:
            found.append(Window(history, max(0, high - MAXLEN), int(first), int(last)))
    return found


def batches(found: Sequence[Window], cells: int) -> Iterator[Batch]:
    """Windows of like size together.

    Args:
        cells: of a batch's attention matrices, about: windows x (rows + targets) squared.
    """
    chunk: list[Window] = []
    for window in sorted(found, key=_size):
        if chunk and (len(chunk) + 1) * _size(window) ** 2 > cells:
            yield _batch(chunk)
            chunk = []
        chunk.append(window)
    if chunk:
        yield _batch(chunk)


def _size(window: Window) -> int:
    return int(window.history.first[window.last_target - 1]) - window.start + window.last_target - window.first_target


def _batch(chunk: Sequence[Window]) -> Batch:
    past = [slice(w.start, int(w.history.first[w.last_target - 1])) for w in chunk]
    asked = [slice(w.first_target, w.last_target) for w in chunk]

    def padded(name: str, slices: Sequence[slice], fill: int = 0) -> torch.Tensor:
        parts = [torch.from_numpy(getattr(w.history, name)[s]) for w, s in zip(chunk, slices, strict=True)]
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=fill)

    start = torch.tensor([w.start for w in chunk])
    first = padded("first", asked, fill=-1)
    return Batch(
        question=padded("question", past),
        concept=padded("concept", past),
        correct=padded("correct", past),
        rows=torch.tensor([s.stop - s.start for s in past]),
        target_question=padded("question", asked),
        target_concept=padded("concept", asked),
        place=torch.where(first < 0, 1, first - start[:, None]),
        windows=chunk,
    )
