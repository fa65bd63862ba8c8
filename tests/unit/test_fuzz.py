"""Examples of every route with parts replaced at random are answered as the contract says, or refused; never a 500."""

import copy
import random

import pytest

from dkt_ray.serving import contract, examples
from tests.requests import post

REPLIES = {
    "/predict": contract.PredictResponse,
    "/predict:batch": contract.BatchResponse,
    "/knowledge-state": contract.KnowledgeResponse,
    "/recommend": contract.RecommendResponse,
    "/score": contract.ScoreResponse,
}
NASTY = [
    None, True, 0, 1, -1, 7, 0.5, 1e308, 10**400, float("nan"), float("-inf"), "", " ", "1", "q" * 300, "\ud800", "\0",
    "9999-12-31 23:59:59", "0001-01-01T00:00:00+14:00", 1e12, -1e12, [], {}, [[]], [None], ["q"], {"question": "q"},
    {"question": "q", "correct": 1}, {"targets": ["q"]}, [0.2, 0.9], "gain",
]  # fmt: skip


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
        if what == 0:
            del holder[last]
        elif what == 1 and isinstance(holder, list):
            holder.extend(holder * chance.choice([1, 40]))
        elif what == 2 and isinstance(holder, dict):
            fields = ["at", "student", "concepts", "limit", "steps", "by", "band", "exclude_last", "explain", "test"]
            holder[chance.choice(fields)] = chance.choice(NASTY)
        else:
            holder[last] = copy.deepcopy(chance.choice(NASTY))
    return body


@pytest.mark.parametrize("path", REPLIES)
def test_no_request_is_a_crash(client, predictor, path):
    chance = random.Random(path)
    bodies = [example["value"] for example in examples.requests(predictor.catalogue)[path].values()]
    told = {200: 0, 422: 0}
    for _ in range(60):
        body = mutated(chance.choice(bodies), chance)
        answer = post(client, body, f"/v1{path}")
        assert answer.status_code in told, (body, answer.text)
        told[answer.status_code] += 1
        if answer.status_code == 200:
            REPLIES[path].model_validate_json(answer.content)
        else:
            assert answer.json()["errors"][0].keys() >= {"pointer", "message"}
    assert min(told.values()) >= 1, "it must reach both"
