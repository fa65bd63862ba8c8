"""Requests of every kind to every route: none is a crash, each refusal says why, nothing hangs.

    python tests/reliability/fuzz.py --cases 50000                  a small bundle in the same process, with API keys
    python tests/reliability/fuzz.py --url http://127.0.0.1:8000    a service on trial: users are written and deleted

What is sent: what schemathesis makes of the OpenAPI document, right and wrong, the document's examples with parts
replaced at random, and students that Hypothesis makes up, with whom nothing is wrong. Each portion of the work has a
process of its own, so that a crash or a hang is told, too. The last line is one JSON object, also after Ctrl-C.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import os
import resource
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import httpx
from hypothesis import HealthCheck, Phase, given, seed, settings

from dkt_ray.serving import contract, edge, events_contract
from dkt_ray.serving.keys import Holder, Keys, make, utc_now
from dkt_ray.serving.predictor import Predictor
from tests import bundles, requests
from tests.reliability import portions
from tests.reliability.cases import Maker

PORTION = 12_500  # cases
TOLD_S = 10.0  # from one line about how far it is to the next
ROUND = 100  # cases that Hypothesis makes at a time: it remembers what it has made
SLACK_S = 2.0  # beyond the deadline
LEAST_VALID = 0.3
KEPT = 20  # failures that are told in full
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


@dataclass
class Found:
    """What became of the requests."""

    cases: int = 0
    valid: int = 0  # answered with what was asked for
    kinds: Counter = field(default_factory=Counter)
    routes: dict = field(default_factory=lambda: defaultdict(Counter))  # route -> status -> requests
    slowest_ms: dict = field(default_factory=lambda: defaultdict(float))
    failures: list = field(default_factory=list)
    peak_mb: int = 0  # of the process with the most memory

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

    @classmethod
    def together(cls, several):
        """What several processes have found."""
        found = cls()
        for each in several:
            found.cases += each.cases
            found.valid += each.valid
            found.kinds.update(each.kinds)
            for route, statuses in each.routes.items():
                found.routes[route].update(statuses)
                found.slowest_ms[route] = max(found.slowest_ms[route], each.slowest_ms[route])
            found.failures = (found.failures + each.failures)[:KEPT]
            found.peak_mb = max(found.peak_mb, each.peak_mb)
        return found

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


def fuzz(client, document, cases, credentials=({},), start=0, size=ROUND, ends=math.inf, tell=None):
    """Send requests of all kinds to all routes, in rounds, until there were enough, or the time is over.

    Args:
        credentials: headers that say who asks; the first ones most of the time.
        start: seed of the first round.
        size: of a round, see SHARES.
        ends: when the time is over, of the monotonic clock.
        tell: hears what was found, and what is sent next.
    """
    maker, found = Maker.of(document), Found()
    ways = [(each.label, *way) for each in maker.operations for way in maker.ways(each).items()]
    for number, (route, kind, drawn) in ((number, way) for number in itertools.count(start) for way in ways):
        if found.cases >= cases or time.monotonic() >= ends:
            break
        if tell:
            tell(found, f"round {number}, {kind}, {route}")
        some = min(max(1, int(size * SHARES[kind])), cases - found.cases)
        _draw(drawn, some, number, lambda case: found.add(*_sent(client, case, credentials, found.cases)))
        found.peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
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


@contextmanager
def running(url):
    """A service that runs, and the header of who may ask."""
    key = os.environ.get("DKT_API_KEY")
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        yield client, [{"authorization": f"Bearer {key}"} if key else {}]


class Portion(NamedTuple):
    """What one process does."""

    cases: int
    start: int
    ends: float
    folder: Path
    url: str | None


def work(portion, tell):
    """Do a portion."""
    logging.disable(logging.CRITICAL)
    with running(portion.url) if portion.url else service(portion.folder) as (client, credentials):
        document, limits = client.get("/openapi.json").json(), {"start": portion.start, "ends": portion.ends}
        found = fuzz(client, document, portion.cases, credentials, tell=lambda *so_far: tell(so_far), **limits)
        tell((found, "the end"))


def divided(arguments, folder):
    """Portions of all cases; a process has at least a case a round, so that no two have the same rounds."""
    ends = time.monotonic() + 60 * arguments.minutes
    for begun in range(0, arguments.cases, PORTION):
        if time.monotonic() < ends:
            cases = min(PORTION, arguments.cases - begun)
            yield Portion(cases, arguments.start + begun, ends, folder / str(begun), arguments.url)


def watched(all_told, cases):
    """What was found until all was told, or Ctrl-C; where it was lost; and whether it was stopped."""
    so_far, lost, begun = {}, [], time.monotonic()
    line_at = begun + TOLD_S
    try:
        for number, heard in all_told:
            if isinstance(heard, portions.Lost):
                _, during = so_far.get(number, (None, "its start"))
                lost.append({"wrong": heard.why, "portion": number, "during": during})
            else:
                so_far[number] = heard
            if time.monotonic() >= line_at:
                line_at = time.monotonic() + TOLD_S
                print(_line(Found.together(found for found, _ in so_far.values()), cases, begun), file=sys.stderr)
        stopped = False
    except KeyboardInterrupt:
        stopped = True
    return Found.together(found for found, _ in so_far.values()), lost, stopped


def _line(found, cases, begun):
    rate = found.cases / (time.monotonic() - begun)
    left = f"{(cases - found.cases) / rate:.0f} s left" if rate else "beginning"
    return f"{found.cases} of {cases} cases, {rate:.0f}/s, {left}, {found.peak_mb} MB, {len(found.failures)} failures"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=50_000)
    parser.add_argument("--start", type=int, default=0, help="seed of the first round")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after that, whatever is done")
    parser.add_argument("--at-once", type=int, default=min(2, os.cpu_count() or 1), help="processes (%(default)s)")
    parser.add_argument("--url", help="a service that runs, instead of one in the same process")
    arguments = parser.parse_args()
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(portions.told(work, divided(arguments, Path(folder)), arguments.at_once)) as all_told,
    ):
        found, lost, stopped = watched(all_told, arguments.cases)
    report = found.report() | {"stopped": stopped, "seconds": round(time.monotonic() - started, 1)}
    report["failures"] = lost + report["failures"]
    print(json.dumps({"fuzz": report}))
    return 1 if stopped or report["failures"] or report["valid_share"] < LEAST_VALID else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    sys.exit(main())
