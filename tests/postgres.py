"""A real PostgreSQL server for the tests: on a unix socket of its own, as an unprivileged user, ended by its pid."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psycopg
import pytest

from tests.plugins import postgres_programs

UNPRIVILEGED = "nobody"  # the server refuses to run as root
SETTINGS = ("listen_addresses=", "fsync=off", "shared_buffers=16MB", "max_connections=60")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Callable[[], str]]:
    """A function that makes an empty database and gives its url."""
    with server() as empty:
        yield empty


@contextmanager
def server() -> Iterator[Callable[[], str]]:
    """The server; the function makes an empty database in it and gives its url."""
    programs = postgres_programs()
    assert programs is not None  # else the mark `postgres` has skipped the test
    folder = Path(tempfile.mkdtemp(prefix="dkt-pg-", dir="/tmp"))  # short: the unix socket lives there
    who = pwd.getpwnam(UNPRIVILEGED) if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    os.chown(folder, who.pw_uid, who.pw_gid)
    as_him = {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    data = folder / "data"
    initialised = [
        programs / "initdb",
        "-D",
        data,
        "-A",
        "trust",
        "-U",
        "dkt",
        "-E",
        "UTF8",
        "--no-locale",
        "--no-sync",
    ]
    subprocess.run(initialised, check=True, capture_output=True, cwd=folder, **as_him)
    options = [word for setting in SETTINGS for word in ("-c", setting)]
    command = [programs / "postgres", "-D", data, "-k", folder, *options]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder, **as_him)
    address = f"host={folder} user=dkt dbname=postgres"
    numbers = count()

    def empty() -> str:
        name = f"events{next(numbers)}"
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")  # type: ignore[call-overload]
        return f"postgresql+psycopg://dkt@/{name}?host={folder}"

    try:
        _await(process, address, folder / "server.log")
        yield empty
    finally:
        process.send_signal(signal.SIGQUIT)  # at once: nothing in it is worth keeping
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _await(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    give_up = time.monotonic() + 120
    while True:
        try:
            psycopg.connect(address, connect_timeout=5).close()
        except psycopg.OperationalError as error:
            if server.poll() is not None or time.monotonic() > give_up:
                pytest.fail(f"PostgreSQL did not come up ({error}):\n{log.read_text()[-2000:]}")
            time.sleep(0.1)
        else:
            return
