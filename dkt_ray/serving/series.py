"""Every series that the service tells, defined once: `/metrics` of a replica and Ray's metrics port show the same.

Labels have few values: templates of routes, names of members, digests of bundles; never what a request holds.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple, Protocol

SECONDS: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
STAGE_S: Final = (0.0005, 0.001, 0.002, 0.005, *SECONDS[1:])
SIZES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
APART: Final = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
SHORT: Final = 12  # characters of a bundle's digest in labels and log lines


class Series(NamedTuple):
    """A series by its definition."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()  # upper ends, of a histogram

    @property
    def exposed(self) -> tuple[str, ...]:
        """The names under which Prometheus reads it from a replica; from Ray each begins with `ray_`."""
        if self.kind == "histogram":
            return f"{self.name}_bucket", f"{self.name}_sum", f"{self.name}_count"
        return (f"{self.name}_total" if self.kind == "counter" else self.name,)


REQUESTS: Final = Series("dkt_requests", "counter", "HTTP requests answered", ("route", "status"))
REQUEST_SECONDS: Final = Series(
    "dkt_request_seconds", "histogram", "from the first byte to the last one of the answer", ("route",), SECONDS
)
STAGE_SECONDS: Final = Series(
    "dkt_stage_seconds",
    "histogram",
    "what a query waits (queue), and a pass over a batch takes",
    ("stage",),
    STAGE_S,
)
BATCHING: Final = Series("dkt_batching", "counter", "batches, and queries by what became of them", ("bundle", "what"))
BATCH_QUERIES: Final = Series("dkt_batch_queries", "histogram", "queries in one batch", ("bundle",), SIZES)
LEFT_OUT: Final = Series(
    "dkt_left_out",
    "counter",
    "batches that a member took no part in, or (some) not for every student",
    ("bundle", "member", "why"),
)
SPREAD: Final = Series(
    "dkt_spread", "histogram", "how far the members are apart, mean over a query's targets", ("bundle",), APART
)
SCORES: Final = Series("dkt_scores", "counter", "targets by their probability, in tenths", ("bundle", "tenth"))
COLD_STARTS: Final = Series("dkt_cold_starts", "counter", "queries with an empty history", ("bundle",))
UNKNOWN: Final = Series("dkt_unknown_questions", "counter", "targets that the model does not know", ("bundle",))
EVENTS: Final = Series("dkt_events", "counter", "events received, by what became of them", ("what",))
REFUSED: Final = Series("dkt_refused", "counter", "requests refused before they were read", ("why",))
DRIFT: Final = Series(
    "dkt_drift", "gauge", "population stability index of requests against training", ("bundle", "quantity")
)
PREDICTIONS: Final = Series("dkt_predictions", "counter", "kept for stored users, by what became of it", ("what",))
UNEXPORTED: Final = Series("dkt_unexported_seconds", "gauge", "age of the oldest graded event that is not exported")
OUTCOMES: Final = Series("dkt_outcomes", "gauge", "predictions with their answer in the window", ("bundle",))
LIVE: Final = Series("dkt_live", "gauge", "figure over the outcomes in the window", ("bundle", "figure"))

SERIES: Final = (
    REQUESTS,
    REQUEST_SECONDS,
    STAGE_SECONDS,
    BATCHING,
    BATCH_QUERIES,
    LEFT_OUT,
    SPREAD,
    SCORES,
    COLD_STARTS,
    UNKNOWN,
    EVENTS,
    REFUSED,
    DRIFT,
    PREDICTIONS,
    UNEXPORTED,
    OUTCOMES,
    LIVE,
)


class Meter(Protocol):
    """Who keeps series, for somebody to read."""

    def add(self, series: Series, value: float, *labels: str) -> None:
        """Count up by a value, observe it, or set it, as the series' kind says."""


class Meters:
    """Several meters as one, and those who are asked for what they know whenever the meters are read."""

    def __init__(self, *meters: Meter) -> None:
        self._meters = meters
        self._asked: list[Callable[[Meters], None]] = []
        self._lock = threading.Lock()

    def add(self, series: Series, value: float, *labels: str) -> None:
        """As `Meter.add`, to all of them; adding nothing to a counter is nothing."""
        if value or series.kind != "counter":
            for meter in self._meters:
                meter.add(series, value, *labels)

    def ask(self, who: Callable[[Meters], None]) -> None:
        """From now on ask somebody who keeps counts of his own."""
        self._asked.append(who)

    def collect(self) -> None:
        """Bring all series up to date."""
        with self._lock:
            for who in self._asked:
                who(self)


def tally(series: Series, counts: Counter[Any], *labels: str) -> Callable[[Meters], None]:
    """Tells a counter what somebody else has counted since it was asked last.

    Args:
        counts: what grows; its keys, a string or several, are the last labels.
        labels: the first ones.
    """
    told: Counter[Any] = Counter()

    def tell(meters: Meters) -> None:
        for key, count in list(counts.items()):
            meters.add(series, count - told[key], *labels, *((key,) if isinstance(key, str) else key))
            told[key] = count

    return tell
