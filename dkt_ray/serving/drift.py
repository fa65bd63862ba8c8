"""Do requests look like what the bundle was trained on? Running histograms of them against the bundle's profile."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dkt_ray.analysis.measures import stability
from dkt_ray.data.query import Query
from dkt_ray.ensemble.scorer import Scores
from dkt_ray.registry.profile import HOUR_MS, RECENT, Profile, counted
from dkt_ray.serving.series import DRIFT, Meters

HALF_LIFE: Final = 2000.0  # queries after which one counts half
AT_LEAST: Final = 500  # values below which nothing is concluded: equal distributions are about bins / values apart
AT_ONCE: Final = 64  # queries, and
MANY: Final = 20_000  # targets that wait to be counted together

Floats = npt.NDArray[np.float64]


class Drift:
    """What one bundle was asked lately, beside what it was trained on.

    Args:
        profile: of the bundle.
        difficulty: question -> difficulty, as in the profile.
    """

    def __init__(self, profile: Profile, difficulty: Mapping[str, float]) -> None:
        self._profile = profile
        self._difficulty = difficulty
        self._counts = {name: np.zeros(len(each.counts)) for name, each in profile.quantities.items()}
        self._students: list[tuple[float, ...]] = []
        self._targets: list[tuple[Sequence[str], Scores]] = []
        self._rows = 0
        self._lock = threading.Lock()

    def add(self, query: Query, scores: Scores) -> None:
        """One more query has its answer."""
        with self._lock:
            self._students.append(_student(query))
            self._targets.append((query.target, scores))
            self._rows += len(query.target)
            if len(self._students) >= AT_ONCE or self._rows >= MANY:
                self._count()

    def indices(self) -> dict[str, float | None]:
        """Population stability index by quantity; None where too little was asked."""
        with self._lock:
            self._count()
            return {
                name: stability(np.array(self._profile.quantities[name].counts), counts.astype(np.int64))
                if counts.sum() >= AT_LEAST
                else None
                for name, counts in self._counts.items()
            }

    def report(self) -> dict[str, Any]:
        """By quantity: index, values (those of before count less), edges, and the shares in training and requests."""
        indices = self.indices()
        return {
            name: {
                "index": indices[name],
                "values": round(float(self._counts[name].sum()), 1),
                "edges": each.edges,
                "training": _shares(np.array(each.counts, np.float64)),
                "requests": _shares(self._counts[name]),
            }
            for name, each in self._profile.quantities.items()
        }

    def _count(self) -> None:
        if not self._students:
            return
        length, recent, gap, hour = np.array(self._students, np.float64).T
        values: dict[str, Floats] = {"history_length": length, "recent_right": recent, "gap_s": gap, "hour": hour}
        asked = [name for names, _ in self._targets for name in names]
        values["difficulty"] = np.array([self._difficulty.get(name, np.nan) for name in asked], np.float64)
        values["unknown"] = np.concatenate([scores.unknown for _, scores in self._targets]).astype(np.float64)
        values["score"] = np.concatenate([scores.probability for _, scores in self._targets])
        kept = 0.5 ** (len(self._students) / HALF_LIFE)
        for name, each in self._profile.quantities.items():
            if name in values:
                self._counts[name] = kept * self._counts[name] + counted(values[name], each.edges)
        self._students, self._targets, self._rows = [], [], 0


def tell(bundle: str, drift: Drift, meters: Meters) -> None:
    """Set the gauges of a bundle, which is named as in labels."""
    for name, index in drift.indices().items():
        if index is not None:
            meters.add(DRIFT, index, bundle, name)


def _student(query: Query) -> tuple[float, ...]:
    """Length of the history, share of right ones of late, seconds since the answer before, hour; nan: not known."""
    recent = query.correct[-RECENT:]
    moments = [*(query.timestamp or ())[-2:], *([query.at] if isinstance(query.at, int) else [])]
    return (
        len(query.question),
        sum(recent) / len(recent) if recent else np.nan,
        (moments[-1] - moments[-2]) / 1000 if len(moments) > 1 else np.nan,
        moments[-1] // HOUR_MS % 24 if moments else np.nan,
    )


def _shares(counts: Floats) -> list[float]:
    return (counts / counts.sum()).round(4).tolist() if counts.sum() else []
