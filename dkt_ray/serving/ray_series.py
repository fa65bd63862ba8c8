"""(Ray) The series of a replica on its node's metrics port, under the names of `series` with `ray_` before them."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

from ray.serve import metrics

from dkt_ray.serving.series import Meters, Series


class RaySeries:
    """A `Meter` that Ray exports, labelled with the replica's name too; make it inside a replica.

    Ray takes some 15 us to hear of a number: what counts up is put together until `export`.
    """

    def __init__(self) -> None:
        self._kept: dict[str, metrics.Counter | metrics.Gauge | metrics.Histogram] = {}
        self._counts: Counter[tuple[Series, tuple[str, ...]]] = Counter()
        self._lock = threading.Lock()

    def add(self, series: Series, value: float, *labels: str) -> None:
        """As `Meter.add`."""
        if series.kind == "counter":
            with self._lock:
                self._counts[series, labels] += value  # type: ignore[assignment]  # a Counter adds floats, too
        else:
            self._tell(series, value, labels)

    def export(self, meters: Meters | None = None) -> None:
        """Tell Ray what has been counted since; whoever is asked by `Meters.collect` may be this."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        for (series, labels), value in counts.items():
            self._tell(series, value, labels)

    def _tell(self, series: Series, value: float, labels: tuple[str, ...]) -> None:
        kept = self._kept.get(series.name)
        if kept is None:
            kept = self._kept[series.name] = _made(series)
        tags = dict(zip(series.labels, labels, strict=True))
        if isinstance(kept, metrics.Counter):
            kept.inc(value, tags)
        elif isinstance(kept, metrics.Gauge):
            kept.set(value, tags)
        else:
            kept.observe(value, tags)


def _made(series: Series) -> metrics.Counter | metrics.Gauge | metrics.Histogram:
    labels: Any = series.labels  # Serve's signatures say one label, and take any number
    if series.kind == "counter":
        return metrics.Counter(series.name, series.text, labels)
    if series.kind == "gauge":
        return metrics.Gauge(series.name, series.text, labels)
    return metrics.Histogram(series.name, series.text, list(series.buckets), labels)
