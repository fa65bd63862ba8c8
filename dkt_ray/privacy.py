"""Who a user is to this system: a keyed hash of what the platform calls him (GDPR Art. 4(5), pseudonymisation).

The key, DKT_PRIVACY_KEY, lies outside of every store. Without one, ids stay as they are: for research on data that is
pseudonymous already.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from dataclasses import dataclass, field
from typing import Final

from dkt_ray.errors import ConfigError

PRIVACY_KEY: Final = "DKT_PRIVACY_KEY"
PSEUDONYM: Final = re.compile(r"u_[0-9a-f]{32}")


@dataclass(frozen=True)
class Privacy:
    """How ids of users are kept."""

    key: bytes | None = field(default=None, repr=False)
    """None: ids stay as they are."""

    @classmethod
    def of_environment(cls) -> Privacy:
        """With the key that the environment holds."""
        key = os.environ.get(PRIVACY_KEY, "")
        return cls(key.encode() or None)

    def user(self, user_id: str, tenant: str = "") -> str:
        """The name under which a user is stored whom a platform calls so, whatever that looks like.

        Args:
            tenant: users of different tenants are different, whatever their ids.

        Raises:
            ConfigError: tenants without a key.
        """
        if self.key is None:
            if tenant:
                raise ConfigError(f"tenant {tenant!r}, but {PRIVACY_KEY} is not set: users of tenants need pseudonyms")
            return user_id
        scoped = f"{tenant}\0{user_id}".encode()  # no id holds a NUL: the API refuses it
        return f"u_{hmac.new(self.key, scoped, hashlib.sha256).hexdigest()[:32]}"

    def in_data(self, user_id: str, tenant: str = "") -> str:
        """The name of a user of a file: what is a pseudonym already stays (in a request, it would name anybody)."""
        return user_id if PSEUDONYM.fullmatch(user_id) else self.user(user_id, tenant)

    def event(self, event_id: str, tenant: str = "") -> str:
        """The id under which an event is stored: platforms put the names of users into them."""
        if self.key is None:
            return event_id
        scoped = f"event\0{tenant}\0{event_id}".encode()
        return f"e_{hmac.new(self.key, scoped, hashlib.sha256).hexdigest()[:32]}"

    def mark(self, user: str) -> str:
        """What stands for a stored user in lists that outlive him: HMAC-SHA256, hex; SHA-256 without a key."""
        if self.key is None:
            return hashlib.sha256(user.encode()).hexdigest()
        return hmac.new(self.key, user.encode(), hashlib.sha256).hexdigest()
