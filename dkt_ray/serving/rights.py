"""Which role each route takes; what is not in this table is there for nobody but administrators."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

Role = Literal["read", "write", "admin"]

ROLES: Final[tuple[Role, ...]] = ("read", "write", "admin")  # each may also do what those before it may


class Right(NamedTuple):
    """One route, and who may use it."""

    method: str
    path: str  # a parameter at its end stands for whatever follows
    role: Role | None  # None: everybody


RIGHTS: Final = (
    Right("GET", "/livez", None),
    Right("GET", "/readyz", None),
    Right("GET", "/docs", None),
    Right("GET", "/openapi.json", None),
    Right("GET", "/metrics", "read"),
    Right("GET", "/v1/models", "read"),
    Right("GET", "/v1/questions", "read"),
    Right("GET", "/v1/drift", "read"),
    Right("GET", "/v1/outcomes", "read"),
    Right("POST", "/v1/predict", "read"),
    Right("POST", "/v1/predict:batch", "read"),
    Right("POST", "/v1/knowledge-state", "read"),
    Right("POST", "/v1/recommend", "read"),
    Right("POST", "/v1/score", "read"),
    Right("GET", "/v1/users/{user_id}", "read"),
    Right("POST", "/v1/events", "write"),
    Right("GET", "/v1/events/count", "admin"),  # of all tenants together
    Right("DELETE", "/v1/users/{user_id}", "admin"),
)


def right(method: str, path: str) -> Right | None:
    """The route that answers a request; None: none does."""
    return next((each for each in RIGHTS if each.method == method and _is(each, path)), None)


def told(path: str) -> str:
    """A path as errors and logs may repeat it: without what is a parameter, and empty where no route has it."""
    return next((each.path for each in RIGHTS if _is(each, path)), "")


def may(role: Role, needed: Role) -> bool:
    """Whether a role includes another one."""
    return ROLES.index(role) >= ROLES.index(needed)


def _is(right: Right, path: str) -> bool:
    start, parameter, _ = right.path.partition("{")
    return path.startswith(start) and path != start if parameter else path == right.path
