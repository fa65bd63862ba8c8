"""`dkt registry`: list bundles, verify one, move an alias or move it back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, ClassVar, Final, Literal

from pydantic import Field

from dkt_ray.config import Config
from dkt_ray.errors import ConfigError
from dkt_ray.registry.cache import local_copy
from dkt_ray.registry.clean_process import verify_apart
from dkt_ray.registry.forgotten import forgotten
from dkt_ray.registry.store import Registry, resolve
from dkt_ray.storage import open_store

Action = Literal["list", "verify", "promote", "rollback"]


class RegistryConfig(Config):
    """Settings of `dkt registry`."""

    positional: ClassVar[str | None] = "action"

    action: Action = "list"
    """list, verify a bundle, promote it (move the alias to it), or rollback (move the alias back)."""
    store: str = "data/store"
    """Folder or s3://bucket/prefix."""
    bundle: str | None = None
    """Digest or alias: what is verified or promoted."""
    alias: str = "champion"
    """The alias that moves, and whose history is listed."""
    reason: str = "by hand"
    """Why the alias moves; kept in its history."""
    verify_timeout_s: float = Field(default=120.0, gt=0)
    """How long the verification may take."""


def run(config: RegistryConfig) -> dict[str, Any]:
    """Do one action. A move of an alias does not touch a running service: `dkt rollout` does both.

    Returns:
        list: bundles (the newest first; forgotten: how many of its training users were deleted, and since when), alias,
        history; verify: bundle, verified; promote and rollback: the move.

    Raises:
        NotFoundError: no such bundle or alias.
        BundleError: the bundle does not verify.
        ConflictError: somebody else moved the alias, or there is nothing to go back to.
    """
    return ACTIONS[config.action](Registry(open_store(config.store)), config)


def _list(registry: Registry, config: RegistryConfig) -> dict[str, Any]:
    entry = registry.alias(config.alias)
    marked = forgotten(registry)
    return {
        "bundles": [
            asdict(each) | ({"forgotten": asdict(marked[each.digest])} if each.digest in marked else {})
            for each in registry.list()
        ],
        "alias": {config.alias: entry.bundle if entry else None},
        "history": [asdict(move) for move in registry.history(config.alias)],
    }


def _verify(registry: Registry, config: RegistryConfig) -> dict[str, Any]:
    digest = _given(registry, config)
    verify_apart(local_copy(registry, digest), digest, config.verify_timeout_s)
    return {"bundle": digest, "verified": True}


def _promote(registry: Registry, config: RegistryConfig) -> dict[str, Any]:
    digest = str(_verify(registry, config)["bundle"])
    entry = registry.alias(config.alias)
    move = registry.promote(config.alias, digest, entry.bundle if entry else None, config.reason)
    return {"alias": config.alias, **asdict(move)}


def _rollback(registry: Registry, config: RegistryConfig) -> dict[str, Any]:
    return {"alias": config.alias, **asdict(registry.rollback(config.alias, config.reason))}


def _given(registry: Registry, config: RegistryConfig) -> str:
    if config.bundle is None:
        raise ConfigError(f"setting bundle is missing: name what to {config.action}, e.g. --set bundle=DIGEST")
    return resolve(registry, config.bundle)


ACTIONS: Final[Mapping[Action, Callable[[Registry, RegistryConfig], dict[str, Any]]]] = {
    "list": _list,
    "verify": _verify,
    "promote": _promote,
    "rollback": _rollback,
}
