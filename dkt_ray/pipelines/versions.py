"""The versions of a dataset: the one that is there, the switch to the next one, and what is swept away."""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

from dkt_ray.config import build
from dkt_ray.data.naming import Naming
from dkt_ray.errors import ConfigError, ConflictError, NotFoundError
from dkt_ray.features.dataset import MANIFEST, Manifest
from dkt_ray.storage import Store, json_bytes, parse_json
from dkt_ray.storage.lease import LEASE


class Found(NamedTuple):
    """The manifest that is there."""

    manifest: Manifest | None  # None also where another version of the package wrote it
    version: str | None  # of the object, for the conditional write


def find(files: Store) -> Found:
    """The manifest in a dataset's part of the store."""
    try:
        data, version = files.read_versioned(MANIFEST)
    except NotFoundError:
        return Found(None, None)
    try:
        return Found(build(Manifest, parse_json(data, f"{files.url}/{MANIFEST}")), version)
    except ConfigError:
        return Found(None, version)


def gone_since(files: Store, there: Manifest, naming: Naming) -> int:
    """How many users of a dataset were deleted since it was prepared."""
    if not naming.forgotten:
        return 0
    users = pl.Series(files.read_table(there.split, ["user"])["user"])
    return int(naming.gone(naming.series(users)).sum())


def switch(files: Store, manifest: Manifest, found: Found, name: str) -> None:
    """Write the manifest, which is the switch to what it names.

    Raises:
        ConflictError: somebody else has written one since this run began.
    """
    try:
        files.write_if(MANIFEST, json_bytes(manifest.model_dump(mode="json")), found.version)
    except ConflictError:
        raise ConflictError(
            f"dataset {name!r}: somebody else prepared it meanwhile, and theirs stays; run dkt prepare again"
        ) from None


def sweep(files: Store, *kept: Manifest | None) -> None:
    """Remove what no version that is kept names: the dataset, and the one before it where readers may go on."""
    for key in _others(files, *kept):
        files.delete(key)


def left_of(files: Store, there: Manifest, naming: Naming) -> bool:
    """Whether what the dataset does not name, as the version before it, holds users who were deleted."""
    stale = [key for key in _others(files, there) if key.startswith("histories/")] if naming.forgotten else []
    users = (pl.Series(files.read_table(key, ["user"])["user"]) for key in stale)
    return any(naming.gone(naming.series(each)).any() for each in users)


def _others(files: Store, *kept: Manifest | None) -> list[str]:
    named = [each for each in kept if each is not None]
    return [key for key in files.list() if key not in (MANIFEST, LEASE) and not any(each.owns(key) for each in named)]
