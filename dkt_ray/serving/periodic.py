"""Work that a replica does every few seconds, in a thread of its own that ends with the process."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)


def every(seconds: float, work: Callable[[], None], name: str, end: threading.Event) -> None:
    """Do some work again and again, whatever it raises, the first time after so many seconds.

    Args:
        name: of the thread, for the log.
        end: ends it earlier, when it is set.
    """

    def go_on() -> None:
        while not end.wait(seconds):
            try:
                work()
            except Exception:  # the border of the thread: it must go on
                logger.exception("%s: failed, and is tried again", name)

    threading.Thread(target=go_on, name=name, daemon=True).start()
