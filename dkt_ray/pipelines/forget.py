"""(Ray) `dkt forget`: users who were deleted, and what is too old to be kept, leave exports and datasets too.

The database forgets at once; this follows up in the store, and whoever is killed at it is followed by the next run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any, Final

from pydantic import Field

from dkt_ray.config import Config, build
from dkt_ray.data import reader
from dkt_ray.data.naming import Naming
from dkt_ray.errors import DktError
from dkt_ray.events import parts, tombstones
from dkt_ray.events.database import events_url
from dkt_ray.events.retention import expire
from dkt_ray.events.sql import Events, open_events
from dkt_ray.features.dataset import MANIFEST, Manifest, folder
from dkt_ray.pipelines import prepare
from dkt_ray.pipelines.versions import find, gone_since, sweep
from dkt_ray.privacy import Privacy
from dkt_ray.registry.forgotten import mark_bundles
from dkt_ray.registry.store import Registry
from dkt_ray.storage import Store, list_inputs, open_store
from dkt_ray.storage.lease import lease

logger = logging.getLogger(__name__)

DAY_MS: Final = 24 * 3600 * 1000
OUT_OF_FOLD: Final = "/oof.parquet"  # of a run's members: predictions by user


class ForgetConfig(Config):
    """Settings of `dkt forget`."""

    events: str | None = None
    """The database, as in `dkt export`; without one, what the store knows of deleted users is followed up."""
    store: str = "data/store"
    """A folder or s3://bucket/prefix."""
    retention_days: float | None = Field(None, gt=0)
    """Remove events that were answered longer ago than this from the database and from exports; unset: however old."""
    prepare: bool = True
    """Prepare the datasets anew that hold what is to be forgotten; false: only name them."""


def run(config: ForgetConfig) -> dict[str, Any]:
    """Follow up on deletions and on the retention limit; once done, doing it again changes nothing.

    Returns:
        users (deleted ones that the store knows), new (those it did not know before), removed (rows by table, too old),
        exports (rows removed and parts rewritten, by name), datasets (prepared anew), remaining (datasets that still
        hold something, and why), bundles (trained on deleted users: marked), runs (that hold predictions of theirs),
        seconds.

    Raises:
        ConflictError: an export or a dataset is at work.
        UnavailableError: the database cannot be reached.
    """
    started = time.monotonic()
    store, privacy = open_store(config.store), Privacy.of_environment()
    kept_from = None if config.retention_days is None else round(time.time() * 1000 - config.retention_days * DAY_MS)
    removed, new = _of_the_database(config, store, kept_from)
    naming = Naming(privacy, forgotten=tombstones.forgotten(store, privacy))
    exports = {name: _compact(store, name, naming, kept_from) for name in _names(store, "exports")}
    datasets, remaining = _of_datasets(config, store, naming)
    told = {
        "users": len(naming.forgotten),
        "new": new,
        "removed": removed,
        "exports": exports,
        "datasets": datasets,
        "remaining": remaining,
        "bundles": mark_bundles(Registry(store), naming.forgotten),
        "runs": sorted(set(_runs(store, naming))),
    }
    logger.info(
        "%d users are forgotten, %d of them new; %d datasets still hold some", told["users"], new, len(remaining)
    )
    return told | {"seconds": round(time.monotonic() - started, 2)}


def _of_the_database(config: ForgetConfig, store: Store, kept_from: int | None) -> tuple[dict[str, int], int]:
    """Rows that were removed as too old, by table, and the number of deleted users that are new to the store."""
    url = events_url(config.events)
    if url is None:
        return {}, 0
    events = open_events(url)
    try:
        _bury_again(events, tombstones.forgotten(store, events.log.privacy))
        removed = {} if kept_from is None else expire(events.engine, kept_from)
        return removed, tombstones.remember(
            store, [each.mark for each in tombstones.buried(events.engine)], events.log.privacy
        )
    finally:
        events.close()


def _bury_again(events: Events, forgotten: frozenset[str]) -> None:
    """Delete users whom the store knows to be deleted, and the database does not: it is an older copy, put back."""
    missing = forgotten - {each.mark for each in tombstones.buried(events.engine)}
    if missing:
        for user in tombstones.users_of(events.engine, events.log.privacy, missing):
            events.histories.delete(user)
        tombstones.bury(events.engine, missing)


def _compact(store: Store, name: str, naming: Naming, kept_from: int | None) -> dict[str, int]:
    """Remove rows from the parts of an export; a part keeps its name, even if no row is left."""
    files = store.child(parts.folder(name))
    told = {"rows": 0, "parts": 0}
    with lease(files, f"export {name!r}"):
        for key in parts.keys(files):
            part = files.read_table(key)
            kept = parts.without(part, naming.forgotten, naming.privacy, kept_from)
            if kept.num_rows < part.num_rows:
                files.write_table(key, kept)
                told = {"rows": told["rows"] + part.num_rows - kept.num_rows, "parts": told["parts"] + 1}
                logger.info("export %s: %d rows left %s", name, part.num_rows - kept.num_rows, key)
    return told


def _of_datasets(config: ForgetConfig, store: Store, naming: Naming) -> tuple[list[str], list[dict[str, Any]]]:
    """The datasets that were prepared anew, and those that still hold something, with the reason."""
    done: list[str] = []
    remaining: list[dict[str, Any]] = []
    for name in _names(store, "datasets"):
        files = store.child(folder(name))
        found = find(files).manifest
        if found is None:
            if files.exists(MANIFEST):
                remaining.append({"dataset": name, "reason": "another version of dkt-ray made it: prepare it anew"})
            continue
        gone = gone_since(files, found, naming)
        if gone or _changed(store, found):
            reason = _prepare(config, name, found)
            if reason is not None:
                remaining.append({"dataset": name, "users": gone, "reason": reason})
                continue
            done.append(name)
        if naming.forgotten:
            with lease(files, f"dataset {name!r}"):
                there = find(files).manifest
                assert there is not None
                sweep(files, there, None)
    return done, remaining


def _prepare(config: ForgetConfig, name: str, there: Manifest) -> str | None:
    """Prepare a dataset again, of all its files and by its own settings; returns why that cannot be done."""
    if not config.prepare:
        return "prepare=false: run dkt prepare on all its files"
    data = there.config["data"] | {"path": list(there.inputs)}
    changes = {"store": config.store, "dataset": name, "data": data, "append": False, "force": False}
    try:
        prepare.run(build(prepare.PrepareConfig, there.config | changes))
    except DktError as error:
        return str(error)
    return None


def _changed(store: Store, there: Manifest) -> bool:
    """Whether rows left an exported part since a dataset was made of it."""
    urls = [f"{store.url}/{key}" for key in store.list("exports")]
    exported = {path for url in urls if url.endswith(".parquet") for path in list_inputs(url)}
    return any(reader.digest(path).sha256 != there.inputs[path] for path in exported & there.inputs.keys())


def _runs(store: Store, naming: Naming) -> Iterator[str]:
    """Runs whose out-of-fold predictions name a deleted user."""
    if not naming.forgotten:
        return
    for key in store.list("runs"):
        if key.endswith(OUT_OF_FOLD):
            users = store.read_table(key, ["user"])["user"].unique().to_pylist()
            if any(naming.privacy.mark(naming.privacy.in_data(user)) in naming.forgotten for user in users):
                yield key.split("/")[1]


def _names(store: Store, prefix: str) -> list[str]:
    """The folders below a prefix."""
    return sorted({key.split("/")[1] for key in store.list(prefix) if key.count("/") > 1})
