"""The HTTP API as a FastAPI app around the bundles that answer here; knows nothing of Ray."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Annotated, Any, Final, NamedTuple

from fastapi import APIRouter, FastAPI, Response
from fastapi import Query as Parameter
from fastapi.responses import HTMLResponse
from pydantic_core import to_json

from dkt_ray import __version__
from dkt_ray.data.query import Query
from dkt_ray.ensemble.scorer import Scores
from dkt_ray.registry.catalogue import Catalogue
from dkt_ray.serving import edge, replies
from dkt_ray.serving import predictor as scoring
from dkt_ray.serving.contract import (
    MAX_CATALOGUE,
    CatalogueResponse,
    FieldError,
    Health,
    KnowledgeRequest,
    KnowledgeResponse,
    ModelsResponse,
    PredictRequest,
    PredictResponse,
    Target,
)
from dkt_ray.serving.predictor import Predictor
from dkt_ray.serving.requests import query


class Served(NamedTuple):
    """A bundle that answers here."""

    predictor: Predictor
    answer: Callable[[Query], Awaitable[Scores]]  # directly in a test, through dynamic batching in a replica


Choose = Callable[[str | None], Served]  # which bundle answers a student; None: the one that the alias points to

DOCS_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    400: {"description": "the body is not JSON", "content": {edge.PROBLEM: {}}},
    413: {"description": "the body is over 8 MB", "content": {edge.PROBLEM: {}}},
    415: {"description": "the body is not announced as JSON", "content": {edge.PROBLEM: {}}},
    422: {"description": "a field is wrong; `errors` names it", "content": {edge.PROBLEM: {}}},
    429: {"description": "too many requests are waiting; try again after `Retry-After` seconds"},
}


def build_app(choose: Choose, names_requests: bool = True) -> FastAPI:
    """Make the app.

    Args:
        choose: asked once per request; many may be in flight at once.
        names_requests: whether responses get X-Request-Id here; false where a proxy in front does that.
    """
    app = FastAPI(
        title="dkt-ray",
        version=__version__,
        summary="The probability that a student answers a question right",
        docs_url=None,
        redoc_url=None,
    )
    app.include_router(_scoring(choose))
    app.include_router(_reading(choose))
    edge.install(app, choose(None).predictor.version, names_requests)
    return app


def _scoring(choose: Choose) -> APIRouter:
    router = APIRouter(prefix="/v1", responses=PROBLEMS)
    catalogue = choose(None).predictor.catalogue

    async def predict(request: PredictRequest) -> Response:
        """The probability that the student answers each target right."""
        predictor, answer = choose(request.student)
        scores = await answer(query(request, request.targets))
        return _json(replies.predicted(predictor, request, scores))

    async def knowledge_state(request: KnowledgeRequest) -> Response:
        """Mastery per concept: the mean probability over at most three questions that stand for the concept."""
        predictor, answer = choose(request.student)
        probes = predictor.catalogue.probes(_concepts(request, predictor.catalogue))
        questions = list(dict.fromkeys(question for several in probes.values() for question in several))
        scores = await answer(query(request, [Target(question=question) for question in questions]))
        mastered = [each._asdict() for each in scoring.mastery(probes, questions, scores)]
        return _json(replies.about(predictor, request, scores) | {"concepts": mastered})

    for path, endpoint, response, examples in (
        ("/predict", predict, PredictResponse, _predict_examples(catalogue)),
        ("/knowledge-state", knowledge_state, KnowledgeResponse, _knowledge_examples(catalogue)),
    ):
        extra = {"requestBody": {"content": {"application/json": {"examples": examples}}}}
        router.add_api_route(path, endpoint, methods=["POST"], response_model=response, openapi_extra=extra)
    return router


def _reading(choose: Choose) -> APIRouter:
    router = APIRouter()
    predictor, answer = choose(None)
    rows = predictor.catalogue.rows

    @router.get("/v1/models", response_model=ModelsResponse)
    async def models() -> Response:
        """The bundle that answers here: its members, weights, metrics and origin."""
        return _json(scoring.describe(predictor))

    @router.get("/v1/questions", response_model=CatalogueResponse, responses={422: PROBLEMS[422]})
    async def questions(limit: Annotated[int, Parameter(ge=1, le=MAX_CATALOGUE)] = 100) -> Response:
        """The questions that the model knows, the most answered first."""
        return _json({"model_version": predictor.version, "total": len(rows), "questions": rows[:limit]})

    @router.get("/livez", response_model=Health)
    async def livez() -> Response:
        """The event loop is alive."""
        return _json({"status": "alive"})

    @router.get("/readyz", response_model=Health)
    async def readyz() -> Response:
        """The bundle is loaded and answers."""
        await answer(Query(question=[], correct=[], target=[row["question"] for row in rows[:1]] or ["none"]))
        return _json({"status": "ready"})

    @router.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page, headers={"content-security-policy": DOCS_POLICY})

    page = (resources.files("dkt_ray.serving") / "docs.html").read_text(encoding="utf-8")
    return router


def _concepts(request: KnowledgeRequest, catalogue: Catalogue) -> list[str]:
    if request.concepts is None:
        history = [event.question for event in request.history]
        given = [event.concepts or [] for event in request.history]
        return scoring.shown_concepts(catalogue, history, given, request.limit)
    known = catalogue.probes(request.concepts)
    for index, concept in enumerate(request.concepts):
        if concept not in known:
            raise FieldError(f"/concepts/{index}", "is not a concept of the model; GET /v1/questions lists them")
    return request.concepts


def _predict_examples(catalogue: Catalogue) -> dict[str, Any]:
    """Requests that run as they stand, with questions of this bundle."""
    known = [row["question"] for row in catalogue.rows[:4]] or ["any"]
    history = [{"question": question, "correct": index % 2} for index, question in enumerate(known)]
    timed = [event | {"timestamp": f"2026-03-02 16:0{index}:00"} for index, event in enumerate(history)]
    return {
        "a student": {"value": {"history": history, "targets": known[:2]}},
        "with times": {"value": {"history": timed, "targets": known[:1], "at": "2026-03-02 16:05:00"}},
        "cold start": {"value": {"history": [], "targets": known[:1]}},
        "a new question": {"value": {"history": history, "targets": [{"question": "new", "concepts": ["1"]}]}},
    }


def _knowledge_examples(catalogue: Catalogue) -> dict[str, Any]:
    known = [row["question"] for row in catalogue.rows[:4]]
    history = [{"question": question, "correct": index % 2} for index, question in enumerate(known)]
    return {"a student": {"value": {"history": history, "limit": 5}}}


def _json(content: dict[str, Any]) -> Response:
    """JSON; its `model_version`, where it has one, is in the header too."""
    version = content.get("model_version")
    return Response(to_json(content), headers=version and {edge.VERSION: version}, media_type="application/json")
