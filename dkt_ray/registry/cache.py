"""Local copies of bundles, shared by the processes of one machine."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from dkt_ray.errors import BundleError
from dkt_ray.registry import bundle
from dkt_ray.registry.store import Registry


def default_folder() -> Path:
    """Where this user's copies lie on this machine."""
    return Path(tempfile.gettempdir()) / f"dkt-bundles-{os.getuid()}"


def local_copy(registry: Registry, digest: str, folder: Path | None = None) -> Path:
    """Fetch a bundle unless an intact copy is there; processes that do so at once do not disturb each other.

    Args:
        folder: where the copies lie; None: `default_folder()`.

    Returns:
        The bundle's folder; its files are what its manifest says.

    Raises:
        NotFoundError: the registry has no such bundle.
        BundleError: what the registry holds is damaged.
    """
    copies = folder or default_folder()
    copies.mkdir(mode=0o700, parents=True, exist_ok=True)
    copy = copies / digest
    try:
        bundle.check(copy, digest)
    except BundleError:
        fetched = Path(tempfile.mkdtemp(prefix=f".{digest[:12]}-", dir=copies))
        try:
            registry.fetch(digest, fetched)
            bundle.check(fetched, digest)
            _replace(fetched, copy)
        finally:
            shutil.rmtree(fetched, ignore_errors=True)
    return copy


def _replace(fetched: Path, copy: Path) -> None:
    """Move a checked copy into place; a damaged one that lies there moves out of the way first."""
    aside = fetched.with_name(f"{fetched.name}-damaged")
    try:
        if copy.exists():
            copy.rename(aside)
        fetched.rename(copy)
    except OSError:
        bundle.check(copy)  # another process was faster
    finally:
        shutil.rmtree(aside, ignore_errors=True)
