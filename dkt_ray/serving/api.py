"""The HTTP API as a FastAPI app around the bundles that answer here; knows nothing of Ray."""

from __future__ import annotations

import math
from asyncio import to_thread
from collections import Counter
from collections.abc import Callable
from importlib import resources
from time import monotonic
from typing import Annotated, Any, Final

from fastapi import APIRouter, FastAPI, Response
from fastapi import Query as Parameter
from fastapi.responses import HTMLResponse, PlainTextResponse
from starlette.middleware import Middleware

from dkt_ray import __version__
from dkt_ray.data.query import Query
from dkt_ray.registry.forgotten import Forgotten
from dkt_ray.serving import edge, events, series
from dkt_ray.serving.contract import MAX_CATALOGUE, CatalogueResponse, Health, ModelsResponse, ScoreSets
from dkt_ray.serving.guard import Guard
from dkt_ray.serving.keys import Known
from dkt_ray.serving.memory import Memory
from dkt_ray.serving.monitoring import monitoring
from dkt_ray.serving.predictor import Predictor, describe
from dkt_ray.serving.routes import PROBLEMS, Choose, Served, reply, scoring
from dkt_ray.serving.series import tally
from dkt_ray.serving.telemetry import Observed, Telemetry, traced

__all__ = ["Choose", "Served", "build_app"]

Marked = Callable[[str], Forgotten | None]

READY_S: Final = 1.0  # so long does /readyz remember that it was ready
_PAGE: Final = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
DOCS_POLICY: Final = f"{_PAGE}; frame-ancestors 'none'"


def build_app(
    choose: Choose,
    names_requests: bool = True,
    score_sets: ScoreSets | None = None,
    challenger: Predictor | None = None,
    telemetry: Telemetry | None = None,
    known: Callable[[], Known] = Known,
    memory: Memory | None = None,
    marked: Marked = lambda digest: None,
) -> FastAPI:
    """Make the app.

    Args:
        choose: asked once per request; many may be in flight at once.
        names_requests: whether responses get X-Request-Id here; false where a proxy in front does that.
        score_sets: name -> questions of a set that `/v1/score` can be asked for.
        challenger: the other bundle that answers here while a rollout is under way.
        telemetry: where the requests are told of; None: in `/metrics` and the log.
        known: the keys that count, asked once per request.
        memory: of users; None: requests bring their histories along.
        marked: which of a bundle's training users were deleted since; asked in a thread.
    """
    app = FastAPI(
        title="dkt-ray",
        version=__version__,
        summary="The probability that a student answers a question right",
        docs_url=None,
        redoc_url=None,
    )
    telemetry = telemetry or Telemetry.alone()
    predictor, refused = choose(None).predictor, Counter[str]()
    telemetry.meters.ask(tally(series.REFUSED, refused))
    app.include_router(scoring(traced(choose, telemetry), score_sets or {}, memory))
    app.include_router(events.events(memory, [row["question"] for row in predictor.catalogue.rows[:3]]))
    events.install(app)
    app.include_router(_reading(choose, challenger, telemetry, marked))
    for each in (predictor, challenger):
        if each is not None:
            telemetry.watch(each)
    app.include_router(monitoring(predictor, telemetry))
    edge.install(app, predictor.version, names_requests, Middleware(Guard, known, refused))
    app.add_middleware(Observed, telemetry=telemetry)  # last, so outermost
    return app


def _reading(choose: Choose, challenger: Predictor | None, telemetry: Telemetry, marked: Marked) -> APIRouter:
    router = APIRouter()
    predictor, answer = choose(None)
    rows = predictor.catalogue.rows
    ready_until = -math.inf

    @router.get("/v1/models", response_model=ModelsResponse)
    async def models() -> Response:
        """The bundle that answers, and its challenger in a rollout: members, weights, metrics and origin."""

        async def told(of: Predictor) -> dict[str, Any]:
            return describe(of, await to_thread(marked, of.version))

        return reply(await told(predictor) | {"challenger": challenger and await told(challenger)})

    @router.get("/v1/questions", response_model=CatalogueResponse, responses={422: PROBLEMS[422]})
    async def questions(limit: Annotated[int, Parameter(ge=1, le=MAX_CATALOGUE)] = 100) -> Response:
        """The questions that the model knows, the most answered first."""
        return reply({"model_version": predictor.version, "total": len(rows), "questions": rows[:limit]})

    @router.get("/livez", response_model=Health)
    async def livez() -> Response:
        """The event loop is alive."""
        return reply({"status": "alive"})

    @router.get("/readyz", response_model=Health)
    async def readyz() -> Response:
        """The bundle is loaded and answers, or did so within a second: who has no key cannot have more scored."""
        nonlocal ready_until
        if monotonic() >= ready_until:
            await answer(Query(question=[], correct=[], target=[row["question"] for row in rows[:1]] or ["none"]))
            ready_until = monotonic() + READY_S
        return reply({"status": "ready"})

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Series of this replica as Prometheus text; those of all replicas are on Ray's metrics port."""
        telemetry.meters.collect()
        return telemetry.counters.response()

    @router.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page, headers={"content-security-policy": DOCS_POLICY})

    page = (resources.files("dkt_ray.serving") / "docs.html").read_text(encoding="utf-8")
    return router
