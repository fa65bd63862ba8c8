"""The ensemble as one function of histories and targets: describe, encode, score with every member, combine.

Serving, the score job, evaluation and a bundle's golden requests all go through `Scorer`.

Legend: M targets, K members.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from typing import TypeVar

import numpy as np

from dkt_ray.data.history import Coded, Histories, Int64, Targets, graded
from dkt_ray.data.query import Query, gather
from dkt_ray.ensemble.chain import Chain
from dkt_ray.ensemble.opinions import Ask, Mask, Member, ask_all
from dkt_ray.features.batch import Rows
from dkt_ray.features.encoder import EncoderState, encode
from dkt_ray.models.base import Model, Probabilities

Rowwise = TypeVar("Rowwise", Histories, Targets)


@dataclass(frozen=True)
class _Timed:
    """A member whose time is taken, also where it fails, and however often it is asked."""

    name: str
    member: Member
    seconds: dict[str, float]

    def score(self, past: Rows, targets: Rows) -> Probabilities:
        started = time.perf_counter()
        try:
            return self.member.score(past, targets)
        finally:
            self.seconds[self.name] = self.seconds.get(self.name, 0.0) + time.perf_counter() - started


@dataclass(frozen=True, eq=False)
class Scores:
    """Probabilities of right answers to M questions."""

    probability: Probabilities  # [M] of the ensemble
    members: dict[str, Probabilities]  # [M] of each member
    unknown: Mask  # [M] the training users did not answer this question often enough
    left_out: tuple[str, ...] = ()  # members that did not answer: the others did, with their weights made 1 again
    missing: Mapping[str, Mask] = field(default_factory=dict)  # [M] of members that answered for some students only
    seconds: Mapping[str, float] = field(default_factory=dict)  # by stage; one object for all of a pass
    waited: float = 0.0  # seconds until its batch was begun

    @cached_property
    def spread(self) -> Probabilities:
        """[M] how far the members are apart: the highest probability less the lowest."""
        return np.ptp(np.stack(list(self.members.values())), axis=0)

    def take(self, rows: slice | Int64) -> Scores:
        """The scores of some of the targets, all of which a member answered for, or none."""
        out = {name for name, missing in self.missing.items() if missing[rows].any()}
        return replace(
            self,
            probability=self.probability[rows],
            members={name: column[rows] for name, column in self.members.items() if name not in out},
            unknown=self.unknown[rows],
            left_out=tuple(sorted({*self.left_out, *out})) if out else self.left_out,
            missing={},
        )


@dataclass(frozen=True, eq=False)
class Scorer:
    """Fitted members, the chain that combines them, and the encoder state that they share; pure and deterministic."""

    state: EncoderState
    members: Mapping[str, Model]
    chain: Chain

    def score(self, histories: Histories, targets: Targets, ask: Ask = ask_all) -> Scores:
        """Probability of a right answer to each target after its user's history.

        A question's test and concepts are read from the request where given, else from the encoder's state.
        """
        started = time.perf_counter()
        histories, targets = _described(histories, self.state), _described(targets, self.state)
        encoded = encode(histories, targets, self.state)
        assert encoded.targets is not None
        seconds = {"encode": time.perf_counter() - started}
        return self._combine(encoded.past, encoded.targets, targets.question, ask, seconds)

    def score_hidden(self, histories: Histories) -> Scores:
        """Score every row whose answer is hidden (-1), in the order of the histories: one encoding, no target rows."""
        histories = _described(histories, self.state)
        rows = np.flatnonzero(~graded(histories.correct))
        past = encode(histories, None, self.state).past
        owners = np.searchsorted(histories.offsets, rows, "right") - 1
        counts = np.bincount(owners, minlength=len(histories.users))
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return self._combine(past, past.take(rows, offsets), histories.question.take(rows), ask_all, {})

    def score_queries(self, queries: Sequence[Query], ask: Ask = ask_all) -> list[Scores]:
        """Score many requests at once; each gets what it would get alone.

        Args:
            ask: gets the members' answers; those that it leaves out are left out of the combination.

        Raises:
            UnavailableError: `ask` left all of them out, for one query at least.
        """
        answers: list[Scores | None] = [None] * len(queries)
        order = sorted(range(len(queries)), key=lambda index: queries[index].timing)
        for _, group in groupby(order, key=lambda index: queries[index].timing):
            indices = list(group)
            histories, targets = gather([queries[index] for index in indices])
            scores = self.score(histories, targets, ask)
            for position, index in enumerate(indices):
                answers[index] = scores.take(slice(*targets.offsets[position : position + 2]))
        return [answer for answer in answers if answer is not None]

    def _combine(self, past: Rows, targets: Rows, question: Coded, ask: Ask, seconds: dict[str, float]) -> Scores:
        timed = {name: _Timed(name, member, seconds) for name, member in self.members.items()}
        opinions = ask(timed, past, targets)
        started = time.perf_counter()
        left_out = tuple(sorted(set(self.chain.members) - opinions.given.keys()))
        probability = np.empty(targets.rows)
        for out, rows in opinions.alike(targets.rows):
            chain = self.chain.without({*left_out, *out}) if left_out or out else self.chain
            columns = np.stack([opinions.given[name][rows] for name in chain.members], axis=1)
            probability[rows] = chain.apply(columns, targets.visible[rows])
        seconds["blend"] = time.perf_counter() - started
        return Scores(probability, opinions.given, self._unknown(question), left_out, opinions.missing, seconds)

    def _unknown(self, question: Coded) -> Mask:
        known = self.state.vocabularies["question"]
        missing = np.array([value not in known for value in question.values], bool)
        return missing[question.codes]


def _described(rows: Rowwise, state: EncoderState) -> Rowwise:
    """Histories or targets with the test and concepts of their questions filled in."""
    test, concepts = state.describe(rows.question, rows.test, rows.concepts)
    return replace(rows, test=test, concepts=concepts)
