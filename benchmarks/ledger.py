"""The ledger of a load run: what became of every request, its figures, and whether each answer is the right one."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

OK: Final = 200
TOLERANCE: Final = 1e-5  # between an answer over HTTP and the oracle's
APART: Final = 1e-4  # by so much the oracles of two versions must differ, for an answer to belong to one only
SHOWN: Final = 20  # problems that are told one by one


class Entry(NamedTuple):
    """One request; times are seconds of the machine's monotonic clock, which its processes share."""

    request: int  # its number
    body: int  # which body was sent
    scheduled: float  # when it was due: what latency is counted from, however late the generator or the server is
    sent: float
    answered: float
    status: int  # 0: no HTTP answer
    version: str  # model version that the answer names, "" where it names none
    values: list[float]  # probabilities
    error: str  # why there is no answer, or what an answer that is not 200 says


def read(path: Path) -> list[Entry]:
    """The entries of a ledger file, by request."""
    with path.open(encoding="utf-8") as lines:
        return sorted(Entry(*json.loads(line)) for line in lines)


def write(path: Path, entries: Sequence[Entry]) -> None:
    """Write a ledger: one JSON array a line, in the order of the fields of `Entry`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as out:
        out.writelines(f"{json.dumps(entry)}\n" for entry in entries)


def failed(entries: Sequence[Entry]) -> list[Entry]:
    """Requests without a 200."""
    return [entry for entry in entries if entry.status != OK]


def figures(entries: Sequence[Entry], skip_s: float = 0.0) -> dict[str, Any]:
    """Counts, rate and latencies.

    Args:
        skip_s: warm-up: seconds at the start whose requests, and for per_s whose answers, are not counted.

    Returns:
        requests, ok, statuses, per_s (200s); offered_per_s and longest_lag_ms: what the generator sent, and how late at
        most; and p50_ms, p99_ms, longest_ms of the 200s, from when they were due.
    """
    first = min((entry.scheduled for entry in entries), default=0.0) + skip_s
    counted = [entry for entry in entries if entry.scheduled >= first]
    good = [entry for entry in counted if entry.status == OK]
    answered = [entry.answered for entry in entries if entry.status == OK and entry.answered >= first]
    span = max((entry.answered for entry in entries), default=first) - first
    return {
        "requests": len(counted),
        "ok": len(good),
        "statuses": dict(Counter(str(entry.status) for entry in counted)),
        "per_s": round(len(answered) / span, 1) if span > 0 else 0.0,
        "offered_per_s": round(offered(counted), 1),
        "longest_lag_ms": round(1000 * max((entry.sent - entry.scheduled for entry in counted), default=0.0), 1),
        **latencies(good),
    }


def offered(entries: Sequence[Entry]) -> float:
    """Requests per second that were sent."""
    sent = [entry.sent for entry in entries]
    span = max(sent, default=0.0) - min(sent, default=0.0)
    return (len(sent) - 1) / span if span else 0.0


def latencies(entries: Sequence[Entry]) -> dict[str, float]:
    """Milliseconds from when requests were due to their answers; nothing where there is none."""
    if not entries:
        return {}
    taken = 1000 * np.array([entry.answered - entry.scheduled for entry in entries])
    p50, p99, longest = map(float, np.percentile(taken, [50, 99, 100]))
    return {"p50_ms": round(p50, 2), "p99_ms": round(p99, 2), "longest_ms": round(longest, 1)}


def longest_silence(entries: Sequence[Entry], after: float) -> float:
    """Most seconds between two 200s, from this moment to the last answer; infinite where no 200 came."""
    good = [entry.answered for entry in entries if entry.status == OK and entry.answered >= after]
    if not good:
        return math.inf
    last = max(entry.answered for entry in entries)
    return max(later - earlier for earlier, later in pairwise(sorted([after, *good, last])))


def wrong(
    entries: Sequence[Entry], oracle: Mapping[str, Sequence[npt.NDArray[np.float64]]], tolerance: float = TOLERANCE
) -> list[str]:
    """What should not be, in words: a request that ended twice or never, an answer that is not its version's.

    Args:
        oracle: version -> the probabilities that it gives for each body.
        tolerance: between an answer and the oracle's.
    """
    times = Counter(entry.request for entry in entries)
    missing = set(range(len(times))) - times.keys()
    found = [f"request {request} ended {count} times" for request, count in times.items() if count > 1]
    found += [f"request {request} never ended" for request in missing]
    answered = [entry for entry in entries if entry.status == OK]
    found += [problem for entry in answered if (problem := _wrong_answer(entry, oracle, tolerance))]
    more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return [*_alike({entry.body for entry in answered}, oracle), *found[:SHOWN], *more]


def versions(entries: Sequence[Entry]) -> dict[str, int]:
    """How many 200s each version gave."""
    return dict(Counter(entry.version for entry in entries if entry.status == OK))


def _wrong_answer(
    entry: Entry, oracle: Mapping[str, Sequence[npt.NDArray[np.float64]]], tolerance: float
) -> str | None:
    if entry.error:
        return f"request {entry.request}: {entry.error}"
    if entry.version not in oracle:
        return f"request {entry.request}: version {entry.version or 'none'} is none of those that were served"
    expected = oracle[entry.version][entry.body]
    if len(entry.values) != len(expected):
        return f"request {entry.request}: {len(entry.values)} probabilities, expected {len(expected)}"
    off = np.abs(np.array(entry.values) - expected).max()
    if not off <= tolerance:  # also NaN
        return f"request {entry.request}, body {entry.body}: off by {off:.2g} from version {entry.version[:12]}"
    return None


def _alike(bodies: set[int], oracle: Mapping[str, Sequence[npt.NDArray[np.float64]]]) -> list[str]:
    """Bodies that do not tell two versions apart: an answer to them proves nothing."""
    names = list(oracle)
    return [
        f"body {body} does not tell {one[:12]} from {other[:12]}"
        for index, one in enumerate(names)
        for other in names[index + 1 :]
        for body in sorted(bodies)
        if np.abs(oracle[one][body] - oracle[other][body]).max() < APART
    ]
