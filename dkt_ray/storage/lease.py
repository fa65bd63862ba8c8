"""A lease: one writer at a time in a folder of a store, and what a killed writer held can be taken over."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from uuid import uuid4

from dkt_ray.errors import ConflictError, NotFoundError, StorageError
from dkt_ray.storage.store import Store, json_bytes, parse_json

logger = logging.getLogger(__name__)

LEASE: Final = "lease.json"
RENEW_S: Final = 15.0
EXPIRES_S: Final = 90.0  # without a sign of life; clocks of machines may differ by less than this


@contextmanager
def lease(files: Store, what: str) -> Iterator[str]:
    """Hold a folder's lease for as long as the context lasts, renewed by a thread.

    The lease keeps writers from getting into each other's way; what must never be wrong is guarded by a conditional
    write besides, as a writer that slept may not know that its lease has expired.

    Args:
        what: names the folder in messages.

    Yields:
        The holder's mark, see `holder`.

    Raises:
        ConflictError: somebody else holds it.
    """
    mine = uuid4().hex
    version = _take(files, what, mine)
    ended = threading.Event()
    renewer = threading.Thread(target=_renew, args=(files, mine, version, ended), daemon=True)
    renewer.start()
    try:
        yield mine
    finally:
        ended.set()
        renewer.join()
        if holder(files) == mine:
            files.delete(LEASE)


def holder(files: Store) -> str | None:
    """The mark of whoever holds a folder's lease now; None: nobody does."""
    try:
        return str(files.read_json(LEASE)["holder"])
    except NotFoundError:
        return None


def take_away(files: Store) -> None:
    """End a lease that somebody holds, who sees that by `holder`."""
    files.delete(LEASE)


def _take(files: Store, what: str, mine: str) -> str:
    try:
        data, version = files.read_versioned(LEASE)
    except NotFoundError:
        return files.write_if(LEASE, _content(mine), None)
    found = parse_json(data, f"{files.url}/{LEASE}")
    if _alive(found):
        raise ConflictError(
            f"{what}: process {found['process']} on {found['host']} is at work on it; wait for it, or end it (a killed "
            f"one is forgotten at once on the same machine, else after {EXPIRES_S:.0f} s)"
        )
    return files.write_if(LEASE, _content(mine), version)


def _renew(files: Store, mine: str, version: str, ended: threading.Event) -> None:
    while not ended.wait(RENEW_S):
        try:
            version = files.write_if(LEASE, _content(mine), version)
        except ConflictError:
            logger.warning("%s: somebody else took the lease over", files.url)
            return
        except StorageError as error:  # it may pass: the lease holds for a while without being renewed
            logger.warning("%s: the lease could not be renewed, trying again: %s", files.url, error)


def _content(mine: str) -> bytes:
    return json_bytes({"holder": mine, "host": socket.gethostname(), "process": os.getpid(), "seen": time.time()})


def _alive(found: dict[str, Any]) -> bool:
    """Whether the holder showed itself lately and, if it ran on this machine, still runs."""
    if time.time() - found["seen"] > EXPIRES_S:
        return False
    if found["host"] != socket.gethostname():
        return True
    try:
        os.kill(found["process"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
