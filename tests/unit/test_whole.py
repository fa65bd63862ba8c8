"""What a killed or failing writer leaves where a library writes by Arrow into a local folder."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import signal
import sys
from pathlib import Path
from subprocess import Popen

import pyarrow.fs as pafs
import pytest

from dkt_ray.storage import atomic
from dkt_ray.storage.whole import whole

WAITS = "from the writer\n"
WRITER = f"""
import sys, time
import pyarrow.fs as pafs
from dkt_ray.storage.whole import whole
with whole(pafs.LocalFileSystem()).open_output_stream(sys.argv[1]) as stream:
    stream.write(b"half")
    stream.flush()
    print({WAITS!r}, end="", flush=True)
    time.sleep(60)
"""


def copy(source: Path, target: Path) -> None:
    pafs.copy_files(str(source), str(target), destination_filesystem=whole(pafs.LocalFileSystem()))


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(atomic.PRIVATE))


def test_a_folder_is_copied_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "from/deep").mkdir(parents=True)
    content = os.urandom(3 << 20)
    (tmp_path / "from/a").write_bytes(content)
    (tmp_path / "from/deep/b").write_bytes(b"")
    (tmp_path / "to").mkdir()
    (tmp_path / "to/a").write_bytes(b"older")
    copy(tmp_path / "from", tmp_path / "to")
    assert (tmp_path / "to/a").read_bytes() == content
    assert (tmp_path / "to/deep/b").read_bytes() == b""
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == ["a", "deep"]  # nothing else is left


def test_a_killed_writer_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "book.json"
    target.write_text("[1]")
    with Popen([sys.executable, "-c", WRITER, str(target)], stdout=-1, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == WAITS
        os.kill(writer.pid, signal.SIGKILL)
    assert (target.read_text(), visible(tmp_path)) == ("[1]", ["book.json"])


def test_a_write_that_fails_leaves_what_was_there_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "new").write_bytes(bytes(10_000))
    (tmp_path / "book.json").write_text("[1]")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, before[1]))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            copy(tmp_path / "new", tmp_path / "book.json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "book.json").read_text() == "[1]"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["book.json", "new"]


def test_it_travels_to_workers_and_leaves_object_stores_alone() -> None:
    handler = whole(pafs.LocalFileSystem()).handler
    assert type(pickle.loads(pickle.dumps(handler))) is type(handler) is not pafs.FSSpecHandler
    bucket = pafs.S3FileSystem(region="us-east-1", anonymous=True)
    assert whole(bucket) is bucket
