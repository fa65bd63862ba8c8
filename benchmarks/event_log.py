"""The event log: append and read of a user with 2,000 events, writers that are killed, export, backup and restore.

`python benchmarks/event_log.py [--url URL of an empty PostgreSQL database] [--events 10000]`; without a url, SQLite in
a temporary folder. Every event is sent twice by each of two writers, one writer is killed by SIGKILL and started
again; at the end, log and export hold each event once.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

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


def recovered(url: str, folder: Path) -> dict[str, Any]:
    """Copy the SQLite file, put the copy in place of a lost one, and open it."""
    copied = backup.run(backup.BackupConfig(events=url, target=str(folder / "copy.db")))
    started = time.perf_counter()
    shutil.copy(folder / "copy.db", folder / "restored.db")
    restored = open_events(f"sqlite:///{folder}/restored.db")
    count = restored.log.count()
    restored.close()
    return {"backup": copied | {"target": ""}, "events": count, "restore_s": round(time.perf_counter() - started, 2)}


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="an empty PostgreSQL database; unset: SQLite")
    parser.add_argument("--events", type=int, default=10_000, help="of each writer")
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
        if given.url is None:
            found["recovery"] = recovered(url, folder)
        events.close()
    print(json.dumps(found | {"environment": environment()}))


if __name__ == "__main__":
    main()
