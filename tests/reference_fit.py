"""What is fitted per question once more, slowly: plain Python over rows, scipy for item response curves.

A row is a dict as in tests/reference.py without `item`, with `user` and `fold`. Only the rows that count are given.
"""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.optimize import minimize, minimize_scalar

from dkt_ray.data.splits import stable_hash
from tests.reference import Row, graded, mean, right

ABILITIES = [-3 + 0.5 * step for step in range(13)]
EDGES = [round(1000 * 600 ** (step / 30)) for step in range(31)]  # ms, from 1 s to 10 min
SMOOTHING = 10
Curve = tuple[float, float]  # easiness, discrimination


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def curve(answers: list[tuple[float, int]], prior: Curve, slope: bool = True) -> Curve:
    """Easiness (prior deviation 0.7) and discrimination (0.3, or the prior's own) of highest posterior density.

    Args:
        answers: ability of the student, and 1 or 0.
    """

    def surprise(x: np.ndarray) -> float:
        easiness, discrimination = x[0], x[1] if slope else prior[1]
        logits = [(easiness + discrimination * ability) * (1 if answer else -1) for ability, answer in answers]
        penalty = ((easiness - prior[0]) / 0.7) ** 2 / 2 + ((discrimination - prior[1]) / 0.3) ** 2 / 2
        return sum(float(np.logaddexp(0, -logit)) for logit in logits) + penalty

    start = np.array(prior if slope else prior[:1])
    found = minimize(surprise, start, method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-11, "maxiter": 10_000})
    return float(found.x[0]), float(found.x[1]) if slope else prior[1]


def ability(rows: list[Row], rates: dict[str, float]) -> float:
    """Mode of a student's ability: standard normal prior, 1PL answers to questions of known easiness."""

    def surprise(x: float) -> float:
        total = x * x / 2
        for row in graded(rows):
            logit = x + math.log(rates[row["question"]] / (1 - rates[row["question"]]))
            total += float(np.logaddexp(0, -logit if row["correct"] else logit))
        return total

    return float(minimize_scalar(surprise, bounds=(-12, 12), method="bounded", options={"xatol": 1e-9}).x)


class SlowFit:
    """Fitted values of questions from the rows of training users (all of their ids count as known)."""

    def __init__(self, rows: list[Row], submitted: bool) -> None:
        self.rows = rows
        self.rate = (right(rows) + 1) / (len(graded(rows)) + 2)
        self.users: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            self.users[row["user"]].append(row)
        self.fold_rates = {fold: self._own_rates(fold) for fold in {row["fold"] for row in rows}}
        self.answers: list[tuple[Row, tuple[float, int]]] = []  # of students of a binned ability
        self.sketch: dict[str, list[int]] = defaultdict(lambda: [0] * 32)
        self.spent: list[tuple[Row, int]] = []  # duration bins of right answers
        for mine in self.users.values():
            centre = min(ABILITIES, key=lambda each: abs(each - ability(mine, self.fold_rates[mine[0]["fold"]])))
            self.answers += [(row, (centre, row["correct"])) for row in graded(mine)]
            self._add_sketch(mine)
            for before, after in pairwise(mine):
                gap, on = after["time"] - before["time"], after if submitted else before
                if on["correct"] == 1 and 0 <= gap <= EDGES[-1]:
                    self.spent.append((on, sum(edge < gap for edge in EDGES)))
        self.everything = curve(
            self._those(lambda row: True), (math.log(self.rate / (1 - self.rate)), 1.0), slope=False
        )
        self.curves = {}
        for level, names in (("head", "heads"), ("concept", "concepts"), ("test", "tests")):
            for name in {name for row in rows for name in _names(row)[names]}:
                answers = self._those(lambda row, names=names, name=name: name in _names(row)[names])
                self.curves[level, name] = curve(answers, self.everything)

    def item(self, asked: Row) -> dict[str, Any]:
        """The fitted values of one question by name."""
        rates = self._rates(asked)
        found = {f"{level}_log_odds": math.log(rate / (1 - rate)) for level, rate in rates.items()}
        for level, names in (("question", "questions"), ("test", "tests"), ("concept", "concepts")):
            rows = [row for name in _names(asked)[names] for row in self.rows if name in _names(row)[names]]
            found |= {f"{level}_graded": len(graded(rows)), f"{level}_right": right(rows)}
        parents = self._parents(asked)
        answers = self._those(lambda row: row["question"] == asked["question"])
        found["easiness"] = curve(answers, (parents[0], 1.0), slope=False)[0]
        found["easiness_2pl"], found["discrimination"] = curve(answers, parents)
        found["expected_ms"] = self._expected_ms(asked)
        found["test_size"] = len({row["question"] for row in self.rows if row["test"] == asked["test"] != ""})
        found["number"] = int(asked["tail"]) if asked["tail"] else -1
        found["expected"] = rates["question"]
        return found | {"sketch": self._unit_sketch(asked["question"], found["question_graded"])}

    def _those(self, wanted: Any) -> list[tuple[float, int]]:
        return [answer for row, answer in self.answers if wanted(row)]

    def _own_rates(self, fold: int) -> dict[str, float]:
        rows = [row for row in self.rows if row["fold"] == fold]
        overall = (right(rows) + 1) / (len(graded(rows)) + 2)
        rates = {}
        for question in {row["question"] for row in rows}:
            mine = [row for row in rows if row["question"] == question]
            rates[question] = (right(mine) + 4 * overall) / (len(graded(mine)) + 4)
        return rates

    def _rates(self, asked: Row) -> dict[str, float]:
        def smoothed(names: str, name: str, prior: float) -> float:
            rows = [row for row in self.rows if name and name in _names(row)[names]]
            return (right(rows) + SMOOTHING * prior) / (len(graded(rows)) + SMOOTHING)

        known = {tag for row in self.rows for tag in row["concepts"]}
        head = smoothed("heads", asked["head"], self.rate)
        tags = [smoothed("concepts", tag, head) for tag in asked["concepts"] if tag in known]
        concept = mean(tags) if tags else head
        test = smoothed("tests", asked["test"], concept)
        question = smoothed("questions", asked["question"], test)
        position = smoothed("tails", asked["tail"], self.rate)
        return {"question": question, "test": test, "concept": concept, "head": head, "position": position}

    def _parents(self, asked: Row) -> Curve:
        """The curve that a question starts from: its head's, drawn to its concepts', drawn to its test's."""
        found = self.everything
        for level, names in (("head", "heads"), ("concept", "concepts"), ("test", "tests")):
            curves = {name: self.curves[level, name] for name in _names(asked)[names] if (level, name) in self.curves}
            weight = sum(len(graded([row for row in self.rows if name in _names(row)[names]])) for name in curves)
            own = [mean([each[side] for each in curves.values()]) for side in (0, 1)]
            found = (
                (weight * own[0] + SMOOTHING * found[0]) / (weight + SMOOTHING),
                (weight * own[1] + SMOOTHING * found[1]) / (weight + SMOOTHING),
            )
        return found

    def _add_sketch(self, rows: list[Row]) -> None:
        rates = self.fold_rates[rows[0]["fold"]]
        answered = [(row["question"], row["correct"] - rates[row["question"]]) for row in graded(rows)]
        for place, (question, residual) in enumerate(answered):
            for d in range(32):
                others = sum(_sign(q, d) * r for other, (q, r) in enumerate(answered) if other != place)
                self.sketch[question][d] += round(1e6 * residual * others / len(rows))

    def _unit_sketch(self, question: str, answers: int) -> list[float]:
        sketch = self.sketch[question]
        length = math.hypot(*sketch)
        return [value / length * answers / (answers + 10) if length else 0.0 for value in sketch]

    def _expected_ms(self, asked: Row) -> float:
        """Geometric middle of the bin that holds the median of a distribution that backs off level by level."""
        shape = [1 + sum(place == each for _, place in self.spent) for each in range(32)]
        shape = [value / sum(shape) for value in shape]
        for names in ("heads", "concepts", "tests", "questions"):
            places = [place for row, place in self.spent for name in _names(asked)[names] if name in _names(row)[names]]
            shape = [(places.count(each) + 5 * shape[each]) / (len(places) + 5) for each in range(32)]
        total, middle = 0.0, 0
        for place, share in enumerate(shape):
            total += share
            if total >= 0.5:
                middle = place
                break
        return math.sqrt((EDGES[middle - 1] if middle else 500) * EDGES[middle])


def _names(row: Row) -> dict[str, list[str]]:
    one = {"questions": row["question"], "tests": row["test"], "heads": row["head"], "tails": row["tail"]}
    return {names: [name] if name else [] for names, name in one.items()} | {"concepts": row["concepts"]}


def _sign(question: str, d: int) -> int:
    return 1 if int(stable_hash([question], 0x5EED)[0]) >> d & 1 else -1
