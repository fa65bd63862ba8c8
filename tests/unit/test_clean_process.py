"""`registry.clean_process`: the program that verifies a bundle apart; what it refuses is in test_bad_bundles.py."""

from __future__ import annotations

import json
import subprocess
import sys

from dkt_ray.registry.clean_process import PROGRAM

STAND_IN = """
import atexit, gc, json, sys
def measure(folder, digest):
    print(json.dumps([str(folder), digest, gc.isenabled()]))
atexit.register(lambda: print(json.dumps(gc.get_freeze_count() > 0)))
"""


def test_the_program_looks_for_no_garbage(tmp_path):
    """Neither while it loads a million objects, nor once more when it ends."""
    package = tmp_path / "dkt_ray" / "registry"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "clean_process.py").write_text(STAND_IN, encoding="utf-8")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), "folder", "digest"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [["folder", "digest", False], True]
