"""A command as a subprocess, and memory and writes of every process that it starts, from /proc twice a second."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

EVERY_S: Final = 0.5
PROC: Final = Path("/proc")


class Ran(NamedTuple):
    """What became of a command."""

    seconds: float
    stdout: str
    peak: dict[str, int]  # name of a process -> most bytes that one such process held, its share of shared pages only
    peak_total: int  # most bytes that all of them held together
    written: int  # bytes that all of them sent to a disk (`write_bytes` of /proc/PID/io: no sockets, no tmpfs)


def run(command: Sequence[str], environment: Mapping[str, str]) -> Ran:
    """Run a command to its end and sample the memory of its process tree.

    What a process wrote is added to its parent's count when it is waited for, in the end to ours: this loses only what
    children of killed processes wrote after the last sample. Run one command at a time.

    Raises:
        CalledProcessError: the command failed.
    """
    before = _written(os.getpid())
    started = time.perf_counter()
    process = subprocess.Popen(command, env=dict(environment), stdout=subprocess.PIPE, text=True)
    sampler = Sampler(process.pid)
    sampler.start()
    try:
        stdout, _ = process.communicate()
    finally:
        sampler.ended.set()
        sampler.join()
    seconds = time.perf_counter() - started
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stdout)
    written = max(sampler.written, _written(os.getpid()) - before)
    return Ran(seconds, stdout, sampler.peak, sampler.peak_total, written)


def drop_from_cache(files: Sequence[Path]) -> None:
    """Ask the kernel to forget the pages of files, so that they are read from the disk."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Sampler(threading.Thread):
    """Remembers the peaks of a process and its descendants until `ended`."""

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self.root = root
        self.ended = threading.Event()
        self.peak: dict[str, int] = {}
        self.peak_total = 0
        self.written = 0

    def run(self) -> None:
        while not self.ended.wait(EVERY_S):
            total = 0
            tree = _tree(self.root)
            self.written = max(self.written, sum(map(_written, tree)))
            for process in tree:
                held, name = _held(process), _name(process)
                self.peak[name] = max(self.peak.get(name, 0), held)
                total += held
            self.peak_total = max(self.peak_total, total)


def _tree(root: int) -> list[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            fields = _read(entry / "stat").rpartition(")")[2].split()
            if fields:
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, todo = [], [root]
    while todo:
        process = todo.pop()
        found.append(process)
        todo += children.get(process, [])
    return found


def _held(process: int) -> int:
    """Bytes of a process: PSS where it can be read, else RSS; 0 when it has ended."""
    for file in ("smaps_rollup", "status"):
        for line in _read(PROC / str(process) / file).splitlines():
            if line.startswith(("Pss:", "VmRSS:")):
                return int(line.split()[1]) * 1024
    return 0


def _written(process: int) -> int:
    """Bytes that a process, and those of its children that it has waited for, sent to a disk."""
    for line in _read(PROC / str(process) / "io").splitlines():
        if line.startswith("write_bytes:"):
            return int(line.split()[1])
    return 0


def _name(process: int) -> str:
    """The program, or what Ray calls its worker; `dkt` for the driver."""
    words = _read(PROC / str(process) / "cmdline").replace("\0", " ").split()
    if not words:
        return "ended"
    if "dkt_ray.cli" in words:
        return "driver"
    return words[0] if words[0].startswith("ray::") else Path(words[0]).name


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # it ended meanwhile
        return ""
