"""What one replica counts, as Prometheus text for `/metrics`.

Ray exports the same series, of all replicas, on each node's metrics port: a dashboard of a cluster reads those.
"""

from __future__ import annotations

import threading

import prometheus_client as prometheus
from fastapi import Response
from prometheus_client.registry import CollectorRegistry

from dkt_ray.serving.series import Series

Kept = prometheus.Counter | prometheus.Gauge | prometheus.Histogram


class Counters:
    """The series of one replica; a `Meter`."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._lock = threading.Lock()
        self._kept: dict[str, Kept] = {}
        self._children: dict[tuple[str, tuple[str, ...]], Kept] = {}  # by the values of their labels

    def add(self, series: Series, value: float, *labels: str) -> None:
        """As `Meter.add`."""
        child = self._children.get((series.name, labels)) or self._child(series, labels)
        if isinstance(child, prometheus.Counter):
            child.inc(value)
        elif isinstance(child, prometheus.Gauge):
            child.set(value)
        else:
            child.observe(value)

    def response(self) -> Response:
        """All series as text."""
        return Response(prometheus.generate_latest(self._registry), media_type=prometheus.CONTENT_TYPE_LATEST)

    def _child(self, series: Series, labels: tuple[str, ...]) -> Kept:
        with self._lock:  # several threads may be the first
            kept = self._kept.get(series.name) or self._keep(series)
            child = self._children[series.name, labels] = kept.labels(*labels) if labels else kept
        return child

    def _keep(self, series: Series) -> Kept:
        about = (series.name, series.text, series.labels)
        if series.kind == "counter":
            made: Kept = prometheus.Counter(*about, registry=self._registry)
        elif series.kind == "gauge":
            made = prometheus.Gauge(*about, registry=self._registry)
        else:
            made = prometheus.Histogram(*about, buckets=series.buckets, registry=self._registry)
        self._kept[series.name] = made
        return made
