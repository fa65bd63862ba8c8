"""Requests of every kind, made from an OpenAPI document: by its schemas and against them, from its examples."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote

import httpx
import schemathesis
from hypothesis import strategies as st
from schemathesis import GenerationMode

NASTY = [
    None, True, 0, 1, -1, 7, 0.5, 1e308, 10**400, float("nan"), float("-inf"), "", " ", "1", "q" * 300, "\ud800", "\0",
    "9999-12-31 23:59:59", "0001-01-01T00:00:00+14:00", 1e12, -1e12, [], {}, [[]], [None], ["q"], {"question": "q"},
    {"question": "q", "correct": 1}, {"targets": ["q"]}, [0.2, 0.9], "gain", [[[[[[[[]]]]]]]] * 40,
]  # fmt: skip
FIELDS = ["at", "student", "concepts", "limit", "steps", "by", "band", "exclude_last", "explain", "test", "user_id"]
HEADERS = [
    {"x-request-deadline-ms": "30000"}, {"x-request-deadline-ms": "soon"}, {"x-request-id": "a b"},
    {"x-request-id": "7"}, {"content-type": "text/plain"}, {"content-type": "application/json; charset=utf-8"},
    {"content-encoding": "gzip"}, {"accept": "text/html"}, {"x-request-timeout-seconds": "0"},
]  # fmt: skip


class Case(NamedTuple):
    """One request."""

    kind: str
    method: str
    route: str
    url: str
    headers: dict
    content: bytes


def places(value, path=()):
    """The path of every part of a JSON value."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*path, key))


def mutated(body, chance):
    """The body with one or two parts replaced, removed, repeated or added."""
    body = copy.deepcopy(body)
    for _ in range(chance.randint(1, 2)):
        *above, last = chance.choice([path for path in places(body) if path] or [("history",)])
        holder = body
        for key in above:
            holder = holder[key]
        what = chance.randrange(8)
        if what == 0 and (isinstance(holder, list) or last in holder):
            del holder[last]
        elif what == 1 and isinstance(holder, list):
            holder.extend(holder * chance.choice([1, 40]))
        elif what == 2 and isinstance(holder, dict):
            holder[chance.choice(FIELDS)] = copy.deepcopy(chance.choice(NASTY))
        else:
            holder[last] = copy.deepcopy(chance.choice(NASTY))
    return body


@dataclass(frozen=True)
class Maker:
    """Makes requests from an OpenAPI document."""

    document: dict
    schema: object
    operations: list

    @classmethod
    def of(cls, document):
        """For all routes of a document."""
        schema = schemathesis.openapi.from_dict(document)
        return cls(document, schema, [each.ok() for each in schema.get_all_operations()])

    def bodies(self, operation):
        """The examples of a route, as the document has them; empty where it takes no body."""
        told = self.document["paths"][operation.path][operation.method]
        examples = told.get("requestBody", {}).get("content", {}).get("application/json", {}).get("examples", {})
        return [each["value"] for each in examples.values()]

    def ways(self, operation):
        """Kind -> how its cases are drawn, of those that a route has."""
        found = {"schema": operation.as_strategy().map(lambda case: _of_schema("schema", case))}
        bodies = self.bodies(operation)
        parameters = self.document["paths"][operation.path][operation.method].get("parameters", [])
        if bodies or any(each["in"] == "query" for each in parameters):
            against = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
            found["against the schema"] = against.map(lambda case: _of_schema("against the schema", case))
        if bodies:
            found["mutated"] = st.integers(0, 2**63).map(lambda number: _mutated(operation, bodies, number))
        found["right"] = _right(operation, bodies)
        return found


def _case(kind, operation, url, content=b"", headers=None):
    headers = {"content-type": "application/json"} | (headers or {}) if content else headers or {}
    return Case(kind, operation.method.upper(), operation.path, url, headers, content)


def _of_schema(kind, case):
    sent = case.as_transport_kwargs(base_url="http://x")
    request = httpx.Request("GET", sent["url"], params=sent.get("params"))
    content = sent.get("data") or (json.dumps(sent["json"]).encode() if "json" in sent else b"")
    content = content if isinstance(content, bytes) else str(content).encode("utf-8", "surrogatepass")
    return _case(kind, case.operation, request.url.raw_path.decode(), content)


def _mutated(operation, bodies, number):
    chance = random.Random(number)
    body = json.dumps(mutated(chance.choice(bodies), chance)).encode()
    if chance.random() < 0.1:
        body = body[: chance.randrange(len(body))] + bytes(chance.choices(range(256), k=chance.randrange(4)))
    headers = chance.choice(HEADERS) if chance.random() < 0.2 else {}
    return _case("mutated", operation, operation.path, body, headers)


def _right(operation, bodies):
    """Requests that nothing is wrong with."""
    users = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=20)
    if not bodies:
        path, _, parameter = operation.path.partition("{")
        if not parameter:
            return st.just(_case("right", operation, path))
        return users.map(lambda user: _case("right", operation, path + quote(user, safe="")))
    answers = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1)), max_size=30)
    return st.tuples(st.sampled_from(bodies), answers, users).map(
        lambda drawn: _case("right", operation, operation.path, json.dumps(_student(*drawn)).encode())
    )


def _student(body, answers, user):
    """An example, about another student."""
    body = copy.deepcopy(body)
    if "events" in body:
        body["events"] = [each | {"user_id": user, "event_id": f"{user}-{each['event_id']}"} for each in body["events"]]
    elif "history" in body and "at" not in body:
        questions = [each["question"] for each in body["history"]] or ["any"]
        body["history"] = [{"question": questions[q % len(questions)], "correct": c} for q, c in answers]
        body["student"] = user
    return body
