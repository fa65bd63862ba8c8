"""Exports that are killed again and again: `python tests/reliability/export_kill.py --kills 60`; in tests, a few."""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from dkt_ray.events import parts
from dkt_ray.events.sql import open_events
from dkt_ray.pipelines import export
from dkt_ray.storage import open_store
from tests.event_promises import PRIVACY, answer, until

ROOT = Path(__file__).parents[2]
STEP = 40  # events that are appended before each kill
PART_ROWS = 3

# Exports, and ends itself by SIGKILL before the nth conditional write: of a part, or of the pointer behind it.
CHILD = """
import os, signal, sys
from dkt_ray.pipelines import export
from dkt_ray.storage.local import LocalStore
url, store, nth = sys.argv[1], sys.argv[2], int(sys.argv[3])
write_if, calls = LocalStore.write_if, 0
def counted(self, key, data, match):
    global calls
    calls += key != "lease.json"
    if calls == nth:
        os.kill(os.getpid(), signal.SIGKILL)
    return write_if(self, key, data, match)
LocalStore.write_if = counted
export.run(export.ExportConfig(events=url, store=store, part_rows=int(sys.argv[4])))
"""


def killed(url: str, store: Path, nth: int) -> None:
    """An export that ends by SIGKILL before its nth write."""
    ended = subprocess.run(
        [sys.executable, "-c", CHILD, url, str(store), str(nth), str(PART_ROWS)], cwd=ROOT, capture_output=True
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()


def killed_at_random(url: str, store: Path, parts_there: int) -> None:
    """An export that somebody else kills when it has written some parts."""
    child = subprocess.Popen([sys.executable, "-c", CHILD, url, str(store), "0", str(PART_ROWS)], cwd=ROOT)
    until(lambda: child.poll() is not None or len(exported(store)) >= parts_there)
    child.kill()
    child.wait()


def exported(store: Path) -> list[str]:
    """The parts that are there."""
    return parts.keys(open_store(str(store)).child(parts.folder("events")))


def rows(store: Path) -> list[int]:
    """Sequences of all exported events, in the order of the parts."""
    files = open_store(str(store)).child(parts.folder("events"))
    return [sequence for key in parts.keys(files) for sequence in files.read_table(key)["sequence"].to_pylist()]


def run(folder: Path, kills: int, seed: int = 0) -> dict[str, int]:
    """Kill exports while events come in; at the end all events are in the export, each once."""
    choose = random.Random(seed)
    url, store = f"sqlite:///{folder}/events.db", folder / "store"
    events = open_events(url, PRIVACY)
    for kill in range(kills):
        events.log.append([answer(number) for number in range(kill * STEP, (kill + 1) * STEP)])
        if kill % 2:
            killed_at_random(url, store, len(exported(store)) + choose.randrange(1, STEP // PART_ROWS))
        else:
            killed(url, store, choose.randrange(1, 2 * STEP // PART_ROWS))
        found = rows(store)
        assert len(set(found)) == len(found)
    last = export.run(export.ExportConfig(events=url, store=str(store), part_rows=PART_ROWS))
    log = [graded.sequence for graded in events.log.read(0, kills * STEP + 1)]
    events.close()
    assert rows(store) == log == list(range(1, kills * STEP + 1))
    assert last["total"] == len(log)
    return {"kills": kills, "events": len(log), "parts": len(exported(store))}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=60)
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(run(Path(scratch), parser.parse_args().kills)))
