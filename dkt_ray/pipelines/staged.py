"""A job of several stages: a line as each begins and ends, and how long it took."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Stages:
    """Announces the stages of a job, and remembers how long each took."""

    def __init__(self, job: str, total: int) -> None:
        """For a job of `total` stages."""
        self.seconds: dict[str, float] = {}
        self._job, self._total, self._number = job, total, 0

    def run(self, name: str, work: Callable[[], T]) -> T:
        """Do one stage; what it returns says by `reused` whether there was anything to do."""
        self._number += 1
        stage = f"{self._job}: stage {self._number} of {self._total}, {name}"
        logger.info("%s", stage)
        started = time.perf_counter()
        result = work()
        self.seconds[name] = round(time.perf_counter() - started, 1)
        reused = " (nothing has changed: reused)" if isinstance(result, dict) and result.get("reused") else ""
        logger.info("%s: done in %.1f s%s", stage, self.seconds[name], reused)
        return result
