"""What the registry promises over any store: one class of tests, inherited for the local store and for the bucket."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dkt_ray.errors import BundleError, ConfigError, ConflictError, NotFoundError, StorageError
from dkt_ray.privacy import Privacy
from dkt_ray.registry.forgotten import Forgotten, Marks, forgotten, forgotten_of, mark_bundles, trained_on
from dkt_ray.registry.store import AliasEntry, Registry
from dkt_ray.storage import Store


def make_bundle(folder: Path, name: str, auc: float = 0.7) -> tuple[Path, str]:
    """A folder that looks like a bundle from outside, and its digest."""
    bundle = folder / name
    (bundle / "members/lightgbm").mkdir(parents=True)
    (bundle / "members/lightgbm/model.txt").write_text(name)
    files: dict[str, Any] = {"members/lightgbm/model.txt": {}, "users.txt": {}}
    manifest = json.dumps({"name": name, "provenance": {"metrics": {"auc": auc}}, "files": files}).encode()
    (bundle / "manifest.json").write_bytes(manifest)
    return bundle, hashlib.sha256(manifest).hexdigest()


@pytest.fixture
def registry(store: Store) -> Registry:
    return Registry(store)


@pytest.fixture
def digests(registry: Registry, tmp_path: Path) -> list[str]:
    """Three published bundles."""
    bundles = [make_bundle(tmp_path / "source", name) for name in "abc"]
    for folder, digest in bundles:
        registry.publish(folder, digest)
    return [digest for _, digest in bundles]


class RegistryPromises:
    """Inherit it, with a fixture `store` that gives an empty store, and import the fixtures above."""

    def test_a_bundle_travels(self, registry: Registry, tmp_path: Path) -> None:
        folder, digest = make_bundle(tmp_path, "a", auc=0.81)
        registry.publish(folder, digest)
        registry.fetch(digest, tmp_path / "fetched")
        for path in folder.rglob("*.*"):
            assert (tmp_path / "fetched" / path.relative_to(folder)).read_bytes() == path.read_bytes()
        (entry,) = registry.list()
        assert (entry.digest, entry.metrics) == (digest, {"auc": 0.81})

    def test_publishing_again_changes_nothing(self, registry: Registry, tmp_path: Path) -> None:
        folder, digest = make_bundle(tmp_path, "a")
        registry.publish(folder, digest)
        before = registry.list()
        registry.publish(folder, digest)
        assert registry.list() == before

    def test_many_publishers_of_one_bundle_agree(self, registry: Registry, tmp_path: Path) -> None:
        folder, digest = make_bundle(tmp_path, "a")
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: registry.publish(folder, digest), range(4)))
        assert [entry.digest for entry in registry.list()] == [digest]

    def test_a_bundle_without_its_manifest_is_not_there(self, registry: Registry, tmp_path: Path) -> None:
        folder, digest = make_bundle(tmp_path, "a")
        registry.store.upload(folder, f"bundles/{digest}", skip=["manifest.json"])  # the publisher died here
        assert registry.list() == []
        with pytest.raises(NotFoundError, match="publish it"):
            registry.fetch(digest, tmp_path / "fetched")
        with pytest.raises(NotFoundError, match="publish it"):
            registry.promote("champion", digest, None, "too early")
        assert registry.alias("champion") is None
        registry.publish(folder, digest)
        registry.promote("champion", digest, None, "now")

    def test_a_folder_that_is_not_that_bundle_is_refused(self, registry: Registry, tmp_path: Path) -> None:
        folder, digest = make_bundle(tmp_path, "a")
        with pytest.raises(BundleError, match=f"has the digest {digest}, expected 0000"):
            registry.publish(folder, "0000")
        (folder / "manifest.json").unlink()
        with pytest.raises(BundleError, match="no manifest"):
            registry.publish(folder, digest)

    def test_a_file_that_the_manifest_does_not_list_is_refused_by_name(
        self, registry: Registry, tmp_path: Path
    ) -> None:
        """Each later fetch of that digest would fail."""
        folder, digest = make_bundle(tmp_path, "a")
        (folder / "members/notes.txt").write_text("mine")
        with pytest.raises(BundleError, match=r"files \['members/notes.txt'\] are not in the manifest; take them out"):
            registry.publish(folder, digest)
        assert registry.store.list("bundles") == []
        (folder / "members/notes.txt").unlink()
        registry.publish(folder, digest)
        assert registry.digests() == (digest,)

    def test_a_damaged_manifest_is_refused(self, registry: Registry, digests: list[str], tmp_path: Path) -> None:
        registry.store.write(f"bundles/{digests[0]}/manifest.json", b"{}")
        with pytest.raises(BundleError, match=r"manifest\.json has the digest"):
            registry.fetch(digests[0], tmp_path / "fetched")

    def test_the_newest_bundle_is_first(self, registry: Registry, digests: list[str]) -> None:
        assert [entry.digest for entry in registry.list()] == digests[::-1]

    def test_an_alias_moves_and_every_move_is_kept(self, registry: Registry, digests: list[str]) -> None:
        a, b, c = digests
        assert registry.alias("champion") is None
        assert registry.history("champion") == []
        moves = [
            registry.promote("champion", a, None, "first"),
            registry.promote("champion", b, a, "better"),
            registry.promote("champion", c, b, "better still"),
        ]
        assert registry.alias("champion") == moves[-1]
        assert registry.history("champion") == moves
        found = [(m.bundle, m.previous, m.version, m.reason) for m in moves]
        assert found == [(a, None, 1, "first"), (b, a, 2, "better"), (c, b, 3, "better still")]
        assert registry.alias("shadow") is None

    def test_a_wrong_expectation_names_both(self, registry: Registry, digests: list[str]) -> None:
        a, b, c = digests
        with pytest.raises(ConflictError, match=f"points to nothing, expected {a}"):
            registry.promote("champion", b, a, "x")
        registry.promote("champion", a, None, "first")
        with pytest.raises(ConflictError, match=f"points to {a}, expected {b}"):
            registry.promote("champion", c, b, "x")
        with pytest.raises(ConflictError, match=f"points to {a}, expected nothing"):
            registry.promote("champion", c, None, "x")
        assert len(registry.history("champion")) == 1

    def test_a_bundle_that_is_not_there_is_not_promoted(self, registry: Registry, digests: list[str]) -> None:
        with pytest.raises(NotFoundError, match="not in"):
            registry.promote("champion", "f" * 64, None, "x")
        with pytest.raises(ConfigError, match="not a name"):
            registry.promote("champion", "../a", None, "x")
        with pytest.raises(ConfigError, match="not a name"):
            registry.promote("a/b", digests[0], None, "x")

    def test_moving_to_where_it_is_is_no_move(self, registry: Registry, digests: list[str]) -> None:
        first = registry.promote("champion", digests[0], None, "first")
        assert registry.promote("champion", digests[0], digests[0], "again") == first
        assert registry.history("champion") == [first]

    def test_rollback_is_a_move(self, registry: Registry, digests: list[str]) -> None:
        a, b, _ = digests
        with pytest.raises(NotFoundError, match="promote a bundle first"):
            registry.rollback("champion")
        registry.promote("champion", a, None, "first")
        with pytest.raises(ConflictError, match="nothing to roll back to"):
            registry.rollback("champion")
        registry.promote("champion", b, a, "better")
        back = registry.rollback("champion", "errors went up")
        assert (back.bundle, back.previous, back.version, back.reason) == (a, b, 3, "errors went up")
        assert registry.rollback("champion").bundle == b
        assert [move.bundle for move in registry.history("champion")] == [a, b, a, b]

    def test_rollback_to_a_deleted_bundle_is_refused(self, registry: Registry, digests: list[str]) -> None:
        a, b, _ = digests
        registry.promote("champion", a, None, "first")
        registry.promote("champion", b, a, "better")
        registry.store.delete_prefix(f"bundles/{a}")
        with pytest.raises(NotFoundError):
            registry.rollback("champion")
        assert registry.history("champion")[-1].bundle == b

    def test_a_mover_that_died_half_way_leaves_a_true_history(self, registry: Registry, digests: list[str]) -> None:
        a, b, c = digests
        first = registry.promote("champion", a, None, "first")

        class Dying(Registry):
            def _remember(self, alias: str, entry: AliasEntry) -> None:
                super()._remember(alias, entry)
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            Dying(registry.store).promote("champion", b, a, "dies between the two writes")
        assert registry.history("champion") == [first]
        third = registry.promote("champion", c, a, "goes on")
        assert registry.history("champion") == [first, third]
        assert third.version == 2

    def test_a_lost_alias_does_not_overwrite_its_history(self, registry: Registry, digests: list[str]) -> None:
        a, b, c = digests
        registry.promote("champion", a, None, "first")
        registry.promote("champion", b, a, "second")
        registry.store.delete("aliases/champion.json")
        assert registry.promote("champion", c, None, "anew").version == 2
        assert [move.bundle for move in registry.history("champion")] == [a, c]

    def test_a_tampered_history_stops_the_next_move(self, registry: Registry, digests: list[str]) -> None:
        a, b, _ = digests
        move = registry.promote("champion", a, None, "first")
        registry.store.write_json("aliases/history/champion/1.json", {**vars(move), "reason": "something else"})
        with pytest.raises(StorageError, match="not the move"):
            registry.promote("champion", b, a, "second")
        registry.store.write_json("aliases/champion.json", {"bundle": a})
        with pytest.raises(StorageError, match="damaged; expected the fields"):
            registry.alias("champion")

    def test_racing_moves_give_a_linear_history(self, registry: Registry, digests: list[str]) -> None:
        threads, moves_each = 8, 25
        registry.promote("champion", digests[0], None, "start")

        def move(thread: int) -> tuple[list[AliasEntry], int]:
            made: list[AliasEntry] = []
            lost = 0
            while len(made) < moves_each:
                current = registry.alias("champion")
                assert current is not None
                target = digests[(digests.index(current.bundle) + 1 + thread % 2) % 3]
                try:
                    made.append(registry.promote("champion", target, current.bundle, f"{thread}-{len(made)}"))
                except ConflictError:
                    lost += 1
            return made, lost

        with ThreadPoolExecutor(threads) as pool:
            results = list(pool.map(move, range(threads)))
        history = registry.history("champion")
        made = sorted((entry for entries, _ in results for entry in entries), key=lambda entry: entry.version)
        assert history[1:] == made  # no move lost, none invented
        assert [entry.version for entry in history] == list(range(1, threads * moves_each + 2))
        assert [entry.previous for entry in history[1:]] == [entry.bundle for entry in history[:-1]]
        assert sum(lost for _, lost in results) > 0, "the threads never met: the race was not tested"

    def test_bundles_that_were_trained_on_deleted_users_are_marked(self, registry: Registry, tmp_path: Path) -> None:
        mark = Privacy(b"key").mark
        trained = {"a": ["ann", "bob"], "b": ["bob", "cem"], "c": []}
        digest: dict[str, str] = {}
        for name, users in trained.items():
            folder, digest[name] = make_bundle(tmp_path / "source", name)
            if users:  # none: made without a key, so it does not say
                (folder / "users.txt").write_text("".join(f"{each}\n" for each in sorted(map(mark, users))))
            registry.publish(folder, digest[name])
        assert mark_bundles(registry, [mark("dan")]) == []
        assert (forgotten(registry), forgotten_of(registry, digest["a"])) == ({}, None)
        assert mark_bundles(registry, [mark("ann")]) == [digest["a"]]
        first = forgotten(registry)
        assert {key: each.count for key, each in first.items()} == {digest["a"]: 1}
        for _ in range(2):
            assert mark_bundles(registry, [mark("ann"), mark("bob")]) == sorted([digest["a"], digest["b"]])
        found = forgotten(registry)
        assert {key: each.count for key, each in found.items()} == {digest["a"]: 2, digest["b"]: 1}
        assert forgotten_of(registry, digest["a"]) == found[digest["a"]]
        assert found[digest["a"]].since == first[digest["a"]].since
        assert len(registry.list()) == 3

    def test_each_user_of_a_bundle_is_found_and_nobody_else(self, registry: Registry, tmp_path: Path) -> None:
        marks = sorted(Privacy(b"key").mark(f"user {number}") for number in range(60))
        folder, digest = make_bundle(tmp_path / "source", "a")
        (folder / "users.txt").write_text("".join(f"{each}\n" for each in marks[::2]))
        registry.publish(folder, digest)
        assert trained_on(registry, digest, marks) == marks[::2]  # at once, and one by one
        assert [each for each in marks[:9] if trained_on(registry, digest, [each])] == marks[:9:2]

    def test_a_mark_stays_known_while_the_store_cannot_be_read(
        self, registry: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("dkt_ray.registry.forgotten.REMEMBERED_S", 0.0)
        mark, damaged = {"users": ["0" * 64], "since": "2026-03-02T16:00:00+00:00"}, b"{"
        marks = Marks(registry)
        registry.store.write_if("marks/b.json", damaged, None)
        registry.store.write_json("marks/a.json", mark)
        assert (marks("a"), marks("b"), marks("c")) == (Forgotten(1, "2026-03-02T16:00:00+00:00"), None, None)
        registry.store.delete("marks/a.json")
        registry.store.write_if("marks/a.json", damaged, None)
        assert marks("a") == Forgotten(1, "2026-03-02T16:00:00+00:00")
        registry.store.write_json("marks/d.json", {"users": []})
        assert marks("d") is None

    def test_a_damaged_list_of_users_is_named(self, registry: Registry, tmp_path: Path) -> None:
        mark = Privacy(b"key").mark("ann")
        for name, text in {"a": mark[1:] + "\n", "b": f"{mark}{mark}"[:65] * 2}.items():
            folder, digest = make_bundle(tmp_path / "source", name)
            (folder / "users.txt").write_text(text)
            registry.publish(folder, digest)
            with pytest.raises(BundleError, match=r"users\.txt: damaged"):
                trained_on(registry, digest, [mark])

    def test_two_who_mark_a_bundle_at_once_lose_no_user(self, registry: Registry, tmp_path: Path) -> None:
        marks = [Privacy(b"key").mark(f"user {number}") for number in range(16)]
        folder, digest = make_bundle(tmp_path / "source", "a")
        (folder / "users.txt").write_text("".join(f"{each}\n" for each in sorted(marks)))
        registry.publish(folder, digest)
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda mark: mark_bundles(registry, [mark]), marks)) == [[digest]] * 16
        assert forgotten(registry)[digest].count == 16
