"""(Ray) What one replica has loaded: its bundles, verified and warm, what it remembers, and where it tells of itself.

Importing this takes seconds of a processor, so that only replicas do.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from functools import partial
from typing import Final

import ray
from fastapi import FastAPI
from ray import serve

from dkt_ray import log
from dkt_ray.errors import DktError
from dkt_ray.events.database import check_shared, events_url
from dkt_ray.events.outcomes import Outcomes
from dkt_ray.events.sql import open_events
from dkt_ray.privacy import Privacy
from dkt_ray.registry.cache import local_copy
from dkt_ray.registry.forgotten import Marks, mark_bundles
from dkt_ray.registry.store import Registry
from dkt_ray.serving import fleet, series
from dkt_ray.serving.api import Served, build_app
from dkt_ray.serving.batching import Batcher
from dkt_ray.serving.breaker import Breakers
from dkt_ray.serving.contract import MAX_ROWS
from dkt_ray.serving.counters import Counters
from dkt_ray.serving.deployments import ServeArgs
from dkt_ray.serving.journal import Journal, unexported_since
from dkt_ray.serving.memory import Memory
from dkt_ray.serving.predictor import Predictor
from dkt_ray.serving.ray_series import RaySeries
from dkt_ray.serving.ring import Ring
from dkt_ray.serving.series import SHORT, Meters, tally
from dkt_ray.serving.split import Split
from dkt_ray.serving.telemetry import Telemetry, access
from dkt_ray.storage import open_store

logger = logging.getLogger(__name__)

STUCK_S: Final = 60.0  # a batch that runs longer than this takes its replica with it
KERNELS: Final = 64  # that oneDNN keeps compiled, one a shape, 0.1 MB each; of its 1,024 few are met again


class ReplicaError(DktError):
    """A replica cannot go on; Serve replaces it."""


class Loaded:
    """All that a replica serves with; make it inside one.

    Args:
        args: with digests for names of bundles.
    """

    def __init__(self, args: ServeArgs) -> None:
        _share_the_machine()
        self._args = args
        log.configure(json=True)
        self._store = open_store(args.store)
        self._batchers: list[Batcher] = []
        self._telemetry = _telemetry(args)
        self._ring = Ring(self._store, fleet.replicas, args.keys == "required" or not fleet.on_loopback())
        self._ring.watch()
        self.split = Split(self._load(args.bundle), self._load(args.challenger) if args.challenger else None)
        self._memory = self._remember()

    def app(self) -> FastAPI:
        """The API."""
        return build_app(
            self.split.choose,
            names_requests=False,  # Serve's proxy does
            score_sets=self._args.score_sets,
            challenger=self.split.challenger,
            telemetry=self._telemetry,
            memory=self._memory,
            known=lambda: self._ring.known,
            marked=Marks(Registry(self._store)),
        )

    def check_health(self) -> None:
        """Raise when scoring hangs."""
        busy_s = max(batcher.busy_s for batcher in self._batchers)
        if busy_s > STUCK_S:
            raise ReplicaError(f"one batch has been running for {busy_s:.0f} s")

    def close(self) -> None:
        """Write down what waits to be."""
        if self._memory:
            if journal := self._telemetry.journal:
                journal.close()
            self._memory.close()
        for handler in access.handlers:
            handler.flush()

    def _load(self, digest: str) -> Served:
        args = self._args
        folder = local_copy(Registry(self._store), digest, args.copies)
        predictor = Predictor.load(folder, digest)  # replays the golden requests, which warms it up too
        breakers = Breakers(args.breaker)  # the golden requests tolerated nothing
        answer = partial(predictor.answer, ask=breakers)
        meters, short = self._telemetry.meters, digest[:SHORT]
        tell = partial(self._telemetry.batched, digest)
        batcher = Batcher(answer, args.max_batch_requests, MAX_ROWS, args.max_waiting_rows, tell)
        self._batchers.append(batcher)
        meters.ask(tally(series.BATCHING, batcher.counts, short))
        meters.ask(tally(series.LEFT_OUT, breakers.counts, short))
        logger.info("bundle %s is ready", digest)
        return Served(predictor, batcher)

    def _remember(self) -> Memory | None:
        url = events_url(self._args.events)
        if url is None:
            return None
        check_shared(url, len({node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}))
        opened, store = open_events(url, now=False), self._store
        outcomes = Outcomes(opened.engine, Privacy.of_environment())
        journal = Journal(outcomes, self._telemetry.meters, partial(unexported_since, opened.log, store))
        self._telemetry = replace(self._telemetry, journal=journal)
        return Memory.of(opened, mark_bundles=lambda mark: mark_bundles(Registry(store), [mark]), heard=journal.heard)


def _telemetry(args: ServeArgs) -> Telemetry:
    """What this replica counts is exported by Ray as well."""
    counters, exported = Counters(), RaySeries()
    meters = Meters(counters, exported)
    exported.watch(meters)
    log.gather(access)
    return Telemetry(counters, meters, args.access_log, serve.get_replica_context().replica_id.unique_id)


def _share_the_machine() -> None:
    """Parallelism comes from replicas, not from threads in one; and a burst of load does not stay in memory."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS))  # read when the first kernel is compiled
    import torch

    torch.set_num_threads(1)
