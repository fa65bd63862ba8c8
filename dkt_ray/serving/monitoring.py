"""The routes that say how the bundles are doing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, HTTPException, Response
from pydantic import BaseModel, Field

from dkt_ray.events.outcomes import WINDOW
from dkt_ray.serving import edge
from dkt_ray.serving.memory import time_of
from dkt_ray.serving.predictor import Predictor
from dkt_ray.serving.routes import reply
from dkt_ray.serving.telemetry import Telemetry


class Quantity(BaseModel):
    """One quantity of requests beside that of training."""

    index: float | None = Field(description="population stability index: about 0 where equal; null: too few values")
    values: float = Field(description="how many values it is of; one of 2,000 queries ago counts half")
    edges: list[float]
    training: list[float] = Field(description="share below the first edge, between edges, and from the last one on")
    requests: list[float]


class DriftResponse(BaseModel):
    """What this replica was asked of late, beside what its bundle was trained on."""

    model_version: str
    quantities: dict[str, Quantity]


class Live(BaseModel):
    """Figures over the latest outcomes of a bundle."""

    model_version: str
    outcomes: int
    log_loss: float | None
    auc: float | None
    ece: float | None
    since: datetime | None
    until: datetime | None


class OutcomesResponse(BaseModel):
    """Predictions for stored users that were answered since: the bundles with the newest, that one first."""

    window: int = Field(description="most outcomes of a bundle that figures are of")
    bundles: list[Live]


def monitoring(predictor: Predictor, telemetry: Telemetry) -> APIRouter:
    """The routes, for the bundle that the alias points to."""
    router = APIRouter(prefix="/v1")

    @router.get(
        "/drift",
        response_model=DriftResponse,
        responses={404: {"description": "the bundle has no profile", "content": {edge.PROBLEM: {}}}},
    )
    async def drift() -> Response:
        """Whether requests look like the training data; of the one replica that answers."""
        found = telemetry.drifts.get(predictor.version)
        if found is None:
            detail = "The bundle has no profile of its training data: an earlier release made it; publish its run again"
            raise HTTPException(HTTPStatus.NOT_FOUND, detail)
        return reply({"model_version": predictor.version, "quantities": found.report()})

    @router.get(
        "/outcomes",
        response_model=OutcomesResponse,
        responses={404: {"description": "no users are stored here", "content": {edge.PROBLEM: {}}}},
    )
    async def live() -> Response:
        """How well the bundles have foreseen what stored users answered; figures are up to a minute old."""
        if telemetry.journal is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, "No users are stored here; start the service with `events`")
        return reply({"window": WINDOW, "bundles": _live(telemetry.journal.told)})

    return router


def _live(told: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        each | {name: None if each[name] is None else time_of(each[name]) for name in ("since", "until")}
        for each in told
    ]
