"""Requests of every kind to every route: none is a crash, each refusal says why, nothing hangs.

    python tests/reliability/fuzz.py --cases 50000                  a small bundle in this process, with API keys
    python tests/reliability/fuzz.py --url http://127.0.0.1:8000    a service on trial: users are written and deleted

What is sent: what schemathesis makes of the OpenAPI document, right and wrong, the document's examples with parts
replaced at random, and students that Hypothesis makes up, with whom nothing is wrong. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import os
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from dkt_ray.serving import contract, edge, events_contract
from dkt_ray.serving.keys import Holder, Keys, make, utc_now
from dkt_ray.serving.predictor import Predictor
from tests import bundles, requests

ROUND = 100  # cases that Hypothesis makes at a time: it remembers what it has made
SLACK_S = 2.0  # beyond the deadline
LEAST_VALID = 0.3
KEPT = 20  # failures that are told in full
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
REPLIES = {
    "/v1/predict": contract.PredictResponse,
    "/v1/predict:batch": contract.BatchResponse,
    "/v1/knowledge-state": contract.KnowledgeResponse,
    "/v1/recommend": contract.RecommendResponse,
    "/v1/score": contract.ScoreResponse,
    "/v1/questions": contract.CatalogueResponse,
    "/v1/events": events_contract.EventsResponse,
    "/v1/events/count": events_contract.CountResponse,
}


class Case(NamedTuple):
    """One request."""

    kind: str
    method: str
    route: str
    url: str
    headers: dict
    content: bytes


@dataclass
class Found:
    """What became of the requests."""

    cases: int = 0
    valid: int = 0  # answered with what was asked for
    kinds: Counter = field(default_factory=Counter)
    routes: dict = field(default_factory=lambda: defaultdict(Counter))  # route -> status -> requests
    slowest_ms: dict = field(default_factory=lambda: defaultdict(float))
    failures: list = field(default_factory=list)

    def add(self, case, response, seconds):
        """Count an answer, and look for what it must not be."""
        self.cases += 1
        self.valid += response.status_code < 400
        self.kinds[case.kind] += 1
        route = f"{case.method} {case.route}"
        self.routes[route][response.status_code] += 1
        self.slowest_ms[route] = max(self.slowest_ms[route], round(1000 * seconds, 1))
        wrong = judged(case, response, seconds)
        if wrong and len(self.failures) < KEPT:
            told = {"url": case.url, "status": response.status_code, "sent": repr(case.content[:400])}
            self.failures.append({"wrong": wrong, "route": route} | told | {"got": response.text[:400]})

    def report(self):
        """As JSON."""
        return vars(self) | {"valid_share": round(self.valid / max(1, self.cases), 3)}


def judged(case, response, seconds):
    """What is wrong with an answer; empty: nothing."""
    deadline = case.headers.get("x-request-deadline-ms", "")
    allowed_s = min(edge.MAX_WAIT_S, int(deadline) / 1000 if deadline.isdigit() else edge.MAX_WAIT_S) + SLACK_S
    if seconds > allowed_s:
        return f"{seconds:.1f} s, {allowed_s:.1f} allowed"
    if response.status_code >= 500:
        return "an error of the server"
    if response.headers.get("x-content-type-options") != "nosniff":
        return "without the headers that protect"
    if response.status_code >= 400:
        return problem_of(response)
    return reply_of(REPLIES[case.route], response) if case.route in REPLIES else ""


def reply_of(model, response):
    """What is wrong with a reply; empty: nothing."""
    try:
        model.model_validate_json(response.content)
    except ValueError as error:
        return f"not as the contract says: {error}"
    return ""


def problem_of(response):
    """What is wrong with problem details; empty: nothing."""
    if response.headers.get("content-type") != edge.PROBLEM:
        return f"a refusal as {response.headers.get('content-type')}"
    try:
        problem = contract.Problem.model_validate_json(response.content)
    except ValueError as error:
        return f"no problem details: {error}"
    if problem.status != response.status_code or not problem.detail or not response.json().get("request_id"):
        return "problem details of something else"
    if response.status_code == 422 and not problem.errors:
        return "no field is named"
    return ""


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


def fuzz(client, document, cases, credentials=({},), start=0, size=ROUND, minutes=math.inf):
    """Send requests of all kinds to all routes, in rounds, until there were enough, or the time is over.

    Args:
        credentials: headers that say who asks; the first ones most of the time.
        start: seed of the first round.
        size: of a round, see SHARES.
    """
    maker, found = Maker.of(document), Found()
    ways = [maker.ways(operation) for operation in maker.operations]
    rounds, ends = start, time.monotonic() + 60 * minutes
    while found.cases < cases and time.monotonic() < ends:
        for kinds in ways:
            for kind, drawn in kinds.items():
                some = min(max(1, int(size * SHARES[kind])), cases - found.cases)
                if some > 0:
                    _draw(drawn, some, rounds, lambda case: found.add(*_sent(client, case, credentials, found.cases)))
        rounds += 1
    return found


# Of a round, how many cases a kind has at each route; schemathesis takes ten times as long as the others.
SHARES = {"schema": 0.2, "against the schema": 0.05, "mutated": 0.5, "right": 1.0}


def _draw(drawn, some, number, take):
    quiet = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}

    @seed(number)
    @settings(max_examples=some, phases=[Phase.generate], **quiet)
    @given(drawn)
    def each(case):
        take(case)

    each()


def _sent(client, case, credentials, number):
    who = credentials[0] if number % 8 else credentials[number // 8 % len(credentials)]
    started = time.perf_counter()
    response = client.request(case.method, case.url, headers=case.headers | who, content=case.content)
    return case, response, time.perf_counter() - started


@contextmanager
def service(folder):
    """A small bundle behind the API in this process, and headers of those who may ask and those who may not."""
    bundles.build(folder / "bundle", bundles.save_members(folder / "members"))
    predictor = Predictor.load(folder / "bundle")

    holders, credentials, now = [], [], utc_now()
    for name, role, rate, days in (
        ("everything", "admin", 1e9, 1),
        ("reader", "read", 1e9, 1),
        ("slow", "write", 0.1, 1),
        ("late", "admin", 1e9, -1),
    ):
        text, key = make(now, days)
        holders.append(Holder(name=name, role=role, rate=rate, burst=max(5, int(rate)), keys=(key,)))
        credentials.append({"authorization": f"Bearer {text}"})
    credentials += [{}, {"x-api-key": "dkt_"}, {"authorization": "Basic x"}]
    with requests.service(predictor, folder, Keys(holders=tuple(holders))) as client:
        yield client, credentials


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=50_000)
    parser.add_argument("--start", type=int, default=0, help="seed of the first round")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after that, whatever is done")
    parser.add_argument("--url", help="a service that runs, instead of one in this process")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    limits = {"cases": arguments.cases, "start": arguments.start, "minutes": arguments.minutes}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.url:
            key = os.environ.get("DKT_API_KEY")
            client = httpx.Client(base_url=arguments.url, timeout=60, trust_env=False)
            credentials = [{"authorization": f"Bearer {key}"} if key else {}]
            found = fuzz(client, client.get("/openapi.json").json(), credentials=credentials, **limits)
        else:
            with service(Path(folder)) as (client, credentials):
                found = fuzz(client, client.get("/openapi.json").json(), credentials=credentials, **limits)
    report = found.report() | {"seconds": round(time.monotonic() - started, 1)}
    print(json.dumps({"fuzz": report}))
    return 1 if report["failures"] or report["valid_share"] < LEAST_VALID else 0


if __name__ == "__main__":
    sys.exit(main())
