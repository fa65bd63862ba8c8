"""What runs in front of Serve: its own refusals as problem details, and no client that steers it by headers.

Serve calls `middlewares` in its proxy, or in each replica where replicas are reached without one, when
RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names it (`session.EVERYWHERE`).
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from starlette.middleware import Middleware

from dkt_ray.serving.edge import REQUEST_ID, SAFE, App, Message, Receive, Scope, Send, problem

STEERS: Final = {  # Serve reads these: a limit lifted, a model to be loaded, a replica to be chosen
    "x_request_timeout_seconds",
    "x_request_disconnect_disabled",
    "serve_multiplexed_model_id",
    "x_session_id",
}
KEPT: Final = ("retry-after", "x-request-id")
OF_SERVE: Final = {  # answers that Serve gives as plain text
    404: "There is no such route, or what would answer it is not deployed",
    408: "No answer was there within the service's time limit; send less in one request, or try again later",
    429: "Too many requests are waiting; try again later",
    500: "An error on our side; the log has it",
    502: "The replica that worked on the request was lost; send it again",
    503: "No replica can answer now; try again later",
}


MOST: Final = 256  # requests at a time; one of Serve's proxies makes some 300 a second at best: more only wait
ALWAYS: Final = ("/livez", "/readyz", "/metrics")


class Front:
    """ASGI middleware in front of Serve.

    Beyond `MOST` requests it refuses at once: a refusal by Serve costs its proxy as much as an answer, and a proxy that
    is busy refusing answers nobody (goodput of 19 % of the knee at three times the load, two cores).
    """

    def __init__(self, app: App) -> None:
        self.app = app
        self._here = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["path"].startswith("/-/"):  # Serve's health check and routes
            await self.app(scope, receive, send)
            return
        scope["headers"] = [pair for pair in scope["headers"] if _passes(*pair)]
        if self._here >= MOST and scope["path"] not in ALWAYS:
            headers = {name.lower(): value for name, value in scope["headers"]} | {b"retry-after": b"1"}
            await _problem(scope["path"], 429, headers)(scope, receive, send)
            return
        self._here += 1
        try:
            await self._pass(scope, receive, send)
        finally:
            self._here -= 1

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = replaced = False

        async def explained(message: Message) -> None:
            nonlocal started, replaced
            if message["type"] == "http.response.start":
                started = True
                headers = {name.lower(): value for name, value in message.get("headers", [])}
                plain = headers.get(b"content-type", b"").startswith(b"text/plain")
                replaced = plain and message["status"] in OF_SERVE
                if replaced:
                    await _problem(scope["path"], message["status"], headers)(scope, receive, send)
            if not replaced:
                await send(message)

        await self.app(scope, receive, explained)
        if not started:  # Serve says nothing when a replica dies; its server would call that an internal error
            await _problem(scope["path"], 502, dict(scope["headers"]))(scope, receive, send)


def _passes(name: bytes, value: bytes) -> bool:
    """Whether Serve may see a header; a request id that cannot be one would be echoed, logged, and not be ours."""
    plain = name.decode("latin-1").lower().replace("-", "_")  # Serve takes hyphens for underscores
    if plain == "x_request_id":
        return REQUEST_ID.fullmatch(value.decode("latin-1")) is not None
    return plain not in STEERS


def middlewares() -> list[Middleware]:
    """What Serve puts in front of itself."""
    return [Middleware(Front)]


def _problem(path: str, status: int, headers: Mapping[bytes, bytes]) -> App:
    kept = {name: headers[name.encode()].decode("latin-1") for name in KEPT if name.encode() in headers}
    return problem(HTTPStatus(status), OF_SERVE[status], path, kept.get("x-request-id", ""), headers=SAFE | kept)
