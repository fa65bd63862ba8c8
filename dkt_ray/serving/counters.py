"""What one replica counts, as Prometheus text for `/metrics`: requests, their durations, batches, members left out.

Ray exports its own series, of all replicas, on each node's metrics port: a dashboard of a cluster reads those.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import prometheus_client as prometheus
from fastapi import Response
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from dkt_ray.serving.edge import App, Message, Receive, Scope, Send

CLIENT_GONE: Final = 499  # no response was begun
BUCKETS_S: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Tally(NamedTuple):
    """Counts that somebody keeps, as a series."""

    name: str
    text: str
    bundle: str
    labels: tuple[str, ...]  # what the keys of the counts say
    counts: Counter[str] | Counter[tuple[str, str]]


class Counters(Collector):
    """The counters of one replica.

    Args:
        tallies: what others count; read when the counters are.
    """

    def __init__(self, tallies: Sequence[Tally] = ()) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._tallies = tallies
        self._requests = prometheus.Counter(
            "dkt_requests", "HTTP requests answered", ["route", "status"], registry=self._registry
        )
        self._seconds = prometheus.Histogram(
            "dkt_request_seconds",
            "from the first byte to the last one of the answer",
            ["route"],
            buckets=BUCKETS_S,
            registry=self._registry,
        )

    def add(self, route: str, status: int, seconds: float) -> None:
        """One more request has ended."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """The tallies, in the form of prometheus_client."""
        families: dict[str, CounterMetricFamily] = {}
        for name, text, bundle, labels, counts in self._tallies:
            family = families.setdefault(name, CounterMetricFamily(name, text, labels=("bundle", *labels)))
            for key, count in list(counts.items()):
                family.add_metric([bundle, *((key,) if isinstance(key, str) else key)], count)
        yield from families.values()

    def response(self) -> Response:
        """All counters as text."""
        return Response(prometheus.generate_latest(self._registry), media_type=prometheus.CONTENT_TYPE_LATEST)


class Counted:
    """ASGI middleware: counts every request, also those that the edge refuses."""

    def __init__(self, app: App, counters: Counters) -> None:
        self.app = app
        self.counters = counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), CLIENT_GONE

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception:
            status = 500  # made outside of this
            raise
        finally:
            path = getattr(scope.get("route"), "path", "other")  # not the path as sent: it may be anything
            self.counters.add(path, status, time.perf_counter() - started)
