"""What tests need of the machine.

Tests that need an outside program or the real logs skip and say what is missing; under `.ci/run` they fail. Spread over
two processes (`make test`), those of a file share one, and so do all that start servers and clusters.
"""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

CHROMIUM = "/usr/bin/chromium"
SERVERS = {"e2e", "integration"}  # folders: clusters and servers, which two at a time would be slow
NAMESPACE = ("unshare", "--user", "--map-root-user", "--net", "ip", "link", "set", "lo", "up")


def missing(marker: str) -> str | None:
    """What a test with this marker needs and this machine does not have; None where all is there."""
    if marker == "browser" and not Path(CHROMIUM).exists():
        return f"{CHROMIUM} is missing: install Debian's package chromium"
    if marker == "real_data" and not os.environ.get("DKT_REAL_DATA"):
        return "DKT_REAL_DATA is not set: point it at the folder with the EdNet excerpts"
    if marker == "namespace" and not _namespaces():
        return f"no network namespace of our own: `{' '.join(NAMESPACE)}` fails here"
    if marker == "postgres" and postgres_programs() is None:
        return "/usr/lib/postgresql/*/bin/postgres is missing: install Debian's package postgresql"
    return None


def postgres_programs() -> Path | None:
    """The folder of the newest PostgreSQL server's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    return found[-1].parent if found else None


@cache
def _namespaces() -> bool:
    return shutil.which("unshare") is not None and subprocess.run(NAMESPACE, capture_output=True).returncode == 0


class ByFile(LoadScopeScheduling):
    """Which tests share a process; xdist's own `loadgroup` does nothing under pytest 9.2."""

    def _split_scope(self, nodeid: str) -> str:
        file = Path(nodeid.partition("::")[0])
        return "servers" if file.parent.name in SERVERS else str(file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    """For `-n 2 --dist loadscope`."""
    return ByFile(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, or with DKT_REQUIRE_ALL=1 fail, a test whose outside program or data is missing."""
    reasons = [reason for mark in item.iter_markers() if (reason := missing(mark.name))]
    if reasons and os.environ.get("DKT_REQUIRE_ALL") == "1":
        pytest.fail("; ".join(reasons), pytrace=False)
    if reasons:
        pytest.skip("; ".join(reasons))
