"""Does a right answer ever lower the mastery of its concept? The share of right answers after which it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dkt_ray.data.history import Coded, Histories, Int64, Targets, right
from dkt_ray.ensemble.scorer import Scorer
from dkt_ray.models.base import Probabilities
from dkt_ray.schema import CONCEPT_SEPARATOR


def lowered_share(
    scorer: Scorer, histories: Histories, probes: Mapping[str, Sequence[str]], sample: int, seed: int
) -> float | None:
    """Share of right answers after which the mastery of the question's first concept is lower than before it.

    Mastery is the mean probability over the concept's probe questions (design: aim at most 5 %).

    Args:
        histories: U users whose answers are looked at.
        probes: concept -> questions that stand for it.
        sample: right answers to look at, drawn without replacement.
        seed: of the draw.

    Returns:
        The share, or None where no right answer has a concept with probes.
    """
    concept = np.array([value.partition(CONCEPT_SEPARATOR)[0] for value in histories.concepts.values], object)
    probed = np.array([name in probes for name in concept], bool)
    candidates = np.flatnonzero(right(histories.correct) & probed[histories.concepts.codes])
    if not len(candidates):
        return None
    rows = np.random.default_rng(seed).permutation(candidates)[:sample]
    asked = [list(probes[name]) for name in concept[histories.concepts.codes[rows]]]
    before, after = (_mastery(scorer, histories, rows, asked, seen) for seen in (0, 1))
    return float(np.mean(after < before))


def _mastery(
    scorer: Scorer, histories: Histories, rows: Int64, asked: Sequence[Sequence[str]], seen: int
) -> Probabilities:
    """Mean probability of the questions asked for each row, after the rows before it and `seen` of itself."""
    owner = np.searchsorted(histories.offsets, rows, "right") - 1
    past = histories.select(owner).head(rows - histories.offsets[owner] + seen)
    counts = np.array([len(questions) for questions in asked])
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    nothing = Coded.constant("", int(offsets[-1]))  # the scorer knows test and concepts of a probe
    targets = Targets(offsets, Coded.of([name for questions in asked for name in questions]), nothing, nothing)
    return np.add.reduceat(scorer.score(past, targets).probability, offsets[:-1]) / counts
