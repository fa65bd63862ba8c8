"""What the HTTP API replies: scores as the fields of `contract`, before they become JSON.

Legend: M targets, K members.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from dkt_ray.ensemble.scorer import Scores
from dkt_ray.serving.contract import PredictRequest, ScoreRequest, Target
from dkt_ray.serving.predictor import Predictor
from dkt_ray.serving.requests import Student


def about(predictor: Predictor, student: Student, scores: Scores) -> dict[str, Any]:
    """What every reply says: the fields of `Reply`."""
    events = len(student.past.question)
    return {
        "model_version": predictor.version,
        "cold_start": not events,
        "truncated": predictor.truncated(events, scores.members),
        "older": student.older,
        "degraded": bool(scores.left_out),
        "left_out": list(scores.left_out),
    }


def predicted(predictor: Predictor, student: Student, request: PredictRequest, scores: Scores) -> dict[str, Any]:
    """The fields of `PredictResponse`."""
    names = [target.question for target in request.targets]
    reply = about(predictor, student, scores)
    reply["unknown_questions"] = unknown(names, scores)
    if request.explain:
        reply["weights"] = predictor.weights_without(scores.left_out) if scores.left_out else predictor.weights
    reply["predictions"] = _predictions(request.targets, scores, request.explain)
    return reply


def score(
    predictor: Predictor, student: Student, request: ScoreRequest, questions: Sequence[str], scores: Scores
) -> dict[str, Any]:
    """The fields of `ScoreResponse`: the mean over the questions of the set (reference 10.5)."""
    return about(predictor, student, scores) | {
        "score": 100 * float(scores.probability.mean()),
        "target_set": request.target_set,
        "questions": len(questions),
        "unknown_questions": unknown(questions, scores),
    }


def unknown(questions: Sequence[str], scores: Scores) -> list[str]:
    """Those of the M questions that the model does not know, each once."""
    return list(dict.fromkeys(itertools.compress(questions, scores.unknown.tolist())))


def _predictions(targets: Sequence[Target], scores: Scores, explain: bool) -> list[dict[str, Any]]:
    names = list(scores.members)
    opinions = np.stack([scores.members[name] for name in names], axis=1)  # [M, K]
    columns = (scores.probability, scores.spread, scores.unknown, opinions)
    rows = zip(targets, *(column.tolist() for column in columns), strict=True)
    return [
        {"question": target.question, "probability": probability, "spread": spread, "unknown_question": unknown_}
        | ({"members": dict(zip(names, each, strict=True))} if explain else {})
        for target, probability, spread, unknown_, each in rows
    ]
