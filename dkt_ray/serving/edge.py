"""The HTTP edge: body limit, deadline, request id, headers of every response, and errors as RFC 9457 problem details.

No error repeats what was sent: a problem names the field and the kind of value found, never the value.

Observed (outermost) -> Labels: who asks gets an id -> Guard: may he? -> Edge: limits -> the app
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextvars import ContextVar
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect

from dkt_ray.errors import OverloadedError, UnavailableError
from dkt_ray.serving import rights
from dkt_ray.serving.contract import CONTROLS, FieldError
from dkt_ray.serving.nesting import depth

MAX_BODY: Final = 8 << 20  # bytes
MAX_DEPTH: Final = 32  # arrays and objects inside each other
DEADLINE: Final = b"x-request-deadline-ms"
MAX_WAIT_S: Final = 30.0  # also for requests that name no deadline, and whatever a proxy in front was told
GONE: Final = 0.0  # a limit in the past: nobody is there to be told
LIMIT: Final[ContextVar[asyncio.Timeout | None]] = ContextVar("LIMIT", default=None)  # of the request at hand
PROBLEM: Final = "application/problem+json"
VERSION: Final = "x-model-version"
REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
RETRY_AFTER_S: Final = 1
MAX_NAME: Final = 64  # characters of a field name that an error repeats
SAFE: Final = {  # of every response that says nothing else; no HSTS, since this is plain HTTP
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Labels:
    """ASGI middleware: gives every request an id, and every response its headers.

    Args:
        version: the model's version, for responses that do not name one.
        names_requests: whether responses get X-Request-Id here; false where a proxy in front does that.
    """

    def __init__(self, app: App, version: str, names_requests: bool = True) -> None:
        self.app = app
        self.version = version
        self.names_requests = names_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def labelled(message: Message) -> None:
            if message["type"] == "http.response.start":
                out = MutableHeaders(raw=message["headers"])
                if self.names_requests:
                    out["x-request-id"] = request_id
                out.setdefault(VERSION, self.version)
                for name, value in SAFE.items():
                    out.setdefault(name, value)
                message["headers"] = out.raw
            await send(message)

        await self.app(scope, receive, labelled)


class Edge:
    """ASGI middleware: reads a body whole, up to the limit, before anything parses it.

    A request whose deadline passes, or whose client goes away, is cancelled wherever it waits.
    """

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        request_id = scope["state"]["request_id"]
        if refusal := _refusal(headers, scope, request_id):
            await refusal(scope, receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        limit = asyncio.timeout(min(MAX_WAIT_S, int(headers.get(DEADLINE, MAX_WAIT_S * 1000)) / 1000))
        LIMIT.set(limit)
        try:
            async with limit:
                await self._handle(scope, receive, watched, limit)
        except ClientDisconnect:
            return
        except TimeoutError:
            if not limit.expired():
                raise
            if not started and limit.when() != GONE:
                detail = (
                    "The request's deadline passed before its answer was there; send it again: nothing is done twice"
                )
                await problem(HTTPStatus.GATEWAY_TIMEOUT, detail, scope["path"], request_id)(scope, receive, send)

    async def _handle(self, scope: Scope, receive: Receive, send: Send, limit: asyncio.Timeout) -> None:
        body = await _read(receive)
        request_id = scope["state"]["request_id"]
        if body is None:
            await _too_large(scope["path"], request_id)(scope, receive, send)
            return
        if unreadable := _unreadable(body):
            await problem(HTTPStatus.BAD_REQUEST, unreadable, scope["path"], request_id)(scope, receive, send)
            return
        gone = asyncio.create_task(_until_gone(receive, limit))
        try:
            await self.app(scope, _replay(body, gone), send)
        finally:
            gone.cancel()


def is_late() -> bool:
    """Whether the request at hand is cancelled because its deadline has passed, not because its client has gone."""
    limit = LIMIT.get()
    return limit is not None and limit.expired() and limit.when() != GONE


def install(app: FastAPI, version: str, names_requests: bool, guard: Middleware | None = None) -> None:
    """Put the edge around an app and turn its errors into problem details.

    Args:
        guard: what decides who may ask, before a body is read.
    """
    app.add_middleware(Edge)
    if guard is not None:
        app.add_middleware(guard.cls, *guard.args, **guard.kwargs)
    app.add_middleware(Labels, version=version, names_requests=names_requests)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(FieldError, _on_field)
    app.add_exception_handler(UnavailableError, _on_unavailable)
    app.add_exception_handler(OverloadedError, _on_overload)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_crash)


def problem(
    status: HTTPStatus,
    detail: str,
    path: str,
    request_id: str,
    errors: Sequence[Mapping[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Problem details (RFC 9457), with the request's id and the fields at fault."""
    content: dict[str, Any] = {"type": "about:blank", "title": status.phrase, "status": status.value, "detail": detail}
    content |= {"instance": rights.told(path), "request_id": request_id}
    if errors:
        content["errors"] = list(errors)
    return Response(json.dumps(content), status.value, headers, PROBLEM)


def _refusal(headers: Mapping[bytes, bytes], scope: Scope, request_id: str) -> Response | None:
    """What can be refused from the headers alone."""
    path = scope["path"]
    if CONTROLS.search(path):  # the router would take a line feed at the end away, and with it name somebody else
        detail = "The path has a control character in it; leave it out"
        return problem(HTTPStatus.BAD_REQUEST, detail, path, request_id)
    if not re.fullmatch(rb"[0-9]{1,9}", headers.get(DEADLINE, b"0")):
        detail = "X-Request-Deadline-Ms is not a whole number of milliseconds; send how long you still wait"
        return problem(HTTPStatus.BAD_REQUEST, detail, path, request_id)
    if scope["method"] not in ("POST", "PUT", "PATCH"):
        return None
    media = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if media != b"application/json":
        detail = "Content-Type is not application/json; send the request as JSON with that header"
        return problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, detail, path, request_id)
    if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        detail = "Content-Encoding is not taken; send the body as it is"
        return problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, detail, path, request_id)
    length = headers.get(b"content-length", b"0")
    return _too_large(path, request_id) if length.isdigit() and int(length) > MAX_BODY else None


def _unreadable(body: bytes) -> str | None:
    """Why no parser should see a body."""
    if b"\0" in body:
        return "The body is not JSON in UTF-8"
    return f"The body is nested deeper than {MAX_DEPTH} levels" if depth(body) > MAX_DEPTH else None


def _too_large(path: str, request_id: str) -> Response:
    detail = f"The body is over the limit of {MAX_BODY} bytes; send the latest events only, or fewer targets a request"
    return problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail, path, request_id, headers={"connection": "close"})


async def _read(receive: Receive) -> bytes | None:
    """The whole body, or None as soon as it is over the limit (chunked bodies announce no length).

    Raises:
        ClientDisconnect: the client went away before it had sent all of it.
    """
    body = bytearray()
    more = True
    while more:
        message = await _next(receive)
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            return None
        more = message.get("more_body", False)
    return bytes(body)


async def _next(receive: Receive) -> Message:
    """The next message; Serve raises where its proxy has just dropped the request, or has died."""
    try:
        return await receive()
    except Exception:  # noqa: BLE001 - the border of the replica: nobody is there to send, or to be answered
        return {"type": "http.disconnect"}


async def _until_gone(receive: Receive, limit: asyncio.Timeout) -> None:
    """Let the time limit strike as soon as the client goes away."""
    while (await _next(receive))["type"] != "http.disconnect":
        pass
    limit.reschedule(GONE)


def _replay(body: bytes, gone: asyncio.Task[None]) -> Receive:
    sent = False

    async def once() -> Message:
        nonlocal sent
        if sent:
            await asyncio.shield(gone)
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return once


def _on_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    if problems[0]["type"] == "json_invalid":
        where = problems[0]["loc"][-1]
        detail = f"The body is not valid JSON: {problems[0]['ctx']['error']} at character {where}"
        return respond(request, HTTPStatus.BAD_REQUEST, detail)
    errors = [explain(each) for each in problems]
    first = errors[0]
    detail = f"{first['pointer'] or 'the body'}: {first['message']}"
    return respond(request, HTTPStatus.UNPROCESSABLE_ENTITY, detail, errors)


def _on_field(request: Request, error: Exception) -> Response:
    assert isinstance(error, FieldError)
    errors = [{"pointer": error.pointer, "message": error.message}]
    return respond(request, HTTPStatus.UNPROCESSABLE_ENTITY, str(error), errors)


def _on_unavailable(request: Request, error: Exception) -> Response:
    return respond(request, HTTPStatus.SERVICE_UNAVAILABLE, str(error), headers={"retry-after": str(RETRY_AFTER_S)})


def _on_overload(request: Request, error: Exception) -> Response:
    return respond(request, HTTPStatus.TOO_MANY_REQUESTS, str(error), headers={"retry-after": str(RETRY_AFTER_S)})


def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return respond(request, HTTPStatus(error.status_code), str(error.detail), headers=error.headers)


def _on_crash(request: Request, error: Exception) -> Response:
    """The client learns the id under which the error stands in the log, nothing else."""
    request_id = request.scope.get("state", {}).get("request_id", "")
    return respond(
        request,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "An error on our side; the log has it",
        headers=SAFE | {"x-request-id": request_id},  # made outside of `Labels`
    )


def respond(
    request: Request,
    status: HTTPStatus,
    detail: str,
    errors: Sequence[Mapping[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A problem with the request at hand; see `problem`."""
    request_id = request.scope.get("state", {}).get("request_id", "")
    return problem(status, detail, request.url.path, request_id, errors, headers)


def explain(error: Mapping[str, Any]) -> dict[str, str]:
    """Field, what was expected, and the kind of value found, from one of pydantic's errors."""
    parts = [str(part)[:MAX_NAME] for part in error["loc"][1:]]  # without "body" or "query"
    pointer = "".join(f"/{part.replace('~', '~0').replace('/', '~1')}" for part in parts)
    plain = {"missing": "is missing", "extra_forbidden": "is not a known field"}.get(error["type"])
    if plain is not None:
        return {"pointer": pointer, "message": plain}
    wanted = re.sub(r"^\w+ should (be|have) ", "", str(error["msg"])).replace(" after validation", "")
    return {"pointer": pointer, "message": f"expected {wanted}", "found": _kind(error.get("input"))}


def _kind(value: Any) -> str:
    """The JSON type of a value."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity"
    names = {type(None): "null", bool: "boolean", int: "integer", float: "number", str: "string", list: "array"}
    return names.get(type(value), "object")
