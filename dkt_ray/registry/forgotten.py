"""Which bundles were trained on users who have been deleted since: such a model should be trained anew.

marks/<digest>.json   the deleted users among the training users of a bundle, as keyed hashes, and since when
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import pyarrow as pa

from dkt_ray.errors import BundleError, ConflictError, NotFoundError, StorageError
from dkt_ray.registry.store import Registry
from dkt_ray.storage import Store, json_bytes, parse_json
from dkt_ray.storage.store import explained

logger = logging.getLogger(__name__)

USERS: Final = "users.txt"  # of a bundle: the marks of its training users, one a line, sorted
LINE: Final = 65  # bytes: a mark is SHA-256, hex
FEW: Final = 16  # users, up to whom the lists of bundles are searched where they lie; for more each is read at once
REMEMBERED_S: Final = 5.0


@dataclass(frozen=True)
class Forgotten:
    """What of a bundle's training was deleted since."""

    count: int
    """Users."""
    since: str
    """When the first of them was found, UTC, ISO 8601."""


def mark_bundles(registry: Registry, marks: Collection[str]) -> list[str]:
    """Mark the bundles that were trained on some of the users; marking twice changes nothing.

    Args:
        marks: of the users, as `Privacy.mark` makes them.

    Returns:
        Digests of all bundles that were trained on one of these users, sorted.
    """
    found = {digest: trained_on(registry, digest, marks) for digest in registry.digests()}
    for digest, users in found.items():
        if users:
            _add(registry.store, digest, users)
    return sorted(digest for digest, users in found.items() if users)


def forgotten(registry: Registry) -> dict[str, Forgotten]:
    """The bundles that are marked, by digest."""
    marked = [key[len("marks/") : -len(".json")] for key in registry.store.list("marks")]
    read = {digest: forgotten_of(registry, digest) for digest in marked}
    return {digest: each for digest, each in read.items() if each}


def forgotten_of(registry: Registry, digest: str) -> Forgotten | None:
    """How a bundle is marked; None: it is not.

    Raises:
        BundleError: its mark is damaged.
    """
    try:
        read = registry.store.read_json(_key(digest))
    except NotFoundError:
        return None
    try:
        return Forgotten(len(read["users"]), read["since"])
    except (KeyError, TypeError) as error:
        raise BundleError(f"{_key(digest)} is damaged: {error!r}; the next `dkt forget` cannot add to it") from error


class Marks:
    """How bundles are marked, as the store said at most five seconds ago, or when it could be read last."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._known: dict[str, Forgotten | None] = {}
        self._asked: dict[str, float] = {}

    def __call__(self, digest: str) -> Forgotten | None:
        """How a bundle is marked; None: it is not, or nobody could tell so far."""
        now = time.monotonic()
        if now - self._asked.get(digest, -math.inf) < REMEMBERED_S:
            return self._known.get(digest)
        self._asked[digest] = now
        try:
            self._known[digest] = forgotten_of(self._registry, digest)
        except (StorageError, BundleError) as error:
            logger.warning("the mark of bundle %s is taken as it was: %s", digest, error)
        return self._known.get(digest)


def trained_on(registry: Registry, digest: str, marks: Collection[str]) -> list[str]:
    """Those of some users whom a bundle was trained on; none where it does not say (it was made without a key).

    Raises:
        BundleError: its list of users is damaged.
    """
    key = f"bundles/{digest}/{USERS}"
    filesystem, root = registry.store.filesystem()
    place = f"{registry.store.url}/{key}"
    try:
        with explained(place), filesystem.open_input_file(f"{root}/{key}") as file:
            lines = file if len(marks) <= FEW else pa.BufferReader(file.read())
            return [mark for mark in sorted(marks) if _holds(lines, mark.encode("ascii"), place)]
    except NotFoundError:
        return []


def _holds(lines: pa.NativeFile, mark: bytes, place: str) -> bool:
    """Whether sorted lines hold a mark; only those are read at which a search by halves looks."""
    low, high = 0, lines.size() // LINE
    if high * LINE != lines.size():
        raise BundleError(f"{place}: damaged; expected a keyed hash a line")
    while low < high:
        middle = (low + high) // 2
        lines.seek(middle * LINE)
        line = lines.read(LINE)
        if not line.endswith(b"\n"):
            raise BundleError(f"{place}: damaged; expected a keyed hash a line")
        if line[:-1] == mark:
            return True
        low, high = (middle + 1, high) if line[:-1] < mark else (low, middle)
    return False


def _add(store: Store, digest: str, users: Collection[str]) -> None:
    key = _key(digest)
    while True:
        version: str | None = None
        there: dict[str, Any] = {"users": [], "since": datetime.now(UTC).isoformat(timespec="seconds")}
        try:
            data, version = store.read_versioned(key)
            there = parse_json(data, f"{store.url}/{key}")
        except NotFoundError:
            pass
        if set(users) <= set(there["users"]):
            return
        try:
            store.write_if(key, json_bytes(there | {"users": sorted({*there["users"], *users})}), version)
        except ConflictError:
            continue  # somebody else marked it meanwhile
        return


def _key(digest: str) -> str:
    return f"marks/{digest}.json"
