"""What is logged, and the two interfaces behind which logs and histories are kept: each can grow on its own.

POST /v1/events -> EventLog.append -> HistoryStore.append       GET history of a user -> HistoryStore.get
                   EventLog.read   -> export to the store, by a cursor
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from dkt_ray.errors import DktError

DAY_MS: Final = 24 * 60 * 60 * 1000


@dataclass(frozen=True, slots=True)
class Event:
    """One answer, as it is kept."""

    event_id: str  # unique: a second one of equal content is a retry
    user: str  # as `Privacy.user` names him
    question: str
    answered_at: int  # ms UTC
    received_at: int  # ms UTC, the server's clock: late events keep both
    correct: int | None = None  # 1 or 0; None: not graded yet
    answer: str | None = None  # what was answered, as the platform says it
    shown_at: int | None = None  # ms UTC
    test: str = ""  # "" where unknown
    concepts: str = ""  # canonical, "" where unknown


class Appended(NamedTuple):
    """What became of events."""

    added: int  # new ones that are graded, and grades of those that waited
    waiting: int  # new ones without a grade
    repeated: int  # retries: nothing happened
    graded: Sequence[Event] = ()  # the added ones, as the log has them

    @property
    def counts(self) -> dict[str, int]:
        """Without the events."""
        return {"added": self.added, "waiting": self.waiting, "repeated": self.repeated}


class Graded(NamedTuple):
    """A graded event and its place in the log."""

    sequence: int
    event: Event


@dataclass(frozen=True, slots=True)
class History:
    """What a user has answered and was graded, oldest first by (answered_at, sequence)."""

    question: Sequence[str]
    correct: Sequence[int]
    test: Sequence[str]
    concepts: Sequence[str]
    timestamp: Sequence[int]  # answered_at, ms UTC
    older: int = 0  # events before these, which are kept but not read


class Receipt(NamedTuple):
    """What a deletion removed."""

    mark: str  # `Privacy.mark` of the user: the tombstone
    deleted_at: int  # ms UTC
    removed: dict[str, int]  # table -> rows


class EventConflictError(DktError):
    """An event id that is taken by an event of other content.

    Attributes:
        index: place of the event among those that were to be appended.
    """

    def __init__(self, index: int) -> None:
        super().__init__(f"event {index}: its id belongs to an event of other content; give each one its own")
        self.index = index


class ForgottenError(DktError):
    """A user who was deleted: nothing is read or kept of him any more."""


class EventLog(Protocol):
    """Where events are appended; may be shared by many processes and threads."""

    def append(self, events: Sequence[Event]) -> Appended:
        """Keep events, all or none; one that is there already is not kept twice, a grade joins its event.

        Raises:
            EventConflictError: an id is taken.
            ForgottenError: a user was deleted.
            UnavailableError: the log cannot be written now.
        """

    def read(self, after: int, limit: int) -> list[Graded]:
        """Graded events after a place in the log, in its order; nothing is ever added before what was read."""

    def count(self) -> int:
        """How many graded events there are."""


class HistoryStore(Protocol):
    """Histories by user; an event that the log has acknowledged is in the next `get`."""

    def get(self, user: str, limit: int) -> History:
        """The latest `limit` answers of a user; an empty one where nothing is known of him.

        Raises:
            ForgottenError: he was deleted.
            UnavailableError: the store cannot be read now.
        """

    def waiting(self, user: str) -> int:
        """How many answers of a user wait for their grade."""

    def append(self, events: Sequence[Event]) -> None:
        """Hear of events that the log has just taken."""

    def delete(self, user: str) -> Receipt:
        """Remove all that is kept of a user, and leave a tombstone; again: the same receipt, with nothing removed."""
