"""The keys that count in a replica, read again every few seconds, and how many replicas share their rates."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from dkt_ray.config import build
from dkt_ray.errors import ConfigError, DktError, NotFoundError
from dkt_ray.privacy import Privacy
from dkt_ray.serving.keys import KEYS, Keys, Known
from dkt_ray.serving.periodic import every
from dkt_ray.storage import Store, parse_json

logger = logging.getLogger(__name__)

PERIOD_S: Final = 3.0  # so long may a key still count that was revoked


class Ring:
    """What one replica knows of keys; other threads may read it at any time.

    A store that is down, an object that is damaged or gone: the last known keys count on.

    Args:
        replicas: tells how many there are, None where nobody knows; asked only where there are keys. It may take long.
        required: refuse to be without keys.

    Raises:
        ConfigError: there are none, but they are required; or some of tenants, whose students need DKT_PRIVACY_KEY.
        StorageError: the store cannot be read.
    """

    def __init__(self, store: Store, replicas: Callable[[], int | None], required: bool) -> None:
        self._keys: Keys | None = None
        self._count = 1
        self._store = store
        self._replicas = replicas
        self._version = ""
        try:
            self._read()
        except NotFoundError:
            if required:
                raise needed(store) from None
        keys = self.known.keys
        for holder in keys.holders if keys else ():
            Privacy.of_environment().user("", holder.tenant)  # has a key for tenants, or says so now
        self.recount()

    @property
    def known(self) -> Known:
        """The keys that count now, and how many replicas share their rates."""
        return Known(self._keys, self._count)

    def watch(self) -> threading.Event:
        """Look again every few seconds, in threads that end with the process.

        Two of them: a key that was revoked must end though Serve's controller, who knows the replicas, is silent.

        Returns:
            What ends them earlier, when it is set.
        """
        end = threading.Event()
        for look in (self.refresh, self.recount):
            every(PERIOD_S, look, f"keys {look.__name__}", end)
        return end

    def recount(self) -> None:
        """Ask again how many replicas there are."""
        if self._keys is not None:
            self._count = self._replicas() or self._count

    def refresh(self) -> None:
        """Look again at the keys."""
        try:
            self._read()
        except NotFoundError:
            if self._keys is not None:
                logger.warning("%s is gone; the keys of before count on", KEYS)
        except DktError as error:
            logger.warning("the keys of before count on: %s", error)

    def _read(self) -> None:
        data, version = self._store.read_versioned(KEYS)
        if self._keys is None or version != self._version:
            self._keys, self._version = build(Keys, parse_json(data, KEYS)), version
            logger.info("keys of %d holders", len(self._keys.holders))


def needed(store: Store) -> ConfigError:
    """What to say where keys are missing."""
    return ConfigError(
        f"store {store.url} has no API keys, and a service that others can reach takes them: make one with "
        f"`dkt keys add --set name=NAME --set store={store.url}`, or listen on 127.0.0.1"
    )
