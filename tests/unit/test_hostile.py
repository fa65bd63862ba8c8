"""What is sent to harm: refused before it is parsed, or with the field; headers that protect; and nothing echoed."""

import copy
import json
import logging

import pytest

from dkt_ray.serving import edge, rights
from tests.reliability.cases import Maker, places
from tests.requests import post

DIGITS = "9" * 10_000


def nested(levels):
    """A request whose body has so many levels."""
    return '{"targets": ' + "[" * (levels - 1) + "]" * (levels - 1) + "}"


HOSTILE = {
    "deep": (nested(edge.MAX_DEPTH + 1), 400, "deeper than 32"),
    "deep enough to end a parser": ("[" * 1_000_000, 400, "deeper than 32"),
    "at the limit": (nested(edge.MAX_DEPTH), 422, "/targets"),
    "brackets in a string": (json.dumps({"targets": ["[" * 150]}), 200, ""),
    "many digits": (f'{{"targets": [{DIGITS}]}}', 400, "parsing the body"),
    "many digits in a time": (f'{{"targets": ["q"], "at": {DIGITS[:4000]}}}', 422, "/at"),
    "an infinite number": ('{"targets": ["q"], "at": 1e400}', 422, "/at"),
    "not a number": ('{"targets": [NaN]}', 422, "/targets/0"),
    "half a surrogate": ('{"student": "\\ud800", "targets": ["q"]}', 422, "/student"),
    "half a surrogate in a field's name": ('{"\\ud800": 1, "targets": ["q"]}', 422, "unicode"),
    "NUL": (b'{"targets": ["q\0"]}', 400, "UTF-8"),
    "UTF-16": ('{"targets": ["∀", [[[[[]]]]]]}'.encode("utf-16"), 400, "UTF-8"),
    "UTF-16 without a mark": ('{"targets": ["q"]}'.encode("utf-16-le"), 400, "UTF-8"),
    "broken UTF-8": (b'{"targets": ["\xff\xfe"]}', 400, "parsing the body"),
    "half a surrogate in UTF-8": (b'{"targets": ["\xed\xa0\x80"]}', 422, "/targets/0"),
    "nothing": (b"", 422, ""),
    "cut off": (b'{"targets": ["q"', 400, "JSON"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bodies_are_refused(client, name):
    body, status, told = HOSTILE[name]
    answer = post(client, body)
    assert answer.status_code == status, answer.text
    if status != 200:
        assert answer.headers["content-type"] == edge.PROBLEM
        assert told in answer.json()["detail"]
        assert DIGITS[:100] not in answer.text


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip", "x"])
def test_encoded_bodies_are_not_taken(client, encoding):
    answer = post(client, {"targets": ["q"]}, **{"content-encoding": encoding})
    assert (answer.status_code, answer.headers["content-type"]) == (415, edge.PROBLEM)
    assert post(client, {"targets": ["q"]}, **{"content-encoding": "identity"}).status_code == 200


def test_every_response_has_the_headers_that_protect(api):
    answers = [api.request(method, path) for method, path, _ in rights.RIGHTS]
    answers += [api.get("/nowhere"), post(api, b"[" * 100), post(api, {"targets": ["q"]})]
    for answer in answers:
        page = answer.request.url.path == "/docs"
        for name, value in edge.SAFE.items():
            if name == "content-security-policy" and page:
                assert "frame-ancestors 'none'" in answer.headers[name]
            else:
                assert answer.headers[name] == value
        assert "strict-transport-security" not in answer.headers, "this is plain HTTP"


def canaries(value):
    """The value with each part in turn replaced by text, a number and an object that nobody would write by accident."""
    for path in places(value):
        for planted in ("CANARY", 424242424242, {"CANARY": "CANARY"}, ["CANARY"] * 3):
            body = copy.deepcopy(value)
            holder = body
            for key in path[:-1]:
                holder = holder[key]
            if path:
                holder[path[-1]] = planted
            yield body if path else planted


def test_no_refusal_and_no_log_repeats_what_was_sent(api, caplog):
    """A name that is no field's is told, so that it can be corrected: an object in the place of a value is not."""
    refused, maker = 0, Maker.of(api.get("/openapi.json").json())
    with caplog.at_level(logging.DEBUG):
        for operation in maker.operations:
            smallest = min(maker.bodies(operation), key=lambda value: len(json.dumps(value)), default=None)
            for body in canaries(smallest) if smallest else ():
                answer = post(api, body, operation.path)
                if answer.status_code != 200:
                    refused += 1
                    told = json.dumps([{**each, "pointer": ""} for each in answer.json().get("errors", [])])
                    assert "CANARY" not in told + answer.json()["title"], body
                    assert "424242424242" not in answer.text, body
        for method, path, _ in rights.RIGHTS:
            for place in (path.replace("{user_id}", "CANARY"), f"{path}/CANARY", f"{path}?limit=CANARY&CANARY=1"):
                answer = api.request(method, place, headers={"x-request-id": "CAN ARY", "x-api-key": "CANARY"})
                assert "CANARY" not in answer.text + str(answer.headers), place
    assert refused > 100
    ours = "".join(record.getMessage() for record in caplog.records if record.name.startswith("dkt_ray"))
    assert "request" in ours
    assert "CANARY" not in ours
    assert "424242424242" not in ours
