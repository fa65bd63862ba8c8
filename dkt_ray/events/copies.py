"""Whether words stand in the bytes of a file, looked for in a process of its own.

Whoever closes a file loses all his locks on it (POSIX): a process that has a SQLite database open must not open its
file once more, or the next one to close the database deletes the log under it (sqlite.org/howtocorrupt, section 2.2).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

import polars as pl

CHUNK: Final = 4 << 20  # bytes that are searched at one time
FOUND, NOT_FOUND = 10, 11  # exit codes


def found(path: Path, words: Collection[str]) -> bool:
    """Whether a file holds one of some words.

    Raises:
        RuntimeError: the process that looks failed.
    """
    asked = json.dumps([str(path), *words])  # by its input: a command line is seen by everybody
    code = subprocess.run([sys.executable, "-P", __file__], input=asked, text=True, check=False).returncode
    if code not in (FOUND, NOT_FOUND):
        raise RuntimeError(f"the search for what was deleted ended with {code}")
    return code == FOUND


def holds(path: Path, words: Collection[str]) -> bool:
    """Whether a file holds one of some words."""
    patterns = [word.encode().decode("latin-1") for word in words]
    longest = max(map(len, patterns))
    return any(pl.Series([text]).str.contains_any(patterns).item() for text in _texts(path, longest))


def _texts(path: Path, overlap: int) -> Iterator[str]:
    """A file in pieces that overlap, a character for each byte."""
    rest = b""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield (rest + chunk).decode("latin-1")
            rest = chunk[-overlap:]


if __name__ == "__main__":
    name, *wanted = json.load(sys.stdin)
    sys.exit(FOUND if holds(Path(name), wanted) else NOT_FOUND)
