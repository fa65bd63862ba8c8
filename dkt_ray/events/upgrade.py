"""The tables of a database of events, brought up to date by the migrations beside this file."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Final

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine

from dkt_ray.errors import ConfigError
from dkt_ray.events.database import writing

_LOCK: Final = 0x646B7402  # number of PostgreSQL's advisory lock; that of `writing` is the one before
_SCRIPTS: Final = Path(__file__).parent / "migrations"


def upgrade(engine: Engine) -> None:
    """Bring the tables up to date, unless they are.

    Raises:
        ConfigError: a newer version of dkt-ray made them.
    """
    with engine.connect() as connection:
        if _revision(connection) == _newest():
            return
    with writing(engine, _LOCK) as connection:
        found = _revision(connection)
        if found is not None and found not in _known():
            raise ConfigError(
                f"events: a newer version of dkt-ray made the tables (revision {found}); upgrade this one"
            )
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")  # an index over many events takes its time
        scripts = ScriptDirectory(str(_SCRIPTS))

        def upgrades(revision: Any, context: object) -> Any:
            return scripts._upgrade_revs("head", revision)

        with EnvironmentContext(Config(), scripts, fn=upgrades) as environment:
            environment.configure(connection=connection)
            environment.run_migrations()


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


@cache
def _newest() -> str | None:
    return ScriptDirectory(str(_SCRIPTS)).get_current_head()


@cache
def _known() -> frozenset[str]:
    return frozenset(script.revision for script in ScriptDirectory(str(_SCRIPTS)).walk_revisions())
