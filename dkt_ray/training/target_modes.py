"""Which answer a row is taught to predict: its own, or, for comparison, the last or the next one of its group.

The reference trained LightGBM on rows that predict the answer of a later row: "last", the last answer of the row's
group, predicted by the mean over the group's rows; "next", the answer of the row after it. A row here reads its visible
past only, as everywhere, so neither the target nor any answer after the row is in its features.

Legend: U users, N rows, P pairs of a row and the answer that it predicts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final, Literal, NamedTuple

import numpy as np
import pandas as pd

from dkt_ray.data.history import Int64, graded
from dkt_ray.features.batch import Rows
from dkt_ray.features.encoder import EncoderState
from dkt_ray.metrics import auc
from dkt_ray.models.base import Probabilities
from dkt_ray.models.lgbm import LightGBM, LightGBMConfig
from dkt_ray.training.progress import TrainingData
from dkt_ray.training.table import train

Mode = Literal["row", "last", "next"]
Key = Literal["user", "cycle"]

MODES: Final[tuple[Mode, ...]] = ("row", "last", "next")
PASS: Final = "pass_number"  # the number that tells the passes of a test apart


class Pairs(NamedTuple):
    """Rows whose features are read, and the rows whose answers they predict."""

    features: Int64  # [P] ascending
    target: Int64  # [P] the row itself, or a later one of the same group


class Outcome(NamedTuple):
    """How well a mode predicts the last answers of validation users."""

    auc: float | None
    users: int  # whose last answer every mode can predict


def groups(rows: Rows, state: EncoderState, key: Key) -> Int64:
    """Number of each row's group, [N]: its user, or its user's cycle, i.e. the pass of a test.

    Tests that are too rare to have an id of their own count as one; where the encoder has no `pass_number`, so do the
    passes of a test.
    """
    user = _owners(rows)
    if key == "user":
        return user
    names = state.number_names
    passes = rows.numbers[:, names.index(PASS)] if PASS in names else np.zeros(rows.rows)
    cycle = pd.DataFrame({"user": user, "test": rows.ids["test"], "pass": passes})
    return cycle.groupby(["user", "test", "pass"], sort=False).ngroup().to_numpy().astype(np.int64)


def pairs(group: Int64, mode: Mode) -> Pairs:
    """What each row predicts; the last row of a group predicts nothing but itself.

    Args:
        group: [N] number of each row's group; groups may be interleaved, a group's rows are in order.
        mode: row: its own answer; last: that of the last row of its group; next: that of the next row of its group.
    """
    own = np.arange(len(group))
    if mode == "row":
        return Pairs(own, own)
    order = np.argsort(group, kind="stable")
    ends = np.flatnonzero(np.diff(group[order], append=-1))  # the place of each group's last row
    target = np.empty(len(group), np.int64)
    if mode == "last":
        target[order] = order[np.repeat(ends, np.diff(ends, prepend=-1))]
    else:
        following = np.minimum(np.arange(1, len(group) + 1), len(group) - 1)
        following[ends] = ends
        target[order] = order[following]
    kept = target != own
    return Pairs(own[kept], target[kept])


def retargeted(rows: Rows, chosen: Pairs) -> Rows:
    """The features of the pairs with the answers that they predict; users without a pair stay, without rows."""
    lengths = np.bincount(_owners(rows)[chosen.features], minlength=len(rows.offsets) - 1)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return replace(rows.take(chosen.features, offsets), correct=rows.correct[chosen.target])


def compare(config: LightGBMConfig, data: TrainingData, key: Key) -> Mapping[Mode, Outcome]:
    """Predict the last answer of each validation user by a booster of each mode, `config.rounds` rounds each.

    row: the last row itself is scored; next: the row before it in its group; last: all earlier rows of its group, whose
    mean counts. Users whose last answer is hidden, or alone in its group, are left out of all.
    """
    assert data.valid is not None
    seen = groups(data.train, data.state, key)
    asked = groups(data.valid, data.state, key)
    final = data.valid.offsets[1:][np.diff(data.valid.offsets) > 0] - 1
    companions = np.bincount(asked)[asked[final]] > 1
    final = final[companions & graded(data.valid.correct[final])]
    outcomes: dict[Mode, Outcome] = {}
    for mode in MODES:
        taught = replace(data, train=retargeted(data.train, pairs(seen, mode)), valid=None)
        model = train(LightGBM, config, taught, iterations=config.rounds).model
        chosen = pairs(asked, mode)
        mine = np.isin(chosen.target, final)
        scored = Pairs(chosen.features[mine], chosen.target[mine])
        part = retargeted(data.valid, scored)
        mean = mean_by_target(model.score(part, part), scored.target, final)
        outcomes[mode] = Outcome(auc(data.valid.correct[final], mean), len(final))
    return outcomes


def mean_by_target(probability: Probabilities, target: Int64, asked: Int64) -> Probabilities:
    """Mean of the probabilities that the rows give to each asked target, [len(asked)]; each has at least one."""
    place = np.searchsorted(asked, target)
    return np.bincount(place, probability, len(asked)) / np.bincount(place, minlength=len(asked))


def _owners(rows: Rows) -> Int64:
    return np.repeat(np.arange(len(rows.offsets) - 1), np.diff(rows.offsets))
