"""Verification of a bundle in a process of its own: what crashes a parser does not crash us."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

from dkt_ray.errors import BundleError

PROGRAM: Final = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
from dkt_ray.registry.bundle import verify
verify(pathlib.Path(sys.argv[2]), sys.argv[3])
"""


def verify_apart(folder: Path, digest: str, timeout_s: float) -> None:
    """Run `bundle.verify` in a clean process (LightGBM's parser ends the process on some damaged texts).

    Raises:
        BundleError: the bundle is damaged, does not answer as it did when it was made, or takes too long.
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
