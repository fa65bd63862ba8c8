"""The question bank of the simulated platform: identifiers, concepts, prerequisites, difficulty.

Legend: Q questions, P tests, K concepts; heads count from 0. A question is `A` + head + mid + tail, its test
`A` + head + `000` + mid. Questions are ordered by test and tail, tests by head and place in the curriculum (odd mids
are the first semester, even mids the second), concepts by head and unit; a prerequisite has the smaller index.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dkt_ray.data.history import Int8, Int32, Int64, Strings
from dkt_ray.data.simulation.parameters import BankParameters

Float64 = npt.NDArray[np.float64]
NONE = -1  # no prerequisite


@dataclass(frozen=True, eq=False)
class Bank:
    """All tests, questions and concepts."""

    test_head: Int8  # [P]
    test_mid: Int32  # [P], 1..198
    offsets: Int64  # [P + 1]: questions of a test
    popularity: Float64  # [P]
    question_tail: Int8  # [Q], 1..13
    question_concept: Int32  # [Q]
    difficulty: Float64  # [Q], logits
    discrimination: Float64  # [Q]
    guess: Float64  # [Q]
    slip: Float64  # [Q]
    log_time: Float64  # [Q], deviation from the typical log response time
    concept_id: Int32  # [K]
    concept_head: Int8  # [K]
    prerequisite: Int32  # [K], NONE or a smaller index

    @property
    def question_test(self) -> Int32:
        """The test of each question, [Q]."""
        return np.repeat(np.arange(len(self.test_head), dtype=np.int32), np.diff(self.offsets))

    @property
    def tests(self) -> Strings:
        """Test identifiers, [P]."""
        return _ids(self.test_head, np.zeros_like(self.test_mid), self.test_mid)

    @property
    def questions(self) -> Strings:
        """Question identifiers, [Q]."""
        test = self.question_test
        return _ids(self.test_head[test], self.test_mid[test], self.question_tail)

    @property
    def concepts(self) -> Strings:
        """Concept identifiers, [K]."""
        return self.concept_id.astype(str).astype(object)


def build_bank(parameters: BankParameters, fraction: float = 1.0) -> Bank:
    """Draw the whole bank, then keep about `fraction` of each head's units (tests about the same concepts)."""
    rng = np.random.default_rng(parameters.seed)
    sizes = _test_sizes(parameters, rng)
    heads = len(sizes)
    test_head = np.repeat(np.arange(heads, dtype=np.int8), parameters.tests_per_head)
    mid = np.concatenate([_curriculum(len(s)) for s in sizes]).astype(np.int32)
    size = np.concatenate([s[_curriculum(len(s)) - 1] for s in sizes])
    offsets = np.concatenate([[0], np.cumsum(size)]).astype(np.int64)
    tail = _tails(size, parameters.questions_per_tail, rng)
    test_unit = _units(parameters, rng)
    concept_unit = _concept_units(parameters, test_unit, size, rng)
    question_concept = _share_out(test_unit, concept_unit, offsets, rng)
    concept_head = np.repeat(np.arange(heads, dtype=np.int8), parameters.concepts_per_head)
    prerequisite = _prerequisites(parameters, concept_head, concept_unit, rng)
    difficulty = _difficulties(parameters, test_head, mid, offsets, tail, question_concept, rng)
    questions = len(tail)
    rare = rng.random(len(size)) < parameters.rare_share
    usual = np.exp(parameters.popularity_spread * rng.standard_normal(len(size)))
    bank = Bank(
        test_head=test_head,
        test_mid=mid,
        offsets=offsets,
        popularity=np.where(rare, rng.uniform(*parameters.rare_popularity, len(size)), usual),
        question_tail=tail,
        question_concept=question_concept,
        difficulty=difficulty,
        discrimination=np.exp(parameters.discrimination_spread * rng.standard_normal(questions)),
        guess=np.where(rng.random(questions) < parameters.choice_share, parameters.guess[1], parameters.guess[0]),
        slip=parameters.slip * rng.random(questions),
        log_time=parameters.time_spread * rng.standard_normal(questions),
        concept_id=_concept_ids(parameters, rng),
        concept_head=concept_head,
        prerequisite=prerequisite,
    )
    return _merge_shared(_thin(bank, test_unit, fraction))


def _ids(head: Int8, first: npt.NDArray[np.integer], second: npt.NDArray[np.integer]) -> Strings:
    number = (head.astype(np.int64) + 1) * 10_000_000 + first.astype(np.int64) * 1000 + second
    return np.char.add("A0", number.astype(str)).astype(object)


def _curriculum(tests: int) -> Int64:
    """Mids 1..tests in the order in which they are taught."""
    return np.concatenate([np.arange(1, tests + 1, 2), np.arange(2, tests + 1, 2)])


def _test_sizes(parameters: BankParameters, rng: np.random.Generator) -> list[Int64]:
    """Questions per test for each head (by mid): margins over sizes and over heads both as given."""
    tests = np.array(parameters.tests_per_head)
    wanted = np.array(parameters.questions_per_head)
    head = np.repeat(np.arange(len(tests)), tests)
    mid = np.concatenate([np.arange(n) for n in tests])
    common = rng.standard_normal(tests.max())[mid] * np.sqrt(parameters.size_by_mid)
    own = rng.standard_normal(len(head)) * np.sqrt(1 - parameters.size_by_mid)
    order = np.argsort((wanted / tests)[head] + parameters.size_spread * (common + own), kind="stable")
    size = np.empty(len(head), np.int64)
    size[order] = np.repeat(np.arange(1, len(parameters.tests_per_size) + 1), parameters.tests_per_size)
    while True:
        excess = np.bincount(head, size, len(tests)).astype(np.int64) - wanted
        if not excess.any():
            return [size[head == h] for h in range(len(tests))]
        large, small = int(excess.argmax()), int(excess.argmin())
        if not _exchange(size, head, large, small, rng):  # no neighbouring sizes: by way of another head
            _exchange(size, head, large, int(rng.integers(len(tests))), rng)


def _exchange(size: Int64, head: Int64, large: int, small: int, rng: np.random.Generator) -> bool:
    """Let a test of head `large` swap sizes with one of head `small` that has one question less, if there is one."""
    ours, theirs = np.flatnonzero(head == large), np.flatnonzero(head == small)
    ours = ours[np.isin(size[ours] - 1, size[theirs])]
    if not len(ours):
        return False
    give = rng.choice(ours)
    take = rng.choice(theirs[size[theirs] == size[give] - 1])
    size[give], size[take] = size[take], size[give]
    return True


def _tails(size: Int64, per_tail: tuple[int, ...], rng: np.random.Generator) -> Int8:
    """Question numbers inside the tests: 1..size, except that a few tests lack a low number and end one higher."""
    numbers = np.arange(1, len(per_tail) + 1)
    surplus = np.array(per_tail) - (size[:, None] >= numbers).sum(0)
    gap = np.zeros(len(size), np.int64)  # the missing number, 0 = none
    for last in np.flatnonzero(surplus > 0)[::-1] + 1:
        candidates = np.flatnonzero((size == last - 1) & (gap == 0))
        chosen = rng.choice(candidates, int(surplus[last - 1]), replace=False)
        for test in chosen:
            missing = np.flatnonzero(surplus[: last - 1] < 0)
            place = int(missing[-1] if missing[-1] >= 5 else rng.choice(missing))
            gap[test], surplus[place] = place + 1, surplus[place] + 1
    test = np.repeat(np.arange(len(size)), size)
    tail = np.arange(len(test)) - np.repeat(np.cumsum(size) - size, size) + 1
    return (tail + ((gap[test] > 0) & (tail >= gap[test]))).astype(np.int8)


def _units(parameters: BankParameters, rng: np.random.Generator) -> Int32:
    """The unit of each test, [P], numbered through: consecutive tests, at least one a unit."""
    lengths = []
    for tests, units in zip(parameters.tests_per_head, parameters.units_per_head, strict=True):
        weight = np.cumsum(np.exp(parameters.unit_spread * rng.standard_normal(units)))
        filled = np.floor(weight / weight[-1] * (tests - units) + 0.5).astype(np.int64)
        lengths.append(1 + np.diff(filled, prepend=0))
    length = np.concatenate(lengths)
    return np.repeat(np.arange(len(length), dtype=np.int32), length)


def _concept_units(parameters: BankParameters, test_unit: Int32, size: Int64, rng: np.random.Generator) -> Int32:
    """The unit of each concept, [K] ascending: at least one concept a unit, at most one a question of its tests."""
    most = np.full(sum(parameters.units_per_head), 8)
    np.minimum.at(most, test_unit, size)
    per_unit = np.ones(len(most), np.int64)
    first = 0
    for units, concepts in zip(parameters.units_per_head, parameters.concepts_per_head, strict=True):
        mine = np.arange(first, first + units)
        for _ in range(concepts - units):
            per_unit[rng.choice(mine[per_unit[mine] < most[mine]])] += 1
        first += units
    return np.repeat(np.arange(len(most), dtype=np.int32), per_unit)


def _share_out(test_unit: Int32, concept_unit: Int32, offsets: Int64, rng: np.random.Generator) -> Int32:
    """The concept of each question: a test's questions are cut into runs, one for each concept of its unit."""
    first = np.searchsorted(concept_unit, np.arange(test_unit[-1] + 2))
    concept = np.empty(offsets[-1], np.int32)
    for test, unit in enumerate(test_unit):
        size, concepts = offsets[test + 1] - offsets[test], first[unit + 1] - first[unit]
        cuts = np.zeros(size, np.int64)
        cuts[1 + rng.choice(size - 1, concepts - 1, replace=False)] = 1
        concept[offsets[test] : offsets[test + 1]] = first[unit] + np.cumsum(cuts)
    return concept


def _prerequisites(
    parameters: BankParameters, concept_head: Int8, concept_unit: Int32, rng: np.random.Generator
) -> Int32:
    """For most concepts one of the unit before it, for some one of the head below at the same stage of its year."""
    concepts = len(concept_head)
    starts = np.searchsorted(concept_head, np.arange(concept_head[-1] + 2))
    prerequisite = np.full(concepts, NONE, np.int32)
    draw, which = rng.random(concepts), rng.random(concepts)
    for k in range(concepts):
        head = concept_head[k]
        unit_start = np.searchsorted(concept_unit, concept_unit[k])
        before = np.searchsorted(concept_unit, concept_unit[k] - 1)
        if draw[k] < 0.75 * parameters.prerequisite_share and unit_start > starts[head]:
            prerequisite[k] = before + int(which[k] * (unit_start - before))
        elif draw[k] < parameters.prerequisite_share and head > 0:
            stage = (k - starts[head]) / (starts[head + 1] - starts[head])
            prerequisite[k] = starts[head - 1] + int(stage * (starts[head] - starts[head - 1]))
    return prerequisite


def _difficulties(
    parameters: BankParameters,
    test_head: Int8,
    mid: Int32,
    offsets: Int64,
    tail: Int8,
    concept: Int32,
    rng: np.random.Generator,
) -> Float64:
    """Head + question number + last question - late mids + test + concept + question."""
    test = np.repeat(np.arange(len(mid)), np.diff(offsets))
    last = np.zeros(len(tail))
    last[offsets[1:] - 1] = 1
    late = np.clip((mid - (mid.max() - parameters.late_mids)) / parameters.late_mids, 0, 1)
    by_test = parameters.test_spread * rng.standard_normal(len(mid)) - parameters.late_mid_ease * late
    by_concept = parameters.concept_spread * rng.standard_normal(concept.max() + 1)
    return (
        np.array(parameters.head_difficulty)[test_head[test]]
        + np.array(parameters.tail_difficulty)[tail - 1]
        + parameters.last_difficulty * last
        + by_test[test]
        + by_concept[concept]
        + parameters.question_spread * rng.standard_normal(len(tail))
    )


def _concept_ids(parameters: BankParameters, rng: np.random.Generator) -> Int32:
    """Ascending ids, [K]; the last one of head 7 and the first one of head 8 are the shared one."""
    below = sum(parameters.concepts_per_head[:7]) - 1
    above = sum(parameters.concepts_per_head) - below - 2
    low, high = parameters.concept_ids
    shared = parameters.shared_concept

    def draw(start: int, stop: int, count: int) -> Int64:
        return np.sort(start + rng.choice(stop - start, count, replace=False))

    rest = draw(low + 1, shared, below - 1), draw(shared + 1, high, above - 1)
    return np.array([low, *rest[0], shared, shared, *rest[1], high], np.int32)


def _thin(bank: Bank, test_unit: Int32, fraction: float) -> Bank:
    """Keep evenly spaced units of each head, at least two; for a lost prerequisite steps in the nearest one before."""
    if fraction >= 1:
        return bank
    kept = np.zeros(test_unit[-1] + 1, bool)
    for head in np.unique(bank.test_head):
        units = np.unique(test_unit[bank.test_head == head])
        count = max(2, round(fraction * len(units)))
        kept[units[np.linspace(0, len(units) - 1, count).round().astype(int)]] = True
    test = kept[test_unit]
    question = test[bank.question_test]
    concept = np.isin(np.arange(len(bank.concept_id)), bank.question_concept[question])
    nearest = np.maximum.accumulate(np.where(concept, np.arange(len(concept)), NONE))[bank.prerequisite]
    same_head = bank.concept_head[nearest] == bank.concept_head[bank.prerequisite]
    prerequisite = np.where((bank.prerequisite != NONE) & same_head, nearest, NONE).astype(np.int32)
    return _select(bank, test, question, concept, prerequisite)


def _merge_shared(bank: Bank) -> Bank:
    """Make one concept of the two entries with the shared id."""
    twice = np.flatnonzero(bank.concept_id[1:] == bank.concept_id[:-1])
    if not len(twice):
        return bank
    keep = np.ones(len(bank.concept_id), bool)
    keep[twice + 1] = False
    prerequisite, question_concept = bank.prerequisite.copy(), bank.question_concept.copy()
    for values in (prerequisite, question_concept):
        values[values == twice[0] + 1] = twice[0]
    every = np.ones(len(bank.test_head), bool)
    merged = Bank(**{**vars(bank), "question_concept": question_concept})
    return _select(merged, every, every[bank.question_test], keep, prerequisite)


def _select(
    bank: Bank,
    test: npt.NDArray[np.bool_],
    question: npt.NDArray[np.bool_],
    concept: npt.NDArray[np.bool_],
    prerequisite: Int32,
) -> Bank:
    """The bank at the given tests, questions and concepts, renumbered."""
    number = np.append(np.cumsum(concept) - 1, NONE).astype(np.int32)  # number[NONE] is NONE
    return Bank(
        test_head=bank.test_head[test],
        test_mid=bank.test_mid[test],
        offsets=np.concatenate([[0], np.cumsum(np.diff(bank.offsets)[test])]).astype(np.int64),
        popularity=bank.popularity[test],
        question_tail=bank.question_tail[question],
        question_concept=number[bank.question_concept[question]],
        difficulty=bank.difficulty[question],
        discrimination=bank.discrimination[question],
        guess=bank.guess[question],
        slip=bank.slip[question],
        log_time=bank.log_time[question],
        concept_id=bank.concept_id[concept],
        concept_head=bank.concept_head[concept],
        prerequisite=number[prerequisite[concept]],
    )
