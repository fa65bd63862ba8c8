"""`dkt keys`: make, rotate, revoke and list API keys; running replicas follow within seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, ClassVar, Final, Literal

from pydantic import Field

from dkt_ray.config import Config, build
from dkt_ray.errors import ConfigError, NotFoundError
from dkt_ray.serving.keys import KEYS, MOST, Holder, Key, Keys, make, utc_now
from dkt_ray.serving.rights import Role
from dkt_ray.storage import json_bytes, open_store, parse_json

Action = Literal["list", "add", "rotate", "revoke"]


class KeysConfig(Config):
    """Settings of `dkt keys`."""

    positional: ClassVar[str | None] = "action"

    action: Action = "list"
    """list; add somebody with a first key; rotate: a second key beside the first, which goes on; revoke."""
    store: str = "data/store"
    """Folder or s3://bucket/prefix; as the replicas see it."""
    name: str | None = None
    """Whose key: a platform or a person, as logs may name them."""
    role: Role = "read"
    """read: ask for predictions and histories; write: also send events; admin: also delete users."""
    tenant: str = ""
    """Whose students the key knows; empty: those of the only platform. Replicas need DKT_PRIVACY_KEY for one."""
    rate: float = Field(default=50.0, gt=0)
    """Requests per second, over all replicas."""
    burst: int = Field(default=100, ge=1)
    """Requests that may come at once after a pause."""
    days: float | None = Field(default=None, gt=0, le=3650)
    """How long the new key counts; unset: until it is revoked."""
    key: str | None = None
    """Id of the key that is revoked; unset: all of the name, and the name itself."""


def run(config: KeysConfig) -> dict[str, Any]:
    """Do one action. A key is told once, here: the store holds its hash only.

    Returns:
        list: holders; add and rotate: name, key (the secret), id, expires; revoke: name, revoked (ids), left (ids).

    Raises:
        ConfigError: the name is missing, taken or not known, or has two keys already.
        ConflictError: somebody else changed the keys meanwhile.
        DktError: some would have a tenant, and some none.
    """
    store = open_store(config.store)
    try:
        data, version = store.read_versioned(KEYS)
    except NotFoundError:
        before, match = Keys(), None
    else:
        before, match = build(Keys, parse_json(data, f"{store.url}/{KEYS}")), version
    after, told = ACTIONS[config.action](before, config)
    if after is not before:
        store.write_if(KEYS, json_bytes(after.model_dump(mode="json")), match)
    return told


def _list(keys: Keys, config: KeysConfig) -> tuple[Keys, dict[str, Any]]:
    holders = [each.model_dump(mode="json", exclude={"keys": {"__all__": {"sha256"}}}) for each in keys.holders]
    return keys, {"holders": holders}


def _add(keys: Keys, config: KeysConfig) -> tuple[Keys, dict[str, Any]]:
    name = _name(config)
    if any(each.name == name for each in keys.holders):
        raise ConfigError(f"name {name!r} has keys already: `dkt keys rotate` makes another one, `revoke` ends them")
    limits = {"role": config.role, "tenant": config.tenant, "rate": config.rate, "burst": config.burst}
    return _with_new(keys, build(Holder, {"name": name} | limits), config, utc_now())


def _rotate(keys: Keys, config: KeysConfig) -> tuple[Keys, dict[str, Any]]:
    holder, now = keys.named(_name(config)), utc_now()
    active = tuple(key for key in holder.keys if key.expires is None or key.expires > now)
    if len(active) >= MOST:
        ids = " and ".join(key.id for key in active)
        raise ConfigError(f"{holder.name} has {MOST} keys, {ids}: revoke the old one first, with --set key=ID")
    return _with_new(keys, holder.model_copy(update={"keys": active}), config, now)


def _revoke(keys: Keys, config: KeysConfig) -> tuple[Keys, dict[str, Any]]:
    holder = keys.named(_name(config))
    left = tuple(key for key in holder.keys if config.key is not None and key.id != config.key)
    if config.key is not None and len(left) == len(holder.keys):
        raise ConfigError(f"key {config.key!r}: {holder.name} has {', '.join(_ids(holder.keys)) or 'none'}")
    others = Keys(holders=tuple(each for each in keys.holders if each is not holder))
    after = others if config.key is None else keys.put(holder.model_copy(update={"keys": left}))
    revoked = [key for key in holder.keys if key not in left]
    return after, {"name": holder.name, "revoked": _ids(revoked), "left": _ids(left)}


def _with_new(keys: Keys, holder: Holder, config: KeysConfig, now: datetime) -> tuple[Keys, dict[str, Any]]:
    text, key = make(now, config.days)
    told = {"name": holder.name, "key": text, "id": key.id, "expires": key.expires and key.expires.isoformat()}
    return keys.put(holder.model_copy(update={"keys": (*holder.keys, key)})), told


def _name(config: KeysConfig) -> str:
    if config.name is None:
        raise ConfigError(f"setting name is missing: say whose key, e.g. dkt keys {config.action} --set name=platform")
    return config.name


def _ids(keys: tuple[Key, ...] | list[Key]) -> list[str]:
    return [key.id for key in keys]


ACTIONS: Final[Mapping[Action, Callable[[Keys, KeysConfig], tuple[Keys, dict[str, Any]]]]] = {
    "list": _list,
    "add": _add,
    "rotate": _rotate,
    "revoke": _revoke,
}
