"""A user of the shipped client, who asks all the time and writes a ledger."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import TracebackType

from benchmarks.ledger import OK, Entry
from dkt_ray import Client
from dkt_ray.errors import DktError
from tests.reliability.processes import wait_until
from tests.reliability.world import World

DEADLINE_S = 15.0


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
        with Client(self.urls, deadline_s=DEADLINE_S) as client:
            while not self.stopping.wait(self.pause_s):
                number = len(self.entries)
                sent, body = time.monotonic(), bodies[number % len(bodies)]
                status, version, values, error = OK, "", [], ""
                try:
                    found = client.predict(body["targets"], body["history"])
                    version, values = found.model_version, [each.probability for each in found.predictions]
                except DktError as problem:
                    status, error = 0, str(problem)
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
        self.stopping.set()
        self.join(60)
