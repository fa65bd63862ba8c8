"""Small random interactions with everything that real logs do: many concepts, no test, hidden answers, equal times."""

from __future__ import annotations

import numpy as np

from dkt_ray.data.history import Coded, Histories
from dkt_ray.schema import UNKNOWN

START_MS = 1_577_836_800_000  # 2020-01-01 UTC


def random_histories(
    rng: np.random.Generator,
    users: int,
    *,
    longest: int = 30,
    questions: int = 20,
    tests: int = 5,
    concepts: int = 6,
    hidden: float = 0.05,
    timed: bool = True,
) -> Histories:
    """Histories of 1 to `longest` interactions; a question keeps its test and concepts.

    Args:
        hidden: share of answers that are -1.
        timed: False leaves the timestamps out.
    """
    lengths = rng.integers(1, longest + 1, users)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    rows = int(offsets[-1])
    test_of = np.array([_test(number % (tests + 1)) for number in range(questions)], object)
    tags_of = np.array([_tags(rng, concepts) for _ in range(questions)], object)
    ids = np.array([_question(number, tests) for number in range(questions)], object)
    chosen = rng.integers(0, questions, rows)
    correct = rng.integers(0, 2, rows).astype(np.int8)
    correct[rng.random(rows) < hidden] = UNKNOWN
    return Histories(
        users=np.array([f"u{number}" for number in range(users)], object),
        offsets=offsets,
        question=Coded.of(ids[chosen].tolist()),
        test=Coded.of(test_of[chosen].tolist()),
        concepts=Coded.of(tags_of[chosen].tolist()),
        correct=correct,
        timestamp=_times(rng, offsets) if timed else None,
    )


def _question(number: int, tests: int) -> str:
    """An id of the reference form, `A` + head + mid + tail; every seventh one is foreign to it."""
    if number % 7 == 6:
        return f"q-{number}"
    paper = number % (tests + 1)
    return f"A{(paper % 3 + 1) * 10:03d}{paper:03d}{number // (tests + 1) + 1:03d}"


def _test(paper: int) -> str:
    return f"A{(paper % 3 + 1) * 10:03d}{0:03d}{paper:03d}" if paper else ""


def _tags(rng: np.random.Generator, concepts: int) -> str:
    count = rng.integers(0, 4)
    return "_".join(sorted(str(tag) for tag in rng.choice(concepts, min(count, concepts), replace=False)))


def _times(rng: np.random.Generator, offsets: np.ndarray) -> np.ndarray:
    """Times that do not go back within a user; every third step or so stands still, some are days long."""
    rows = int(offsets[-1])
    steps = rng.choice([0, 1_000, 17_000, 62_000, 3_600_000, 200_000_000], rows)
    steps[offsets[:-1]] = 0
    run = np.cumsum(steps)
    return START_MS + run - np.repeat(run[offsets[:-1]], np.diff(offsets))
