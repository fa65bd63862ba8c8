"""What a replica told of stored users, written down behind the requests: they never wait for it.

What finds no room, or is not taken by the database, is dropped and counted; what is foreseen within a second of its
answer may be missed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from dkt_ray.data.query import Query
from dkt_ray.ensemble.scorer import Scores
from dkt_ray.errors import NotFoundError, StorageError, UnavailableError
from dkt_ray.events import parts
from dkt_ray.events.model import Event, EventLog
from dkt_ray.events.outcomes import Outcomes, Prediction, Recommended, figures
from dkt_ray.serving.contract import CONTROLS
from dkt_ray.serving.series import LIVE, OUTCOMES, PREDICTIONS, SHORT, UNEXPORTED, Meters
from dkt_ray.storage import Store

logger = logging.getLogger(__name__)

MOST_TARGETS: Final = 100  # of one query; more are no student's next question
MOST_WAITING: Final = 20_000  # rows
WRITE_S: Final = 1.0
LOOK_S: Final = 60.0  # between figures of the outcomes, and removals of what is old
TOLD: Final = ("log_loss", "auc", "ece")
TOLD_BUNDLES: Final = 5  # the ones with the newest outcomes


class Journal:
    """Writes in one thread of its own, in batches.

    Args:
        meters: what became of predictions, and the figures of the outcomes.
        unexported: see `unexported_since`.
    """

    def __init__(
        self,
        outcomes: Outcomes,
        meters: Meters,
        unexported: Callable[[], int | None] = lambda: None,
        most_waiting: int = MOST_WAITING,
    ) -> None:
        self.told: Sequence[dict[str, Any]] = ()
        """Figures of the bundles with the newest outcomes, the one with the newest first."""
        self._outcomes = outcomes
        self._meters = meters
        self._unexported = unexported
        self._most = most_waiting
        self._lock = threading.Lock()
        self._waiting: list[Prediction | Recommended | Event] = []
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def predicted(self, user: str, bundle: str, query: Query, scores: Scores) -> None:
        """A stored user's targets were scored."""
        now = _now()
        pairs = list(zip(query.target, scores.probability.tolist(), strict=True))
        kept = [Prediction(user, question, bundle, p, now) for question, p in pairs[:MOST_TARGETS]]
        self._count("over_limit", len(pairs) - len(kept))
        self._wait(kept)

    def recommended(self, user: str, bundle: str, policy: str, candidates: int, questions: Sequence[str]) -> None:
        """A stored user was recommended questions, the best first.

        Today's policies are deterministic: what they show, they show with propensity 1.
        """
        now = _now()
        rows = [
            Recommended(user, question, bundle, policy, candidates, rank, 1.0, now)
            for rank, question in enumerate(questions, 1)
        ]
        self._wait(rows)

    def heard(self, events: Sequence[Event]) -> None:
        """Events have become graded: they may be what was foreseen.

        Args:
            events: as the log has them, each once.
        """
        self._wait(events)

    def close(self) -> None:
        """Write what waits, and stop."""
        self._closed.set()
        self._thread.join()

    def _wait(self, rows: Sequence[Prediction | Recommended | Event]) -> None:
        fit = [row for row in rows if not CONTROLS.search(row.question)]  # no database holds NUL, no event has others
        with self._lock:
            room = max(self._most - len(self._waiting), 0)
            self._waiting.extend(fit[:room])
        self._count("unfit", len(rows) - len(fit))
        self._count("dropped", len(fit) - room)

    def _run(self) -> None:
        looked = -LOOK_S
        closing = False
        while not closing:
            closing = self._closed.wait(WRITE_S)
            try:
                self._write()
                due = time.monotonic() - looked >= LOOK_S
                if due:
                    looked = time.monotonic()
                    self._outcomes.expire(_now())
                    self._tell_unexported()
                if due or not self.told:  # the first outcomes are told at once
                    self._look()
            except (UnavailableError, StorageError) as error:
                logger.warning("journal: %s", error)
            except Exception:  # the thread's border: without it nothing would ever be written again
                logger.exception("journal: what could not be written is lost")

    def _write(self) -> None:
        with self._lock:
            rows, self._waiting = self._waiting, []
        predictions = [each for each in rows if isinstance(each, Prediction)]
        recommended = [each for each in rows if isinstance(each, Recommended)]
        heard = [each for each in rows if isinstance(each, Event)]
        lost = len(rows)
        try:
            self._count("kept", self._outcomes.keep(predictions, recommended))
            lost = len(heard)
            self._count("joined", self._outcomes.join(heard))
            lost = 0
        finally:
            self._count("dropped", lost)

    def _tell_unexported(self) -> None:
        since = self._unexported()
        if since is not None:
            self._meters.add(UNEXPORTED, max(_now() - since, 0) / 1000)

    def _look(self) -> None:
        newest = self._outcomes.bundles()[:TOLD_BUNDLES]
        self.told = [{"model_version": bundle} | figures(self._outcomes.latest(bundle)) for bundle in newest]
        for found in self.told:
            bundle = found["model_version"][:SHORT]
            self._meters.add(OUTCOMES, found["outcomes"], bundle)
            for name in TOLD:
                if found[name] is not None:
                    self._meters.add(LIVE, found[name], bundle, name)

    def _count(self, what: str, rows: int) -> None:
        self._meters.add(PREDICTIONS, max(rows, 0), what)


def unexported_since(log: EventLog, store: Store) -> int:
    """Arrival of the oldest graded event that is not exported, ms UTC; now where all are.

    Args:
        store: where `dkt export` writes, under its default name.
    """
    try:
        after = store.read_json(f"{parts.folder('events')}/{parts.POINTER}")["after"]
    except NotFoundError:
        after = 0  # nothing was exported ever
    return next((graded.event.received_at for graded in log.read(after, 1)), _now())


def _now() -> int:
    return time.time_ns() // 1_000_000
