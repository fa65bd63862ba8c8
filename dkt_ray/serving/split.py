"""A replica's two bundles while a rollout is under way: who answers, and what the other one would have said."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Final

import numpy as np

from dkt_ray.data.query import Query
from dkt_ray.ensemble.scorer import Scores
from dkt_ray.errors import OverloadedError
from dkt_ray.serving.api import Served
from dkt_ray.serving.edge import MAX_WAIT_S, is_late
from dkt_ray.serving.predictor import Predictor
from dkt_ray.serving.traffic import Counts, Findings, Traffic, is_challengers

COMPARED_AT_ONCE: Final = 4  # unseen answers being made; more are not asked for, so that they cannot pile up
LAPSE_S: Final = 20.0  # without word from the rollout the champion answers everybody again


class Split:
    """The champion and, during a rollout, a challenger; a student's request goes to one of them."""

    def __init__(self, champion: Served, challenger: Served | None = None) -> None:
        self._served = (champion, challenger)
        self._traffic, self._heard = Traffic(), time.monotonic()
        self._found = Findings()
        self._comparing: set[asyncio.Task[None]] = set()

    @property
    def challenger(self) -> Predictor | None:
        """The other bundle, if a rollout is under way."""
        other = self._served[1]
        return other and other.predictor

    def choose(self, student: str | None) -> Served:
        """Who answers this student."""
        challenger = self._served[1]
        key = challenger.predictor.version if challenger else ""
        side = int(challenger is not None and is_challengers(student, self._now().share, key))
        served = self._served[side]
        assert served is not None

        async def answer(query: Query) -> Scores:
            scores = await self._timed(side, query)
            self._compare(1 - side, query, scores)
            return scores

        return served._replace(answer=answer)

    def direct(self, traffic: Traffic) -> Findings:
        """Deal requests so from now on, for as long as this is said again and again.

        Returns:
            What was found since this was said for the first time.
        """
        if traffic != self._traffic:
            self._found = Findings()
        self._traffic, self._heard = traffic, time.monotonic()
        return self._found

    def _now(self) -> Traffic:
        return self._traffic if time.monotonic() - self._heard < LAPSE_S else Traffic()

    def _counts(self, side: int) -> Counts:
        return self._found.challenger if side else self._found.champion

    async def _timed(self, side: int, query: Query, limit_s: float | None = None) -> Scores:
        served = self._served[side]
        assert served is not None
        counts = self._counts(side)
        counts.asked += 1
        started = time.perf_counter()
        try:
            async with asyncio.timeout(limit_s):
                scores = await served.answer(query)
        except OverloadedError:  # refused unseen: it says nothing about the bundle, unless most are
            raise
        except asyncio.CancelledError:
            counts.add(time.perf_counter() - started, failed=True if is_late() else None)
            raise
        except Exception:
            counts.add(time.perf_counter() - started, failed=True)
            raise
        counts.add(time.perf_counter() - started, failed=bool(scores.left_out))
        return scores

    def _compare(self, side: int, query: Query, scores: Scores) -> None:
        """Have the other one answer too; the client does not wait for that."""
        if self._served[side] is None or random.random() >= self._now().compared:
            return
        if len(self._comparing) >= COMPARED_AT_ONCE:
            self._counts(side).asked += 1  # so that one who hangs is not merely asked less
            return
        task = asyncio.create_task(self._set_apart(side, query, scores))
        self._comparing.add(task)
        task.add_done_callback(self._comparing.discard)

    async def _set_apart(self, side: int, query: Query, scores: Scores) -> None:
        found = self._found
        try:
            other = await self._timed(side, query, MAX_WAIT_S)
        except Exception:  # noqa: BLE001 - the border of the replica: it is counted, and no client waits for it
            return
        found.compared += 1
        found.apart += float(np.abs(other.probability - scores.probability).mean())
