"""API keys: what is kept of them (`keys/keys.json` in the store), how one is made, and how it is recognised.

A key is `dkt_<id>_<secret>`: the id finds it, a SHA-256 of the whole proves it. A secret has 256 random bits, which
nobody guesses, so that a slow hash would protect nothing. One who is known by name may have two keys at a time: the new
one is handed out and used, then the old one ends.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Final, Literal, NamedTuple

from pydantic import Field, model_validator

from dkt_ray.config import Config
from dkt_ray.errors import ConfigError, DktError
from dkt_ray.serving.rights import Role

KEYS: Final = "keys/keys.json"
MOST: Final = 2  # keys of one holder at a time
NEVER: Final = "0" * 64  # the hash of no key
FORM: Final = re.compile(r"dkt_([0-9a-f]{12})_[0-9a-f]{64}")

Refusal = Literal["missing", "several", "unknown", "expired"]


class Key(Config):
    """One key, as it is kept."""

    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    made: datetime
    expires: datetime | None = None


class Holder(Config):
    """Who has keys, and what they allow."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    role: Role = "read"
    tenant: str = Field(default="", pattern=r"^[A-Za-z0-9._-]{0,64}$")
    """Whose students these are; a key knows no others. Empty: the service has one platform only."""
    rate: float = Field(default=50.0, gt=0)
    """Requests per second, over all replicas."""
    burst: int = Field(default=100, ge=1)
    """Requests that may come at once after a pause."""
    keys: tuple[Key, ...] = Field(default=(), max_length=MOST)


class Keys(Config):
    """All who have keys.

    Raises:
        DktError: some have a tenant, and some have none, who would be of no tenant.
    """

    holders: tuple[Holder, ...] = ()

    @model_validator(mode="after")
    def _of_tenants_or_of_none(self) -> Keys:
        without = [each.name for each in self.holders if not each.tenant]
        if without and len(without) < len(self.holders):
            raise DktError(  # no ValueError: what pydantic makes of one repeats the hashes
                f"some keys have a tenant, and those of {', '.join(without)} have none: give every key one (`dkt keys "
                "add --set tenant=NAME`) or none, and revoke the others first"
            )
        return self

    @cached_property
    def by_id(self) -> dict[str, tuple[Holder, Key]]:
        """Every key and who has it."""
        return {key.id: (holder, key) for holder in self.holders for key in holder.keys}

    def holder(self, text: str, now: float) -> Holder | Refusal:
        """Whose key this is.

        Args:
            now: seconds since 1970.
        """
        form = FORM.fullmatch(text)
        found = self.by_id.get(form[1]) if form else None
        kept = found[1].sha256 if found else NEVER
        if not hmac.compare_digest(_sha256(text), kept) or found is None:
            return "unknown"
        holder, key = found
        return "expired" if key.expires and key.expires.timestamp() <= now else holder

    def named(self, name: str) -> Holder:
        """Who has this name.

        Raises:
            ConfigError: nobody.
        """
        for holder in self.holders:
            if holder.name == name:
                return holder
        known = ", ".join(each.name for each in self.holders) or "nobody"
        raise ConfigError(f"name {name!r}: nobody is called so; there are keys of {known}; see `dkt keys`")

    def put(self, holder: Holder) -> Keys:
        """With a holder in the place of the one of that name, or after all others."""
        return Keys(holders=tuple(({each.name: each for each in self.holders} | {holder.name: holder}).values()))


class Known(NamedTuple):
    """What a replica knows of keys."""

    keys: Keys | None = None  # None: there are none, and everybody may do everything
    replicas: int = 1  # among which rates are divided


def make(now: datetime, days: float | None) -> tuple[str, Key]:
    """A new key, and what is kept of it.

    Args:
        days: how long it counts; None: until it is revoked.
    """
    text = f"dkt_{secrets.token_hex(6)}_{secrets.token_hex(32)}"
    expires = None if days is None else now + timedelta(days=days)
    return text, Key(id=text.split("_")[1], sha256=_sha256(text), made=now, expires=expires)


def utc_now() -> datetime:
    """The time, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
