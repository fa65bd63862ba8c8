"""A user of the shipped client, who asks all the time and writes a ledger."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import TracebackType

from benchmarks.ledger import OK, Entry
from dkt_ray import Client
from tests.reliability.processes import PATIENCE_S, wait_until
from tests.reliability.world import World


class User(threading.Thread):
    """One user of `dkt_ray.Client`, as a context: asks until the end of the block."""

    def __init__(self, world: World, pause_s: float = 0.1, urls: Sequence[str] = ()) -> None:
        super().__init__(daemon=True)
        self.world = world
        self.urls = urls or [world.url]
        self.pause_s = pause_s
        self.stopping = threading.Event()
        self.entries: list[Entry] = []

    def run(self) -> None:
        bodies = self.world.bodies
        with Client(self.urls, deadline_s=self.world.deadline_s) as client:
            while not self.stopping.wait(self.pause_s):
                number = len(self.entries)
                sent, body = time.monotonic(), bodies[number % len(bodies)]
                status, version, values, error = OK, "", [], ""
                try:
                    found = client.predict(body["targets"], body["history"])
                    version, values = found.model_version, [each.probability for each in found.predictions]
                except Exception as problem:  # noqa: BLE001 - whatever the client raises, its user had no answer
                    status, error = 0, f"{type(problem).__name__}: {problem}"
                now = time.monotonic()
                self.entries.append(
                    Entry(number, number % len(bodies), sent, sent, now, status, version, values, error)
                )

    def wait_for(self, count: int) -> None:
        """Wait until so many further calls have ended."""
        wanted = len(self.entries) + count
        wait_until(lambda: len(self.entries) >= wanted)

    def __enter__(self) -> User:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        died = not self.is_alive()
        self.stopping.set()
        self.join(self.world.deadline_s + PATIENCE_S)
        if kind is None and (died or self.is_alive()):
            raise RuntimeError(f"the user {'died' if died else 'does not end'} after {len(self.entries)} calls")
