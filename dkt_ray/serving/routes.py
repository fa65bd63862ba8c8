"""The routes that score: a request is read, asked of the bundle that answers the student, and replied to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from fastapi import APIRouter, Request, Response
from pydantic_core import to_json

from dkt_ray.data.query import Query
from dkt_ray.ensemble.scorer import Scores
from dkt_ray.registry.catalogue import Catalogue
from dkt_ray.serving import edge, examples, knowledge, predict_batch, replies
from dkt_ray.serving.contract import (
    BatchRequest,
    BatchResponse,
    FieldError,
    KnowledgeRequest,
    KnowledgeResponse,
    PredictRequest,
    PredictResponse,
    RecommendRequest,
    RecommendResponse,
    ScoreRequest,
    ScoreResponse,
    ScoreSets,
    StudentRequest,
)
from dkt_ray.serving.memory import Memory, student_of
from dkt_ray.serving.predict_batch import Item
from dkt_ray.serving.predictor import Predictor
from dkt_ray.serving.recommend import recommended
from dkt_ray.serving.requests import Student, of_known, query


class Served(NamedTuple):
    """A bundle that answers here."""

    predictor: Predictor
    answer: Callable[[Query], Awaitable[Scores]]  # directly in a test, through dynamic batching in a replica


class Asked(NamedTuple):
    """Whom a request is about, and what answers it."""

    student: Student
    predictor: Predictor
    answer: Callable[[Query], Awaitable[Scores]]


Choose = Callable[[str | None], Served]  # which bundle answers a student; None: the one that the alias points to

DEFAULT_SET: Final = "default"
DEFAULT_SET_SIZE: Final = 100  # the most answered questions
PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    400: {"description": "the body is not JSON, or the path holds a control character", "content": {edge.PROBLEM: {}}},
    410: {"description": "the user was deleted", "content": {edge.PROBLEM: {}}},
    413: {"description": "the body is over 8 MB", "content": {edge.PROBLEM: {}}},
    415: {"description": "the body is not announced as JSON", "content": {edge.PROBLEM: {}}},
    422: {"description": "a field is wrong; `errors` names it", "content": {edge.PROBLEM: {}}},
    429: {"description": "too many requests are waiting; try again after `Retry-After` seconds"},
    503: {"description": "nothing can answer now; try again after `Retry-After` s", "content": {edge.PROBLEM: {}}},
}


def scoring(choose: Choose, score_sets: ScoreSets, memory: Memory | None = None) -> APIRouter:
    """The routes that score, for the bundles that answer here.

    Args:
        score_sets: name -> questions of a set that `/v1/score` can be asked for.
        memory: of the users whom a request may name.
    """
    router = APIRouter(prefix="/v1", responses=PROBLEMS)
    asked = partial(_asked, choose, memory)

    async def predict(body: PredictRequest, request: Request) -> Response:
        """The probability that the student answers each target right."""
        student, predictor, answer = await asked(body, request)
        return reply(replies.predicted(predictor, student, body, await answer(query(student.past, body.targets))))

    async def batch(body: BatchRequest, request: Request) -> Response:
        """The same for up to 256 students, each answered or refused by itself."""

        async def one(item: Item) -> dict[str, Any]:
            predictor, answer = choose(item.student.key)
            return replies.predicted(predictor, item.student, item.request, await answer(item.query))

        items = await predict_batch.items(body.students, partial(student_of, request=request, memory=memory), one)
        versions = {item["answer"]["model_version"] for item in items if "answer" in item}
        return reply({"items": items}, ", ".join(sorted(versions)))

    async def knowledge_state(body: KnowledgeRequest, request: Request) -> Response:
        """Mastery per concept and head, now and after each of the last answers: a mean over at most three questions."""
        student, predictor, answer = await asked(body, request)
        plan = knowledge.plan(body, student.past, predictor.catalogue)
        scores = await answer(knowledge.query(student.past, plan))
        return reply(replies.about(predictor, student, scores) | knowledge.state(plan, scores.probability))

    async def recommend(body: RecommendRequest, request: Request) -> Response:
        """What to ask next: by success band or by expected gain, with a reason for each question."""
        student, predictor, answer = await asked(body, request)
        scores, found = await recommended(body, student.past, predictor.catalogue, answer)
        return reply(replies.about(predictor, student, scores) | found)

    async def score(body: ScoreRequest, request: Request) -> Response:
        """0 to 100: how much of a set of questions the student is expected to answer right."""
        student, predictor, answer = await asked(body, request)
        questions = _score_set(body.target_set, score_sets, predictor.catalogue)
        asked_for = of_known(student.past, questions)
        return reply(replies.score(predictor, student, body, questions, await answer(asked_for)))

    told = examples.openapi(choose(None).predictor.catalogue)
    for path, endpoint, response in (
        ("/predict", predict, PredictResponse),
        ("/predict:batch", batch, BatchResponse),
        ("/knowledge-state", knowledge_state, KnowledgeResponse),
        ("/recommend", recommend, RecommendResponse),
        ("/score", score, ScoreResponse),
    ):
        router.add_api_route(path, endpoint, methods=["POST"], response_model=response, openapi_extra=told[path])
    return router


async def _asked(choose: Choose, memory: Memory | None, body: StudentRequest, request: Request) -> Asked:
    student = await student_of(body, request, memory)
    return Asked(student, *choose(student.key))


def _score_set(name: str, sets: ScoreSets, catalogue: Catalogue) -> Sequence[str]:
    if name in sets:
        return sets[name]
    if name != DEFAULT_SET or not catalogue.rows:
        there = ", ".join(dict.fromkeys((DEFAULT_SET, *sets)))
        raise FieldError("/target_set", f"is not a set of this service; expected one of {there}")
    return [row["question"] for row in catalogue.rows[:DEFAULT_SET_SIZE]]


def reply(content: dict[str, Any], version: str = "") -> Response:
    """JSON, with the version that answered, its `model_version` if nothing else is given, in the header."""
    version = version or content.get("model_version", "")
    headers = {edge.VERSION: version} if version else None
    return Response(to_json(content), headers=headers, media_type="application/json")
