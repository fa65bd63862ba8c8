"""Who asks, and how fast: a request is let through as its key allows, before anything of its body is read."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from fastapi import Response
from starlette.datastructures import MutableHeaders

from dkt_ray.serving import rights
from dkt_ray.serving.edge import App, Message, Receive, Scope, Send, problem
from dkt_ray.serving.keys import Holder, Keys, Known, Refusal
from dkt_ray.serving.ratelimit import BUCKET, Bucket, Share
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
TOO_FAST: Final = "More requests than the API key's rate allows; send them more slowly"


@dataclass(frozen=True)
class Caller:
    """Who a request comes from, in `scope["state"]["caller"]`."""

    name: str
    role: Role
    tenant: str


ANYBODY: Final = Caller("", "admin", "")  # where there are no keys
NOBODY: Final = Caller("", "read", "")  # on a route that is open to everybody


class Guard:
    """ASGI middleware: finds the caller of each request, and refuses what he may not do, or too often.

    Args:
        known: the keys that count now.
        refused: counts refusals by reason.
    """

    def __init__(self, app: App, known: Callable[[], Known], refused: Counter[str]) -> None:
        self.app = app
        self.known = known
        self.refused = refused
        self._buckets: dict[str, Bucket] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        keys, replicas = self.known()
        holder = None if keys is None else self._holder(scope, keys)
        if isinstance(holder, Response):
            await holder(scope, receive, send)
        elif holder is None:
            scope.setdefault("state", {})["caller"] = ANYBODY if keys is None else NOBODY
            await self.app(scope, receive, send)
        else:
            scope.setdefault("state", {})["caller"] = Caller(holder.name, holder.role, holder.tenant)
            await self._at_its_rate(holder.name, Share.of(holder, replicas), scope, receive, send)

    async def _at_its_rate(self, name: str, share: Share, scope: Scope, receive: Receive, send: Send) -> None:
        now = time.monotonic()
        bucket = self._buckets.setdefault(name, Bucket(share.burst, now))

        async def limited(message: Message) -> None:
            if message["type"] == "http.response.start":
                out = MutableHeaders(raw=message["headers"])
                out.update(bucket.headers(share))
                message["headers"] = out.raw
            await send(message)

        wait_s = bucket.take(share, now)
        if wait_s:
            after = {"retry-after": str(math.ceil(wait_s))}
            refusal = self._refuse(scope, "rate", HTTPStatus.TOO_MANY_REQUESTS, TOO_FAST, after, name)
            await refusal(scope, receive, limited)
            return
        BUCKET.set(bucket)
        await self.app(scope, receive, limited)

    def _holder(self, scope: Scope, keys: Keys) -> Holder | Response | None:
        """Who has the key of a request; None: its route is there for everybody."""
        right = rights.right(scope["method"], scope["path"])
        if right is not None and right.role is None:
            return None
        presented = _presented(scope)
        holder = keys.holder(presented[0], time.time()) if len(presented) == 1 else _wrong(presented)
        if not isinstance(holder, Holder):
            error = "" if holder == "missing" else ', error="invalid_token"'
            challenge = {"www-authenticate": CHALLENGE + error}
            return self._refuse(scope, holder, HTTPStatus.UNAUTHORIZED, WRONG[holder], challenge)
        if right is None and holder.role != "admin":
            return self._refuse(scope, "route", HTTPStatus.NOT_FOUND, "There is no such route", who=holder.name)
        if right and right.role and not rights.may(holder.role, right.role):
            detail = f"The key's role is {holder.role}; this takes {right.role}"
            challenge = {"www-authenticate": f'{CHALLENGE}, error="insufficient_scope"'}
            return self._refuse(scope, "role", HTTPStatus.FORBIDDEN, detail, challenge, holder.name)
        return holder

    def _refuse(
        self,
        scope: Scope,
        why: str,
        status: HTTPStatus,
        detail: str,
        headers: Mapping[str, str] | None = None,
        who: str = "nobody known",
    ) -> Response:
        self.refused[why] += 1
        request_id = scope.get("state", {}).get("request_id", "")
        route = rights.told(scope["path"]) or "another route"
        logger.warning("refused: %s: %s %s of %s, request %s", why, scope["method"], route, who, request_id)
        return problem(status, detail, scope["path"], request_id, headers=headers)


def _presented(scope: Scope) -> list[str]:
    """The keys that a request brings, without repetition."""
    found = []
    for name, value in scope["headers"]:
        lower = name.lower()
        if lower == b"x-api-key":
            found.append(value.strip())
        elif lower == b"authorization" and value[: len(BEARER)].lower() == BEARER:  # others are for whoever is in front
            found.append(value[len(BEARER) :].strip())
    return [key.decode("latin-1") for key in dict.fromkeys(found)]


def _wrong(presented: list[str]) -> Refusal:
    return "several" if presented else "missing"
