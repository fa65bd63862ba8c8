"""`dkt predict`: how likely right answers of a student are, in a terminal: asked of a service, or of a bundle here."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar, Final

from pydantic import Field, ValidationError, model_validator

from dkt_ray.client import Client
from dkt_ray.config import Config
from dkt_ray.errors import InputError
from dkt_ray.registry.cache import local_copy
from dkt_ray.registry.store import Registry, resolve
from dkt_ray.schema import CONCEPT_SEPARATOR, RAW_COLUMNS
from dkt_ray.serving import replies
from dkt_ray.serving.contract import PredictRequest, PredictResponse
from dkt_ray.serving.predictor import Predictor
from dkt_ray.serving.requests import brought, query
from dkt_ray.storage import open_input, open_store

logger = logging.getLogger(__name__)

FIELDS: Final = ("question", "correct", "timestamp", "test", "concepts")


class PredictConfig(Config):
    """Settings of `dkt predict`."""

    positional: ClassVar[str | None] = "history"

    history: str | None = None
    """The student's answers, oldest first: a CSV file (question,correct and where known timestamp,test,concepts, or the
    names of the six-column schema), or a JSON file (a list of events, or a whole request). Unset: a cold start."""
    user_id: str | None = None
    """In place of a history: a user whose answers the service keeps."""
    targets: tuple[str, ...] = ()
    """Questions to be scored, e.g. [A010001003, A020005001]."""
    at: datetime | None = None
    """When they are shown; unset: at no time."""
    explain: bool = False
    """Also tell what each member answers."""
    url: str = "http://127.0.0.1:8000"
    """Address of the service; its key, where it wants one, is taken from DKT_API_KEY."""
    deadline_s: float = Field(default=15.0, gt=0)
    """How long its answer may take."""
    bundle: str | None = None
    """Digest or alias of a bundle that answers here, without a service."""
    store: str = "data/store"
    """Where that bundle is: folder or s3://bucket/prefix."""

    @model_validator(mode="after")
    def _one_source(self) -> PredictConfig:
        if self.user_id is not None and (self.history or self.bundle):
            raise ValueError("user_id stands for a history that a service keeps; leave out history and bundle")
        return self


def run(config: PredictConfig) -> dict[str, Any]:
    """Ask for the probabilities.

    Returns:
        The fields of `PredictResponse`.

    Raises:
        InputError: the history cannot be read, or the request is none.
        RefusedError: the service refuses it.
        NoAnswerError: no answer within the deadline.
        BundleError: the bundle is damaged.
    """
    body = _body(config)
    answer = _here(config, body, config.bundle) if config.bundle else _there(config, body)
    logger.info("%s\n%s", _about(answer), table(answer))
    return answer.model_dump(mode="json", exclude_none=True)


def table(answer: PredictResponse) -> str:
    """The predictions for a terminal."""
    width = max(len("question"), *(len(each.question) for each in answer.predictions))
    members = list(answer.predictions[0].members or ())
    head = [f"{'question':<{width}}", "probability", "spread", *members]
    lines = [
        [f"{each.question:<{width}}", f"{each.probability:>11.4f}", f"{each.spread:>6.4f}"]
        + [f"{p:>{len(name)}.4f}" for name, p in (each.members or {}).items()]
        for each in answer.predictions
    ]
    return "\n".join("  ".join(line) for line in [head, *lines])


def read_history(path: str) -> dict[str, Any]:
    """A request, or the part of one that a file holds.

    Raises:
        InputError: no such file, or neither CSV with the columns nor JSON.
    """
    with open_input(path) as stream:
        content = stream.read()
    try:
        text = content.decode("utf-8-sig")
        if not path.removesuffix(".gz").endswith(".json"):
            return {"history": _events(path, text)}
        found = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path}: cannot be read: {error}; expected UTF-8 text, CSV or .json") from None
    return found if isinstance(found, dict) else {"history": found}


def _events(path: str, text: str) -> list[dict[str, Any]]:
    names = {raw: name for name, raw in RAW_COLUMNS.items() if name in FIELDS} | {name: name for name in FIELDS}
    rows = csv.DictReader(text.splitlines())
    if not {"question", "correct"} <= {names.get(column) for column in rows.fieldnames or ()}:
        raise InputError(f"{path}: no columns question and correct; the file has {', '.join(rows.fieldnames or ())}")
    return [
        _event({names[column]: value for column, value in row.items() if column in names and value}) for row in rows
    ]


def _event(row: Mapping[str, str]) -> dict[str, Any]:
    read: dict[str, Any] = dict(row)
    if row.get("correct") in ("0", "1"):
        read["correct"] = int(row["correct"])
    if "concepts" in row:
        read["concepts"] = row["concepts"].split(CONCEPT_SEPARATOR)
    return read


def _body(config: PredictConfig) -> dict[str, Any]:
    body = read_history(config.history) if config.history else {}
    given = {"targets": config.targets, "at": config.at, "user_id": config.user_id, "explain": config.explain}
    body |= {name: value for name, value in given.items() if value}
    try:
        PredictRequest.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = "/".join(map(str, first["loc"]))
        raise InputError(f"{config.history or 'the request'}: {where}: {first['msg']}") from None
    return body


def _there(config: PredictConfig, body: Mapping[str, Any]) -> PredictResponse:
    asked = {name: value for name, value in body.items() if name != "targets"}
    with Client(config.url, deadline_s=config.deadline_s) as client:
        return client.predict(body["targets"], **asked)


def _here(config: PredictConfig, body: Mapping[str, Any], bundle: str) -> PredictResponse:
    if "user_id" in body:
        raise InputError(
            f"{config.history}: user_id stands for a history that a service keeps; leave it out, or leave out bundle"
        )
    registry = Registry(open_store(config.store))
    digest = resolve(registry, bundle)
    predictor = Predictor.load(local_copy(registry, digest), digest)
    request = PredictRequest.model_validate(body)
    student = brought(request)
    [scores] = predictor.answer([query(student.past, request.targets)])
    return PredictResponse.model_validate(replies.predicted(predictor, student, request, scores))


def _about(answer: PredictResponse) -> str:
    notes = [f"bundle {answer.model_version[:12]}"]
    if answer.cold_start:
        notes.append("cold start")
    if answer.degraded:
        notes.append(f"without {', '.join(answer.left_out)}")
    if answer.unknown_questions:
        notes.append(f"not known: {', '.join(answer.unknown_questions)}")
    return "; ".join(notes)
