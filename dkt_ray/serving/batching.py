"""Dynamic batching: requests that arrive while a batch is being scored form the next one.

`serve.batch` closes a batch after a fixed wait, also while the one before it is still being scored. This adds no wait
to a lone request, and under load the batches grow by themselves.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from dkt_ray.data.query import Query
from dkt_ray.ensemble.scorer import Scores
from dkt_ray.errors import OverloadedError

ScoreAll = Callable[[Sequence[Query]], list[Scores]]


@dataclass(eq=False)
class _Waiting:
    query: Query
    answer: asyncio.Future[Scores]
    since: float = field(default_factory=time.perf_counter)


class Batcher:
    """Scores queries in batches, in one thread, so that the event loop stays free.

    Args:
        score: scores many queries; each must get what it would get alone.
        max_queries: queries in one batch.
        max_rows: interactions and targets in one batch; a larger query is scored alone.
        max_waiting_rows: interactions and targets that wait for a batch; a query beyond that is refused.
        tell: hears the answers of each batch.
    """

    def __init__(
        self,
        score: ScoreAll,
        max_queries: int,
        max_rows: int,
        max_waiting_rows: int,
        tell: Callable[[Sequence[Scores]], None] = lambda scores: None,
    ) -> None:
        self.counts: Counter[str] = Counter()  # batches; queries scored, failed, refused, dropped (nobody waited)
        self._score = score
        self._max_queries = max_queries
        self._max_rows = max_rows
        self._max_waiting_rows = max_waiting_rows
        self._tell = tell
        self._waiting: OrderedDict[_Waiting, None] = OrderedDict()
        self._waiting_rows = 0
        self._thread = ThreadPoolExecutor(1, "score")
        self._draining: asyncio.Task[None] | None = None
        self._started: float | None = None  # of the batch being scored

    @property
    def busy_s(self) -> float:
        """How long the current batch has been running; 0 when idle."""
        return 0.0 if self._started is None else time.monotonic() - self._started

    @property
    def waiting(self) -> int:
        """Queries that wait for a batch."""
        return len(self._waiting)

    async def __call__(self, query: Query) -> Scores:
        """Score one query together with whatever else is waiting; once cancelled it is not scored any more.

        Raises:
            OverloadedError: too much is waiting.
        """
        if self._waiting and self._waiting_rows + query.rows > self._max_waiting_rows:
            self.counts["refused"] += 1
            raise OverloadedError(f"{len(self._waiting)} requests are waiting already; try again later")
        waiting = _Waiting(query, asyncio.get_running_loop().create_future())
        self._waiting[waiting] = None
        self._waiting_rows += query.rows
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        try:
            return await waiting.answer
        finally:
            if waiting in self._waiting:
                self._leave(waiting)
                self.counts["dropped"] += 1

    async def _drain(self) -> None:
        try:
            while batch := self._take():
                self._started = time.monotonic()
                await self._answer(batch)
        finally:
            self._started = self._draining = None

    def _take(self) -> list[_Waiting]:
        """The next batch: at least one query if there is any."""
        batch: list[_Waiting] = []
        rows = 0
        for waiting in self._waiting:
            rows += waiting.query.rows
            if batch and (len(batch) == self._max_queries or rows > self._max_rows):
                break
            batch.append(waiting)
        for waiting in batch:
            self._leave(waiting)
        return batch

    def _leave(self, waiting: _Waiting) -> None:
        del self._waiting[waiting]
        self._waiting_rows -= waiting.query.rows

    async def _answer(self, batch: list[_Waiting]) -> None:
        loop = asyncio.get_running_loop()
        asked = [each for each in batch if not each.answer.done()]
        self.counts["dropped"] += len(batch) - len(asked)
        if not asked:
            return
        begun = time.perf_counter()
        try:
            scores = await loop.run_in_executor(self._thread, self._score, [each.query for each in asked])
        except Exception as error:  # noqa: BLE001 - the border of the replica: whoever asked gets it
            if len(asked) == 1:
                self.counts["failed"] += 1
                _fail(asked[0], error)
                return
            for each in asked:  # one bad query must not take the others with it
                await self._answer([each])
            return
        self.counts.update(batches=1, scored=len(asked))
        self._tell(scores)
        for each, answer in zip(asked, scores, strict=True):
            if not each.answer.done():
                each.answer.set_result(replace(answer, waited=begun - each.since))


def _fail(waiting: _Waiting, error: Exception) -> None:
    if not waiting.answer.done():
        waiting.answer.set_exception(error)
