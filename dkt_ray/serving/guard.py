"""Who asks: a request is let through as its key allows, before anything of its body is read."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from fastapi import Response

from dkt_ray.serving import rights
from dkt_ray.serving.edge import App, Receive, Scope, Send, problem
from dkt_ray.serving.keys import Holder, Keys, Refusal
from dkt_ray.serving.rights import Role

logger = logging.getLogger(__name__)

BEARER: Final = b"bearer "
CHALLENGE: Final = 'Bearer realm="dkt-ray"'
HOW: Final = "send one as `Authorization: Bearer KEY` or `X-API-Key: KEY`"
WRONG: Final[dict[Refusal, str]] = {
    "missing": f"This service takes an API key; {HOW}",
    "several": f"More than one API key; {HOW}",
    "unknown": f"The API key is not known, or was revoked; {HOW}",
    "expired": "The API key has expired; ask for a new one",
}


@dataclass(frozen=True)
class Caller:
    """Who a request comes from, in `scope["state"]["caller"]`."""

    name: str
    role: Role
    tenant: str


ANYBODY: Final = Caller("", "admin", "")  # where there are no keys
NOBODY: Final = Caller("", "read", "")  # on a route that is open to everybody


class Guard:
    """ASGI middleware: finds the caller of each request, and refuses what he may not do.

    Args:
        keys: those that count now; None: there are none, and everybody may do everything.
        refused: counts refusals by reason.
    """

    def __init__(self, app: App, keys: Callable[[], Keys | None], refused: Counter[str]) -> None:
        self.app = app
        self.keys = keys
        self.refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        keys = self.keys()
        found = ANYBODY if keys is None else self._caller(scope, keys)
        if isinstance(found, Response):
            await found(scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = found
        await self.app(scope, receive, send)

    def _caller(self, scope: Scope, keys: Keys) -> Caller | Response:
        right = rights.right(scope["method"], scope["path"])
        if right and right.role is None:
            return NOBODY
        presented = _presented(scope)
        holder = keys.holder(presented[0], time.time()) if len(presented) == 1 else _wrong(presented)
        if not isinstance(holder, Holder):
            error = "" if holder == "missing" else ', error="invalid_token"'
            return self._refuse(scope, holder, HTTPStatus.UNAUTHORIZED, WRONG[holder], CHALLENGE + error)
        if right is None and holder.role != "admin":
            return self._refuse(scope, "route", HTTPStatus.NOT_FOUND, "There is no such route", who=holder.name)
        if right and right.role and not rights.may(holder.role, right.role):
            detail = f"The key's role is {holder.role}; this takes {right.role}"
            challenge = f'{CHALLENGE}, error="insufficient_scope"'
            return self._refuse(scope, "role", HTTPStatus.FORBIDDEN, detail, challenge, holder.name)
        return Caller(holder.name, holder.role, holder.tenant)

    def _refuse(
        self, scope: Scope, why: str, status: HTTPStatus, detail: str, challenge: str = "", who: str = "nobody known"
    ) -> Response:
        self.refused[why] += 1
        request_id = scope.get("state", {}).get("request_id", "")
        route = rights.told(scope["path"]) or "another route"
        logger.warning("refused: %s: %s %s of %s, request %s", why, scope["method"], route, who, request_id)
        headers = {"www-authenticate": challenge} if challenge else None
        return problem(status, detail, scope["path"], request_id, headers=headers)


def _presented(scope: Scope) -> list[str]:
    """The keys that a request brings, without repetition."""
    found = []
    for name, value in scope["headers"]:
        lower = name.lower()
        if lower == b"x-api-key":
            found.append(value.strip())
        elif lower == b"authorization":
            found.append(value[len(BEARER) :].strip() if value[: len(BEARER)].lower() == BEARER else value)
    return [key.decode("latin-1") for key in dict.fromkeys(found)]


def _wrong(presented: list[str]) -> Refusal:
    return "several" if presented else "missing"
