"""A benchmark's sides as processes that take turns: one works while the others wait for a line on standard input."""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from benchmarks.process_tree import Sampler

MIB: Final = 2**20


class Side:
    """A process that says what it has in a first line of JSON, and answers every further line with one."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start it and wait until it is ready."""
        self.command = list(command)
        self.process = subprocess.Popen(
            self.command, env=dict(environment), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.sampler = Sampler(self.process.pid)
        self.sampler.start()
        self.facts = self._answer()
        self.turns: list[Mapping[str, float]] = []

    def turn(self) -> None:
        """One stretch of work."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.turns.append(self._answer())

    def median(self, clock: str) -> float:
        """Seconds of a turn, by a clock of `since`."""
        return statistics.median(turn[clock] for turn in self.turns)

    def close(self) -> float:
        """End it; the most memory that it held, in MiB, its share of shared pages only."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.sampler.ended.set()
        self.sampler.join()
        return round(self.sampler.peak_total / MIB, 1)

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise subprocess.CalledProcessError(self.process.wait(), self.command)
        return json.loads(line)


def clocks() -> tuple[float, float]:
    """Now, by the wall's clock and by this process's."""
    return time.perf_counter(), time.process_time()


def since(started: tuple[float, float]) -> dict[str, float]:
    """What a side answers: seconds that passed, and those that it worked (they differ where the machine is busy)."""
    wall, processor = clocks()
    return {"seconds": wall - started[0], "cpu_seconds": processor - started[1]}


def say(**facts: Any) -> None:
    """One line of JSON, at once."""
    print(json.dumps(facts), flush=True)
