"""What every benchmark says about the machine it ran on, and how it takes the time."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TypeVar

T = TypeVar("T")

PACKAGES: Final = ("numpy", "pandas", "polars", "pyarrow", "numba", "torch", "ray")
GIB: Final = 2**30


def environment() -> dict[str, Any]:
    """Cores, processor, memory, load and versions."""
    return {
        "cores": os.cpu_count(),
        "processor": _field(Path("/proc/cpuinfo"), "model name"),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1),
        "load": round(os.getloadavg()[0], 2),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def seconds_of(call: Callable[[], T]) -> tuple[float, T]:
    """Wall seconds of one call, and its result."""
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def _field(path: Path, name: str) -> str | None:
    """The first value of a field in a file of `name: value` lines, None where there is none."""
    if not path.exists():
        return None
    found = (line.partition(":")[2].strip() for line in path.read_text().splitlines() if line.startswith(name))
    return next(found, None)
