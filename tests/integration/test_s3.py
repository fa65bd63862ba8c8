"""Storage and registry against a real S3 server: the same promises as locally, and errors that say what to do."""

from __future__ import annotations

import gzip
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from uuid import uuid4

import pyarrow as pa
import pytest

from dkt_ray.errors import ConflictError, InputError, StorageError
from dkt_ray.registry.store import Registry
from dkt_ray.storage import Store, list_inputs, open_input, open_store
from tests.registry_promises import RegistryPromises, digests, registry
from tests.store_promises import StorePromises

__all__ = ["digests", "registry"]  # fixtures


@pytest.fixture
def store(seaweedfs: str) -> Store:
    return open_store(f"{seaweedfs}/{uuid4().hex}")


class TestBucket(StorePromises):
    pass


class TestRegistryInABucket(RegistryPromises):
    pass


def test_a_listing_has_every_page(store: Store) -> None:
    keys = [f"many/{number:04d}" for number in range(1001)]  # a page holds 1,000
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.write(key, b""), keys))
    assert store.list("many") == keys


def test_a_whole_bucket_is_a_store_too(seaweedfs: str, store: Store) -> None:
    bucket = open_store(seaweedfs)
    store.write("a", b"1")
    key = f"{store.url.removeprefix(seaweedfs + '/')}/a"
    assert key in bucket.list()
    assert bucket.read(key) == b"1"


def test_another_process_needs_the_environment_only(store: Store) -> None:
    store.write("a", b"from here")
    code = "import pickle, sys; print(pickle.loads(bytes.fromhex(sys.argv[1])).read('a').decode())"
    command = [sys.executable, "-c", code, pickle.dumps(store).hex()]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout == "from here\n"
    assert os.environ["AWS_SECRET_ACCESS_KEY"].encode() not in pickle.dumps(store)


def test_inputs(store: Store) -> None:
    for key in ("in/a.csv", "in/b/c.csv.gz", "in/b/d.parquet", "in/e.txt", "in/.hidden.csv", "in-2/f.csv"):
        store.write(key, b"")
    everything = [f"{store.url}/{key}" for key in ("in/a.csv", "in/b/c.csv.gz", "in/b/d.parquet")]
    assert list_inputs(f"{store.url}/in") == list_inputs(f"{store.url}/in/") == everything
    assert list_inputs(everything[0]) == everything[:1]
    assert list_inputs(f"{store.url}/in/**/*.parquet") == everything[2:]
    assert list_inputs(f"{store.url}/in/*") == everything
    assert list_inputs(f"{store.url}/in/*.csv") == everything[:1]
    assert list_inputs(f"{store.url}/in/[!b].c?v") == everything[:1]
    assert list_inputs(f"{store.url}/i*/f.csv") == [f"{store.url}/in-2/f.csv"]
    for missing in ("absent.csv", "absent", "in/e.txt", "absent/*"):
        with pytest.raises(InputError, match=r"looked for \.csv"):
            list_inputs(f"{store.url}/{missing}")


def test_inputs_are_opened_plain_or_decompressed(store: Store) -> None:
    store.write("a.csv", b"x,y\n")
    store.write("b.csv.gz", gzip.compress(b"x,y\n"))
    for name in ("a.csv", "b.csv.gz"):
        with open_input(f"{store.url}/{name}") as stream:
            assert stream.read() == b"x,y\n"
    for name in ("absent.csv", "absent.csv.gz"):
        with pytest.raises(InputError, match="no such file"):
            open_input(f"{store.url}/{name}")


def every_door(url: str, folder: Path) -> Iterator[StorageError]:
    """The errors of all operations on a store that is out of reach."""
    store = open_store(url)
    (folder / "file").write_bytes(b"1")
    acts = [
        lambda: store.read("a"),
        lambda: store.write("a", b"1"),
        lambda: store.write_if("a", b"1", None),
        lambda: store.exists("a"),
        lambda: store.list("a"),
        lambda: store.delete("a"),
        lambda: store.delete_prefix("a"),
        lambda: store.upload(folder, "a"),
        lambda: store.download("a", folder),
        lambda: store.read_table("a"),
        lambda: store.write_table("a", pa.table({"a": [1]})),
        lambda: list_inputs(f"{url}/a"),
        lambda: list_inputs(f"{url}/*.csv"),
        lambda: open_input(f"{url}/a.csv"),
        lambda: Registry(store).alias("champion"),
    ]
    for act in acts:
        with pytest.raises(StorageError) as error:
            act()
        assert "\n" not in str(error.value)
        yield error.value


def test_a_missing_bucket(seaweedfs: str, tmp_path: Path) -> None:
    for error in every_door("s3://no-such-bucket/x", tmp_path):
        assert "the bucket does not exist; create it" in str(error)


def test_a_wrong_secret(seaweedfs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    for error in every_door(f"{seaweedfs}/x", tmp_path):
        assert "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY" in str(error)
        assert not isinstance(error, ConflictError)


def test_an_unknown_key(seaweedfs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    for error in every_door(f"{seaweedfs}/x", tmp_path):
        assert "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY" in str(error)


def test_no_credentials(seaweedfs: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(StorageError, match="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        open_store(seaweedfs).list()


def test_nobody_listens_at_the_endpoint(seaweedfs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    for act in (lambda: open_store(seaweedfs).list(), lambda: open_store(seaweedfs).read_table("a")):
        with pytest.raises(StorageError, match="cannot be reached; check AWS_ENDPOINT_URL"):
            act()


@pytest.mark.parametrize("endpoint", ["nonsense", "http://", "http://no.such.host.invalid"])
def test_an_endpoint_that_is_none(seaweedfs: str, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(StorageError, match=r"check .*AWS_ENDPOINT_URL"):
        open_store(seaweedfs).list()


@pytest.mark.parametrize("status", [200, 404, 403, 500])
def test_an_endpoint_that_is_some_other_web_server(
    seaweedfs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "15")
            self.end_headers()
            self.wfile.write(b"<html>hi</html>")

        def log_message(self, *arguments: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
            store = open_store(f"{seaweedfs}/x")
            for act in (lambda: store.read("a"), lambda: store.list(), lambda: Registry(store).alias("champion")):
                with pytest.raises(StorageError, match="check AWS_") as error:
                    act()
                assert type(error.value) is StorageError  # in particular not "nothing is stored there"
        finally:
            server.shutdown()


@pytest.mark.parametrize("before", [None, b"of somebody else"])
def test_a_conditional_write_whose_answer_is_lost(
    store: Store, monkeypatch: pytest.MonkeyPatch, before: bytes | None
) -> None:
    """The client tries again and is told that it came too late, by its own first attempt or by somebody else."""
    if before is not None:
        store.write("a", before)
    real = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    statuses: list[int] = []

    class Lossy(BaseHTTPRequestHandler):
        """Passes requests on, and drops the connection instead of the first answer."""

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with closing(HTTPConnection(real)) as upstream:
                upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name != "Expect":
                        upstream.putheader(name, value)
                upstream.endheaders(body)
                answer = upstream.getresponse()
                content = answer.read()
            if self.command == "PUT":
                statuses.append(answer.status)
                if len(statuses) == 1:
                    self.close_connection = True
                    return
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def do_PUT(self) -> None:
            self.do_GET()

        def log_message(self, *arguments: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Lossy) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
            if before is None:
                version = store.write_if("a", b"mine", None)
                assert store.read_versioned("a") == (b"mine", version)
            else:
                with pytest.raises(ConflictError):
                    store.write_if("a", b"mine", None)
                assert store.read("a") == before
        finally:
            server.shutdown()
    assert statuses == [200 if before is None else 412, 412]


def test_a_ray_task_reads_the_store_by_its_url(store: Store, ray_cluster: None) -> None:
    import ray

    @ray.remote
    def shout(store: Store) -> str:
        return store.read("a").decode().upper()

    store.write("a", b"hello")
    assert ray.get(shout.remote(store)) == "HELLO"
