"""Users who are deleted are looked for everywhere: here without a service, in `events.py` behind one."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from dkt_ray.config import build
from dkt_ray.events.model import Event
from dkt_ray.events.scrub import unscrubbed
from dkt_ray.events.sql import Events, open_events
from dkt_ray.pipelines import export, forget, prepare
from dkt_ray.privacy import Privacy
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


def files(place: Path) -> list[Path]:
    """All files below a folder."""
    return sorted(each for each in place.rglob("*") if each.is_file())


def of_user(privacy: Privacy, user: str, answers: int) -> list[str]:
    """What might be left of a user whose events are called USER-NUMBER: his id, and the names that stand for him."""
    return [user, privacy.user(user), *(privacy.event(f"{user}-{number}") for number in range(answers))]


def traces(wanted: Sequence[str], where: Mapping[str, Iterable[Path]]) -> dict[str, int]:
    """Files of each place in which one of some words stands."""
    return {place: sum(_holds(path, wanted) for path in paths) for place, paths in where.items()}


def places(database: Path, logs: Iterable[Path], store: Path) -> dict[str, list[Path]]:
    """The files in which something of a user might stand."""
    return {
        "database": sorted(database.parent.glob(f"{database.name}*")),
        "logs": list(logs),
        "exports": files(store / "exports"),
        "prepared": files(store / "datasets"),
        "store": files(store),
    }


def proven(control: Mapping[str, int], found: Mapping[str, int], when: str) -> list[str]:
    """What is wrong: traces, or a place where the search is blind, as it does not find what is there.

    Args:
        control: files with something that was not deleted, by place.
        found: files with something that was.
    """
    blind = [f"{place}: the search finds nothing, not even what is there, after {when}" for place in control]
    left = [f"{count} files with traces after {when}: {place}" for place, count in found.items() if count]
    return [words for words, count in zip(blind, control.values(), strict=True) if not count] + left


def _holds(path: Path, words: Sequence[str]) -> bool:
    """Parquet is read as well, as its pages are compressed."""
    content = f"{path.name}\n{path.read_bytes().decode('latin-1')}"
    if path.suffix == ".parquet":
        texts = [column for column in pl.read_parquet(path).get_columns() if column.dtype == pl.String]
        values = "\n".join(value for column in texts for value in column.unique() if value is not None)
        content += f"\n{values}\n{pq.read_metadata(path).to_dict()}"
    return bool(pl.Series([content]).str.contains_any(words).item())  # all words in one pass


def run(folder: Path, count: int) -> dict[str, Any]:
    """Plant twice as many users as are deleted; nothing is left of those, and all of the others."""
    database, log, store = folder / "events.db", folder / "job.log", folder / "store"
    listener = logging.FileHandler(log)
    logging.getLogger().addHandler(listener)
    url = f"sqlite:///{database}"
    users = [f"planted-{number:04}" for number in range(2 * count)]
    events, replica = open_events(url), open_events(url)
    plant(events, users)
    export.run(export.ExportConfig(events=url, store=str(store), part_rows=max(10, 2 * count)))
    data = {"path": f"{store}/exports/events", "pseudonyms": True, "folds": 2}
    prepare.run(build(prepare.PrepareConfig, {"store": str(store), "data": data, "engine": "local"}))
    names = [PRIVACY.user(user) for user in users]
    for name in names:
        replica.histories.get(name, 10)
    gone, stay = ([word for user in users[start::2] for word in of_user(PRIVACY, user, ANSWERS)] for start in range(2))
    planted = traces(gone, places(database, [log], store))
    for name in names[::2]:
        events.histories.delete(name)
    told = forget.run(forget.ForgetConfig(events=url, store=str(store)))
    replica.histories._meet_deletions()
    until(lambda: not unscrubbed(events.engine))
    logging.getLogger().warning("the control: %s", users[1])
    found = {
        "planted": planted,
        "control": traces(stay, places(database, [log], store)),
        "traces": traces(gone, places(database, [log], store)),
        "remembered": [PRIVACY.mark(name) in replica.histories._known for name in names],
        "datasets": told["datasets"],
    }
    events.close()
    replica.close()
    logging.getLogger().removeHandler(listener)
    return found
