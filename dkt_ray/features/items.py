"""What the encoder's state says about items: their ids, and the statistics fitted on training users, as one table.

Every statistic is smoothed towards its parent: question, test, concept, head, overall.

Legend: J items, i.e. triples (question, test, concepts); C concepts per item; V ids of a vocabulary; S duration bins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from dkt_ray.data.history import Int32, Int64
from dkt_ray.features.batch import UNKNOWN_ID
from dkt_ray.features.difficulty import Sums, log_odds
from dkt_ray.features.irt import Curves, fit_curves
from dkt_ray.features.profile import ABILITIES, DURATION_EDGES_MS, SKETCH, Profile
from dkt_ray.features.quantities import FITTED, MICRO

Floats = npt.NDArray[np.float64]

HEADS: Final = 1000  # a head, and likewise a tail, is a number of three digits
DURATION_PRIOR: Final = 5.0  # pseudo-answers with which a distribution of durations starts from its parent's
SHORTEST_MS: Final = 500  # the first bin of durations counts as beginning here
SKETCH_PRIOR: Final = 10.0  # answers below which a question's sketch counts for less than a half


@dataclass(frozen=True, eq=False)
class Items:
    """J items, column by column."""

    ids: Mapping[str, Int32]  # [J] each: question, test, head, mid, tail, mid_tail
    concepts: Int32  # [J, C] ids, 0 = no further concept
    tags: Int32  # [J, C] keys of the concepts, known or not, -1 = none
    head: Int32  # [J] the head as a number, -1 where the id has none
    tail: Int32  # [J] the number in the test, -1 where the id has none
    values: Floats  # [J, len(FITTED)]
    sketch: Floats  # [J, D]
    expected: Int64  # [J] expected rate of right answers in 1e-6

    def take(self, rows: Int64) -> Items:
        """The given items."""
        ids = {name: column[rows] for name, column in self.ids.items()}
        others = (column[rows] for name, column in vars(self).items() if name != "ids")
        return Items(ids, *others)

    def __add__(self, other: Items) -> Items:
        ids = {name: np.concatenate([column, other.ids[name]]) for name, column in self.ids.items()}
        pairs = ((column, vars(other)[name]) for name, column in vars(self).items() if name != "ids")
        return Items(ids, *(np.concatenate(pair) for pair in pairs))


@dataclass(frozen=True, eq=False)
class Statistics:
    """What was fitted per id of each level, without the held-out fold."""

    base_rate: float
    smoothing: float
    sums: Mapping[str, Sums]  # of question, test, concepts, head, tail
    curves: Mapping[str, Curves]  # [V] of question (1PL) and question_2pl, test, concepts, head; "all": [1]
    answered: npt.NDArray[np.bool_]  # [V] questions with an answer of their own; others have their parents' curve
    durations: Mapping[str, Floats]  # [V, S] right answers by duration, of question, test, concepts, head; "all": [S]
    sketches: Floats  # [V, D] of question, unit length times its weight
    test_size: Int64  # [V] distinct questions of a test

    @classmethod
    def of(
        cls,
        base_rate: float,
        smoothing: float,
        sums: Mapping[str, Sums],
        profile: Profile,
        levels: Mapping[str, Int32],
        sizes: Mapping[str, int],
        test_size: Int64,
    ) -> Self:
        """Fit everything that the profile knows.

        Args:
            profile: without the held-out fold.
            levels: ids of each profile row's question, test, head [R] and concepts [R, C].
            sizes: number of ids of each level.
        """
        graded, right = (profile.column(name).astype(np.float64) for name in ("graded", "right"))
        start = Curves(np.array([np.log(base_rate / (1.0 - base_rate))]), np.ones(1))
        everything = fit_curves(graded.sum(0)[None], right.sum(0)[None], ABILITIES, start, slope=False)
        curves = {"all": everything}
        for name in ("head", "concepts", "test"):
            answers = _per_id(graded, levels[name], sizes[name]), _per_id(right, levels[name], sizes[name])
            prior = Curves(*(np.repeat(each, sizes[name]) for each in everything))
            curves[name] = fit_curves(*answers, ABILITIES, prior, slope=True)
        hours = profile.column("durations").astype(np.float64)
        durations = {
            name: _per_id(hours, levels[name], sizes[name]) for name in ("question", "test", "concepts", "head")
        }
        sketches = _per_id(profile.column("sketch").astype(np.float64), levels["question"], sizes["question"])
        length = np.linalg.norm(sketches, axis=1, keepdims=True)
        weight = sums["question"].graded[:, None]
        unit = sketches / np.maximum(length, 1e-300) * (weight / (weight + SKETCH_PRIOR))
        place = levels["question"]
        answers = _per_id(graded, place, sizes["question"]), _per_id(right, place, sizes["question"])
        answered = answers[0].sum(1) > 0
        found = cls(base_rate, smoothing, sums, curves, answered, durations | {"all": hours.sum(0)}, unit, test_size)
        parents = found.backed_off({name: levels[name] for name in ("head", "test")}, levels["concepts"])
        prior = Curves(np.repeat(everything.easiness, sizes["question"]), np.ones(sizes["question"]))
        for target, source in zip(prior, parents, strict=True):
            target[place] = source
        rasch = Curves(prior.easiness, np.ones(sizes["question"]))
        curves["question"] = fit_curves(*answers, ABILITIES, rasch, slope=False)
        curves["question_2pl"] = fit_curves(*answers, ABILITIES, prior, slope=True)
        return found

    def backed_off(self, ids: Mapping[str, Int32], concepts: Int32) -> Curves:
        """Curve of each item from its head, then its concepts, then its test: [J]."""
        curve = Curves(*(np.repeat(each, len(concepts)) for each in self.curves["all"]))
        for name, chosen in (("head", ids["head"][:, None]), ("concepts", concepts), ("test", ids["test"][:, None])):
            known = chosen > UNKNOWN_ID
            weight = (self.sums[name].graded[chosen] * known).sum(1)
            mine = (_mean_over(each[chosen], known) for each in self.curves[name])
            curve = Curves(
                *(
                    (weight * own + self.smoothing * parent) / (weight + self.smoothing)
                    for own, parent in zip(mine, curve, strict=True)
                )
            )
        return curve

    def values(self, ids: Mapping[str, Int32], concepts: Int32, tail: Int32) -> tuple[Floats, Int64]:
        """The fitted values of items, [J, len(FITTED)], and their expected rates in 1e-6, [J]."""
        rates = self._rates(ids, concepts)
        curves = self._curves(ids, concepts)
        question = ids["question"]
        levels = {"question": question[:, None], "test": ids["test"][:, None], "concept": concepts}
        columns: dict[str, npt.NDArray[Any]] = {f"{name}_log_odds": log_odds(rate) for name, rate in rates.items()}
        for name, chosen in levels.items():
            sums, present = self.sums["concepts" if name == "concept" else name], chosen > UNKNOWN_ID
            columns[f"{name}_graded"] = (sums.graded[chosen] * present).sum(1)
            columns[f"{name}_right"] = (sums.right[chosen] * present).sum(1)
        columns |= curves
        columns["test_size"] = self.test_size[ids["test"]]
        columns["number"] = tail
        columns["expected_ms"] = self._median(ids, concepts)
        values = np.stack([columns[name].astype(np.float64) for name in FITTED], axis=1)
        return values, np.rint(rates["question"] * MICRO).astype(np.int64)

    def _rates(self, ids: Mapping[str, Int32], concepts: Int32) -> dict[str, Floats]:
        overall = np.full(len(concepts), self.base_rate)
        head = self.sums["head"].smoothed(ids["head"], overall, self.smoothing)
        known = concepts > UNKNOWN_ID
        of_each = self.sums["concepts"].smoothed(
            concepts, np.repeat(head[:, None], concepts.shape[1], 1), self.smoothing
        )
        concept = np.where(known.any(1), _mean_over(of_each, known), head)
        test = self.sums["test"].smoothed(ids["test"], concept, self.smoothing)
        question = self.sums["question"].smoothed(ids["question"], test, self.smoothing)
        position = self.sums["tail"].smoothed(ids["tail"], overall, self.smoothing)
        return {"question": question, "test": test, "concept": concept, "head": head, "position": position}

    def _curves(self, ids: Mapping[str, Int32], concepts: Int32) -> dict[str, Floats]:
        parents, question = self.backed_off(ids, concepts), ids["question"]
        known = self.answered[question]
        two = self.curves["question_2pl"]
        return {
            "easiness": np.where(known, self.curves["question"].easiness[question], parents.easiness),
            "easiness_2pl": np.where(known, two.easiness[question], parents.easiness),
            "discrimination": np.where(known, two.discrimination[question], parents.discrimination),
        }

    def _median(self, ids: Mapping[str, Int32], concepts: Int32) -> Floats:
        """Median time of right answers in ms: of the question, from the distributions of its parents."""
        shape = (self.durations["all"] + 1.0) / (self.durations["all"] + 1.0).sum()
        for name in ("head", "concepts", "test", "question"):
            chosen = concepts if name == "concepts" else ids[name][:, None]
            counts = (self.durations[name][chosen] * (chosen > UNKNOWN_ID)[..., None]).sum(1)
            shape = (counts + DURATION_PRIOR * shape) / (counts.sum(1, keepdims=True) + DURATION_PRIOR)
        place = np.minimum((np.cumsum(shape, axis=1) < 0.5).sum(1), len(DURATION_EDGES_MS) - 1)
        edges = np.concatenate([[SHORTEST_MS], DURATION_EDGES_MS]).astype(np.float64)
        return np.sqrt(edges[place] * edges[place + 1])  # the geometric middle of the bin


def _per_id(table: Floats, ids: Int32, size: int) -> Floats:
    """Sum the rows of each id, [V, columns]; unknown ones and padding stay 0."""
    total = np.zeros((size, table.shape[1]))
    for column in ids[:, None].T if ids.ndim == 1 else ids.T:
        known = column > UNKNOWN_ID
        np.add.at(total, column[known], table[known])
    return total


def _mean_over(values: Floats, known: npt.NDArray[np.bool_]) -> Floats:
    """Mean over the known ones of the last axis, 0 where there is none."""
    return (values * known).sum(1) / np.maximum(known.sum(1), 1)


__all__ = ["HEADS", "SKETCH", "Items", "Statistics"]
