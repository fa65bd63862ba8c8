"""Users who are planted, deleted and looked for everywhere: `python -m tests.reliability.forgetting USERS`."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from dkt_ray.config import build
from dkt_ray.events.model import Event
from dkt_ray.events.scrub import unscrubbed
from dkt_ray.events.sql import Events, open_events
from dkt_ray.pipelines import export, forget, prepare
from tests.event_promises import PRIVACY, until

ANSWERS = 6  # of each user
NOW = 1_700_000_000_000


def plant(events: Events, users: list[str]) -> None:
    """Every user answers some questions, and one that waits for its grade."""
    for number in range(ANSWERS):
        correct = None if number == ANSWERS - 1 else number % 2
        named = [(PRIVACY.user(user), PRIVACY.event(f"{user}-{number}")) for user in users]
        events.log.append(
            [Event(key, name, f"q{number}", NOW + number, NOW, correct, answer="B", test="t") for name, key in named]
        )


def words(folder: Path) -> str:
    """Everything that the files below a folder say; Parquet is read, and its metadata."""
    text: list[str] = []
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        text.append(path.name)
        if path.suffix == ".parquet":
            text += [str(pl.read_parquet(path).to_dicts()), str(pq.read_metadata(path).to_dict())]
        text.append(path.read_bytes().decode("latin-1"))
    return "\n".join(text)


def run(folder: Path, count: int) -> dict[str, Any]:
    """Plant twice as many users as are deleted; nothing is left of those, and all of the others."""
    said = io.StringIO()
    listener = logging.StreamHandler(said)
    logging.getLogger().addHandler(listener)
    url, store = f"sqlite:///{folder}/database/events.db", str(folder / "store")
    (folder / "database").mkdir()
    users = [f"planted-{number}" for number in range(2 * count)]
    events, replica = open_events(url), open_events(url)
    plant(events, users)
    export.run(export.ExportConfig(events=url, store=store, part_rows=max(10, 2 * count)))
    data = {"path": f"{store}/exports/events", "pseudonyms": True, "folds": 2}
    prepare.run(build(prepare.PrepareConfig, {"store": store, "data": data, "engine": "local"}))
    names = [PRIVACY.user(user) for user in users]
    for name in names:
        replica.histories.get(name, 10)
    deleted, kept = names[::2], names[1::2]
    before = words(folder)
    assert all(name in before for name in names)  # a planted trace is found
    for name in deleted:
        events.histories.delete(name)
    told = forget.run(forget.ForgetConfig(events=url, store=store))
    replica.histories._meet_deletions()
    until(lambda: not unscrubbed(events.engine))
    everything = words(folder) + said.getvalue()
    remembered = {*events.histories._known, *replica.histories._known}
    planted = [*deleted, *users, *(PRIVACY.event(f"{user}-{n}") for user in users[::2] for n in range(ANSWERS))]
    found = {
        "deleted": len(deleted),
        "traces": sum(word in everything for word in planted),
        "in_memory": sum(PRIVACY.mark(name) in remembered for name in deleted),
        "kept": sum(name in everything and PRIVACY.mark(name) in remembered for name in kept),
        "datasets": told["datasets"],
    }
    events.close()
    replica.close()
    logging.getLogger().removeHandler(listener)
    return found


if __name__ == "__main__":
    assert PRIVACY.key is not None
    os.environ["DKT_PRIVACY_KEY"] = PRIVACY.key.decode()
    logging.getLogger().setLevel(logging.DEBUG)
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(run(Path(scratch), int(sys.argv[1]))))
