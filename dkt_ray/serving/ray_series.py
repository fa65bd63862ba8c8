"""(Ray) The series of a replica on its node's metrics port, under the names of `series` with `ray_` before them."""

from __future__ import annotations

import threading
from collections import Counter, deque
from typing import Any, Final

from ray.serve import metrics

from dkt_ray.serving.periodic import every
from dkt_ray.serving.series import Meters, Series

EVERY_S: Final = 2.0
MOST: Final = 20_000  # numbers that wait to be told, the latest: under a load that outruns the telling, a sample


class RaySeries:
    """A `Meter` that Ray exports, labelled with the replica's name too; make it inside a replica.

    Ray is told from a thread of its own: for each number it lets go of the GIL, and who serves requests would wait
    for the thread that scores. A histogram is one of Ray's, not a gauge per bucket: on each node Ray keeps 2,000 sets
    of labels of a name at most, those of dead replicas too, and then none of any other.
    """

    def __init__(self) -> None:
        self._kept: dict[str, metrics.Counter | metrics.Gauge | metrics.Histogram] = {}
        self._counts: Counter[tuple[Series, tuple[str, ...]]] = Counter()
        self._numbers: deque[tuple[Series, tuple[str, ...], float]] = deque(maxlen=MOST)
        self._lock = threading.Lock()

    def add(self, series: Series, value: float, *labels: str) -> None:
        """As `Meter.add`."""
        if series.kind == "counter":
            with self._lock:
                self._counts[series, labels] += value  # type: ignore[assignment]  # a Counter adds floats, too
        else:
            self._numbers.append((series, labels, value))

    def watch(self, meters: Meters) -> None:
        """Bring the meters up to date and tell Ray, every two seconds, in a thread that ends with the process."""

        def tell() -> None:
            meters.collect()
            self.export()

        every(EVERY_S, tell, "ray series", threading.Event())

    def export(self) -> None:
        """Tell Ray what has been added since."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        for (series, labels), value in counts.items():
            self._tell(series, labels, value)
        for _ in range(len(self._numbers)):
            self._tell(*self._numbers.popleft())

    def _tell(self, series: Series, labels: tuple[str, ...], value: float) -> None:
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
