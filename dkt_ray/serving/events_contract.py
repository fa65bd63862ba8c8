"""What the routes about events and users read and write, as types, for the server and the client alike."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, Field
from pydantic_core import PydanticCustomError

from dkt_ray.serving.contract import Answer, Part, StoredId

MAX_EVENTS: Final = 1_000  # of one request
MAX_LATEST: Final = 1_000  # answers that are told of a user


def _without_nul(value: str) -> str:
    if "\0" in value:
        raise PydanticCustomError("nul", "String should have no NUL")
    return value


class LoggedEvent(Part):
    """One answer, to be kept."""

    event_id: StoredId = Field(description="your own id of this answer: sent again, it is not kept twice")
    user_id: StoredId
    question: StoredId
    correct: Answer | None = Field(
        None, description="1 right, 0 wrong; null or absent: not graded yet, send it with the same `event_id` later"
    )
    answer: Annotated[str, Field(max_length=200), AfterValidator(_without_nul)] | None = Field(
        None, description="what was answered, as you write it"
    )
    test: StoredId | None = None
    concepts: Annotated[list[StoredId], Field(max_length=64, fail_fast=True)] | None = None
    shown_at: datetime | None = Field(None, description="when the question was shown")
    answered_at: datetime | None = Field(
        None, description="when it was answered; absent: when the request arrives; at most a day ahead of that"
    )


class EventsRequest(Part):
    """Answers of any users; all are kept, or none."""

    events: Annotated[list[LoggedEvent], Field(min_length=1, max_length=MAX_EVENTS, fail_fast=True)]


class EventsResponse(BaseModel):
    """What became of the events; from now on every prediction counts them."""

    added: int = Field(description="graded ones that are new, and grades of those that waited")
    waiting: int = Field(description="new ones without a grade; they count when it comes")
    repeated: int = Field(description="those that were there already")
    received_at: datetime = Field(description="the server's clock, which the events keep beside their own time")


class CountResponse(BaseModel):
    """How many graded events there are."""

    events: int


class LoggedAnswer(BaseModel):
    """One graded answer of a user."""

    question: str
    correct: int
    answered_at: datetime


class UserResponse(BaseModel):
    """What is kept of a user."""

    answers: int = Field(description="graded answers")
    waiting: int = Field(description="answers that wait for their grade")
    correct: int = Field(description="right ones among the latest 40,000")
    first_answered_at: datetime | None = Field(
        description="of the latest 40,000 graded ones; null where there are none"
    )
    last_answered_at: datetime | None
    latest: list[LoggedAnswer] = Field([], description="the latest answers, the oldest of them first; with `answers=N`")


class ReceiptResponse(BaseModel):
    """What was deleted of a user; a further call has the same receipt, and nothing left to remove."""

    receipt: str = Field(description="id of the deletion; it does not tell whose")
    deleted_at: datetime
    removed: dict[str, int] = Field(description="rows by table")
    bundles: list[str] = Field(description="digests of the models that were trained on his answers, now marked")
    remains: str = Field(description="what is still to be done, and by whom")
