"""Our question-level scores against pyKT's own sequences and forward passes, for a few users."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from benchmarks.pykt_side.layout import MAXLEN, History
from benchmarks.pykt_side.score import scores
from benchmarks.pykt_side.sequences import FEWEST, SCORED
from benchmarks.pykt_side.toolkit import KTDataset, evaluate_model, quietly, split_datasets

KEYS = ("questions", "concepts", "responses", "is_repeat")


class Agreement(NamedTuple):
    """How far apart the scores of both are."""

    questions: int
    exact: float  # greatest difference where windows are pyKT's (stride 1)
    strided: float  # greatest difference with the stride that is used
    strided_mean: float


def compare(name: str, model: torch.nn.Module, histories: Sequence[History], stride: int) -> Agreement:
    """Score the users both ways."""
    theirs = their_scores(name, model, histories)
    ours = {each: scores(name, model, histories, each).merge(theirs, on=["user", "position"]) for each in (1, stride)}
    apart = {each: (both["probability"] - both["theirs"]).abs() for each, both in ours.items()}
    assert len(apart[1]) == len(theirs), "pyKT scores a question that we do not"
    return Agreement(len(theirs), float(apart[1].max()), float(apart[stride].max()), float(apart[stride].mean()))


def their_scores(name: str, model: torch.nn.Module, histories: Sequence[History]) -> pd.DataFrame:
    """pyKT's windows of the users, its forward passes, the mean over the concepts of a question."""
    make = split_datasets.generate_question_sequences
    found: list[np.ndarray[Any, Any]] = []

    def keep(results: Any, q: Any, r: Any, d: Any, t: Any, m: Any, selected: torch.Tensor, p: torch.Tensor) -> str:
        found.append(torch.masked_select(p, selected).numpy())
        return ""

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "questions.csv"
        _, sequences = quietly(make, _frame(histories), {"uid", "fold", *KEYS}, True, FEWEST, MAXLEN)
        sequences.to_csv(path, index=False)
        data = quietly(KTDataset, str(path), ["questions", "concepts"], {SCORED}, True)
        rows = [torch.masked_select(data.dqtest[key], data.dori["smasks"]).numpy() for key in ("orirow", "qidxs")]
        plain = quietly(KTDataset, str(path), ["questions", "concepts"], {SCORED})
        with mock.patch.object(evaluate_model, "save_cur_predict_result", keep):
            loader = DataLoader(plain, batch_size=64)
            quietly(evaluate_model.evaluate, model, loader, name, str(Path(folder) / "scores"))
    each = pd.DataFrame({"row": rows[0], "qidx": rows[1], "theirs": np.concatenate(found)})
    fused = each.groupby(["row", "qidx"], as_index=False).mean()
    before = np.cumsum([0, *(history.position[-1] + 1 for history in histories)])  # questions of earlier users
    fused["user"] = [histories[row].user for row in fused["row"]]
    fused["position"] = fused["qidx"] - before[fused["row"]]
    return fused[["user", "position", "theirs"]]


def _frame(histories: Sequence[History]) -> pd.DataFrame:
    rows = []
    for number, history in enumerate(histories):
        repeat = np.diff(history.position, prepend=-1) == 0
        columns = (history.question, history.concept, history.correct, repeat.astype(int))
        lists = zip(KEYS, (",".join(map(str, column)) for column in columns), strict=True)
        rows.append({"uid": number, "fold": SCORED} | dict(lists))
    return pd.DataFrame(rows)
