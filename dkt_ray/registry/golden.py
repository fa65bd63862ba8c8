"""Golden requests: made-up students over the bundle's own questions, with the answers it gave when it was made.

They are drawn from the catalogue, not from the data, so that no student's answers travel with a bundle. In the form of
`POST /v1/predict`, they cover the cold start, unknown questions, timed and untimed histories, and long ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from dkt_ray.data.query import Query
from dkt_ray.ensemble.scorer import Scorer, Scores
from dkt_ray.features.encoder import EncoderState

FILE: Final = "golden.json"
REQUESTS: Final = 32
TARGETS: Final = 4
LENGTHS: Final = (0, 1, 2, 5, 12, 30, 90, 260)
TOLERANCE: Final = 1e-5
UNSEEN: Final = "golden-unseen-question"
START_MS: Final = 1_577_836_800_000  # 2020-01-01T00:00:00Z


def make(scorer: Scorer) -> dict[str, Any]:
    """Draw the requests (fixed seed) and answer them."""
    random = np.random.default_rng(20)
    known = scorer.state.questions["question"].to_numpy().astype(object)
    requests = [_request(random, known, index) for index in range(REQUESTS)]
    return {"requests": requests, "answers": answers(scorer, requests)}


def answers(scorer: Scorer, requests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What a bundle says to golden requests."""
    scores = scorer.score_queries([query(request) for request in requests])
    return [
        {
            "probability": score.probability.tolist(),
            "members": {family: column.tolist() for family, column in score.members.items()},
        }
        for score in scores
    ]


def replay(content: Mapping[str, Any], scorer: Scorer) -> str | None:
    """Answer the requests again; says where the first answer is off by more than 1e-5, None where all agree."""
    requests, given = content["requests"], content["answers"]
    if not requests or len(requests) != len(given):
        return f"{len(requests)} requests but {len(given)} answers"
    for index, score in enumerate(scorer.score_queries([query(request) for request in requests])):
        expected = given[index]["members"] | {"ensemble": given[index]["probability"]}
        difference = _difference(expected, score)
        if difference is not None:
            return f"request {index}, {difference}"
    return None


def weakness(content: Mapping[str, Any], state: EncoderState) -> str | None:
    """Why the golden requests prove nothing (too few kinds, unknown questions, one answer to all); None: they do."""
    requests, known = content["requests"], state.vocabularies["question"]
    kinds = len({json.dumps(request, sort_keys=True) for request in requests})
    lengths = [len(request["history"]) for request in requests]
    if kinds < REQUESTS or min(lengths) > min(LENGTHS) or max(lengths) < max(LENGTHS):
        return (
            f"{kinds} different requests after {min(lengths)} to {max(lengths)} answers; expected {REQUESTS} or more, "
            f"after {min(LENGTHS)} to {max(LENGTHS)}: publish the run again"
        )
    if not any(target in known for request in requests for target in request["targets"]):
        return f"no question asked is in the encoder's vocabulary, which has {len(known)} questions"
    given = np.concatenate([answer["probability"] for answer in content["answers"]])
    if np.ptp(given) <= TOLERANCE:
        return f"every answer is {given[0]:.4f}: the ensemble has learned nothing"
    return None


def query(request: Mapping[str, Any]) -> Query:
    """A golden request as columns."""
    history = request["history"]
    return Query(
        question=[event["question"] for event in history],
        correct=[event["correct"] for event in history],
        target=request["targets"],
        timestamp=[event["timestamp"] for event in history] if "at" in request else None,
        at=request.get("at"),
    )


def _request(random: np.random.Generator, known: np.ndarray[Any, Any], index: int) -> dict[str, Any]:
    length = LENGTHS[index % len(LENGTHS)]
    questions = [str(value) for value in random.choice(known, length + TARGETS)]
    correct = (random.random(length) < random.uniform(0.3, 0.9)).astype(int).tolist()
    if index % 4 == 3:
        questions[-1] = UNSEEN
    history = [{"question": q, "correct": c} for q, c in zip(questions[:length], correct, strict=True)]
    request: dict[str, Any] = {"history": history, "targets": questions[length:]}
    if index >= REQUESTS // 2 and length:
        times = START_MS + np.cumsum(random.integers(2_000, 4_000_000, length + 1))
        for event, time in zip(history, times[:-1].tolist(), strict=True):
            event["timestamp"] = time
        request["at"] = int(times[-1])
    return request


def _difference(expected: Mapping[str, Any], score: Scores) -> str | None:
    found = score.members | {"ensemble": score.probability}
    if sorted(found) != sorted(expected):
        return f"members: {sorted(found)} answer, expected {sorted(expected)}"
    for name in sorted(found):
        values = np.array(expected[name], float)
        if values.shape != found[name].shape:
            return f"{name}: {len(found[name])} answers, expected {len(values)}"
        off = np.flatnonzero(~(np.abs(values - found[name]) <= TOLERANCE))
        if len(off):
            return f"target {off[0]}: {name} answers {found[name][off[0]]:.6f}, expected {values[off[0]]:.6f}"
    return None
