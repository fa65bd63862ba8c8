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
from dkt_ray.storage import Store, parse_json

logger = logging.getLogger(__name__)

PERIOD_S: Final = 3.0  # so long may a key still count that was revoked


class Ring:
    """What one replica knows of keys; other threads may read it at any time.

    A store that is down, an object that is damaged or gone: the last known keys count on.

    Args:
        replicas: tells how many there are, None where nobody knows; asked only where there are keys.
        required: refuse to be without keys.

    Raises:
        ConfigError: there are none, but they are required; or some of tenants, whose students need DKT_PRIVACY_KEY.
        StorageError: the store cannot be read.
    """

    def __init__(self, store: Store, replicas: Callable[[], int | None], required: bool) -> None:
        self.known = Known()
        self._store = store
        self._replicas = replicas
        self._privacy = Privacy.of_environment()
        self._version = ""
        try:
            self._read()
        except NotFoundError:
            if required:
                raise needed(store) from None

    def watch(self) -> None:
        """Look again every few seconds, in a thread that ends with the process."""
        threading.Thread(target=self._watch, name="keys", daemon=True).start()

    def refresh(self) -> None:
        """Look again now."""
        try:
            self._read()
        except NotFoundError:
            if self.known.keys is not None:
                logger.warning("%s is gone; the keys of before count on", KEYS)
        except DktError as error:
            logger.warning("the keys of before count on: %s", error)

    def _watch(self) -> None:
        pause = threading.Event()
        while not pause.wait(PERIOD_S):
            try:
                self.refresh()
            except Exception:  # the border of the thread: it must go on
                logger.exception("keys were not read again")

    def _read(self) -> None:
        data, version = self._store.read_versioned(KEYS)
        keys = self.known.keys
        if keys is None or version != self._version:
            keys = build(Keys, parse_json(data, KEYS))
            for holder in keys.holders:
                self._privacy.user("", holder.tenant)  # has a key for tenants, or says so now, not to each request
            self._version = version
            logger.info("keys of %d holders", len(keys.holders))
        self.known = Known(keys, self._replicas() or self.known.replicas)


def needed(store: Store) -> ConfigError:
    """What to say where keys are missing."""
    return ConfigError(
        f"store {store.url} has no API keys, and a service that others can reach takes them: make one with "
        f"`dkt keys add --set name=NAME --set store={store.url}`, or listen on 127.0.0.1"
    )
