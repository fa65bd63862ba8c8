"""The simulated platform against the statistics of the reference data (reference-system.md, sections 1.2 to 1.5).

Everything is measured on the rows of the training students, as the reference was (6,698 of them); counts that grow with
the cohort are scaled. Identifiers are parsed, not taken from the bank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from dkt_ray.data.history import Int8, Int32, Int64, ranges
from dkt_ray.data.simulation import reference

if TYPE_CHECKING:
    from dkt_ray.data.simulate import Simulation

Float64 = npt.NDArray[np.float64]


class Calibration(NamedTuple):
    """One statistic: what the reference data have, how far the simulation may be from it, and what it has."""

    name: str
    reference: float
    tolerance: float
    measured: float

    @property
    def holds(self) -> bool:
        """Whether the simulation is close enough."""
        return bool(abs(self.measured - self.reference) <= self.tolerance + 1e-9)


@dataclass(frozen=True, eq=False)
class Sample:
    """The training students' rows with all that the statistics need. Legend: N rows, Q questions."""

    users: int
    user: Int32  # [N]
    question: Int32  # [N]
    test: Int32  # [N]
    concept: Int32  # [N]
    correct: Int8  # [N]
    second: Int64  # [N]
    head: Int64  # [Q], 1..9
    mid: Int64  # [Q]
    tail: Int64  # [Q]
    question_test: Int32  # [Q]
    question_concept: Int32  # [Q]
    consistent: bool  # every question's id belongs to its test's

    @property
    def scale(self) -> float:
        """Size of the cohort relative to the reference."""
        return self.users / reference.USERS


def calibrate(simulation: Simulation) -> list[Calibration]:
    """Compare a simulation with the reference; meaningful from some thousand students on, with the whole bank."""
    sample = _sample(simulation)
    parts = (_structure, _lengths, _spread, _conditional, _last_answers, _behaviour, _time)
    return [Calibration(*cell) for part in parts for cell in part(sample)]


def table(cells: Sequence[Calibration]) -> str:
    """The comparison as text, one line a statistic."""
    lines = [f"{'statistic':<52}{'reference':>12}{'tolerance':>11}{'measured':>12}"]
    for cell in cells:
        mark = "" if cell.holds else "  <- outside"
        lines.append(f"{cell.name:<52}{cell.reference:>12.4f}{cell.tolerance:>11.4f}{cell.measured:>12.4f}{mark}")
    lines.append(f"{sum(cell.holds for cell in cells)} of {len(cells)} hold")
    return "\n".join(lines)


Cell = tuple[str, float, float, float]


def _sample(simulation: Simulation) -> Sample:
    train = np.flatnonzero(~simulation.is_test)
    rows, offsets = ranges(simulation.offsets[train], simulation.offsets[train + 1])
    ids = simulation.question.values.astype(str)
    tests = simulation.test.values.astype(str)
    question, test, concept = (c.codes[rows] for c in (simulation.question, simulation.test, simulation.concepts))
    question_test, question_concept = np.zeros(len(ids), np.int32), np.zeros(len(ids), np.int32)
    question_test[question], question_concept[question] = test, concept
    number = np.array([int(i[1:]) for i in ids])
    number_test = np.array([int(i[1:]) for i in tests])[question_test]
    head, mid, tail = number // 10_000_000, number // 1000 % 1000, number % 1000
    return Sample(
        users=len(train),
        user=np.repeat(np.arange(len(train), dtype=np.int32), np.diff(offsets)),
        question=question,
        test=test,
        concept=concept,
        correct=simulation.correct[rows],
        second=simulation.timestamp[rows] // 1000,
        head=head,
        mid=mid,
        tail=tail,
        question_test=question_test,
        question_concept=question_concept,
        consistent=bool((head * 10_000_000 + mid == number_test).all()),
    )


def _structure(sample: Sample) -> Iterator[Cell]:
    """Section 1.2."""
    seen = np.unique(sample.question)
    head, tail, mid = sample.head[seen], sample.tail[seen], sample.mid[seen]
    test, concept = sample.question_test[seen], sample.question_concept[seen]
    test_head = np.unique(np.stack([test, head]), axis=1)[1]
    concept_head = np.unique(np.stack([concept, head]), axis=1)
    concept_test = np.unique(np.stack([concept, test]), axis=1)
    yield "questions", reference.QUESTIONS, 0, len(seen)
    yield "tests", reference.TESTS, 0, len(np.unique(test))
    yield "concepts", reference.CONCEPTS, 0, len(np.unique(concept))
    yield "questions whose id is not that of their test", 0, 0, float(not sample.consistent)
    yield "questions per head, largest difference", 0, 0, _largest(reference.QUESTIONS_PER_HEAD, head)
    yield "tests per head, largest difference", 0, 0, _largest(reference.TESTS_PER_HEAD, test_head)
    yield "concepts per head, largest difference", 0, 0, _largest(reference.CONCEPTS_PER_HEAD, concept_head[1])
    yield "questions per tail, largest difference", 0, 0, _largest(reference.QUESTIONS_PER_TAIL, tail)
    sizes = np.bincount(test)
    yield "tests per size, largest difference", 0, 0, _largest(reference.TESTS_PER_SIZE, sizes[sizes > 0])
    yield "concepts in two heads", 1, 0, (np.bincount(concept_head[0]) > 1).sum()
    yield "mids", 198, 0, len(np.unique(mid))
    yield "distinct mid and tail", 1668, 50, len(np.unique(mid * 100 + tail))
    yield "distinct head and tail", 94, 4, len(np.unique(head * 100 + tail))
    yield from _moments("questions per concept", reference.QUESTIONS_PER_CONCEPT, np.bincount(concept))
    yield from _moments("tests per concept", reference.TESTS_PER_CONCEPT, np.bincount(concept_test[0]))
    yield from _moments("concepts per test", reference.CONCEPTS_PER_TEST, np.bincount(concept_test[1]))


def _lengths(sample: Sample) -> Iterator[Cell]:
    """Section 1.3, how much is answered."""
    yield from _moments("answers per user", reference.ANSWERS_PER_USER, np.bincount(sample.user))
    for name, expected, key in (
        ("answers per question", reference.ANSWERS_PER_QUESTION, sample.question),
        ("answers per test", reference.ANSWERS_PER_TEST, sample.test),
        ("answers per concept", reference.ANSWERS_PER_CONCEPT, sample.concept),
    ):
        yield from _moments(name, expected, np.bincount(key) / sample.scale)
    for name, expected, key in (
        ("users per question", reference.USERS_PER_QUESTION, sample.question),
        ("users per test", reference.USERS_PER_TEST, sample.test),
        ("users per concept", reference.USERS_PER_CONCEPT, sample.concept),
    ):
        yield from _moments(name, expected, np.bincount(_pairs(sample.user, key)[1]) / sample.scale)
    groups = len(_pairs(sample.user, sample.head[sample.question])[0])
    yield "heads per user", 17_752 / reference.USERS, 0.1, groups / sample.users


def _spread(sample: Sample) -> Iterator[Cell]:
    """Section 1.3, how accuracy varies."""
    for name, expected, key in (
        ("accuracy per user", reference.ACCURACY_PER_USER, sample.user),
        ("accuracy per question", reference.ACCURACY_PER_QUESTION, sample.question),
        ("accuracy per test", reference.ACCURACY_PER_TEST, sample.test),
        ("accuracy per concept", reference.ACCURACY_PER_CONCEPT, sample.concept),
    ):
        yield from _moments(name, expected, _mean(key, sample.correct))
    count = np.bincount(sample.user)
    correlation = np.corrcoef(count, _mean(sample.user, sample.correct))[0, 1]
    yield "correlation of answers and accuracy per user", 0.168, 0.05, correlation


def _conditional(sample: Sample) -> Iterator[Cell]:
    """Section 1.4: accuracy by head, tail, hour (UTC) and late mids."""
    yield "accuracy", reference.ACCURACY, 0.005, sample.correct.mean()
    for axis, expected, key in (
        ("head", reference.ACCURACY_PER_HEAD, sample.head[sample.question] - 1),
        ("tail", reference.ACCURACY_PER_TAIL, sample.tail[sample.question] - 1),
        ("hour", reference.ACCURACY_PER_HOUR, sample.second // 3600 % 24),
    ):
        first = 0 if axis == "hour" else 1
        measured = _mean(key, sample.correct, len(expected))
        for index, (value, tolerance) in enumerate(expected):
            yield f"accuracy, {axis} {index + first}", value, tolerance, measured[index]
    mid = sample.mid[sample.question]
    yield "accuracy, last 25 mids", 0.78, 0.05, sample.correct[mid > 173].mean()
    yield "accuracy, mids 45 to 60", 0.6, 0.07, sample.correct[(mid >= 45) & (mid <= 60)].mean()


def _last_answers(sample: Sample) -> Iterator[Cell]:
    """Section 1.4: the last answer is harder."""
    group = sample.user.astype(np.int64) * 10 + sample.head[sample.question]
    reverse = len(group) - 1 - np.unique(group[::-1], return_index=True)[1]
    yield "accuracy, last answer in a head", 2629 / 5310, 0.04, sample.correct[reverse].mean()
    last = np.cumsum(np.bincount(sample.user)) - 1
    yield "accuracy, last answer of a user", 0.5, 0.04, sample.correct[last].mean()


def _behaviour(sample: Sample) -> Iterator[Cell]:
    """Sections 1.3 and 1.5: repeats, order inside a test, seconds between answers."""
    _, test, rows = _pairs(sample.user, sample.test)
    passes = np.ceil(rows / np.bincount(sample.question_test)[test])
    yield "passes per user and test", 372_603 / 365_164, 0.004, passes.sum() / len(test)
    distinct = len(_pairs(sample.user, sample.question)[0])
    yield "share of repeated answers", 45_953 / reference.ROWS, 0.004, 1 - distinct / len(sample.user)
    same_user = sample.user[1:] == sample.user[:-1]
    inside = same_user & (sample.test[1:] == sample.test[:-1])
    tail = sample.tail[sample.question]
    disorder = (inside & (tail[1:] != tail[:-1] + 1)).sum() / inside.sum()
    yield "out of order inside a test", 105_556 / 1_893_983, 0.01, disorder
    seconds = np.diff(sample.second)
    yield "seconds inside a test, 95 % quantile", 224, 40, float(np.quantile(seconds[inside], 0.95))
    short = same_user & (seconds <= 650)
    curve = _mean(seconds[short], sample.correct[1:][short])
    smooth = np.convolve(curve, np.ones(5) / 5, "same")
    best = int(smooth[5:200].argmax()) + 5
    yield "seconds with the highest accuracy", 22, 10, best
    fast = same_user & (seconds >= 1) & (seconds <= 3)
    slow = same_user & (seconds >= 300) & (seconds <= 650)
    yield "accuracy after 1 to 3 s, below the highest", 0.4, 0.2, smooth[best] - sample.correct[1:][fast].mean()
    yield "accuracy after 300 to 650 s, below the highest", 0.15, 0.1, smooth[best] - sample.correct[1:][slow].mean()
    yield "same second as the answer before, at least", 0.005, 0.005, (seconds[same_user] == 0).mean()


def _time(sample: Sample) -> Iterator[Cell]:
    """Section 1.5."""
    months = sample.second.astype("datetime64[s]").astype("datetime64[M]").astype(np.int64)
    month = months - np.datetime64("2019-12", "M").astype(np.int64)
    expected = np.array(reference.ACTIVITY, float)
    measured = np.bincount(month * 9 + sample.head[sample.question] - 1, minlength=13 * 9).reshape(-1, 9)
    by_head = expected.sum(0) * sample.scale
    for head in range(9):
        yield f"answers in head {head + 1}, relative", 1, 0.06, measured[:, head].sum() / by_head[head]
    for head in range(9):
        gap = np.abs(expected[:, head] / expected[:, head].sum() - measured[:13, head] / measured[:, head].sum())
        yield f"months of head {head + 1}, total variation", 0, 0.04, gap.sum() / 2
    _, _, rows = _pairs(np.zeros_like(sample.user), sample.second - sample.second.min())
    if sample.scale > 0.9:  # the chance that two answers fall into the same second depends on the size
        yield "distinct seconds per answer", 2_076_774 / reference.ROWS, 0.02, len(rows) / len(sample.user)
        yield "answers in the busiest second", 7, 2, rows.max()


def _moments(name: str, expected: reference.Moments, values: Float64 | Int64) -> Iterator[Cell]:
    """Cells for one row of the reference's table."""
    measured = (values.mean(), values.std(), *np.quantile(values, (0, 0.25, 0.5, 0.75, 1)))
    labels = ("mean", "standard deviation", "minimum", "25 %", "median", "75 %", "maximum")
    for label, (value, tolerance), found in zip(labels, expected, measured, strict=True):
        yield f"{name}, {label}", value, tolerance, float(found)


def _pairs(first: Int32, second: npt.NDArray[np.integer]) -> tuple[Int64, Int64, Int64]:
    """The distinct pairs, sorted, and how often each occurs; by sorting, which beats np.unique's hash table here."""
    base = int(second.max()) + 1
    keys = np.sort(first.astype(np.int64) * base + second)
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    return keys[starts] // base, keys[starts] % base, np.diff(starts, append=len(keys))


def _mean(key: npt.NDArray[np.integer], values: Int8, keys: int = 0) -> Float64:
    """Mean of `values` for each key, [at least `keys`]; 0 for a key that does not occur."""
    count = np.bincount(key, minlength=keys)
    return np.bincount(key, values, keys) / np.maximum(count, 1)


def _largest(expected: Sequence[int], values: npt.NDArray[np.integer]) -> float:
    """Largest difference between the expected and the found number of 1s, 2s, ..."""
    found = np.bincount(values, minlength=len(expected) + 1)[1:]
    if len(found) > len(expected):
        return float(found[len(expected) :].sum())
    return float(np.abs(found - np.array(expected)).max())
