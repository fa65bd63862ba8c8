"""The registry: bundles under their digest, and aliases that move between them by compare-and-swap.

    bundles/<digest>/...               the files of a bundle; manifest.json is written last and makes it visible
    bundles/<digest>.json              when it was published
    aliases/<alias>.json               the newest move of the alias: where it points
    aliases/history/<alias>/<n>.json   the moves before it
    marks/<digest>.json                training users of a bundle who were deleted since, see `forgotten.py`

The alias object is the one truth: a move happens when its conditional write succeeds, and its content carries the
number of the move, so that no two moves look alike. Whoever wants to make move n + 1 first copies move n from the alias
into the history. A mover that dies between the two writes leaves a copy of the newest move there, which is true anyway.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeAlias

from dkt_ray.errors import BundleError, ConfigError, ConflictError, NotFoundError, StorageError
from dkt_ray.storage import Store, json_bytes, parse_json
from dkt_ray.storage.store import files_of

MANIFEST: Final = "manifest.json"
DIGEST: Final = re.compile(r"[0-9a-f]{64}")

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class BundleEntry:
    """A bundle of the registry."""

    digest: str
    created: str
    """When it was published, UTC, ISO 8601."""
    metrics: dict[str, Any]
    """The metrics in its manifest."""


@dataclass(frozen=True)
class AliasEntry:
    """A move of an alias, and so where it points until the next one."""

    bundle: str
    previous: str | None
    """Where it pointed before."""
    version: int
    """Number of the move, from 1."""
    moved_at: str
    """UTC, ISO 8601."""
    reason: str


Bundles: TypeAlias = list[BundleEntry]
Moves: TypeAlias = list[AliasEntry]


@dataclass(frozen=True)
class Registry:
    """Bundles and aliases in a store."""

    store: Store

    def publish(self, folder: Path, digest: str) -> None:
        """Upload a bundle; it becomes visible when it is complete, and nothing happens when it is already there.

        Raises:
            BundleError: the folder holds no manifest, not the manifest of this digest, or files that it does not list.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise BundleError(f"{folder}: no {MANIFEST} there; build the bundle first")
        manifest = path.read_bytes()
        _check_digest(manifest, digest, str(folder))
        if unlisted := sorted(set(files_of(folder)) - json.loads(manifest).get("files", {}).keys() - {MANIFEST}):
            raise BundleError(
                f"{folder}: files {unlisted} are not in the manifest; take them out, nothing was published"
            )
        if self.store.exists(_manifest(digest)):
            return
        self.store.upload(folder, f"bundles/{digest}", skip=(MANIFEST,))
        self.store.write_json(f"bundles/{digest}.json", {"published_at": _now()})
        try:
            self.store.write_if(_manifest(digest), manifest, None)
        except ConflictError:
            return  # somebody else published the same bundle meanwhile

    def fetch(self, digest: str, into: Path) -> None:
        """Download a bundle to a local folder.

        Raises:
            NotFoundError: no such bundle, or it was never completely published.
            BundleError: its manifest is damaged (the files are checked by `bundle.verify`).
        """
        self._require(digest)
        self.store.download(f"bundles/{digest}", into)
        _check_digest((into / MANIFEST).read_bytes(), digest, f"{self.store.url}/bundles/{digest}")

    def manifest(self, digest: str) -> dict[str, Any]:
        """A bundle's manifest as it is stored, unchecked.

        Raises:
            NotFoundError: no such bundle.
        """
        self._require(digest)
        found: dict[str, Any] = self.store.read_json(_manifest(digest))
        return found

    def list(self) -> Bundles:
        """All complete bundles, the newest first."""
        return sorted(map(self._entry, self.digests()), key=lambda entry: (entry.created, entry.digest), reverse=True)

    def digests(self) -> tuple[str, ...]:
        """Digests of all complete bundles."""
        keys = self.store.list("bundles")
        return tuple(key.split("/")[1] for key in keys if key.count("/") == 2 and key.endswith(f"/{MANIFEST}"))

    def alias(self, name: str) -> AliasEntry | None:
        """Where an alias points; None where there is no such alias."""
        return self._read_alias(name)[0]

    def promote(self, alias: str, digest: str, expect: str | None, reason: str) -> AliasEntry:
        """Move an alias to a bundle; nothing moves when it already points there.

        Args:
            expect: the bundle that the alias points to now; None: it does not exist yet.

        Raises:
            NotFoundError: the bundle is not in the registry.
            ConflictError: the alias points somewhere else than expected, or was moved meanwhile.
        """
        self._require(digest)
        current, version = self._read_alias(alias)
        found = current.bundle if current else None
        if found != expect:
            raise _moved(alias, found, expect)
        if current and found == digest:
            return current
        number = current.version + 1 if current else self._last_number(alias) + 1
        entry = AliasEntry(digest, found, number, _now(), reason)
        if current:
            self._remember(alias, current)
        try:
            self.store.write_if(_alias(alias), json_bytes(asdict(entry)), version)
        except ConflictError:
            winner = self.alias(alias)
            raise _moved(alias, winner.bundle if winner else None, expect) from None
        return entry

    def rollback(self, alias: str, reason: str = "rollback") -> AliasEntry:
        """Move an alias back to the bundle before; a move like any other, so that a second rollback undoes the first.

        Raises:
            NotFoundError: no such alias, or the bundle before is gone.
            ConflictError: there is no bundle before, or the alias was moved meanwhile.
        """
        current = self.alias(alias)
        if current is None:
            raise NotFoundError(f"alias {alias} does not exist; promote a bundle first")
        if current.previous is None:
            raise ConflictError(f"alias {alias} has pointed to {current.bundle} only: there is nothing to roll back to")
        return self.promote(alias, current.previous, current.bundle, reason)

    def history(self, alias: str) -> Moves:
        """Every move of an alias, oldest first."""
        current = self.alias(alias)  # read before the listing, which then holds every move before this one
        keys = self.store.list(f"aliases/history/{_named(alias)}")
        moves = {entry.version: entry for entry in (_parse(self.store.read_json(key), key) for key in keys)}
        if current:
            moves[current.version] = current
        return [moves[number] for number in sorted(moves)]

    def _entry(self, digest: str) -> BundleEntry:
        manifest = self.manifest(digest)
        published = self.store.read_json(f"bundles/{digest}.json")
        return BundleEntry(digest, published["published_at"], manifest.get("provenance", {}).get("metrics", {}))

    def _require(self, digest: str) -> None:
        if not self.store.exists(_manifest(digest)):
            raise NotFoundError(f"bundle {digest} is not in {self.store.url}; publish it, or list the bundles there")

    def _read_alias(self, name: str) -> tuple[AliasEntry | None, str | None]:
        try:
            data, version = self.store.read_versioned(_alias(name))
        except NotFoundError:
            return None, None
        return _parse(parse_json(data, _alias(name)), _alias(name)), version

    def _remember(self, alias: str, entry: AliasEntry) -> None:
        key = f"aliases/history/{alias}/{entry.version}.json"
        try:
            self.store.write_if(key, json_bytes(asdict(entry)), None)
        except ConflictError:
            if self.store.read_json(key) != asdict(entry):
                raise StorageError(f"{self.store.url}/{key}: not the move that {alias} made; restore it") from None

    def _last_number(self, alias: str) -> int:
        keys = self.store.list(f"aliases/history/{_named(alias)}")
        return max((int(Path(key).stem) for key in keys), default=0)


def resolve(registry: Registry, bundle: str) -> str:
    """The digest that a digest or an alias stands for.

    Raises:
        NotFoundError: it is neither.
    """
    if DIGEST.fullmatch(bundle):
        return bundle
    entry = registry.alias(bundle)
    if entry is None:
        raise NotFoundError(
            f"bundle is {bundle!r}, expected a digest or an alias in {registry.store.url}; "
            "make a bundle with dkt publish, list bundles with dkt registry"
        )
    return entry.bundle


def _named(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is not a name; expected letters, digits, '.', '_' and '-'")
    return name


def _alias(name: str) -> str:
    return f"aliases/{_named(name)}.json"


def _manifest(digest: str) -> str:
    return f"bundles/{_named(digest)}/{MANIFEST}"


def _moved(alias: str, found: str | None, expect: str | None) -> ConflictError:
    return ConflictError(
        f"alias {alias} points to {found or 'nothing'}, expected {expect or 'nothing'}: somebody moved it; "
        "look at it again and decide anew"
    )


def _check_digest(manifest: bytes, digest: str, place: str) -> None:
    found = hashlib.sha256(manifest).hexdigest()
    if found != digest:
        raise BundleError(f"{place}: {MANIFEST} has the digest {found}, expected {digest}; publish the bundle anew")


def _parse(value: Any, key: str) -> AliasEntry:
    names = {field.name for field in fields(AliasEntry)}
    if not isinstance(value, dict) or value.keys() != names:
        raise StorageError(f"{key}: damaged; expected the fields {', '.join(sorted(names))}")
    return AliasEntry(**value)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
