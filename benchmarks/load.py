"""A load generator in a process of its own, pinned to one core: a closed or an open loop, and a ledger of it.

It sends bytes that were made beforehand over raw keep-alive connections, and reads the answers' JSON after the run.
A closed loop keeps `connections` requests in flight; an open loop sends `rate` a second whether or not the server keeps
up, over as many connections as that takes, and counts latency from when a request was due (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Final, NamedTuple

import uvloop

from benchmarks import ledger
from benchmarks.ledger import OK, Entry

PROGRAM: Final = "import sys; from benchmarks.load import main; main(sys.argv[1:])"
ROOT: Final = Path(__file__).resolve().parents[1]
PATIENCE_S: Final = 300.0  # for a server that should answer, before we give up
SENT: Final = ".sent"  # beside a ledger: how many requests should be in it
NEVER_S: Final = 24 * 3600.0
ERROR_CHARACTERS: Final = 300  # of an error's body, kept


@dataclass(frozen=True)
class Plan:
    """What to send."""

    port: int
    bodies: list[Any]
    """JSON values, sent in turn."""
    connections: int = 0
    """Of a closed loop; 0: an open loop."""
    rate: float = 0.0
    """Requests per second of an open loop."""
    seconds: float = NEVER_S
    """How long; unset: until it is stopped."""
    path: str = "/v1/predict"
    timeout_s: float = 60.0
    """After that a request has failed."""
    core: int = field(default_factory=lambda: max(os.sched_getaffinity(0)))
    """The core that the generator runs on; nobody keeps the servers off it."""

    def __post_init__(self) -> None:
        """Refuse what is neither loop."""
        if min(self.connections, self.rate) != 0 or max(self.connections, self.rate) <= 0:
            found = f"got connections {self.connections} and rate {self.rate}"
            raise ValueError(f"a plan needs connections above 0 (closed loop) or a rate above 0 (open loop): {found}")


class Load:
    """A plan that is being carried out; as a context, until the end of the block."""

    def __init__(self, plan: Plan) -> None:
        """Start the process; it sends at once."""
        self._folder = TemporaryDirectory(prefix="dkt-load-")
        settings, self._ledger = Path(self._folder.name) / "plan.json", Path(self._folder.name) / "ledger.jsonl"
        settings.write_text(json.dumps(asdict(plan)))
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(settings), str(self._ledger)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.entries: list[Entry] = []

    def ended(self) -> Counter[int]:
        """Requests that have ended so far, by status."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        line = self._process.stdout.readline()
        if not line:
            raise subprocess.CalledProcessError(self._process.wait(), "the load generator")
        return Counter({int(status): count for status, count in json.loads(line).items()})

    def wait_for(self, count: int, status: int = OK) -> None:
        """Wait until so many further requests were answered with this status.

        Raises:
            TimeoutError: they were not, after five minutes.
        """
        give_up = time.monotonic() + PATIENCE_S
        wanted = self.ended()[status] + count
        while (found := self.ended())[status] < wanted:
            if time.monotonic() > give_up:
                missing = f"{wanted - found[status]} of {count} answers with {status} are missing"
                raise TimeoutError(f"{missing} after {PATIENCE_S} s; so far {dict(found)}")
            time.sleep(0.05)

    def result(self) -> list[Entry]:
        """The ledger, when the plan's time is over.

        Raises:
            RuntimeError: it lacks requests that were sent.
        """
        with self._folder:
            if self._process.wait():
                raise subprocess.CalledProcessError(self._process.returncode, "the load generator")
            self.entries = ledger.read(self._ledger)
            sent = int(self._ledger.with_suffix(SENT).read_text())
        if len(self.entries) != sent:
            raise RuntimeError(f"{sent} requests were sent, {len(self.entries)} are in the ledger")
        return self.entries

    def stop(self) -> list[Entry]:
        """Send no more; the ledger, when what is in flight has ended."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self.result()

    def __enter__(self) -> Load:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.stop()
        else:
            self._process.kill()
            self._process.wait()
            self._folder.cleanup()


class _Answer(NamedTuple):
    """An HTTP answer as bytes."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


class _Sender:
    """Connections to the server, and what became of the requests."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        head = (
            f"POST {plan.path} HTTP/1.1\r\nHost: 127.0.0.1:{plan.port}\r\nContent-Type: application/json\r\n"
            "Content-Length: {}\r\nX-Request-Id: "
        )
        encoded = [json.dumps(body).encode() for body in plan.bodies]
        self.heads = [head.format(len(body)).encode() for body in encoded]
        self.tails = [b"\r\n\r\n" + body for body in encoded]
        self.free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.ended: list[tuple[Entry, bytes]] = []  # an entry without what its answer says, and the answer
        self.statuses: Counter[int] = Counter()
        self.sent = 0

    async def send(self, request: int, scheduled: float) -> None:
        """Send a request and keep what becomes of it."""
        body = request % len(self.tails)
        name = b"load-%d" % request
        self.sent += 1
        sent = time.monotonic()
        answer, error = _Answer(0, {}, b""), ""
        try:
            async with asyncio.timeout(self.plan.timeout_s):
                answer = await self._exchange(self.heads[body] + name + self.tails[body])
        except TimeoutError:
            error = f"no answer after {self.plan.timeout_s} s"
        except (OSError, asyncio.IncompleteReadError) as problem:
            error = repr(problem)
        if answer.headers.get(b"x-request-id", name) != name:
            error = f"this answer is that of {answer.headers[b'x-request-id']!r}"
        entry = Entry(request, body, scheduled, sent, time.monotonic(), answer.status, "", [], error)
        self.ended.append((entry, answer.body))
        self.statuses[answer.status] += 1

    async def _exchange(self, request: bytes) -> _Answer:
        reader, writer = await self._connection()
        try:
            writer.write(request)
            answer = await _read(reader)
        except BaseException:  # whatever it was, this connection is of no more use
            writer.close()
            raise
        if answer.headers.get(b"connection", b"").lower() == b"close":
            writer.close()
        else:
            self.free.append((reader, writer))
        return answer

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self.free:
            reader, writer = self.free.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return await asyncio.open_connection("127.0.0.1", self.plan.port)


async def _read(reader: asyncio.StreamReader) -> _Answer:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
    pairs = (line.partition(b":") for line in lines if line)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        body = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
    else:
        body = await reader.readexactly(int(headers.get(b"content-length", 0)))
    return _Answer(int(first.split()[1]), headers, body)


async def _carry_out(plan: Plan) -> _Sender:
    sender = _Sender(plan)
    stopping = asyncio.Event()
    listening = asyncio.create_task(_listen(sender, stopping))
    if plan.connections:
        numbers, end = itertools.count(), time.monotonic() + plan.seconds
        await asyncio.gather(*(_closed(sender, numbers, end, stopping) for _ in range(plan.connections)))
    else:
        await _open(sender, stopping)
    listening.cancel()
    return sender


async def _closed(sender: _Sender, numbers: Iterator[int], end: float, stopping: asyncio.Event) -> None:
    while not stopping.is_set() and time.monotonic() < end:
        await sender.send(next(numbers), time.monotonic())


async def _open(sender: _Sender, stopping: asyncio.Event) -> None:
    """Send all that is due within the plan's time, also what the generator is late with."""
    started = time.monotonic()
    async with asyncio.TaskGroup() as sending:
        for request in itertools.count():
            due = started + request / sender.plan.rate
            if due >= started + sender.plan.seconds:
                return
            await asyncio.sleep(max(due - time.monotonic(), 0))
            if stopping.is_set():
                return
            sending.create_task(sender.send(request, due))


async def _listen(sender: _Sender, stopping: asyncio.Event) -> None:
    """Answer each line on standard input with the counts of each status so far, and end with it."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.readline():
        print(json.dumps(sender.statuses), flush=True)
    stopping.set()


def _told(entry: Entry, body: bytes) -> Entry:
    """The entry with what its answer says."""
    if entry.status != OK:
        return entry._replace(error=entry.error or body[:ERROR_CHARACTERS].decode(errors="replace"))
    try:
        found = json.loads(body)
        found = found[0] if isinstance(found, list) else found  # a batch of one
        values = [each["probability"] for each in found["predictions"]]
        return entry._replace(version=found["model_version"], values=values)
    except (ValueError, LookupError, TypeError) as error:
        return entry._replace(error=entry.error or f"not an answer to read: {error!r}")


def main(arguments: Sequence[str]) -> None:
    """Carry out the plan of a file; write the ledger to another, and beside it how many requests were sent."""
    plan = Plan(**json.loads(Path(arguments[0]).read_text()))
    os.sched_setaffinity(0, {plan.core})
    sender, path = uvloop.run(_carry_out(plan)), Path(arguments[1])
    ledger.write(path, [_told(entry, body) for entry, body in sender.ended])
    path.with_suffix(SENT).write_text(str(sender.sent))
