"""What a replica remembers of users, asked from its event loop; behind it nobody sees what a platform calls a user."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, NamedTuple, ParamSpec, TypeVar

from fastapi import Request

from dkt_ray.data.query import Query
from dkt_ray.errors import ConfigError, DktError, OverloadedError, UnavailableError
from dkt_ray.events.model import DAY_MS, Appended, Event, EventLog, History, HistoryStore, Receipt
from dkt_ray.events.sql import Events
from dkt_ray.privacy import Privacy
from dkt_ray.serving.contract import MAX_STORED, FieldError, StudentRequest
from dkt_ray.serving.events_contract import LoggedEvent
from dkt_ray.serving.guard import Caller
from dkt_ray.serving.requests import Student, brought, canonical, milliseconds, shown
from dkt_ray.serving.trace import about

READERS: Final = 8  # threads that wait for the database at a time; more requests wait for a thread
WRITERS: Final = 1  # the database has one; who writes never waits in a reader's place
MOST_WRITES: Final = 32  # that wait or are under way: half of what a replica works on at a time is left to others

P = ParamSpec("P")
T = TypeVar("T")


class Deletion(NamedTuple):
    """A user's deletion, and the bundles that were trained on him."""

    receipt: Receipt
    bundles: Sequence[str]


@dataclass(frozen=True)
class Memory:
    """The events of all users, and who they are."""

    log: EventLog
    histories: HistoryStore
    privacy: Privacy = field(default_factory=Privacy.of_environment)
    mark_bundles: Callable[[str], Sequence[str]] = lambda mark: ()
    """Marks the bundles that were trained on a deleted user, and says which they are."""
    heard: Callable[[Sequence[Event]], None] = lambda events: None
    """Told of events that have become graded, as the log has them."""
    end: Callable[[], None] = lambda: None
    """Ends what the log and the histories hold open."""
    readers: ThreadPoolExecutor = field(default_factory=partial(ThreadPoolExecutor, READERS, "reads"))
    writers: ThreadPoolExecutor = field(default_factory=partial(ThreadPoolExecutor, WRITERS, "writes"))
    turns: asyncio.Semaphore = field(default_factory=partial(asyncio.Semaphore, MOST_WRITES))

    @classmethod
    def of(cls, opened: Events, **more: Any) -> Memory:
        """Of an open database.

        Args:
            more: other fields.
        """
        return cls(opened.log, opened.histories, end=opened.close, **more)

    def close(self) -> None:
        """Let what is being done end, then close the database."""
        self.writers.shutdown()
        self.readers.shutdown()
        self.end()

    async def append(self, events: Sequence[LoggedEvent], tenant: str, now: int) -> Appended:
        """Keep events of a request that came now (ms UTC), all or none.

        Raises:
            FieldError: a time that cannot be.
            EventConflictError: an id is taken.
            ForgottenError: a user was deleted.
            UnavailableError: the log cannot be written now, or too many wait to do so.
        """
        kept = [self._event(index, each, tenant, now) for index, each in enumerate(events)]

        def append() -> Appended:
            appended = self.log.append(kept)
            self.histories.append(kept)
            self.heard(appended.graded)
            return appended

        return await self._write(append)

    async def student(self, request: StudentRequest, tenant: str) -> Student:
        """The user whom a request names, with his latest answers.

        Raises:
            FieldError: the request brings a history, too.
            ForgottenError: he was deleted.
            UnavailableError: the answers cannot be read now.
        """
        assert request.user_id is not None
        if "history" in request.model_fields_set:
            raise FieldError("/history", "given beside user_id; send one of them")
        user, history = await self.history(request.user_id, tenant, MAX_STORED)
        about(user)
        past = Query(
            question=history.question,
            correct=history.correct,
            test=history.test,
            concepts=history.concepts,
            timestamp=history.timestamp,
            target=(),
            at=shown(request),
        )
        return Student(past, request.student or user, user, history.older)

    async def history(self, user_id: str, tenant: str, limit: int) -> tuple[str, History]:
        """A user's stored name and his latest answers."""
        user = self._name(user_id, tenant)
        return user, await self.ask(self.histories.get, user, limit)

    async def delete(self, user_id: str, tenant: str) -> Deletion:
        """Delete a user for ever.

        Raises:
            UnavailableError: not all of it could be done; asked again, the rest is done.
        """
        name = self._name(user_id, tenant)

        def delete() -> Deletion:
            receipt = self.histories.delete(name)
            try:
                return Deletion(receipt, self.mark_bundles(receipt.mark))
            except DktError as error:
                reason = f"the user is deleted, but the bundles trained on him are not all marked ({error}); try again"
                raise UnavailableError(reason) from error

        return await self._write(delete)

    async def count(self) -> int:
        """How many graded events there are."""
        return await self.ask(self.log.count)

    async def ask(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What the database answers to a reader, without holding the event loop up."""
        return await _in(self.readers, work, *args, **kwargs)

    async def _write(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What the database answers to a writer.

        Raises:
            OverloadedError: too many wait for their turn.
        """
        if self.turns.locked():
            raise OverloadedError(f"{MOST_WRITES} requests wait to write into the log of events; try again")
        async with self.turns:
            return await _in(self.writers, work, *args, **kwargs)

    def _name(self, user_id: str, tenant: str) -> str:
        """The name under which a user is stored.

        Raises:
            UnavailableError: tenants, but no key for the names of their users.
        """
        try:
            return self.privacy.user(user_id, tenant)
        except ConfigError as error:
            raise UnavailableError(str(error)) from None

    def _event(self, index: int, event: LoggedEvent, tenant: str, now: int) -> Event:
        times = {"answered_at": event.answered_at, "shown_at": event.shown_at}
        at = {name: milliseconds(time) for name, time in times.items() if time is not None}
        for name, time in at.items():
            if not 0 <= time <= now + DAY_MS:
                raise FieldError(
                    f"/events/{index}/{name}", "before 1970, or more than a day ahead of the server's clock"
                )
        if at.get("shown_at", 0) > at.get("answered_at", now + DAY_MS):
            raise FieldError(f"/events/{index}/shown_at", "later than answered_at")
        return Event(
            event_id=self.privacy.event(event.event_id, tenant),
            user=self._name(event.user_id, tenant),
            question=event.question,
            answered_at=at.get("answered_at", now),
            received_at=now,
            correct=event.correct,
            answer=event.answer,
            shown_at=at.get("shown_at"),
            test=event.test or "",
            concepts=canonical(event.concepts),
        )


async def _in(threads: ThreadPoolExecutor, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    return await asyncio.get_running_loop().run_in_executor(threads, partial(work, *args, **kwargs))


async def student_of(body: StudentRequest, request: Request, memory: Memory | None) -> Student:
    """The student whom a request is about: it brings his history, or names a user whose answers are kept.

    Raises:
        FieldError: both, or a wrong history, or a user where none is kept.
        ForgottenError: the user was deleted.
        UnavailableError: the user's answers cannot be read now.
    """
    if body.user_id is None:
        return brought(body)
    if memory is None:
        raise FieldError("/user_id", "this service keeps no answers of users; send a history")
    return await memory.student(body, tenant(request))


def tenant(request: Request) -> str:
    """Whose users a request is about; "" where there are no tenants."""
    caller: Caller = request.state.caller
    return caller.tenant


def time_of(moment_ms: int) -> datetime:
    """A time as replies have it."""
    return datetime.fromtimestamp(moment_ms / 1000, UTC)


def receipt_id(receipt: Receipt) -> str:
    """Names a deletion without naming the user."""
    return hashlib.sha256(f"{receipt.mark} {receipt.deleted_at}".encode()).hexdigest()[:24]
