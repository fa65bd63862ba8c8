"""The event log: append and read of a user with 2,000 events, writers that are killed, export, backup and restore.

`python benchmarks/event_log.py [--url URL of an empty PostgreSQL database] [--events 10000] [--kept 100000]`; without
a url, SQLite in a temporary folder. Every event is sent twice by each of two writers, one writer is killed by SIGKILL
and started again; at the end, log and export hold each event once. A copy that is made while events come in is put
back and compared with the log.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np
from sqlalchemy import make_url

from benchmarks.environment import environment, seconds_of
from dkt_ray.events import backup, parts
from dkt_ray.events.model import Event
from dkt_ray.events.sql import Events, open_events
from dkt_ray.pipelines import export
from dkt_ray.storage import open_store

ROOT: Final = Path(__file__).parents[1]
HISTORY: Final = 2_000  # events of the user whose reads are timed
CALLS: Final = 500
WRITERS: Final = 4
BATCH: Final = 20
FILL: Final = 1_000  # events of one append, where only their number matters

WRITER: Final = """
import sys
from benchmarks.event_log import batches
from dkt_ray.events.sql import open_events
url, writer, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
events = open_events(url)
for batch in batches(writer, count):
    for _ in range(2):
        events.log.append(batch)
events.close()
"""


def event(number: int, user: str, batch: str) -> Event:
    """A graded answer."""
    return Event(
        f"{batch}{number}", user, f"A{number % 900:09d}", 10**12 + number * 60_000, 10**12, number % 2, test="t"
    )


def batches(writer: int, count: int) -> list[list[Event]]:
    """What a writer sends; the second half of the writers sends what the first half does."""
    batch = f"w{writer % (WRITERS // 2)}-"
    sent = [event(number, f"user{number % 50}", batch) for number in range(count)]
    return [sent[start : start + BATCH] for start in range(0, count, BATCH)]


def percentiles(seconds: list[float]) -> dict[str, float]:
    """In ms."""
    p50, p99 = np.percentile(np.array(seconds) * 1e3, [50, 99])
    return {"p50_ms": round(float(p50), 2), "p99_ms": round(float(p99), 2)}


def one_user(events: Events) -> dict[str, Any]:
    """Append an event to a long history, and read it."""
    events.log.append([event(number, "long", "h") for number in range(HISTORY)])
    first, _ = seconds_of(lambda: events.histories.get("long", 10 * HISTORY))
    appends, reads = [], []
    for number in range(HISTORY, HISTORY + CALLS):
        appends.append(seconds_of(lambda number=number: events.log.append([event(number, "long", "h")]))[0])
        seconds, history = seconds_of(lambda: events.histories.get("long", 10 * HISTORY))
        reads.append(seconds)
        assert len(history.question) == number + 1
    return {"first_read_ms": round(first * 1e3, 1), "append": percentiles(appends), "read": percentiles(reads)}


def many_writers(events: Events, url: str, count: int) -> dict[str, Any]:
    """Writers with retries and duplicates, one of which is killed in the middle and begins again."""
    before = events.log.count()
    started = time.perf_counter()
    command = [sys.executable, "-c", WRITER, url]
    writers = [subprocess.Popen([*command, str(writer), str(count)], cwd=ROOT) for writer in range(WRITERS)]
    while events.log.count() < before + count // 2:
        time.sleep(0.01)
    writers[0].kill()
    killed = writers[0].wait()
    writers[0] = subprocess.Popen([*command, "0", str(count)], cwd=ROOT)
    assert killed == -9, "the writer had ended before it was killed: take more events"
    assert [writer.wait() for writer in writers] == [0] * WRITERS
    seconds = time.perf_counter() - started
    added = events.log.count() - before
    assert added == count * WRITERS // 2, f"{added} events in the log"
    return {"sent": count * WRITERS * 2, "distinct": added, "seconds": round(seconds, 1)}


def exported(events: Events, url: str, folder: Path) -> dict[str, Any]:
    """Export all, and compare with the log."""
    told = export.run(export.ExportConfig(events=url, store=str(folder)))
    files = open_store(str(folder)).child(parts.folder("events"))
    places = [place for key in parts.keys(files) for place in files.read_table(key)["sequence"].to_pylist()]
    assert len(set(places)) == len(places) == events.log.count()
    return {"rows": told["rows"], "seconds": told["seconds"]}


def recovered(events: Events, url: str, folder: Path, kept: int) -> dict[str, Any]:
    """Copy a log that is written to, put the copy in place of a lost one, and read from it.

    Args:
        kept: events in it when the copy begins, at least.
    """
    missing = max(kept - events.log.count(), 0)
    for start in range(0, missing, FILL):
        numbers = range(start, min(start + FILL, missing))
        events.log.append([_named(event(number, f"user{number % 50}", "kept")) for number in numbers])
    ended = threading.Event()
    before, dialect = events.log.count(), events.engine.dialect.name
    copy, put_back = {"sqlite": (_backup, _replace), "postgresql": (_dump, _restore)}[dialect]
    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(_write_until, events, ended)
        try:
            while events.log.count() == before and not writer.done():
                time.sleep(0.01)
            copy_s, file = seconds_of(lambda: copy(url, folder))
        finally:
            ended.set()
        writer.result()
    written = events.log.count()
    restore_s, restored = seconds_of(lambda: _opened(put_back(file, url, folder)))
    found = restored.log.count()
    assert before < found <= written
    assert restored.log.read(0, found) == events.log.read(0, found)
    restored.close()
    return {
        "events": found,
        "bytes": file.stat().st_size,
        "copy_s": round(copy_s, 2),
        "restore_s": round(restore_s, 2),
        "lost": written - found,
    }


def _named(given: Event) -> Event:
    """As the service names users and events: keyed hashes, which no copy can make shorter."""
    user, event_id = (sha256(name.encode()).hexdigest() for name in (given.user, given.event_id))
    return replace(given, user=user, event_id=event_id)


def _write_until(events: Events, ended: threading.Event) -> None:
    start = 0
    while not ended.is_set():
        events.log.append([_named(event(number, "meanwhile", "m")) for number in range(start, start + BATCH)])
        start += BATCH


def _opened(url: str) -> Events:
    """Ready to serve: the first history is read."""
    events = open_events(url)
    assert events.histories.get(_named(event(0, "meanwhile", "m")).user, HISTORY).question
    return events


def _backup(url: str, folder: Path) -> Path:
    backup.run(backup.BackupConfig(events=url, target=str(folder / "copy.db")))
    return folder / "copy.db"


def _replace(file: Path, url: str, folder: Path) -> str:
    shutil.copy(file, folder / "restored.db")
    return f"sqlite:///{folder}/restored.db"


def _dump(url: str, folder: Path) -> Path:
    _program("pg_dump", "--format=custom", f"--file={folder}/copy.dump", _libpq(url))
    return folder / "copy.dump"


def _restore(file: Path, url: str, folder: Path) -> str:
    restored = make_url(url).set(database=f"{make_url(url).database}_restored").render_as_string(hide_password=False)
    _program("createdb", f"--maintenance-db={_libpq(url)}", str(make_url(restored).database))
    _program("pg_restore", f"--dbname={_libpq(restored)}", str(file))
    _program("psql", _libpq(restored), "-c", "UPDATE log_identity SET identity = gen_random_uuid()::text")
    return restored


def _libpq(url: str) -> str:
    """The url as PostgreSQL's own programs read it."""
    return url.replace("postgresql+psycopg:", "postgresql:", 1)


def _program(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="an empty PostgreSQL database; unset: SQLite")
    parser.add_argument("--events", type=int, default=10_000, help="of each writer")
    parser.add_argument("--kept", type=int, default=100_000, help="in the log that is copied and restored")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        url = given.url or f"sqlite:///{folder}/events.db"
        events = open_events(url)
        found = {
            "database": events.engine.dialect.name,
            "one_user": one_user(events),
            "writers": many_writers(events, url, given.events),
            "export": exported(events, url, folder / "store"),
        }
        found["recovery"] = recovered(events, url, folder, given.kept)
        events.close()
    print(json.dumps(found | {"environment": environment()}))


if __name__ == "__main__":
    main()
