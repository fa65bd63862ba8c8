"""Pseudo-labels: answers that nobody knows, guessed by a model, and taken for true by the next fit (Lee 2013).

No answer of a user who validates or tests is read: the guesses are made of hidden answers only, from training rows that
the model was fitted on and, of test users, from what they were asked.

Legend: U users, N rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import Field

from dkt_ray.config import Config
from dkt_ray.data.history import Histories, Int8, graded
from dkt_ray.data.splits import TEST
from dkt_ray.features.batch import Rows
from dkt_ray.features.chunks import encode_users
from dkt_ray.features.encoder import EncoderState
from dkt_ray.models.base import Model

Source = Literal["hidden", "test"]


class PseudoConfig(Config):
    """Which unknown answers are guessed, and how often."""

    rounds: int = Field(default=0, ge=0)
    """Fits with guessed answers after the first one, which has none; 0: no pseudo-labels."""
    of: Source = "hidden"
    """hidden: the hidden (-1) answers in the histories of the users who train; test: every answer of the test users,
    all of them hidden, after what they were asked before."""
    confidence: float = Field(default=0.8, ge=0.5, lt=1)
    """A guess is taken whose probability, of right or of wrong, is at least so high; 0.5: every guess, as the
    reference did."""


@dataclass(frozen=True, eq=False)
class Pool:
    """Users who train and, for `test`, users whose answers are all hidden."""

    histories: Histories
    fold: Int8  # [U]

    @classmethod
    def of(cls, training: Histories, fold: Int8, asked: Histories | None = None) -> Pool:
        """Training users with their folds, and users whose answers are all hidden."""
        if asked is None:
            return cls(training, fold)
        assert not graded(asked.correct).any(), "an answer of a test user is known"
        both = Histories.from_table(pa.concat_tables([training.to_table(), asked.to_table()]))
        return cls(both, np.append(fold, np.full(len(asked.users), TEST, np.int8)))

    def encoded(self, state: EncoderState) -> Rows:
        """Its rows, each with what was fitted on other users."""
        return encode_users(self.histories, self.fold, state)

    def answered(self, correct: Int8) -> Pool:
        """The same users with other answers."""
        return Pool(replace(self.histories, correct=correct), self.fold)


class Guesses(NamedTuple):
    """The pool's answers with those that were guessed."""

    correct: Int8  # [N], known or guessed, -1 where neither
    unknown: int  # answers
    taken: int  # of them, guessed with enough confidence
    right: int  # of these, guessed to be right


def guess(model: Model, rows: Rows, confidence: float) -> Guesses:
    """Guess unknown answers; known ones stay.

    Args:
        model: fitted on users whose answers are known in `rows`.
        rows: of the pool, where no answer is guessed yet.
        confidence: least probability of the likelier answer.
    """
    hidden = np.flatnonzero(~graded(rows.correct))
    counts = np.searchsorted(hidden, rows.offsets)
    probability = model.score(rows, rows.take(hidden, counts.astype(np.int64)))
    sure = np.maximum(probability, 1 - probability) >= confidence
    correct = rows.correct.copy()
    correct[hidden[sure]] = probability[sure] >= 0.5
    return Guesses(correct, len(hidden), int(sure.sum()), int((probability[sure] >= 0.5).sum()))
