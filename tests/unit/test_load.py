"""The load generator sends each request once and misses nothing; the ledger's check finds what is planted."""

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from benchmarks import ledger
from benchmarks.ledger import Entry
from benchmarks.load import Load, Plan

ORACLE = {"one": [np.array([0.1]), np.array([0.2, 0.3])], "two": [np.array([0.4]), np.array([0.5, 0.6])]}
BODIES = [{"targets": ["a"]}, {"targets": ["b", "c"]}]


class Stub(BaseHTTPRequestHandler):
    """Version one; every fifth request ends badly, in a way of its own."""

    protocol_version = "HTTP/1.1"
    bad: tuple[str, ...] = ()
    seen: Counter

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = self.headers["X-Request-Id"]
        self.seen[name] += 1
        number = int(name.removeprefix("load-"))
        how = self.bad[number // 5 % len(self.bad)] if self.bad and number % 5 == 4 else "well"
        if how == "closed":
            self.close_connection = True
            return
        values = ORACLE["one"][BODIES.index(body)] + (0.001 if how == "wrong" else 0)
        answer = {"model_version": "one", "predictions": [{"probability": value} for value in values]}
        content = b"not json" if how == "garbled" else json.dumps(answer).encode()
        self.send_response(429 if how == "refused" else 200)
        self.send_header("X-Request-Id", "load-0" if how == "mixed up" else name)
        if how == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
            content = (
                b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (content[:7], content[7:])) + b"0\r\n\r\n"
            )
        else:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    """With room for all connections of a test to wait."""

    request_queue_size = 512


@pytest.fixture
def serve():
    servers = []

    def start(*bad):
        handler = type("Handler", (Stub,), {"bad": bad, "seen": Counter()})
        server = Server(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server.server_port, handler.seen

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("loop", [{"connections": 3}, {"rate": 200.0}])
def test_each_request_is_sent_once_and_each_answer_is_checked(serve, loop):
    port, seen = serve("chunked")
    with Load(Plan(port, BODIES, **loop)) as load:
        load.wait_for(40)
    assert len(load.entries) >= 40
    assert ledger.failed(load.entries) == []
    assert ledger.wrong(load.entries, ORACLE) == []
    assert ledger.versions(load.entries) == {"one": len(load.entries)}
    assert seen == {f"load-{number}": 1 for number in range(len(load.entries))}


def test_every_bad_end_is_in_the_ledger_and_every_wrong_answer_is_told(serve):
    port, _ = serve("closed", "refused", "wrong", "garbled", "mixed up")
    with Load(Plan(port, BODIES, rate=200.0)) as load:
        load.wait_for(60)
    ends = {entry.request // 5 % 5: entry for entry in load.entries if entry.request % 5 == 4}
    assert (ends[0].status, ends[1].status) == (0, 429)
    assert "Error" in ends[0].error
    assert {entry.request % 25 for entry in ledger.failed(load.entries)} == {4, 9}
    problems = " ".join(ledger.wrong(load.entries, ORACLE))
    for told in ("off by 0.001 from version one", "not an answer to read", "this answer is that of b'load-0'"):
        assert told in problems


def test_what_is_due_is_sent_however_late(serve):
    """At a rate that no generator keeps up with, all in a tenth of a second."""
    port, seen = serve()
    entries = Load(Plan(port, BODIES, rate=2000.0, seconds=0.1)).result()
    assert len(entries) == len(seen) == 200
    assert ledger.wrong(entries, ORACLE) == []


def test_requests_that_are_lost_at_the_end_are_told(serve, monkeypatch):
    read = ledger.read
    monkeypatch.setattr(ledger, "read", lambda path: read(path)[:-1])
    with pytest.raises(RuntimeError, match="10 requests were sent, 9 are in the ledger"):
        Load(Plan(serve()[0], BODIES, rate=100.0, seconds=0.1)).result()


def entry(request, body=0, version="one", values=(0.1,), **more):
    return Entry(request, body, 1.0, 1.0, 2.0, 200, version, list(values), "")._replace(**more)


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ([entry(0), entry(0)], "request 0 ended 2 times"),
        ([entry(0), entry(2)], "request 1 never ended"),
        ([entry(0, values=[0.4])], "off by 0.3 from version one"),
        ([entry(0, values=[float("nan")])], "off by nan"),
        ([entry(0, body=1, values=[0.2, 0.6])], "off by 0.3"),  # half of it from the other version
        ([entry(0, version="three")], "version three is none of those"),
        ([entry(0, values=[])], "0 probabilities, expected 1"),
    ],
)
def test_what_is_wrong_is_told(entries, told):
    assert any(told in problem for problem in ledger.wrong(entries, ORACLE))


def test_exact_means_exact():
    almost = [entry(0, values=[0.1 + 1e-9])]
    assert ledger.wrong(almost, ORACLE) == []
    assert "off by 1e-09" in ledger.wrong(almost, ORACLE, tolerance=0.0)[0]


def test_an_oracle_that_cannot_tell_versions_apart_proves_nothing():
    same = {"one": ORACLE["one"], "two": ORACLE["one"]}
    assert ledger.wrong([entry(0)], same) == ["body 0 does not tell one from two"]


def test_latency_counts_from_when_a_request_was_due():
    late = [entry(0), entry(1, scheduled=0.0, sent=1.9)]
    assert ledger.figures(late)["longest_ms"] == 2000
    assert ledger.figures([*late, entry(2, status=429)])["statuses"] == {"200": 2, "429": 1}
    assert ledger.figures(late, skip_s=0.5)["requests"] == 1


def test_a_late_generator_is_told():
    """Ten a second were due, five a second were sent."""
    figures = ledger.figures([entry(number, scheduled=number / 10, sent=number / 5) for number in range(11)])
    assert (figures["offered_per_s"], figures["longest_lag_ms"]) == (5.0, 1000.0)


def test_an_outage_is_the_longest_silence():
    """One answer in the midst of it does not end it; nor does what came before."""
    answered = [entry(number, answered=at) for number, at in enumerate((0.5, 1.3, 20.0, 20.1))]
    assert ledger.longest_silence(answered, 1.0) == pytest.approx(18.7)
    assert ledger.longest_silence([*answered, entry(4, answered=60.0, status=502)], 1.0) == pytest.approx(39.9)
    assert ledger.longest_silence(answered, 30.0) == np.inf


def test_what_was_answered_after_the_warm_up_counts_though_it_was_sent_in_it():
    """A server that takes longer than the warm-up for its first answers, as on a busy machine."""
    slow = [entry(number, scheduled=0.0, sent=0.0, answered=1.2) for number in range(32)]
    assert ledger.figures(slow, skip_s=0.2)["per_s"] == 32.0
    assert ledger.figures([], skip_s=0.2)["per_s"] == 0.0


@pytest.mark.parametrize("loop", [{}, {"rate": -1.0}, {"connections": 2, "rate": 5.0}])
def test_a_plan_that_is_neither_loop_is_refused(loop):
    with pytest.raises(ValueError, match=r"connections above 0 .* or a rate above 0"):
        Plan(1, BODIES, **loop)
