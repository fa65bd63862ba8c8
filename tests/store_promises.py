"""What every store promises: one class of tests, inherited for the local store and for the bucket."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from dkt_ray.errors import ConflictError, NotFoundError, StorageError
from dkt_ray.storage import Store


class StorePromises:
    """Inherit it, with a fixture `store` that gives an empty store."""

    def test_an_object_comes_back_with_its_version(self, store: Store) -> None:
        version = store.write("a/b.bin", b"\x00\xff")
        assert store.read_versioned("a/b.bin") == (b"\x00\xff", version)
        assert store.read("a/b.bin") == b"\x00\xff"
        assert store.exists("a/b.bin")

    def test_an_empty_object_is_an_object(self, store: Store) -> None:
        store.write("empty", b"")
        assert store.read("empty") == b""
        assert store.exists("empty")

    def test_nothing_is_not_found(self, store: Store) -> None:
        store.write("a/b/c", b"1")
        for key in ("absent", "a/b", "a/b/c2"):
            assert not store.exists(key)
        with pytest.raises(NotFoundError, match="absent"):
            store.read("absent")
        with pytest.raises(NotFoundError):
            store.read_table("absent.parquet")
        with pytest.raises(NotFoundError):
            store.download("absent", Path("/nonexistent"))
        assert store.list("absent") == []
        store.delete("absent")
        store.delete_prefix("absent")

    def test_a_longer_name_does_not_stand_in_for_a_shorter_one(self, store: Store) -> None:
        store.write("a-1", b"1")
        store.write("a.json", b"1")
        assert not store.exists("a")
        store.write("a", b"2")
        assert store.exists("a")

    def test_different_contents_have_different_versions(self, store: Store) -> None:
        assert store.write("a", b"1") != store.write("a", b"2")

    @pytest.mark.parametrize("key", ["", "/a", "a//b", "../a", "a/../b", "a/.", "a/", ".dkt-lock", "a\\b", "a\0"])
    def test_a_key_that_is_no_plain_path_is_refused(self, store: Store, key: str) -> None:
        for act in (store.read, store.exists, store.delete, lambda key: store.write(key, b"1")):
            with pytest.raises(StorageError, match="relative path"):
                act(key)

    def test_details_have_the_size_and_the_time_of_each_object_below_a_prefix(self, store: Store) -> None:
        for key, data in {"a/2": b"123", "a/c/1": b"1", "b": b"1"}.items():
            store.write(key, data)
        found = store.details("a")
        assert [(each.key, each.bytes) for each in found] == [("a/2", 3), ("a/c/1", 1)]
        assert all(each.changed.utcoffset() == timedelta(0) for each in found)
        assert all(abs(each.changed - datetime.now(UTC)) < timedelta(hours=1) for each in found)
        assert store.details("absent") == []

    def test_listing_is_sorted_and_by_folder(self, store: Store) -> None:
        for key in ("b", "a/2", "a/1", "a-x/1", "a/c/3"):
            store.write(key, b"1")
        store.write_if("a/1", b"2", store.read_versioned("a/1")[1])
        assert store.list() == ["a-x/1", "a/1", "a/2", "a/c/3", "b"]
        assert store.list("a") == store.list("a/") == ["a/1", "a/2", "a/c/3"]

    def test_a_child_is_the_same_store_further_down(self, store: Store) -> None:
        store.child("a/b").write("c", b"1")
        assert store.list() == ["a/b/c"]
        assert store.child("a").list() == ["b/c"]
        assert store.child("a").child("b") == store.child("a/b")

    def test_deleting_a_prefix_leaves_its_neighbours(self, store: Store) -> None:
        for key in ("a/1", "a/b/2", "ab/3"):
            store.write(key, b"1")
        store.delete("a/1")
        assert store.list("a") == ["a/b/2"]
        store.delete_prefix("a")
        assert store.list() == ["ab/3"]
        with pytest.raises(StorageError):
            store.delete_prefix("")

    def test_write_if_absent(self, store: Store) -> None:
        version = store.write_if("a", b"1", None)
        assert store.read_versioned("a") == (b"1", version)
        with pytest.raises(ConflictError, match="somebody else"):
            store.write_if("a", b"2", None)
        assert store.read("a") == b"1"

    def test_write_if_unchanged(self, store: Store) -> None:
        first = store.write("a", b"1")
        second = store.write_if("a", b"2", first)
        assert store.read_versioned("a") == (b"2", second)
        with pytest.raises(ConflictError):
            store.write_if("a", b"3", first)
        store.delete("a")
        with pytest.raises(ConflictError):
            store.write_if("a", b"3", second)
        assert not store.exists("a")

    def test_one_of_many_writers_wins(self, store: Store) -> None:
        def attempt(number: int) -> int | None:
            try:
                store.write_if("prize", str(number).encode(), None)
            except ConflictError:
                return None
            return number

        with ThreadPoolExecutor(8) as pool:
            winners = [number for number in pool.map(attempt, range(32)) if number is not None]
        assert len(winners) == 1
        assert store.read("prize") == str(winners[0]).encode()

    def test_json_has_one_form_and_damage_is_named(self, store: Store) -> None:
        store.write_json("a.json", {"b": [1.5, None], "a": "ä"})
        assert store.read_json("a.json") == {"a": "ä", "b": [1.5, None]}
        assert store.read("a.json").startswith('{\n  "a": "ä",'.encode())
        with pytest.raises(ValueError):
            store.write_json("nan.json", float("nan"))
        store.write("a.json", b'{"a": ')
        with pytest.raises(StorageError, match=r"a\.json: damaged"):
            store.read_json("a.json")

    def test_tables(self, store: Store) -> None:
        table = pa.table({"a": [1, 2], "b": ["x", None], "c": [[1], []]})
        store.write_table("d=1/t.parquet", table)
        assert store.read_table("d=1/t.parquet") == table
        assert store.read_table("d=1/t.parquet", ["c", "a"]) == table.select(["c", "a"])
        with pytest.raises(StorageError, match=r"no column z; it has a, b, c"):
            store.read_table("d=1/t.parquet", ["a", "z"])

    def test_folders_travel(self, store: Store, tmp_path: Path) -> None:
        source, target = tmp_path / "source", tmp_path / "target"
        (source / "deep/er").mkdir(parents=True)
        files = {"one": b"1" * 3_000_000, "deep/two": b"", "deep/er/three": b"3"}
        for name, content in files.items():
            (source / name).write_bytes(content)
        (source / "left-out").write_bytes(b"")
        store.upload(source, "a/b", skip=["left-out"])
        assert store.list() == sorted(f"a/b/{name}" for name in files)
        store.download("a/b", target)
        found = {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()}
        assert found == files
        with pytest.raises(StorageError, match="no such folder"):
            store.upload(tmp_path / "absent", "a")

    def test_arrow_sees_the_same_objects(self, store: Store) -> None:
        store.write("a/b", b"1")
        filesystem, root = store.filesystem()
        with filesystem.open_input_file(f"{root}/a/b") as file:
            assert file.read() == b"1"
