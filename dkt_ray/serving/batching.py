"""Dynamic batching: requests that arrive while a batch is being scored form the next one.

`serve.batch` closes a batch after a fixed wait, also while the one before it is still being scored. This adds no wait
to a lone request, and under load the batches grow by themselves.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from dkt_ray.data.query import Query
from dkt_ray.ensemble.scorer import Scores

ScoreAll = Callable[[Sequence[Query]], list[Scores]]


@dataclass(eq=False)
class _Waiting:
    query: Query
    answer: asyncio.Future[Scores]


class Batcher:
    """Scores queries in batches, in one thread, so that the event loop stays free.

    Args:
        score: scores many queries; each must get what it would get alone.
        max_queries: queries in one batch.
        max_rows: interactions and targets in one batch; a larger query is scored alone.
    """

    def __init__(self, score: ScoreAll, max_queries: int, max_rows: int) -> None:
        self._score = score
        self._max_queries = max_queries
        self._max_rows = max_rows
        self._waiting: deque[_Waiting] = deque()
        self._thread = ThreadPoolExecutor(1, "score")
        self._draining: asyncio.Task[None] | None = None
        self._started: float | None = None  # of the batch being scored

    @property
    def busy_s(self) -> float:
        """How long the current batch has been running; 0 when idle."""
        return 0.0 if self._started is None else time.monotonic() - self._started

    async def __call__(self, query: Query) -> Scores:
        """Score one query together with whatever else is waiting."""
        waiting = _Waiting(query, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        return await waiting.answer

    async def _drain(self) -> None:
        try:
            while batch := self._take():
                self._started = time.monotonic()
                await self._answer(batch)
        finally:
            self._started = self._draining = None

    def _take(self) -> list[_Waiting]:
        """The next batch, without requests whose client has gone; at least one query if there is any."""
        batch: list[_Waiting] = []
        rows = 0
        while self._waiting and len(batch) < self._max_queries:
            rows += self._waiting[0].query.rows
            if batch and rows > self._max_rows:
                break
            waiting = self._waiting.popleft()
            if not waiting.answer.done():
                batch.append(waiting)
        return batch

    async def _answer(self, batch: list[_Waiting]) -> None:
        loop = asyncio.get_running_loop()
        try:
            scores = await loop.run_in_executor(self._thread, self._score, [each.query for each in batch])
        except Exception as error:  # noqa: BLE001 - the border of the replica: whoever asked gets it
            if len(batch) == 1:
                _fail(batch[0], error)
                return
            for each in batch:  # one bad query must not take the others with it
                await self._answer([each])
            return
        for each, answer in zip(batch, scores, strict=True):
            if not each.answer.done():
                each.answer.set_result(answer)


def _fail(waiting: _Waiting, error: Exception) -> None:
    if not waiting.answer.done():
        waiting.answer.set_exception(error)
