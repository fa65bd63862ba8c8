"""A typed client of the HTTP API: one deadline over all tries, which are harmless: calls read, or do things once.

    with Client(["http://10.0.0.1:8000", "http://10.0.0.2:8000"]) as client:
        client.predict(["A010001003"], history=[{"question": "A010001001", "correct": 1}]).predictions[0].probability
        client.record([{"user_id": "17", "question": "A010001001", "correct": 1}])
        client.predict(["A010001003"], user_id="17").predictions[0].probability

A try that ends with a broken connection, an error on the server's side or an answer that cannot be read is made again,
at the next address where there are several, after a random pause that grows. After one that had too little time, tries
have twice as much.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import count, islice
from typing import Any, Final, Literal, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from dkt_ray.errors import ConfigError, DktError
from dkt_ray.serving.contract import (
    BatchResponse,
    CatalogueResponse,
    Event,
    Health,
    KnowledgeResponse,
    ModelsResponse,
    PredictRequest,
    PredictResponse,
    RecommendResponse,
    ScoreResponse,
    Target,
)
from dkt_ray.serving.events_contract import (
    MAX_EVENTS,
    CountResponse,
    EventsResponse,
    LoggedEvent,
    ReceiptResponse,
    UserResponse,
)

API_KEY: Final = "DKT_API_KEY"
DEADLINE: Final = "x-request-deadline-ms"  # of this try: a server need not finish what nobody waits for
RETRIED: Final = {408, 429}  # and every error on the server's side: proxies have numbers of their own above 500
SLOW: Final = {408, 504}  # a server or proxy waited no longer
PAUSE_S: Final = 0.1  # the longest pause after the first failure; it doubles with each
LONGEST_PAUSE_S: Final = 2.0

Events = Sequence[Event | Mapping[str, Any]]
Targets = str | Sequence[str | Target | Mapping[str, Any]]
Reply = TypeVar("Reply", bound=BaseModel)


class RefusedError(DktError):
    """The service refuses the request as it is: sending it again does not help.

    Attributes:
        status: HTTP status.
        errors: the fields at fault: {"pointer", "message", "found"}.
        request_id: under which the service's log has it.
    """

    def __init__(self, status: int, detail: str, errors: Sequence[Mapping[str, str]], request_id: str) -> None:
        super().__init__(f"the service refused the request ({status}): {detail}")
        self.status = status
        self.errors = list(errors)
        self.request_id = request_id


class NoAnswerError(DktError):
    """No answer within the deadline.

    Attributes:
        tries: how often the request was sent.
        request_id: the same for all tries.
    """

    def __init__(self, reason: str, deadline_s: float, try_s: float, tries: int, request_id: str) -> None:
        super().__init__(
            f"no answer within {deadline_s:g} s, {tries} tries, the first up to {try_s:g} s; the last one: {reason}; "
            "check that the service runs at these addresses, or give a longer deadline_s, or try_s if it is slow"
        )
        self.tries = tries
        self.request_id = request_id


class Client:
    """Asks a service of one or several addresses; may be shared by threads.

    Args:
        urls: base addresses of the same service, the preferred one first.
        deadline_s: for one call, all tries and pauses together. The last try may pass it: connecting has half of its
            time, and each wait for the server after that all of it; a body that comes in drops is given up in time.
        try_s: for the first try, since a node that hangs must not take the whole deadline; doubles after each try that
            had too little time.
        headers: sent with every request.
        api_key: where the service wants one; None: what DKT_API_KEY holds in the environment, if it is set.
        transport: instead of the network, for tests.

    Raises:
        ConfigError: no address, one without http:// or https://, or no time.
    """

    def __init__(
        self,
        urls: str | Sequence[str] = "http://127.0.0.1:8000",
        deadline_s: float = 15.0,
        try_s: float = 5.0,
        headers: Mapping[str, str] | None = None,
        transport: httpx.BaseTransport | None = None,
        api_key: str | None = None,
    ) -> None:
        self._urls = [url.rstrip("/") for url in ([urls] if isinstance(urls, str) else urls)]
        if not self._urls or not all(url.startswith(("http://", "https://")) for url in self._urls):
            raise ConfigError(f"urls are {self._urls}; give addresses like http://127.0.0.1:8000")
        try:
            for url in self._urls:
                httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ConfigError(f"urls are {self._urls}: {error}; give addresses like http://127.0.0.1:8000") from None
        if min(deadline_s, try_s) <= 0:
            raise ConfigError(f"deadline_s is {deadline_s:g}, try_s {try_s:g}; both must be above 0")
        self._preferred = 0
        self._deadline_s = deadline_s
        self._try_s = try_s
        key = api_key or os.environ.get(API_KEY)
        allowed = {"authorization": f"Bearer {key}"} if key else {}
        given = {"content-type": "application/json"} | allowed | dict(headers or {})
        self._http = httpx.Client(headers=given, transport=transport, trust_env=False)

    def predict(
        self,
        targets: Targets,
        history: Events = (),
        *,
        user_id: str | None = None,
        student: str | None = None,
        at: datetime | None = None,
        explain: bool | None = None,
    ) -> PredictResponse:
        """Probability of a right answer to each target after the history, or after the kept answers of a user."""
        body = _student(history, user_id, student, at) | _given(targets=_listed(targets), explain=explain)
        return self._post("/v1/predict", PredictResponse, body)

    def predict_batch(self, students: Sequence[PredictRequest | Mapping[str, Any]]) -> BatchResponse:
        """The same for up to 256 students (bodies of `/v1/predict`); each has an answer, or a problem of its own."""
        return self._post("/v1/predict:batch", BatchResponse, {"students": list(students)})

    def knowledge_state(
        self,
        history: Events = (),
        *,
        user_id: str | None = None,
        student: str | None = None,
        at: datetime | None = None,
        concepts: str | Sequence[str] | None = None,
        limit: int | None = None,
        steps: int | None = None,
    ) -> KnowledgeResponse:
        """Mastery per concept and head, now and after each of the last answers."""
        body = _student(history, user_id, student, at) | _given(concepts=_listed(concepts), limit=limit, steps=steps)
        return self._post("/v1/knowledge-state", KnowledgeResponse, body)

    def recommend(
        self,
        history: Events = (),
        *,
        user_id: str | None = None,
        student: str | None = None,
        at: datetime | None = None,
        by: Literal["band", "gain"] | None = None,
        band: tuple[float, float] | None = None,
        exclude_last: int | None = None,
        concepts: str | Sequence[str] | None = None,
        limit: int | None = None,
    ) -> RecommendResponse:
        """What to ask next, by success band or expected gain."""
        wanted = _given(by=by, band=band, exclude_last=exclude_last, concepts=_listed(concepts), limit=limit)
        return self._post("/v1/recommend", RecommendResponse, _student(history, user_id, student, at) | wanted)

    def score(
        self,
        history: Events = (),
        *,
        user_id: str | None = None,
        student: str | None = None,
        at: datetime | None = None,
        target_set: str | None = None,
    ) -> ScoreResponse:
        """0 to 100: how much of a set of questions the student is expected to answer right."""
        body = _student(history, user_id, student, at) | _given(target_set=target_set)
        return self._post("/v1/score", ScoreResponse, body)

    def record(self, events: Iterable[LoggedEvent | Mapping[str, Any]]) -> EventsResponse:
        """Have answers kept, in requests of up to 1,000; ids are made for those that have none.

        Each request is kept whole or not at all; those before one that fails are kept.
        """
        every = iter(events)
        done = EventsResponse(added=0, waiting=0, repeated=0, received_at=datetime.now(UTC))
        while several := [_body(event) for event in islice(every, MAX_EVENTS)]:
            sent = self._post("/v1/events", EventsResponse, {"events": several})
            for name in ("added", "waiting", "repeated"):
                setattr(sent, name, getattr(sent, name) + getattr(done, name))
            done = sent
        return done

    def events(self) -> CountResponse:
        """How many graded events the service's log holds."""
        return self._ask("GET", "/v1/events/count", CountResponse)

    def user(self, user_id: str, answers: int = 0) -> UserResponse:
        """What is kept of a user, with the latest answers where they are wanted."""
        return self._ask("GET", f"{_user(user_id)}?answers={answers}", UserResponse)

    def forget(self, user_id: str) -> ReceiptResponse:
        """Delete a user and all that is kept of him, for ever; called again, the same receipt."""
        return self._ask("DELETE", _user(user_id), ReceiptResponse)

    def models(self) -> ModelsResponse:
        """The bundle that answers."""
        return self._ask("GET", "/v1/models", ModelsResponse)

    def questions(self, limit: int = 100) -> CatalogueResponse:
        """The questions that the model knows, the most answered first."""
        return self._ask("GET", f"/v1/questions?limit={limit}", CatalogueResponse)

    def ready(self) -> Health:
        """The service has its bundle loaded and answers."""
        return self._ask("GET", "/readyz", Health)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _post(self, path: str, reply: type[Reply], body: Mapping[str, Any]) -> Reply:
        return self._ask("POST", path, reply, to_json(body))

    def _ask(self, method: str, path: str, reply: type[Reply], content: bytes | None = None) -> Reply:
        """One call, as often as it takes.

        Raises:
            RefusedError: the request is wrong.
            NoAnswerError: no answer within the deadline.
        """
        request_id = uuid.uuid4().hex
        end = time.monotonic() + self._deadline_s
        longest_s = self._try_s
        for tried in count(1):
            try_s = max(0.001, min(longest_s, end - time.monotonic()))
            asked_at, wait_s, slow = self._preferred, 0.0, False
            headers = {DEADLINE: str(math.ceil(1000 * try_s)), "x-request-id": request_id}
            url = self._urls[asked_at] + path
            try:
                answer, body = self._try(method, url, content, headers, try_s)
                if answer.is_success:
                    return reply.model_validate_json(body)
                if answer.status_code < 500 and answer.status_code not in RETRIED:
                    raise _refused(answer, body, request_id)
                reason, wait_s = f"{answer.status_code} from {url}", _retry_after(answer)
                slow = answer.status_code in SLOW
            except ValidationError:
                reason = f"an answer from {url} that is no {reply.__name__}"
            except httpx.RequestError as error:
                reason = f"{type(error).__name__} at {self._urls[asked_at]}"
                slow = isinstance(error, httpx.ReadTimeout)
            if slow:
                longest_s = min(2 * longest_s, self._deadline_s)
            self._preferred = (asked_at + 1) % len(self._urls)
            if tried < len(self._urls):
                wait_s = 0.0  # the next address may have nothing to do
            else:
                wait_s += random.uniform(0, min(LONGEST_PAUSE_S, PAUSE_S * 2 ** min(tried - len(self._urls), 10)))
            if time.monotonic() + wait_s >= end:
                raise NoAnswerError(reason, self._deadline_s, self._try_s, tried, request_id)
            time.sleep(wait_s)
        raise AssertionError("the tries have no end but the deadline")

    def _try(
        self, method: str, url: str, content: bytes | None, headers: Mapping[str, str], try_s: float
    ) -> tuple[httpx.Response, bytes]:
        """Head and body of an answer; httpx's timeouts are of each wait, not of all together.

        Raises:
            RequestError: no answer, or not all of it in time.
        """
        end = time.monotonic() + try_s
        timeout = httpx.Timeout(try_s, connect=try_s / 2)
        body = bytearray()
        with self._http.stream(method, url, content=content, headers=headers, timeout=timeout) as answer:
            for part in answer.iter_bytes():
                body += part
                if time.monotonic() > end:
                    raise httpx.ReadTimeout(f"the answer was not all there after {try_s:g} s")
        return answer, bytes(body)


def _student(history: Events, user_id: str | None, student: str | None, at: datetime | None) -> dict[str, Any]:
    past = {"history": list(history)} if history or user_id is None else {}  # both are refused by the service
    return past | _given(user_id=user_id, student=student, at=at)


def _body(event: LoggedEvent | Mapping[str, Any]) -> dict[str, Any]:
    """An event with an id of its own, so that a try that is made again is no second event."""
    given = event.model_dump(exclude_unset=True) if isinstance(event, LoggedEvent) else event
    return {"event_id": uuid.uuid4().hex} | dict(given)


def _user(user_id: str) -> str:
    """The path of a user, whose id may hold anything, dots and slashes too."""
    return f"/v1/users/{quote(user_id, safe='').replace('.', '%2E')}"


def _listed(given: Targets | None) -> list[str | Target | Mapping[str, Any]] | None:
    """A single id as a list of one, not of its letters."""
    if given is None:
        return None
    return [given] if isinstance(given, str) else list(given)


def _given(**fields: Any) -> dict[str, Any]:
    """The fields that have a value: the others keep the service's defaults."""
    return {name: value for name, value in fields.items() if value is not None}


def _refused(answer: httpx.Response, body: bytes, request_id: str) -> RefusedError:
    """The problem's own words (RFC 9457) where it has them."""
    try:
        problem = json.loads(body)
    except ValueError:
        problem = None
    known = problem if isinstance(problem, dict) else {}
    detail = known.get("detail") or answer.reason_phrase or "no reason given"
    errors = known.get("errors")
    return RefusedError(
        answer.status_code,
        detail,
        errors if isinstance(errors, list) else [],
        known.get("request_id") or request_id,
    )


def _retry_after(answer: httpx.Response) -> float:
    """Seconds that the service asks to wait; 0 where it does not say, or names a date."""
    given = answer.headers.get("retry-after", "")
    return float(given) if given.isdecimal() else 0.0
