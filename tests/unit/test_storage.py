"""The local store keeps every promise of the door; tests/integration/test_s3.py asks the same of a bucket."""

from __future__ import annotations

import gzip
import multiprocessing
import os
import pickle
import shutil
from contextlib import ExitStack
from pathlib import Path
from threading import Event, Thread

import pyarrow as pa
import pytest

from dkt_ray.errors import ConflictError, InputError, NotFoundError, StorageError
from dkt_ray.storage import Store, atomic, list_inputs, open_input, open_store
from tests.store_promises import StorePromises


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


class TestLocalStore(StorePromises):
    pass


def test_a_relative_folder_is_fixed_when_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("data/store")
    monkeypatch.chdir("/")
    store.write("a", b"1")
    assert (tmp_path / "data/store/a").read_bytes() == b"1"


@pytest.mark.parametrize("url", ["gs://bucket/x", "", "s3://", "s3:///prefix", "s3://bucket/../x"])
def test_an_unknown_place_is_refused(url: str) -> None:
    with pytest.raises(StorageError):
        open_store(url)


def test_a_write_that_fails_leaves_the_old_content_and_no_debris(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write("a/b", b"old")

    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StorageError, match="No space left"):
        store.write("a/b", b"new")
    assert store.read("a/b") == b"old"
    assert [path.name for path in Path(store.url, "a").iterdir() if path.name != ".dkt-lock"] == ["b"]


def test_a_folder_in_the_place_of_an_object_is_a_storage_error(store: Store) -> None:
    store.write("a/b", b"1")
    with pytest.raises(StorageError, match="check the path"):
        store.write("a", b"2")
    with pytest.raises(StorageError, match="check the path"):
        store.write("a/b/c", b"2")


def test_processes_do_not_lose_each_others_writes(store: Store) -> None:
    store.write("counter", b"0")
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(_count_up, [(store, 40)] * 2)
    assert store.read("counter") == b"80"


def test_a_lock_of_a_folder_that_was_deleted_and_made_anew_does_not_count(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    entered = Event()

    def enter() -> None:
        with atomic.locked(folder):
            entered.set()

    waiting = Thread(target=enter)
    with atomic.locked(folder):
        waiting.start()
        assert not entered.wait(0.2)
        shutil.rmtree(folder)
        folder.mkdir()
        new = ExitStack()
        new.enter_context(atomic.locked(folder))
    with new:  # the old lock is free, the new one is not
        assert not entered.wait(0.2)
    waiting.join(10)
    assert entered.is_set()


def test_inputs_of_a_file_a_folder_and_a_glob(tmp_path: Path) -> None:
    for name in ["a.csv", "b/c.csv.gz", "b/d.parquet", "b/e.txt", ".hidden.csv", ".git/f.csv"]:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    everything = [str(tmp_path / name) for name in ["a.csv", "b/c.csv.gz", "b/d.parquet"]]
    assert list_inputs(str(tmp_path)) == everything
    assert list_inputs(everything[0]) == everything[:1]
    assert list_inputs(f"{tmp_path}/**/*.parquet") == everything[2:]
    assert list_inputs(f"{tmp_path}/*") == everything
    assert list_inputs(f"{tmp_path}/[ab].csv") == everything[:1]
    assert list_inputs(str(tmp_path), suffixes=(".parquet",)) == everything[2:]


def test_inputs_of_a_relative_path_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").touch()
    monkeypatch.chdir(tmp_path)
    assert list_inputs("a.csv") == list_inputs("*.csv") == list_inputs(".") == [str(tmp_path / "a.csv")]


@pytest.mark.parametrize("path", ["absent.csv", "absent/*.csv", "e.txt", "."])
def test_missing_inputs_say_what_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e.txt").touch()
    with pytest.raises(InputError, match=r"\.csv, \.csv\.gz, \.parquet") as error:
        list_inputs(path)
    assert ("e.txt" in str(error.value)) == (path in ("e.txt", "."))


def test_an_input_is_opened_plain_or_decompressed(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"x,y\n")
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"x,") + gzip.compress(b"y\n"))
    for name in ["a.csv", "b.csv.gz"]:
        with open_input(str(tmp_path / name)) as stream:
            assert stream.read() == b"x,y\n"
    with pytest.raises(InputError, match="no such file"):
        open_input(str(tmp_path / "c.csv"))


def test_a_store_survives_pickling(store: Store) -> None:
    store.write("a", b"1")
    assert pickle.loads(pickle.dumps(store)).read("a") == b"1"


def test_a_file_that_is_not_parquet_is_damaged(store: Store) -> None:
    store.write("t.parquet", b"not parquet at all")
    with pytest.raises(StorageError, match="damaged"):
        store.read_table("t.parquet")
    with pytest.raises(NotFoundError):
        store.read_table("absent.parquet")


def test_lists_and_dictionaries_survive_as_parquet(store: Store) -> None:
    table = pa.table({"user": ["a", "b"], "ids": pa.array([[1, 2], []], pa.list_(pa.int32()))})
    store.write_table("t.parquet", table)
    assert store.read_table("t.parquet") == table


def _count_up(store: Store, times: int) -> None:
    for _ in range(times):
        while True:
            data, version = store.read_versioned("counter")
            try:
                store.write_if("counter", str(int(data) + 1).encode(), version)
                break
            except ConflictError:
                continue
