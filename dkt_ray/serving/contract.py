"""What the HTTP API reads and writes: its requests and replies as types, for the server and the client alike."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SkipValidation
from pydantic_core import PydanticCustomError

from dkt_ray.errors import InputError

MAX_ROWS: Final = 50_000  # events and targets of one request
MAX_TARGETS: Final = 10_000
MAX_STUDENTS: Final = 256  # of one batch, within MAX_ROWS together, stored answers counted too
MAX_STEPS: Final = 50
MAX_CONCEPTS: Final = 3_000  # times 3 probes: within MAX_TARGETS
MAX_CATALOGUE: Final = 100_000
MAX_STORED: Final = MAX_ROWS - MAX_TARGETS  # answers of a stored user that are read, his latest
CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class FieldError(InputError):
    """A request whose fields are valid one by one but not together."""

    def __init__(self, pointer: str, message: str) -> None:
        super().__init__(f"{pointer}: {message}")
        self.pointer = pointer
        self.message = message


def _text(value: Any) -> Any:
    """Whole numbers are accepted as ids."""
    return str(value) if type(value) is int else value


def _without_controls(value: str) -> str:
    """Control characters, NUL above all, have no place in what is stored."""
    if CONTROLS.search(value):
        raise PydanticCustomError("control_characters", "String should have no control characters")
    return value


def _target(value: Any) -> Any:
    """A bare question id is accepted as a target."""
    return value if isinstance(value, dict) else {"question": value}


Identifier = Annotated[
    str, Field(min_length=1, max_length=200), BeforeValidator(_text, json_schema_input_type=str | int)
]
StoredId = Annotated[Identifier, AfterValidator(_without_controls)]
Answer = Annotated[int, Field(strict=True, ge=0, le=1, description="1 right, 0 wrong")]
Probability = Annotated[float, Field(strict=True, ge=0, le=1)]
Concepts = Annotated[list[Identifier], Field(max_length=64, fail_fast=True)]


class Part(BaseModel):
    """Base of everything in a request: an unknown field is an error."""

    model_config = ConfigDict(extra="forbid")


class Event(Part):
    """One answered question."""

    question: Identifier
    correct: Answer
    timestamp: datetime | None = Field(
        None, description="`YYYY-MM-DD HH:MM:SS`, ISO 8601 (no zone: UTC) or epoch; for all events or for none"
    )
    test: Identifier | None = Field(None, description="only needed for a question that the model does not know")
    concepts: Concepts | None = Field(None, description="only needed for a question that the model does not know")


class Target(Part):
    """One question to be scored."""

    question: Identifier
    test: Identifier | None = None
    concepts: Concepts | None = None


ScoreSets = dict[Identifier, Annotated[tuple[Identifier, ...], Field(min_length=1, max_length=MAX_TARGETS)]]
History = Annotated[
    list[Event],
    Field(max_length=MAX_ROWS, fail_fast=True, description="answered questions, oldest first; may be empty"),
]
AnyTarget = Annotated[Target, BeforeValidator(_target, json_schema_input_type=str | int | Target)]


class StudentRequest(Part):
    """What every request says about a student."""

    student: Identifier | None = Field(
        None,
        description="decides who answers while a rollout tries out another bundle; not used for scoring, not stored; "
        "default: the user",
    )
    user_id: StoredId | None = Field(
        None, description="in place of a history: the user whose answers `/v1/events` was sent; the latest 40,000 count"
    )
    history: History = []
    at: datetime | None = Field(
        None, description="when the targets are shown; of use where the answers have times, as those of a user have"
    )


class PredictRequest(StudentRequest):
    """A student and the questions to be scored."""

    targets: Annotated[list[AnyTarget], Field(min_length=1, max_length=MAX_TARGETS, fail_fast=True)]
    explain: bool = Field(False, description="also say what each member answers, and how much it counts")


class BatchRequest(Part):
    """Many students, each judged by itself: a wrong one does not keep the others from their answers.

    Together they have at most 50,000 events and targets; of a `user_id`, the answers that are kept here count, his
    latest 40,000.
    """

    students: Annotated[list[SkipValidation[PredictRequest]], Field(min_length=1, max_length=MAX_STUDENTS)]


class KnowledgeRequest(StudentRequest):
    """A student whose mastery is asked for."""

    concepts: Annotated[list[Identifier], Field(min_length=1, max_length=MAX_CONCEPTS, fail_fast=True)] | None = Field(
        None, description="default: those of the history, the latest first, then the most answered ones"
    )
    limit: Annotated[int, Field(strict=True, ge=1, le=MAX_CONCEPTS)] = Field(
        20, description="most concepts (where none are given), and most heads; chosen alike"
    )
    steps: Annotated[int, Field(strict=True, ge=0, le=MAX_STEPS)] = Field(
        MAX_STEPS, description="after how many of the last answers mastery is told too; 0: only now, which costs less"
    )


class RecommendRequest(StudentRequest):
    """A student who is to be given the next questions."""

    by: Literal["band", "gain"] = Field(
        "band",
        description="band: nearest to the middle of the band; gain: of the questions nearest to it, those after which "
        "mastery of the question's concepts is expected to rise most: p x mastery after a right answer + (1 - p) x "
        "mastery after a wrong one - mastery now. At most 32 are compared, fewer after more than 750 events",
    )
    band: tuple[Probability, Probability] = Field((0.6, 0.8), description="wanted probability of a right answer")
    exclude_last: Annotated[int, Field(strict=True, ge=0, le=MAX_ROWS)] = Field(
        100, description="questions among the last so many answers are not recommended"
    )
    concepts: Annotated[list[Identifier], Field(min_length=1, max_length=MAX_CONCEPTS, fail_fast=True)] | None = Field(
        None, description="only questions of one of these; default: of all"
    )
    limit: Annotated[int, Field(strict=True, ge=1, le=100)] = 10


class ScoreRequest(StudentRequest):
    """A student whose score is asked for."""

    target_set: Identifier = Field(
        "default", description="a set that the service was started with; default: the 100 most answered questions"
    )


class Reply(BaseModel):
    """What every reply about a student says."""

    model_version: str = Field(description="digest of the bundle that answered")
    cold_start: bool = Field(description="the history was empty")
    truncated: int = Field(
        0, description="how many of the oldest events no network reads one by one; all features still see them"
    )
    older: int = Field(
        0, description="with `user_id`: how many of the user's answers before the latest 40,000 do not count"
    )
    degraded: bool = Field(False, description="some members did not answer; the others did, with their weights made 1")
    left_out: list[str] = Field([], description="the members that did not answer")


class Prediction(BaseModel):
    """The answer for one target."""

    question: str
    probability: float = Field(description="probability of a right answer, the ensemble's")
    spread: float = Field(description="highest minus lowest probability among the members: how far apart they are")
    unknown_question: bool = Field(
        description="not in the model's vocabulary: judged by its test, concepts, or overall"
    )
    members: dict[str, float] | None = Field(None, description="probability of each member; with `explain` only")


class PredictResponse(Reply):
    """The answers in the order of the targets."""

    unknown_questions: list[str] = Field([], description="targets that the model does not know, each once")
    weights: dict[str, float] | None = Field(
        None, description="how much each member that answered counts: parts of 1; with `explain` only"
    )
    predictions: list[Prediction]


class Recommendation(BaseModel):
    """One question to be asked next."""

    question: str
    concepts: list[str]
    probability: float = Field(description="probability of a right answer")
    spread: float = Field(description="highest minus lowest probability among the members")
    in_band: bool = Field(description="the probability is in the wanted band")
    gain: float | None = Field(None, description="expected rise of mastery of the concepts; by gain only")
    reason: str = Field(description="why, in plain words")


class RecommendResponse(Reply):
    """The best first; empty where nothing is left to ask."""

    candidates: int = Field(description="questions that were considered: the most answered of those that fit")
    recommendations: list[Recommendation]


class ScoreResponse(Reply):
    """How much of a set of questions the student is expected to answer right."""

    score: float = Field(description="0 to 100: 100 x the mean probability of a right answer over the set")
    target_set: str
    questions: int = Field(description="questions in the set")
    unknown_questions: list[str] = Field([], description="those of them that the model does not know")


class FieldProblem(BaseModel):
    """What is wrong with one field."""

    pointer: str = Field(description="the field as a JSON pointer (RFC 6901) into the request")
    message: str
    found: str | None = Field(None, description="the JSON type of what was found")


class Problem(BaseModel):
    """Problem details (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldProblem] = []


class BatchItem(BaseModel):
    """One student of a batch: an answer, or the problem."""

    status: int = Field(
        description="200; 410: the user was deleted; 422: the student's fields are wrong; 500: an error on our side; "
        "503: none of the members answers, or the user's answers cannot be read: send this student again"
    )
    answer: PredictResponse | None = None
    problem: Problem | None = None


class BatchResponse(BaseModel):
    """The students in the order of the request; the status of the whole is 200."""

    items: list[BatchItem]


class Mastery(BaseModel):
    """How well the student knows something: the mean probability of a right answer over its probes."""

    mastery: float = Field(description="now")
    probes: list[str] = Field(description="at most three questions that stand for it")
    trajectory: list[float] | None = Field(
        None,
        description="right after each of the last `steps` answers, the oldest first; where `at` is given, asked at the "
        "time of that answer, else at no time",
    )


class ConceptMastery(Mastery):
    """Mastery of one concept."""

    concept: str


class HeadMastery(Mastery):
    """Mastery of the questions whose ids share a head: the three digits after `A`."""

    head: str


class KnowledgeResponse(Reply):
    """Mastery of each concept that was asked for, in that order, and of heads."""

    steps: int = Field(0, description="how many of the last answers the trajectories cover")
    concepts: list[ConceptMastery]
    heads: list[HeadMastery] = Field([], description="none where question ids do not have the form A + 3 x 3 digits")


class CatalogueEntry(BaseModel):
    """One question that the model knows."""

    question: str
    test: str
    concepts: list[str]
    count: int = Field(description="answers of training users")
    difficulty: float = Field(description="share of wrong answers of training users, smoothed")


class CatalogueResponse(BaseModel):
    """The most answered questions first."""

    model_version: str
    total: int
    questions: list[CatalogueEntry]


class Forgotten(BaseModel):
    """Training users of a bundle who were deleted since."""

    count: int
    since: datetime = Field(description="when the first of them was found")


class ModelsResponse(BaseModel):
    """A bundle behind this service."""

    model_config = ConfigDict(extra="allow")

    model_version: str
    members: list[dict[str, Any]]
    metrics: dict[str, Any]
    forgotten: Forgotten | None = Field(
        None,
        description="how many of its training users were deleted since, and since when: train anew; null: none known",
    )
    challenger: ModelsResponse | None = Field(
        None, description="the bundle that answers some students while a rollout tries it out"
    )


class Health(BaseModel):
    """Alive, or ready."""

    status: str
