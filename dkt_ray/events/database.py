"""The database behind the log: how it is opened, migrated and written, on SQLite and on PostgreSQL alike.

One writer at a time, on both: a sequence number is then given in the order of the commits, so that whoever reads the
log by a cursor never skips an event that was committed late, and no two writers ever get into each other's way.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, NoSuchModuleError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from dkt_ray.errors import ConfigError, DktError, UnavailableError

logger = logging.getLogger(__name__)

EVENTS_URL: Final = "DKT_EVENTS_URL"
ATTEMPTS: Final = 3  # at a transaction, where the database is busy or went away
WAIT_S: Final = 5  # for the other writer, at each attempt; for a free connection; for the server to take a connection
AGAIN_S: Final = 1.0  # between attempts to open a database that could not be reached at the start
STATEMENT_S: Final = 60  # most of a statement, IDLE_S of a transaction that stands still; both on PostgreSQL
IDLE_S: Final = 20
SILENT_S: Final = 20  # after which a server that says nothing is given up
CONNECTIONS: Final = 8  # of a process that stay open; twice as many at a peak
AT_ONCE: Final = 400  # values of one IN list

_WRITER: Final = 0x646B7401  # number of PostgreSQL's advisory lock; `upgrade` has the next one
_WRITES: Final = "dkt_writes"  # execution option of a connection that will write

T = TypeVar("T")
V = TypeVar("V")


def events_url(setting: str | None) -> str | None:
    """Where the events are: what the environment says, else the setting.

    Raises:
        ConfigError: a password in the setting, which is shown in dashboards, logs and manifests.
    """
    found = os.environ.get(EVENTS_URL) or setting
    if setting is not None and (_parsed(setting).password is not None or "password" in _parsed(setting).query):
        raise ConfigError(
            f"events: the url holds a password; give it by PGPASSWORD or .pgpass, or the url by {EVENTS_URL}"
        )
    return found


def required_url(setting: str | None) -> str:
    """Where the events are, for a job.

    Raises:
        ConfigError: neither the setting nor the environment says so, or there is no such file.
    """
    url = events_url(setting)
    if url is None:
        raise ConfigError(
            f"setting events is missing: name the database, --set events=sqlite:////PATH, or {EVENTS_URL}"
        )
    return existing(url)


def existing(url: str) -> str:
    """A url of a database that is there already: the service makes it, no job.

    Raises:
        ConfigError: there is no such file.
    """
    path = _parsed(url).database
    if _parsed(url).get_backend_name() == "sqlite" and path and not Path(path).is_file():
        raise ConfigError(f"events: {path}: no such file; give the url that the service has (dkt rollout makes it)")
    return url


def check_shared(url: str, nodes: int) -> None:
    """Refuse a file where it would not be the same one for all.

    Args:
        nodes: machines on which replicas run.

    Raises:
        ConfigError: SQLite on several machines.
    """
    if nodes > 1 and _parsed(url).get_backend_name() == "sqlite":
        raise ConfigError(
            f"events: {url} is a file, but replicas run on {nodes} machines; give a PostgreSQL server, "
            "e.g. postgresql+psycopg://HOST/DATABASE"
        )


def open_engine(url: str, now: bool = True) -> Engine:
    """Connect to a database and bring its tables up to date.

    Args:
        now: False: one that cannot be reached now is tried again in a thread, and whoever connects until then gets
            `UnavailableError`.

    Raises:
        ConfigError: not the url of a SQLite file or a PostgreSQL server, or a newer version of dkt-ray made the tables.
        UnavailableError: it cannot be reached.
    """
    backend = _parsed(url).get_backend_name()
    if backend not in ("sqlite", "postgresql") or (
        backend == "sqlite" and _parsed(url).database in (None, "", ":memory:")
    ):
        raise ConfigError("events: expected a url, sqlite:////PATH or postgresql+psycopg://HOST/DATABASE")
    from dkt_ray.events.upgrade import upgrade  # alembic, which a replica without a database goes without

    engine = _engine(url)
    try:
        retried(lambda: upgrade(engine))
    except UnavailableError as error:
        engine.dispose()
        if now:
            raise
        logger.warning("starting without the events, trying again: %s", error)
        return _opened_later(url, error)
    return engine


def _engine(url: str) -> Engine:
    backend = _parsed(url).get_backend_name()
    waits: dict[str, Any] = {"timeout": WAIT_S} if backend == "sqlite" else _of_a_server()
    engine = create_engine(
        url,
        hide_parameters=True,  # errors are logged, and name no user
        pool_size=CONNECTIONS,
        max_overflow=CONNECTIONS,
        pool_timeout=WAIT_S,
        pool_pre_ping=backend == "postgresql",
        connect_args=waits,
    )
    if backend == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _of_a_server() -> dict[str, Any]:
    """Nobody who stands still or is cut off holds the writer's lock, and no server that does holds us."""
    limits = {"statement_timeout": STATEMENT_S, "idle_in_transaction_session_timeout": IDLE_S}
    return {
        "connect_timeout": WAIT_S,
        "keepalives_idle": SILENT_S // 2,
        "keepalives_interval": max(SILENT_S // 8, 1),
        "keepalives_count": 4,
        "tcp_user_timeout": SILENT_S * 1000,
        "options": " ".join(f"-c {name}={seconds}s" for name, seconds in limits.items()),
    }


def _opened_later(url: str, why: UnavailableError) -> Engine:
    """An engine that connects as soon as the tables are up to date, for which a thread of its own looks."""
    engine = _engine(url)
    ended = threading.Event()
    reason: DktError | None = why

    def refuse(*connecting: object) -> None:
        if reason is not None:
            raise UnavailableError(str(reason))

    def open_it() -> None:
        nonlocal reason
        while reason is not None and not ended.wait(AGAIN_S):
            try:
                open_engine(url).dispose()
            except DktError as error:
                reason = error
                logger.warning("the events cannot be opened, trying again: %s", error)
            else:
                reason = None

    event.listen(engine, "do_connect", refuse)
    event.listen(engine, "engine_disposed", lambda disposed: ended.set())
    threading.Thread(target=open_it, name="opening", daemon=True).start()
    return engine


@contextmanager
def writing(engine: Engine, lock: int = _WRITER) -> Iterator[Connection]:
    """A transaction of the one writer; nobody else writes until it ends."""
    with engine.connect().execution_options(**{_WRITES: True}) as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{WAIT_S}s'")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({lock})")
        yield connection


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction whose statements all see the same moment."""
    level = {"isolation_level": "REPEATABLE READ"} if engine.dialect.name == "postgresql" else {}  # SQLite's always do
    with engine.connect().execution_options(**level) as connection:
        yield connection


def written(engine: Engine, work: Callable[[Connection], T]) -> T:
    """What `work` returns, done in one transaction of the one writer.

    Args:
        work: may be called again, on a transaction of its own, after one that was rolled back.

    Raises:
        UnavailableError: the database could not be reached or written within the attempts.
    """

    def attempt() -> T:
        with writing(engine) as connection:
            return work(connection)

    return retried(attempt)


def read(engine: Engine, work: Callable[[Connection], T]) -> T:
    """What `work` returns, which only reads; it may be called again.

    Raises:
        UnavailableError: the database could not be reached within the attempts.
    """

    def attempt() -> T:
        with engine.connect() as connection:
            return work(connection)

    return retried(attempt)


def pieces(values: Sequence[V]) -> list[Sequence[V]]:
    """Values in portions that fit one IN list."""
    return [values[start : start + AT_ONCE] for start in range(0, len(values), AT_ONCE)]


def retried(attempt: Callable[[], T]) -> T:
    """What an attempt at a transaction returns, where need be the next one.

    Raises:
        UnavailableError: no attempt got through.
    """
    last: Exception | None = None
    for _ in range(ATTEMPTS):
        try:
            return attempt()
        except (IntegrityError, ProgrammingError, DataError):  # the same again the next time
            raise
        except (DBAPIError, PoolTimeoutError) as error:
            last = error
    logger.warning("events: the database does not answer: %s", _reason(last))  # names hosts: not for clients
    raise UnavailableError("events: the database does not answer now; try again (the log says why)") from None


def _reason(error: Exception | None) -> str:
    """The database's own words, first line; no statement and no values."""
    return str(getattr(error, "orig", None) or error).partition("\n")[0]


def _set_up_sqlite(connection: Any, record: object) -> None:
    connection.isolation_level = None  # transactions begin where `_begin_sqlite` says
    for pragma in (
        "journal_mode=WAL",  # readers never wait for the writer
        "synchronous=FULL",  # what was acknowledged survives a power cut
        "secure_delete=ON",  # what was deleted is overwritten
        "foreign_keys=ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _parsed(url: str) -> Any:
    try:
        found = make_url(url)
        found.get_dialect()
    except (ArgumentError, ModuleNotFoundError, NoSuchModuleError):
        raise ConfigError(
            "events: not the url of a database; expected sqlite:////PATH or postgresql+psycopg://HOST/DATABASE"
        ) from None
    return found
