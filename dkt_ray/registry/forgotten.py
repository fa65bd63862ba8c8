"""Which bundles were trained on users who have been deleted since: such a model should be trained anew.

marks/<digest>.json   the deleted users among the training users of a bundle, as keyed hashes, and since when
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dkt_ray.errors import BundleError, ConflictError, NotFoundError
from dkt_ray.registry.store import Registry
from dkt_ray.storage import Store, json_bytes, parse_json

USERS: Final = "users.txt"  # of a bundle: the marks of its training users, one a line, sorted
REMEMBERED: Final = 16  # bundles whose training users stay in memory
CHARACTERS: Final = 64  # of a mark: SHA-256, hex

Marks = npt.NDArray[np.bytes_]


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
    read = {key: registry.store.read_json(key) for key in registry.store.list("marks")}
    return {
        key[len("marks/") : -len(".json")]: Forgotten(len(each["users"]), each["since"]) for key, each in read.items()
    }


def trained_on(registry: Registry, digest: str, marks: Collection[str]) -> list[str]:
    """Those of some users whom a bundle was trained on; none where it does not say (it was made without a key)."""
    wanted = np.array(sorted(marks), f"S{CHARACTERS}")
    known = _users(registry.store, digest)
    place = np.minimum(np.searchsorted(known, wanted), max(len(known) - 1, 0))
    return [mark.decode() for mark in wanted[known[place] == wanted]] if len(known) else []


@lru_cache(maxsize=REMEMBERED)
def _users(store: Store, digest: str) -> Marks:
    try:
        lines = store.read(f"bundles/{digest}/{USERS}").split()
    except NotFoundError:
        return np.empty(0, f"S{CHARACTERS}")
    if any(len(line) != CHARACTERS for line in lines):
        raise BundleError(f"{store.url}/bundles/{digest}/{USERS}: damaged; expected a keyed hash a line")
    return np.array(lines, f"S{CHARACTERS}")


def _add(store: Store, digest: str, users: Collection[str]) -> None:
    key = f"marks/{digest}.json"
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
