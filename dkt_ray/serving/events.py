"""`/v1/events` and `/v1/users`: answers are kept, told, and deleted with their user."""

from __future__ import annotations

import time
from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, FastAPI, HTTPException, Path, Request, Response
from fastapi import Query as Parameter
from pydantic_core import to_json

from dkt_ray.events.model import EventConflictError, ForgottenError
from dkt_ray.serving import edge, examples, routes
from dkt_ray.serving.contract import MAX_STORED, StoredId
from dkt_ray.serving.events_contract import (
    MAX_LATEST,
    CountResponse,
    EventsRequest,
    EventsResponse,
    LoggedAnswer,
    ReceiptResponse,
    UserResponse,
)
from dkt_ray.serving.memory import Memory, receipt_id, tenant, time_of
from dkt_ray.serving.trace import current

KEEPS_NONE: Final = "This service keeps no events: start it with `events`, the URL of a database"
REMAINS: Final = (
    "`dkt forget` removes the user from exports, and the next `dkt prepare` from prepared data; models that were "
    "trained on his answers are marked, and serve until a new one takes their place"
)
USER: Final = "/users/{user_id:path}"  # ids with a slash, too
PROBLEMS: Final[dict[int | str, dict[str, Any]]] = routes.PROBLEMS | {
    409: {"description": "an event's id belongs to an event of other content", "content": {edge.PROBLEM: {}}},
}


def events(memory: Memory | None, known: Sequence[str]) -> APIRouter:
    """The routes about events and users.

    Args:
        memory: None: there are none, and each route says so.
        known: questions for the examples of the documentation.
    """
    router = APIRouter(prefix="/v1", responses={} if memory is None else PROBLEMS)
    if memory is None:
        for path in ("/events", "/events/count", USER):
            router.add_api_route(path, _keeps_none, methods=["GET", "POST", "DELETE"], include_in_schema=False)
        return router
    _about_events(router, memory, known)
    _about_users(router, memory)
    return router


def install(app: FastAPI) -> None:
    """Say what became of an event or a user that is not there any more."""
    app.add_exception_handler(EventConflictError, _on_conflict)
    app.add_exception_handler(ForgottenError, _on_forgotten)


async def _keeps_none() -> Response:
    raise HTTPException(HTTPStatus.NOT_FOUND, KEEPS_NONE)


def _on_conflict(request: Request, error: Exception) -> Response:
    assert isinstance(error, EventConflictError)
    errors = [{"pointer": f"/events/{error.index}/event_id", "message": "belongs to an event of other content"}]
    return edge.respond(request, HTTPStatus.CONFLICT, str(error), errors)


def _on_forgotten(request: Request, error: Exception) -> Response:
    assert isinstance(error, ForgottenError)
    return edge.respond(request, HTTPStatus.GONE, str(error))


def _reply(content: Any) -> Response:
    return Response(to_json(content), media_type="application/json")


def _about_events(router: APIRouter, memory: Memory, known: Sequence[str]) -> None:
    @router.post("/events", response_model=EventsResponse, openapi_extra=examples.body(examples.events(known)))
    async def append(body: EventsRequest, request: Request) -> Response:
        """Keep answers: each once, however often it is sent; from now on `user_id` stands for them."""
        now = time.time_ns() // 1_000_000
        appended = await memory.append(body.events, tenant(request), now)
        current().appended = appended.counts
        return _reply(EventsResponse(**appended.counts, received_at=time_of(now)))

    @router.get("/events/count", response_model=CountResponse)
    async def count() -> Response:
        """How many graded events the log holds, of all users."""
        return _reply(CountResponse(events=await memory.count()))


def _about_users(router: APIRouter, memory: Memory) -> None:
    @router.get(USER, response_model=UserResponse, responses={404: {"description": "no such user"}})
    async def user(
        user_id: Annotated[StoredId, Path()],
        request: Request,
        answers: Annotated[int, Parameter(ge=0, le=MAX_LATEST, description="how many of the latest to tell")] = 0,
    ) -> Response:
        """What is kept of a user, without raw answers."""
        name, history = await memory.history(user_id, tenant(request), MAX_STORED)
        waiting = await memory.ask(memory.histories.waiting, name)
        if not history.question and not waiting:
            raise HTTPException(HTTPStatus.NOT_FOUND, "No answer of such a user is kept here")
        latest = slice(len(history.question) - min(answers, len(history.question)), None)
        rows = zip(history.question[latest], history.correct[latest], history.timestamp[latest], strict=True)
        return _reply(
            UserResponse(
                answers=len(history.question) + history.older,
                waiting=waiting,
                correct=sum(history.correct),
                first_answered_at=time_of(history.timestamp[0]) if history.question else None,
                last_answered_at=time_of(history.timestamp[-1]) if history.question else None,
                latest=[LoggedAnswer(question=q, correct=c, answered_at=time_of(at)) for q, c, at in rows],
            )
        )

    @router.delete(USER, response_model=ReceiptResponse)
    async def delete(user_id: Annotated[StoredId, Path()], request: Request) -> Response:
        """Delete a user: his events at once, and the id for ever, so that nothing late brings him back."""
        receipt, bundles = await memory.delete(user_id, tenant(request))
        return _reply(
            ReceiptResponse(
                receipt=receipt_id(receipt),
                deleted_at=time_of(receipt.deleted_at),
                removed=receipt.removed,
                bundles=list(bundles),
                remains=REMAINS,
            )
        )
