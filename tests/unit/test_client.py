"""The client: what it sends, what it tries again and when it gives up; a clock that only its pauses move."""

import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from dkt_ray import client as module
from dkt_ray.client import Client, NoAnswerError, RefusedError
from dkt_ray.errors import ConfigError
from tests.requests import forwarded, post

ANSWER = {"status": "ready"}


class Service:
    """Plays the given outcomes one after another, the last one for ever, and keeps what it was sent.

    Each takes as long as it takes, or as the request waits for it.
    """

    def __init__(self, clock, *outcomes, takes_s=0.0):
        self.clock, self.outcomes, self.takes_s, self.seen = clock, list(outcomes), takes_s, []

    def __call__(self, request):
        self.seen.append(request)
        if self.takes_s > (waits_s := request.extensions["timeout"]["read"]):
            self.clock.now += waits_s
            raise httpx.ReadTimeout("slow")
        self.clock.now += self.takes_s
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def client(self, urls="http://a", **settings):
        return Client(urls, transport=httpx.MockTransport(self), **settings)

    @property
    def hosts(self):
        return [request.url.host for request in self.seen]


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0, pauses=[])

    def sleep(seconds):
        clock.pauses.append(seconds)
        clock.now += seconds

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep))
    return clock


def ready():
    return httpx.Response(200, json=ANSWER)


FAILURES = [
    httpx.ConnectError("refused"),
    httpx.ReadError("reset"),
    httpx.RemoteProtocolError("closed in the middle of an answer"),
    httpx.ReadTimeout("slow"),
    *(httpx.Response(status) for status in (408, 429, 500, 502, 503, 504, 520, 599)),
    httpx.Response(200, text="<html>a page of a proxy in front"),
    httpx.Response(200, text='{"status": "rea'),
    httpx.Response(200, json={"another": "service"}),
]


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
def test_what_may_pass_is_tried_again_as_the_same_request(clock, failure):
    service = Service(clock, failure, failure, ready())
    assert service.client().ready().status == "ready"
    assert len(service.seen) == 3
    assert len({request.headers["x-request-id"] for request in service.seen}) == 1
    assert len(clock.pauses) == 2


@pytest.mark.parametrize("status", [400, 401, 404, 413, 415, 422])
def test_what_is_wrong_is_said_at_once_with_the_field(clock, status):
    problem = {"detail": "/targets: is missing", "errors": [{"pointer": "/targets"}], "request_id": "abc"}
    service = Service(clock, httpx.Response(status, json=problem))
    with pytest.raises(RefusedError, match=f"{status}.*/targets: is missing") as caught:
        service.client().predict([])
    assert (caught.value.status, caught.value.errors, caught.value.request_id) == (status, problem["errors"], "abc")
    assert len(service.seen) == 1


def test_a_refusal_that_is_no_problem_is_said_too(clock):
    with pytest.raises(RefusedError, match=r"404.*Not Found"):
        Service(clock, httpx.Response(404, text="<html>")).client().ready()


@pytest.mark.parametrize(
    "body", ["", "<html>", "[]", '{"detail": null, "errors": null, "request_id": null}', '{"errors": 5}']
)
def test_a_refusal_of_any_other_form_is_a_refusal_without_fields(clock, body):
    service = Service(clock, httpx.Response(499, text=body))
    with pytest.raises(RefusedError, match=r"499.*no reason given") as caught:
        service.client().ready()
    assert caught.value.errors == []
    assert caught.value.request_id == service.seen[0].headers["x-request-id"]


def test_an_answer_that_nobody_can_read_is_named_and_not_repeated(clock):
    with pytest.raises(NoAnswerError, match="an answer from http://a/readyz that is no Health") as caught:
        Service(clock, httpx.Response(200, text="<html>")).client().ready()
    assert "html" not in str(caught.value)


def test_however_many_tries_the_deadline_has_room_for_are_made(clock):
    with pytest.raises(NoAnswerError) as caught:
        Service(clock, httpx.ConnectError("refused")).client(deadline_s=3600).ready()
    assert caught.value.tries > 1100


def test_the_deadline_covers_tries_and_pauses_and_each_try_is_told_its_share(clock):
    service = Service(clock, ready(), takes_s=60)
    with pytest.raises(
        NoAnswerError, match=r"within 7 s, 3 tries, .* 2 s; .*ReadTimeout at http://a.* try_s"
    ) as caught:
        service.client(deadline_s=7, try_s=2).ready()
    assert clock.now == pytest.approx(100 + 7)
    assert caught.value.tries == len(service.seen) == 3
    shares = [int(request.headers["x-request-deadline-ms"]) for request in service.seen]
    assert shares[:2] == [2000, 4000]
    assert 0 < shares[2] <= 1000
    assert [request.extensions["timeout"]["read"] * 1000 for request in service.seen] == pytest.approx(shares, abs=1)


def test_an_answer_that_takes_longer_than_a_try_comes_within_the_deadline(clock):
    service = Service(clock, ready(), takes_s=6)
    assert service.client(["http://a", "http://b"]).ready().status == "ready"
    assert service.hosts == ["a", "b"]


@pytest.mark.parametrize("status", [200, 422])
def test_a_body_that_comes_in_drops_ends_with_the_deadline(clock, status):
    def drops():
        for _ in range(1000):
            clock.now += 0.4
            yield b" "

    service = Service(clock, *(httpx.Response(status, content=drops()) for _ in range(9)))
    with pytest.raises(NoAnswerError, match="ReadTimeout at http://a"):
        service.client(deadline_s=2, try_s=1).ready()
    assert clock.now <= 100 + 2 + 0.4 + 1e-6
    assert len(service.seen) == 2


@pytest.mark.parametrize(("failure", "then_ms"), [(408, 4000), (504, 4000), (429, 2000), (503, 2000)])
def test_a_server_that_had_too_little_time_gets_twice_as_much(clock, failure, then_ms):
    service = Service(clock, httpx.Response(failure), ready())
    service.client(try_s=2).ready()
    assert service.seen[1].headers["x-request-deadline-ms"] == str(then_ms)


def test_pauses_grow_and_are_as_long_as_the_service_asks(clock, monkeypatch):
    monkeypatch.setattr(module.random, "uniform", lambda low, high: high)
    Service(clock, *[httpx.ConnectError("refused")] * 6, ready()).client().ready()
    assert clock.pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0]
    clock.pauses.clear()
    Service(clock, httpx.Response(429, headers={"retry-after": "3"}), ready()).client().ready()
    assert clock.pauses == [3.1]
    with pytest.raises(NoAnswerError, match="429"):  # at once: it would be too late
        Service(clock, httpx.Response(429, headers={"retry-after": "60"})).client().ready()
    assert len(clock.pauses) == 1


def test_the_next_address_is_tried_without_a_pause_and_kept(clock):
    service = Service(clock, httpx.ConnectError("refused"), ready())
    client = service.client(["http://a", "http://b"])
    client.ready()
    client.ready()
    assert service.hosts == ["a", "b", "b"]
    assert clock.pauses == [0.0]


def test_dead_addresses_are_tried_in_turn(clock):
    service = Service(clock, httpx.ConnectError("refused"))
    with pytest.raises(NoAnswerError):
        service.client(["http://a", "http://b"], deadline_s=1).ready()
    assert service.hosts[:4] == ["a", "b", "a", "b"]


def test_fields_that_are_not_given_are_not_sent(clock):
    service = Service(clock, httpx.Response(422, json={}))
    history = [{"question": "q", "correct": 1}]
    with pytest.raises(RefusedError):
        service.client(headers={"x-api-key": "k"}).predict(["a"], history, student="s")
    assert json.loads(service.seen[0].content) == {"history": history, "targets": ["a"], "student": "s"}
    assert service.seen[0].headers["x-api-key"] == "k"


def test_a_stored_user_is_named_in_place_of_a_history(clock):
    service = Service(clock, httpx.Response(422, json={}))
    client = service.client()
    for ask in (partial(client.predict, ["a"]), client.knowledge_state, client.recommend, client.score):
        with pytest.raises(RefusedError):
            ask(user_id="17")
    assert [json.loads(request.content) for request in service.seen] == [
        {"user_id": "17", "targets": ["a"]},
        *[{"user_id": "17"}] * 3,
    ]


def test_events_are_sent_in_parts_under_ids_that_a_further_try_repeats(clock):
    told = {"added": 2, "waiting": 1, "repeated": 3, "received_at": "2026-03-02T16:00:00Z"}
    service = Service(clock, httpx.ReadError("reset"), httpx.Response(200, json=told))
    events = [{"user_id": "17", "question": "q", "correct": 1}] * 1_001 + [{"event_id": "own"}]
    done = service.client().record(iter(events))
    assert (done.added, done.waiting, done.repeated) == (4, 2, 6)
    sent = [json.loads(request.content)["events"] for request in service.seen]
    assert [len(several) for several in sent] == [1000, 1000, 2]
    assert sent[0] == sent[1]
    ids = [event["event_id"] for several in sent[1:] for event in several]
    assert len({*ids}) == 1_002
    assert ids[-1] == "own"


@pytest.mark.parametrize("status", [404, 409, 410])
def test_what_became_of_a_user_or_an_event_is_said_with_its_status(clock, status):
    service = Service(clock, httpx.Response(status, json={"detail": "gone"}))
    client = service.client()
    for ask in (lambda: client.user("a/b.c", answers=2), lambda: client.forget("a/b.c"), lambda: client.record([{}])):
        with pytest.raises(RefusedError) as caught:
            ask()
        assert caught.value.status == status
    assert [(request.method, request.url.raw_path) for request in service.seen[:2]] == [
        ("GET", b"/v1/users/a%2Fb%2Ec?answers=2"),
        ("DELETE", b"/v1/users/a%2Fb%2Ec"),
    ]


def test_the_key_is_the_one_that_is_given_or_else_that_of_the_environment(clock, monkeypatch):
    service = Service(clock, ready())
    monkeypatch.setenv("DKT_API_KEY", "of the environment")
    service.client().ready()
    service.client(api_key="given").ready()
    monkeypatch.delenv("DKT_API_KEY")
    service.client().ready()
    sent = [request.headers.get("authorization") for request in service.seen]
    assert sent == ["Bearer of the environment", "Bearer given", None]


def test_a_single_id_is_one_question_or_concept(clock):
    service = Service(clock, httpx.Response(422, json={}))
    client = service.client()
    for ask in (
        partial(client.predict, "A010001003"),
        partial(client.knowledge_state, concepts="A010001003"),
        partial(client.recommend, concepts="A010001003"),
    ):
        with pytest.raises(RefusedError):
            ask()
    sent = [json.loads(request.content) for request in service.seen]
    assert [body.get("targets", body.get("concepts")) for body in sent] == [["A010001003"]] * 3


@pytest.mark.parametrize(
    "settings",
    [
        {"urls": []},
        {"urls": "127.0.0.1:8000"},
        {"urls": "http://[::1"},
        {"urls": ["http://a", "http://b:port"]},
        {"deadline_s": 0},
        {"try_s": -1},
    ],
)
def test_settings_that_cannot_work_are_refused(settings):
    with pytest.raises(ConfigError):
        Client(**settings)


def test_the_package_gives_the_client_and_is_imported_without_it():
    probe = "import sys, dkt_ray; assert 'httpx' not in sys.modules; dkt_ray.Client; "
    probe += "assert not {'ray', 'torch', 'fastapi', 'numpy', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", probe], check=True)


README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def connected(client, monkeypatch):
    """The package's own client, connected to the app."""

    monkeypatch.setattr(module, "Client", partial(Client, transport=forwarded(client)))
    return module.Client()


def test_the_client_reads_what_the_api_says(connected, predictor, known):
    history = [{"question": known[0], "correct": 1, "timestamp": datetime(2026, 3, 2, 16, tzinfo=UTC)}]
    answer = connected.predict([known[1], "new"], history, at=datetime(2026, 3, 2, 17, tzinfo=UTC))
    assert [each.unknown_question for each in answer.predictions] == [False, True]
    batch = connected.predict_batch([{"targets": known[:1], "history": history}, {"targets": []}])
    assert [item.status for item in batch.items] == [200, 422]
    assert connected.recommend(history, by="gain", band=(0.1, 0.9), limit=2).recommendations[0].gain is not None
    assert 0 < connected.score(history).score < 100
    assert connected.knowledge_state(history, limit=3).concepts[0].probes
    assert connected.models().model_version == connected.questions().model_version == predictor.version
    assert connected.ready().status == "ready"
    with pytest.raises(RefusedError) as caught:
        connected.predict([known[0], 1.5])
    assert caught.value.errors[0]["pointer"] == "/targets/1/question"


def test_the_python_of_the_readme_runs(connected, capsys):
    [snippet] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(snippet, {})
    assert 0 < float(capsys.readouterr().out.split()[0]) < 1


def test_the_curl_lines_of_the_readme_are_answered(api):
    lines = re.findall(
        r"^curl -s(?: -X (\S+))? http://127.0.0.1:8000(\S+)(.*?)$(?=\n[^ }])", README, re.DOTALL | re.MULTILINE
    )
    assert {verb for verb, _, _ in lines} == {"", "DELETE"}
    assert {path for _, path, _ in lines} >= {"/v1/predict", "/v1/events", "/v1/users/student-17"}
    for verb, path, rest in lines:
        body = re.fullmatch(r" -H 'Content-Type: application/json' -d '(.*)'", rest, re.DOTALL)
        assert body or not rest, rest
        answer = post(api, body[1], path) if body else api.request(verb or "GET", path)
        assert answer.status_code == 200, path
