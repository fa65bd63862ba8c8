"""Requests for the API's documentation that run as they stand, with questions of the bundle that answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dkt_ray.registry.catalogue import Catalogue


def requests(catalogue: Catalogue) -> dict[str, dict[str, Any]]:
    """Path -> title -> {"value": body}."""
    known = [row["question"] for row in catalogue.rows[:4]] or ["any"]
    history = [{"question": question, "correct": index % 2} for index, question in enumerate(known)]
    timed = [event | {"timestamp": f"2026-03-02 16:0{index}:00"} for index, event in enumerate(history)]
    student = {"history": history, "targets": known[:2]}
    bodies: dict[str, dict[str, Any]] = {
        "/predict": {
            "a student": student | {"explain": True},
            "with times": {"history": timed, "targets": known[:1], "at": "2026-03-02 16:05:00"},
            "cold start": {"history": [], "targets": known[:1]},
            "a new question": {"history": history, "targets": [{"question": "new", "concepts": ["1"]}]},
        },
        "/predict:batch": {"two students, and one that is refused": {"students": [student, {"targets": known}, {}]}},
        "/knowledge-state": {
            "a student, answer by answer": {"history": history, "limit": 5},
            "only now": {"history": history, "limit": 5, "steps": 0},
        },
        "/recommend": {
            "nearly always right": {"history": history, "band": [0.8, 0.95], "exclude_last": 2, "limit": 5},
            "what teaches most": {"history": timed, "by": "gain", "at": "2026-03-02 16:05:00", "limit": 3},
        },
        "/score": {"a student": {"history": history}, "an unknown student": {"target_set": "default"}},
    }
    return {path: {title: {"value": body} for title, body in titled.items()} for path, titled in bodies.items()}


def events(known: Sequence[str]) -> dict[str, Any]:
    """Title -> {"value": body} of `/v1/events`."""
    question = next(iter(known), "any")
    event = {"event_id": "a-1", "user_id": "student-17", "question": question, "correct": 1}
    waits = {"event_id": "a-2", "user_id": "student-17", "question": question, "answer": "a long text"}
    timed = event | {"event_id": "a-3", "shown_at": "2026-03-02 16:00:00", "answered_at": "2026-03-02 16:01:10"}
    bodies = {
        "an answer": [event],
        "with times": [timed],
        "one that is graded later": [waits],
        "its grade": [waits | {"correct": 0}],
    }
    return {title: {"value": {"events": several}} for title, several in bodies.items()}


def body(told: dict[str, Any]) -> dict[str, Any]:
    """Examples of a request's body, as OpenAPI 3.1 has them."""
    return {"requestBody": {"content": {"application/json": {"examples": told}}}}


def openapi(catalogue: Catalogue) -> dict[str, dict[str, Any]]:
    """Path -> the examples of its body, as OpenAPI 3.1 has them."""
    return {path: body(told) for path, told in requests(catalogue).items()}
