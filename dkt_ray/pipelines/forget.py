"""(Ray) `dkt forget`: users who were deleted, and what is too old to be kept, leave exports and datasets too.

The database forgets at once; this follows up in the store, and whoever is killed at it is followed by the next run.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from pydantic import Field

from dkt_ray.config import Config, build
from dkt_ray.data import reader
from dkt_ray.data.naming import Naming
from dkt_ray.errors import ConfigError, ConflictError, DktError
from dkt_ray.events import parts, tombstones
from dkt_ray.events.database import events_url, existing
from dkt_ray.events.model import DAY_MS
from dkt_ray.events.retention import expire
from dkt_ray.events.sql import Events, open_events
from dkt_ray.features.dataset import Manifest, folder
from dkt_ray.pipelines import prepare
from dkt_ray.pipelines.versions import find, gone_since, left_of, sweep
from dkt_ray.privacy import Privacy
from dkt_ray.registry.forgotten import mark_bundles
from dkt_ray.registry.store import Registry
from dkt_ray.storage import Store, open_store
from dkt_ray.storage.aws import SCHEME
from dkt_ray.storage.lease import lease

logger = logging.getLogger(__name__)

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
        exports (rows removed and parts rewritten, by name), datasets (prepared anew), remaining (exports and
        datasets that may still hold something, and why), bundles (trained on deleted users: marked), runs (that hold
        predictions of theirs), seconds.

    Raises:
        UnavailableError: the database cannot be reached.
    """
    started = time.monotonic()
    store, privacy = open_store(config.store), Privacy.of_environment()
    kept_from = None if config.retention_days is None else round(time.time() * 1000 - config.retention_days * DAY_MS)
    removed, new = _of_the_database(config, store, kept_from)
    naming = Naming(privacy, forgotten=tombstones.forgotten(store, privacy))
    exports, busy = _of_exports(store, naming, kept_from)
    datasets, remaining = _of_datasets(config, store, naming, kept_from is not None)
    told = {
        "users": len(naming.forgotten),
        "new": new,
        "removed": removed,
        "exports": exports,
        "datasets": datasets,
        "remaining": busy + remaining,
        "bundles": mark_bundles(Registry(store), naming.forgotten),
        "runs": sorted(set(_runs(store, naming))),
    }
    logger.info(
        "%d users are forgotten, %d of them new; %d places may still hold some",
        told["users"],
        new,
        len(busy) + len(remaining),
    )
    return told | {"seconds": round(time.monotonic() - started, 2)}


def _of_the_database(config: ForgetConfig, store: Store, kept_from: int | None) -> tuple[dict[str, int], int]:
    """Rows that were removed as too old, by table, and the number of deleted users that are new to the store."""
    url = events_url(config.events)
    if url is None:
        return {}, 0
    events = open_events(existing(url))
    try:
        _bury_again(events, tombstones.forgotten(store, events.log.privacy))
        removed = {} if kept_from is None else expire(events.engine, kept_from)
        return removed, tombstones.remember(
            store, [each.mark for each in tombstones.buried(events.engine)], events.log.privacy
        )
    finally:
        events.close()


def _bury_again(events: Events, forgotten: frozenset[str]) -> None:
    """Delete users whom the store knows to be deleted, and the database does not: it is an older copy, put back.

    They are closed first, so that nothing of them is added; whoever is closed and still there, is deleted, also after
    a run that was killed in between.
    """
    tombstones.bury(events.engine, forgotten)
    marks = {each.mark for each in tombstones.buried(events.engine)}
    for user in tombstones.users_of(events.engine, events.log.privacy, marks) if marks else ():
        events.histories.delete(user)


def _of_exports(
    store: Store, naming: Naming, kept_from: int | None
) -> tuple[dict[str, dict[str, int]], list[dict[str, Any]]]:
    """What was removed, by export, and those at which somebody else is at work."""
    done: dict[str, dict[str, int]] = {}
    busy: list[dict[str, Any]] = []
    for name in _names(store, "exports"):
        try:
            done[name] = _compact(store, name, naming, kept_from)
        except ConflictError as error:
            busy.append({"export": name, "reason": str(error)})
    return done, busy


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


def _of_datasets(
    config: ForgetConfig, store: Store, naming: Naming, by_age: bool
) -> tuple[list[str], list[dict[str, Any]]]:
    """The datasets that were prepared anew, and those that may still hold something, with the reason."""
    done: list[str] = []
    remaining: list[dict[str, Any]] = []
    for name in _names(store, "datasets"):
        gone = 0
        try:
            there = _settled(store, name, naming.forgotten or by_age)
            if there is None:
                continue
            known = replace(naming, tenant=_tenant(there))
            gone = gone_since(store.child(folder(name)), there, known)
            anew = gone > 0 or _changed(store, there)
            if anew:
                _prepare(config, name, there)
                done.append(name)
            _sweep(store, name, known, anew)
        except DktError as error:
            remaining.append({"dataset": name, "users": gone, "reason": str(error)})
    return done, remaining


def _settled(store: Store, name: str, clean: object) -> Manifest | None:
    """The dataset that is there, with nobody at work on it: whoever begins after this knows of all deletions.

    Args:
        clean: remove what a killed run left, too.

    Raises:
        ConfigError: another version of the package made it.
        ConflictError: somebody is at work on it.
    """
    files = store.child(folder(name))
    with lease(files, f"dataset {name!r}"):
        found = find(files)
        if clean:
            files.delete_prefix("tmp")
            if found.version is None:
                sweep(files)
    if found.manifest is None and found.version is not None:
        raise ConfigError("another version of dkt-ray made it: prepare it anew")
    return found.manifest


def _sweep(store: Store, name: str, naming: Naming, anew: bool) -> None:
    """Remove the version before, where it holds what is to be forgotten; else its readers go on."""
    files = store.child(folder(name))
    with lease(files, f"dataset {name!r}"):
        there = find(files).manifest
        if there is not None and (anew or left_of(files, there, naming)):
            sweep(files, there)


def _prepare(config: ForgetConfig, name: str, there: Manifest) -> None:
    """Prepare a dataset again, of all its files and by its own settings.

    Raises:
        DktError: it cannot be done.
    """
    if not config.prepare:
        raise ConfigError("prepare=false: run dkt prepare on all its files")
    data = there.config["data"] | {"path": list(there.inputs)}
    if data["split_file"] is not None:
        data["folds"] = None  # it says how many; earlier releases asked for 5 all the same
    changes = {"store": config.store, "dataset": name, "data": data, "append": False, "force": False}
    prepare.run(build(prepare.PrepareConfig, there.config | changes))


def _changed(store: Store, there: Manifest) -> bool:
    """Whether rows left an exported part since a dataset was made of it."""
    exported = {_real(f"{store.url}/{key}") for key in store.list("exports")}
    used = [path for path in there.inputs if _real(path) in exported]
    return any(reader.digest(path).sha256 != there.inputs[path] for path in used)


def _real(path: str) -> str:
    """One name of a file that may be reached by several."""
    return path if path.startswith(SCHEME) else os.path.realpath(path)


def _tenant(there: Manifest) -> str:
    return str(there.config["data"].get("tenant", ""))


def _runs(store: Store, naming: Naming) -> Iterator[str]:
    """Runs whose out-of-fold predictions name a deleted user."""
    if not naming.forgotten:
        return
    found = [find(store.child(folder(name))).manifest for name in _names(store, "datasets")]
    tenants = {"", *(_tenant(each) for each in found if each is not None)}
    for key in store.list("runs"):
        if key.endswith(OUT_OF_FOLD):
            users = store.read_table(key, ["user"])["user"].unique().to_pylist()
            names = {naming.privacy.in_data(user, tenant) for user in users for tenant in tenants}
            if any(naming.privacy.mark(name) in naming.forgotten for name in names):
                yield key.split("/")[1]


def _names(store: Store, prefix: str) -> list[str]:
    """The folders below a prefix."""
    return sorted({key.split("/")[1] for key in store.list(prefix) if key.count("/") > 1})
