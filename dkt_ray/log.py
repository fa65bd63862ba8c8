"""Log lines, readable on a terminal and JSON elsewhere, and the progress of a stage in them."""

from __future__ import annotations

import contextlib
import json as jsonlib
import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from dkt_ray.errors import ConfigError

T = TypeVar("T")

_STANDARD: Final = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}
_HANDLER: Final = "dkt_ray"
_PACKAGE: Final = "dkt_ray"
GATHERED_S: Final = 0.5


def configure(json: bool | None = None, level: str = "INFO") -> None:
    """Send log lines to stderr: ours from `level` on, those of libraries from WARNING on. May be called again.

    Args:
        json: one JSON object a line; None: when stderr is not a terminal.
        level: DEBUG, INFO, WARNING or ERROR.

    Raises:
        ConfigError: no such level.
    """
    if level.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise ConfigError(f"log level is {level!r}; expected DEBUG, INFO, WARNING or ERROR")
    handler = logging.StreamHandler(sys.stderr)
    handler.set_name(_HANDLER)
    handler.setFormatter(JsonLines() if json or (json is None and not sys.stderr.isatty()) else ShortLines())
    root = logging.getLogger()
    for old in [h for h in root.handlers if h.get_name() == _HANDLER]:
        root.removeHandler(old)
    root.addHandler(handler)
    logging.getLogger(_PACKAGE).setLevel(level.upper())


def gather(logger: logging.Logger) -> None:
    """From now on write the lines of a busy logger as JSON to stderr, many at a time; may be called again."""
    if not any(isinstance(handler, Gathered) for handler in logger.handlers):
        handler = Gathered()
        handler.setFormatter(JsonLines())
        logger.addHandler(handler)
        logger.propagate = False


class Gathered(logging.Handler):
    """Writes lines to stderr every half second, so that who logs waits for no file; `flush` writes them now.

    A process that is killed takes the lines of that time with it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._records: list[logging.LogRecord] = []
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record; called under the handler's lock."""
        self._records.append(record)

    def flush(self) -> None:
        """Write what is kept."""
        self.acquire()
        try:
            records, self._records = self._records, []
        finally:
            self.release()
        if records:
            sys.stderr.write("".join(f"{self.format(record)}\n" for record in records))

    def _write(self) -> None:
        while True:
            time.sleep(GATHERED_S)
            with contextlib.suppress(OSError, ValueError):  # a full disk, a closed stream: there is no other place
                self.flush()


class JsonLines(logging.Formatter):
    """One JSON object a line: ts (UTC), level, logger, message, and the fields given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        line = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return jsonlib.dumps(_extra(record) | line, default=str, ensure_ascii=False)


class ShortLines(logging.Formatter):
    """Time and message, with the level where it is not INFO: `12:03:04 WARNING: disk is nearly full`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        level = "" if record.levelno == logging.INFO else f"{record.levelname}: "
        clock = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        trace = "\n" + self.formatException(record.exc_info) if record.exc_info else ""
        return f"{clock} {level}{record.getMessage()}{trace}"


class Progress:
    """The progress of one stage, reported through logging at most every `every_s` seconds, and at its end.

    Use it as a context and call `advance`, or iterate with `over`. It may be advanced from several threads.
    """

    def __init__(self, stage: str, total: int, every_s: float = 2.0) -> None:
        self.stage, self.total, self.done = stage, total, 0
        self._every_s = every_s
        self._started = self._reported = time.monotonic()
        self._lock = threading.Lock()
        self._log = logging.getLogger(f"{_PACKAGE}.progress")

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count finished steps; `note` is appended to the line."""
        with self._lock:
            self.done += steps
            now = time.monotonic()
            if self.done >= self.total or now - self._reported >= self._every_s:
                self._reported = now
                self._report(now - self._started, note)

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """The items, one step each."""
        with self:
            for item in items:
                yield item
                self.advance()

    def __enter__(self) -> Progress:
        self._started = self._reported = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:
            self._log.warning("%s stopped at %d/%d", self.stage, self.done, self.total, extra=self._fields())

    def _report(self, elapsed_s: float, note: str) -> None:
        percent = f" ({100 * self.done / self.total:.0f} %)" if self.total else ""
        finished = self.done >= self.total
        eta_s = 0.0 if finished else elapsed_s / self.done * (self.total - self.done)
        clock = f"in {duration(elapsed_s)}" if finished else f"eta {duration(eta_s)}"
        parts = [f"{self.stage} {self.done}/{self.total}{percent} {clock}", note]
        fields = self._fields() | {"elapsed_s": round(elapsed_s, 3), "eta_s": round(eta_s, 3)}
        self._log.info("%s", " ".join(filter(None, parts)), extra=fields)

    def _fields(self) -> dict[str, Any]:
        return {"stage": self.stage, "done": self.done, "total": self.total}


def progress(stage: str, total: int, every_s: float = 2.0) -> Progress:
    """Report the progress of a stage of `total` steps: "encode 3/16 (19 %) eta 4 s"."""
    return Progress(stage, total, every_s)


def duration(seconds: float) -> str:
    """A time for people: "7.2 s", "45 s", "12 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min"


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD and name[0] != "_"}
