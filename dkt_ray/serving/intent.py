"""What a rollout is about to do, kept in the store from its first change to its last, so that a killed one is found.

rollouts/<alias>/lease.json      who is at work: one rollout or rollback of an alias at a time
rollouts/<alias>/current.json    what it is about to do, and what served before
rollouts/<alias>/serving.json    what serves since the last one that ended well
rollouts/<alias>/stop.json       somebody asks the one at work to give up
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Literal

from dkt_ray.config import Config, build
from dkt_ray.errors import NotFoundError, RolloutError
from dkt_ray.storage import Store
from dkt_ray.storage.lease import holder, lease, take_away

CURRENT: Final = "current.json"
SERVING: Final = "serving.json"
STOP: Final = "stop.json"
_MARK: ContextVar[str | None] = ContextVar("mark", default=None)  # of the lease that this thread holds


class Intent(Config):
    """What is about to happen to a service."""

    action: Literal["rollout", "rollback"]
    before: dict[str, Any] | None
    """Arguments of the application that served before; None: none did."""
    after: dict[str, Any]
    """Those of the one that is to serve."""

    @property
    def bundle(self) -> str:
        """What is to serve."""
        return str(self.after["bundle"])

    def done(self, alias: str | None) -> bool:
        """Whether the alias says so; where only settings change it says nothing, and that is not done."""
        settings_only = self.action == "rollout" and (self.before or {}).get("bundle") == self.bundle
        return alias == self.bundle and not settings_only


@dataclass(frozen=True)
class Intents:
    """The intents about one alias."""

    files: Store
    alias: str

    @classmethod
    def of(cls, store: Store, alias: str) -> Intents:
        """Those of an alias of a store."""
        return cls(store.child(f"rollouts/{alias}"), alias)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep others out while the context lasts.

        Raises:
            ConflictError: another rollout or rollback of the alias is at work.
        """
        with lease(self.files, f"rollout of {self.alias}") as mark:
            self.files.delete(STOP)  # it was meant for somebody before
            ours = _MARK.set(mark)
            try:
                yield
            finally:
                _MARK.reset(ours)

    def taken_over(self) -> bool:
        """Whether what this thread held is somebody else's by now: he also ends what was begun here."""
        mark = _MARK.get()
        return mark is not None and holder(self.files) != mark

    def free(self) -> bool:
        """Whether nobody is at work."""
        return holder(self.files) is None

    def take_over(self) -> None:
        """Take the lease from a rollout that has not begun to change anything; it sees that in `check`."""
        take_away(self.files)

    def pending(self) -> Intent | None:
        """What was begun and not ended; None where all is done."""
        try:
            return build(Intent, self.files.read_json(CURRENT))
        except NotFoundError:
            return None

    def begin(self, intent: Intent) -> None:
        """Write down what is about to happen."""
        self.files.write_json(CURRENT, intent.model_dump(mode="json"))

    def end(self) -> None:
        """All is done, or undone."""
        self.files.delete(CURRENT)

    def succeed(self, intent: Intent) -> None:
        """All is done: what was to serve serves."""
        self.files.write_json(SERVING, {"arguments": intent.after, "by": _MARK.get()})
        self.end()

    def succeeded(self) -> bool:
        """Whether the one at work has done all that it was there for, and is about to leave."""
        try:
            mark = self.files.read_json(SERVING)["by"]
        except NotFoundError:
            return False
        return mark is not None and mark == holder(self.files)

    def serving(self) -> dict[str, Any] | None:
        """Arguments of the application since the last rollout or rollback that ended well; None: there was none."""
        try:
            found: dict[str, Any] = self.files.read_json(SERVING)["arguments"]
        except NotFoundError:
            return None
        return found

    def ask_to_stop(self, reason: str) -> None:
        """Have the rollout at work give up."""
        self.files.write_json(STOP, {"reason": reason})

    def check(self) -> None:
        """Give up where somebody asked for that, or took over.

        Raises:
            RolloutError: somebody did.
        """
        if self.taken_over():
            raise RolloutError("stopped: somebody else has taken over")
        if self.files.exists(STOP):
            raise RolloutError(f"stopped: {self.files.read_json(STOP)['reason']}")
