"""A long run in portions, each in a process of its own: if one dies or hangs, that is told, and the others go on."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Final, NamedTuple, TypeAlias

SILENT_S: Final = 300.0

Tell: TypeAlias = Callable[[Any], None]
Work: TypeAlias = Callable[[Any, Tell], None]


class Lost(NamedTuple):
    """A process that ended before its portion was done."""

    why: str


@dataclass
class _Running:
    number: int
    process: BaseProcess
    heard: float  # when
    killed: bool = False


def told(
    work: Work, portions: Iterable[Any], at_once: int, silent_s: float = SILENT_S
) -> Iterator[tuple[int, Any | Lost]]:
    """What is told of each portion while it is worked on, with its number; once left, all processes are ended.

    Args:
        work: does a portion and tells of it; a function that a new process can import.
        portions: taken when their turn comes.
        at_once: processes.
        silent_s: after so long without a word a process is killed.
    """
    left, running = enumerate(portions), dict[Connection, _Running]()
    try:
        while True:
            while len(running) < at_once and (following := next(left, None)):
                running.update([_started(work, *following)])
            if not running:
                return
            for connection in wait(list(running), timeout=1.0):
                assert isinstance(connection, Connection)
                each = running[connection]
                try:
                    heard = connection.recv()
                except (EOFError, OSError):  # killed between messages, or in one
                    del running[connection]
                    if lost := _ended(each, silent_s):
                        yield each.number, lost
                    continue
                each.heard = time.monotonic()
                yield each.number, heard
            for each in running.values():
                if time.monotonic() > each.heard + silent_s:
                    each.killed = True
                    each.process.kill()
    finally:
        for each in running.values():
            each.process.kill()
            each.process.join()


def _started(work: Work, number: int, portion: Any) -> tuple[Connection, _Running]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(work, portion, theirs), daemon=True)
    process.start()
    theirs.close()
    return ours, _Running(number, process, time.monotonic())


def _child(work: Work, portion: Any, connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent decides
    work(portion, connection.send)


def _ended(each: _Running, silent_s: float) -> Lost | None:
    each.process.join()
    if each.killed:
        return Lost(f"killed: it said nothing for {silent_s:g} s")
    code = each.process.exitcode
    return Lost(f"its process ended with {code}") if code else None
