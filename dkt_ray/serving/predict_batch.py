"""`POST /v1/predict:batch`: many students in one request, each answered or refused by itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

from pydantic import ValidationError

from dkt_ray.data.query import Query
from dkt_ray.errors import OverloadedError, UnavailableError
from dkt_ray.events.model import ForgottenError
from dkt_ray.serving import edge, ratelimit
from dkt_ray.serving.contract import MAX_ROWS, FieldError, PredictRequest
from dkt_ray.serving.requests import Student, query
from dkt_ray.serving.trace import about

logger = logging.getLogger(__name__)


class Item(NamedTuple):
    """One student of the request."""

    request: PredictRequest
    student: Student
    query: Query


Find = Callable[[PredictRequest], Awaitable[Student]]
Fields = dict[str, Any]
AnswerItem = Callable[[Item], Awaitable[Fields]]


async def items(students: Sequence[Any], find: Find, answer: AnswerItem) -> list[Fields]:
    """The items of the reply, in the order of the students; all are asked at once, so that batching can fuse them.

    They are read one after the other: no more rows are read than one request may have, and the last student's.

    Args:
        students: raw JSON values.
        find: whom a request is about.
        answer: the fields of `PredictResponse`; what it raises for all students is raised here.

    Raises:
        FieldError: too many rows together.
        OverloadedError: too much is waiting: the request can be sent again as it is.
    """
    ratelimit.charge(len(students) - 1)
    read, rows = list[Item | Fields](), 0
    find = _until_unavailable(find)
    for index, value in enumerate(students):
        item = await asyncio.create_task(_read(value, f"/students/{index}", find))  # whom it is about stays in the task
        rows += item.query.rows if isinstance(item, Item) else 0
        if rows > MAX_ROWS:
            message = f"{rows} events and targets of the first {index + 1}; expected at most {MAX_ROWS} together"
            raise FieldError("/students", f"{message}: send fewer students a request")
        read.append(item)
    good = {index: item for index, item in enumerate(read) if isinstance(item, Item)}
    answered = await asyncio.gather(*(_ask(item, answer) for item in good.values()), return_exceptions=True)
    failed = [each for each in answered if isinstance(each, BaseException)]
    for error in failed:
        if len(failed) == len(good) or isinstance(error, OverloadedError):
            raise error
    told = {index: _told(fields) for index, fields in zip(good, answered, strict=True)}
    return [item if isinstance(item, dict) else told[index] for index, item in enumerate(read)]


def _until_unavailable(find: Find) -> Find:
    """Asks for stored users until one cannot be read; who follows is not waited for."""
    reason: UnavailableError | None = None

    async def found(request: PredictRequest) -> Student:
        nonlocal reason
        if reason is not None and request.user_id is not None:
            raise reason
        try:
            return await find(request)
        except UnavailableError as error:
            reason = error
            raise

    return found


async def _read(value: Any, pointer: str, find: Find) -> Item | Fields:
    """The item, or the problem in its place; pointers lead into the whole request."""
    try:
        request = PredictRequest.model_validate(value)
        student = await find(request)
        return Item(request, student, query(student.past, request.targets))
    except ForgottenError as error:
        return _problem(HTTPStatus.GONE, str(error))
    except UnavailableError as error:
        return _problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
    except ValidationError as error:
        problems = [edge.explain(each | {"loc": ("body", *each["loc"])}) for each in error.errors(include_url=False)]
    except FieldError as error:
        problems = [{"pointer": error.pointer, "message": error.message}]
    errors = [problem | {"pointer": pointer + problem["pointer"]} for problem in problems]
    return _problem(HTTPStatus.UNPROCESSABLE_ENTITY, f"{errors[0]['pointer']}: {errors[0]['message']}", errors)


async def _ask(item: Item, answer: AnswerItem) -> Fields:
    if item.student.user:
        about(item.student.user)  # in a task of its own
    return await answer(item)


def _told(answered: Fields | BaseException) -> Fields:
    if not isinstance(answered, BaseException):
        return {"status": HTTPStatus.OK.value, "answer": answered}
    if isinstance(answered, UnavailableError):
        return _problem(HTTPStatus.SERVICE_UNAVAILABLE, str(answered))
    logger.error("a student of a batch was not scored", exc_info=answered)
    return _problem(HTTPStatus.INTERNAL_SERVER_ERROR, "An error on our side; the log has it")


def _problem(status: HTTPStatus, detail: str, errors: Sequence[dict[str, str]] = ()) -> Fields:
    problem: Fields = {"type": "about:blank", "title": status.phrase, "status": status.value, "detail": detail}
    return {"status": status.value, "problem": problem | ({"errors": list(errors)} if errors else {})}
