"""(Ray) The series of a replica on its node's metrics port, under the names of `series` with `ray_` before them."""

from __future__ import annotations

from ray.serve import metrics

from dkt_ray.serving.counters import Counters


class RaySeries:
    """Shows what `Counters` hold, labelled with the replica's name too; make it inside a replica.

    Every number is a gauge that is set now and then, whatever it counts: told of a request's numbers one by one, Ray
    takes 15 us for each and lets go of the GIL, which a thread that scores keeps for milliseconds.
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._gauges: dict[str, metrics.Gauge] = {}

    def export(self) -> None:
        """Tell Ray; it forgets what it was not told for 20 s."""
        for name, labels, value, text in self._counters.samples():
            if name not in self._gauges:
                tags: tuple[str, ...] = tuple(labels)
                self._gauges[name] = metrics.Gauge(name, text, tags)  # type: ignore[arg-type]  # it takes any number
            self._gauges[name].set(value, dict(labels))
