"""Verification of a bundle in a process of its own: what crashes a parser does not crash us, and costs are measured."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import timeit
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from pydantic import Field

from dkt_ray.config import Config
from dkt_ray.errors import BundleError
from dkt_ray.registry import golden
from dkt_ray.registry.bundle import verify
from dkt_ray.storage import Store

REPEATS: Final = 5  # of the timed request; the fastest counts, so that a busy machine refuses nothing
MIB: Final = 1 << 20
PROGRAM: Final = """
import gc, pathlib, sys
gc.disable()  # it loads, answers and ends: to look for garbage meanwhile, and at the end, took a third of it
sys.path.insert(0, sys.argv[1])
from dkt_ray.registry.clean_process import measure
measure(pathlib.Path(sys.argv[2]), sys.argv[3])
gc.freeze()
"""


class Budget(Config):
    """What a bundle may cost; more than that is refused before it meets traffic."""

    files_mib: float = Field(default=2048.0, gt=0)
    """Size of its files; more is not even fetched."""
    resident_mib: float = Field(default=4096.0, gt=0)
    """Memory of a process that serves it."""
    latency_ms: float = Field(default=500.0, gt=0)
    """Time of its longest golden request, alone in a process."""


@dataclass(frozen=True)
class Footprint:
    """What a bundle cost in its clean process."""

    resident_mib: float
    latency_ms: float

    def told(self) -> str:
        """In words."""
        return f"{self.resident_mib:.0f} MiB, its longest golden request in {self.latency_ms:.1f} ms"


def verify_apart(folder: Path, digest: str, timeout_s: float, budget: Budget | None = None) -> Footprint:
    """Run `bundle.verify` in a clean process (LightGBM's parser ends the process on some damaged texts).

    Args:
        budget: what the bundle may cost; None: whatever it costs.

    Raises:
        BundleError: the bundle is damaged, does not answer as it did when it was made, takes too long, or costs more
            than the budget.
    """
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", PROGRAM, str(root), str(folder), digest]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        raise BundleError(f"{folder}: verification took more than {timeout_s} s") from None
    if done.returncode < 0:
        raise BundleError(f"{folder}: loading it ended the process with signal {-done.returncode}: a file is damaged")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise BundleError(lines[-1].removeprefix("dkt_ray.errors.BundleError: "))
    found = Footprint(**json.loads(done.stdout.strip().splitlines()[-1]))
    for name, most in (budget.model_dump() if budget else {}).items():
        value = getattr(found, name, 0.0)
        if value > most:
            raise BundleError(
                f"{folder}: {name} is {value:.1f}, above the budget of {most:g}; make a smaller bundle, or raise "
                f"budget.{name}"
            )
    return found


def check_size(store: Store, folder: str, budget: Budget) -> None:
    """Refuse a bundle by the sizes of what lies in its folder, listed or not, before it is fetched.

    Raises:
        BundleError: its files are larger than the budget.
    """
    found = sum(each.bytes for each in store.details(folder)) / MIB
    if found > budget.files_mib:
        raise BundleError(
            f"its files are {found:.1f} MiB, above the budget of {budget.files_mib:g}; raise budget.files_mib if "
            "that is meant"
        )


def measure(folder: Path, digest: str) -> None:
    """Verify a bundle, and print what it costs: what the clean process does."""
    loaded = verify(folder, digest)
    requests = json.loads((folder / golden.FILE).read_text(encoding="utf-8"))["requests"]
    longest = [golden.query(max(requests, key=lambda request: len(request["history"])))]
    fastest = min(timeit.repeat(lambda: loaded.scorer.score_queries(longest), number=1, repeat=REPEATS))
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write(json.dumps(asdict(Footprint(resident, 1000 * fastest))) + "\n")
