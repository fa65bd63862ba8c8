"""What a service tells of its requests: series, the access log, and `Server-Timing`.

No id, question or answer of a request is in any of them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Final

import numpy as np
from starlette.datastructures import MutableHeaders

from dkt_ray.data.query import Query
from dkt_ray.ensemble.scorer import Scores
from dkt_ray.privacy import Privacy
from dkt_ray.registry.profile import difficulties
from dkt_ray.serving import drift, series
from dkt_ray.serving.counters import Counters
from dkt_ray.serving.drift import Drift
from dkt_ray.serving.edge import App, Message, Receive, Scope, Send
from dkt_ray.serving.journal import Journal
from dkt_ray.serving.predictor import Predictor
from dkt_ray.serving.routes import Choose, Served
from dkt_ray.serving.series import SHORT, Meters
from dkt_ray.serving.trace import QUEUE, TRACE, USER, Trace, current

access = logging.getLogger("dkt_ray.access")

CLIENT_GONE: Final = 499  # no response was begun
TIMING: Final = "server-timing"
PREDICTS: Final = frozenset({"/v1/predict", "/v1/predict:batch"})  # what others ask says nothing about the students
TENTHS: Final = tuple(f"{tenth / 10:.1f}" for tenth in range(10))


@dataclass(frozen=True, eq=False)
class Telemetry:
    """Where one replica tells what it does."""

    counters: Counters = field(default_factory=Counters)
    """What `/metrics` shows."""
    meters: Meters = field(default_factory=Meters)
    """Where everything is counted: `counters`, and where Ray runs its exporter."""
    access_log: bool = True
    """Whether each request has a line in the log."""
    replica: str = ""
    """Its name, for the log."""
    drifts: dict[str, Drift] = field(default_factory=dict)
    """Of the bundles that answer here, where they have a profile."""
    journal: Journal | None = None
    """Where predictions for stored users are written down, where there are any."""

    @classmethod
    def alone(cls) -> Telemetry:
        """Without Ray."""
        counters = Counters()
        return cls(counters, Meters(counters))

    def watch(self, predictor: Predictor) -> None:
        """Compare what a bundle is asked with what it was trained on."""
        if predictor.profile is not None:
            made = self.drifts[predictor.version] = Drift(predictor.profile, difficulties(predictor.catalogue))
            self.meters.ask(partial(drift.tell, predictor.version[:SHORT], made))

    def batched(self, bundle: str, scores: Sequence[Scores]) -> None:
        """A batch was scored; what its queries share counts once."""
        self.meters.add(series.BATCH_QUERIES, len(scores), bundle[:SHORT])
        for seconds in {id(each.seconds): each.seconds for each in scores}.values():
            for stage, part in seconds.items():
                self.meters.add(series.STAGE_SECONDS, part, stage)

    def scored(self, bundle: str, query: Query, scores: Scores) -> None:
        """A query has its answer."""
        trace = current()
        trace.scored(bundle, query, scores)
        if trace.route in PREDICTS:
            if bundle in self.drifts:
                self.drifts[bundle].add(query, scores)
            if self.journal is not None and (user := USER.get()) is not None:
                trace.foreseen.append((user, bundle, query, scores))
        add, short = self.meters.add, bundle[:SHORT]
        add(series.STAGE_SECONDS, scores.waited, QUEUE)
        add(series.COLD_STARTS, not query.question, short)
        add(series.UNKNOWN, int(scores.unknown.sum()), short)
        if scores.members and scores.spread.size:
            add(series.SPREAD, float(scores.spread.mean()), short)
        tenth_of = np.minimum((scores.probability * 10).astype(np.int64), 9)
        tenths = (tenth_of[:, None] == np.arange(10)).sum(axis=0)  # `bincount` lets go of the GIL, even for one value
        for tenth, count in zip(TENTHS, tenths.tolist(), strict=True):
            add(series.SCORES, count, short, tenth)

    def ended(self, trace: Trace, status: int, seconds: float) -> None:
        """A request has ended."""
        for what, events in trace.appended.items():
            self.meters.add(series.EVENTS, events, what)
        if self.journal is not None and status == HTTPStatus.OK:  # nobody was shown anything else
            for foreseen in trace.foreseen:
                self.journal.predicted(*foreseen)
            if trace.shown is not None and trace.users:
                [user], [bundle] = trace.users, trace.bundles
                self.journal.recommended(user, bundle, *trace.shown)
        self.meters.add(series.REQUESTS, 1, trace.route, str(status))
        self.meters.add(series.REQUEST_SECONDS, seconds, trace.route)
        if self.access_log and access.isEnabledFor(logging.INFO):
            access.info("request", extra=_line(trace, status, seconds) | {"replica": self.replica})


def traced(choose: Choose, telemetry: Telemetry) -> Choose:
    """The same choice; what is scored for a request is noted."""

    def chosen(student: str | None) -> Served:
        served = choose(student)
        bundle = served.predictor.version

        async def answer(query: Query) -> Scores:
            scores = await served.answer(query)
            telemetry.scored(bundle, query, scores)
            return scores

        return served._replace(answer=answer)

    return chosen


class Observed:
    """ASGI middleware, the outermost: every request is told of, also those that the edge refuses."""

    def __init__(self, app: App, telemetry: Telemetry) -> None:
        self.app = app
        self.telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, trace = time.perf_counter(), CLIENT_GONE, Trace(scope)

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if trace.passes:
                    headers = MutableHeaders(raw=message["headers"])
                    headers[TIMING] = server_timing(trace.stages | {"total": time.perf_counter() - started})
                    message["headers"] = headers.raw
            await send(message)

        here = TRACE.set(trace)
        try:
            await self.app(scope, receive, watched)
        except Exception:
            status = 500  # made outside of this
            raise
        finally:
            TRACE.reset(here)
            self.telemetry.ended(trace, status, time.perf_counter() - started)


def server_timing(stages: dict[str, float]) -> str:
    """The header's value (W3C Server Timing): milliseconds by stage."""
    return ", ".join(f"{stage};dur={1000 * seconds:.2f}" for stage, seconds in stages.items())


def _line(trace: Trace, status: int, seconds: float) -> dict[str, object]:
    """Fields of the access log."""
    state = trace.scope.get("state", {})
    line: dict[str, object] = {
        "request_id": state.get("request_id", ""),
        "route": trace.route,
        "status": status,
        "ms": round(1000 * seconds, 2),
    }
    if trace.passes:
        line |= {
            "queue_ms": round(1000 * trace.waited, 2),
            "bundle": ",".join(sorted(bundle[:SHORT] for bundle in trace.bundles)),
            "events": trace.events,
            "targets": trace.targets,
        }
    if name := getattr(state.get("caller"), "name", ""):
        line["caller"] = name
    if len(trace.users) == 1 and (privacy := Privacy.of_environment()).key is not None:
        # without one, whoever has a list of users finds them
        [user] = trace.users
        line["user"] = privacy.mark(user)[:SHORT]
    elif trace.users:
        line["users"] = len(trace.users)
    return line
