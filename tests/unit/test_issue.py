"""`dkt keys`, and how replicas follow what it does."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest

from dkt_ray.config import build
from dkt_ray.errors import ConfigError, ConflictError, DktError, StorageError
from dkt_ray.privacy import PRIVACY_KEY
from dkt_ray.serving import issue, service
from dkt_ray.serving.deployments import ServeArgs
from dkt_ray.serving.fleet import is_loopback
from dkt_ray.serving.keys import KEYS
from dkt_ray.serving.ring import Ring
from dkt_ray.serving.service import ServiceConfig
from dkt_ray.storage import open_store

FAR = 4e9  # a time long after now, seconds
PATIENCE_S = 60.0


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path)


@pytest.fixture
def keys(store):
    """`dkt keys` on a store."""

    def run(action, **settings):
        return issue.run(build(issue.KeysConfig, {"action": action, "store": store.url} | settings))

    return run


def test_a_key_is_told_once_rotated_and_revoked_and_replicas_follow_without_a_restart(store, keys):
    first = keys("add", name="platform", role="write", days=1)
    ring = Ring(store, lambda: 3, required=True)
    assert ring.known.replicas == 3
    assert ring.known.keys.holder(first["key"], 0).role == "write"
    assert first["key"].encode() not in store.read(KEYS)
    listed = str(keys("list"))
    assert (first["id"] in listed, "sha256" in listed, first["key"] in listed) == (True, False, False)
    second = keys("rotate", name="platform")
    assert (first["expires"] is None, second["expires"]) == (False, None)
    with pytest.raises(ConfigError, match=f"2 keys, {first['id']} and {second['id']}: revoke"):
        keys("rotate", name="platform")
    ring.refresh()
    assert [type(ring.known.keys.holder(each["key"], 0)).__name__ for each in (first, second)] == ["Holder"] * 2
    assert keys("revoke", name="platform", key=first["id"])["left"] == [second["id"]]
    ring.refresh()
    assert ring.known.keys.holder(first["key"], 0) == "unknown"
    assert ring.known.keys.holder(second["key"], FAR).name == "platform"
    assert keys("revoke", name="platform") == {"name": "platform", "revoked": [second["id"]], "left": []}
    ring.refresh()
    assert ring.known.keys.holder(second["key"], 0) == "unknown", "the last one gone, nobody gets in"


def test_an_expired_key_makes_room_for_a_new_one(keys, monkeypatch):
    long_ago = issue.utc_now() - timedelta(days=2)
    with monkeypatch.context() as patch:
        patch.setattr(issue, "utc_now", lambda: long_ago)
        old = keys("add", name="platform", days=1)
    for _ in range(2):
        keys("rotate", name="platform")
    assert old["id"] not in str(keys("list"))


@pytest.mark.parametrize(
    ("action", "settings", "told"),
    [
        ("add", {}, "setting name is missing"),
        ("add", {"name": "platform"}, "has keys already"),
        ("add", {"name": "a b"}, "name"),
        ("rotate", {"name": "nobody"}, "there are keys of platform"),
        ("revoke", {"name": "platform", "key": "0"}, "platform has "),
        ("list", {"rate": 0}, "rate"),
    ],
)
def test_what_cannot_be_done_is_told(keys, action, settings, told):
    keys("add", name="platform")
    with pytest.raises(ConfigError, match=told):
        keys(action, **settings)


def test_two_who_change_the_keys_at_once_are_told(store, keys, monkeypatch):
    make = issue.make

    def slowly(now, days):
        monkeypatch.undo()
        keys("add", name="first")
        return make(now, days)

    monkeypatch.setattr(issue, "make", slowly)
    with pytest.raises(ConflictError):
        keys("add", name="second")
    assert [each["name"] for each in keys("list")["holders"]] == ["first"]


def test_a_store_that_is_down_leaves_the_keys_of_before(store, keys, monkeypatch):
    key = keys("add", name="platform")["key"]
    counts = iter([2, None])
    ring = Ring(store, lambda: next(counts), required=False)
    ring.recount()

    def down(*_):
        raise StorageError("down")

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "read_versioned", down)
        ring.refresh()
    assert ring.known.keys.holder(key, 0).name == "platform"
    store.write(KEYS, b"{")
    ring.refresh()
    assert ring.known.keys.holder(key, 0).name == "platform"
    store.delete(KEYS)
    ring.refresh()
    assert ring.known.keys.holder(key, 0).name == "platform"
    assert ring.known.replicas == 2


def test_tenants_need_a_key_for_pseudonyms_where_they_are_served(store, keys, monkeypatch):
    monkeypatch.delenv(PRIVACY_KEY, raising=False)
    first = keys("add", name="north", tenant="north")["key"]
    with pytest.raises(ConfigError, match=PRIVACY_KEY):
        Ring(store, lambda: 1, required=False)
    monkeypatch.setenv(PRIVACY_KEY, "k")
    assert Ring(store, lambda: 1, required=False).known.keys.holder(first, 0).name == "north"


def test_every_key_has_a_tenant_or_none_has(store, keys):
    """One without would be of no tenant, on a service where every student is of one."""
    for one, other in (("", "north"), ("north", "")):
        keys("add", name="first", tenant=one)
        with pytest.raises(DktError, match=r"those of \w+ have none: give every key one .* or none"):
            keys("add", name="second", tenant=other)
        assert [each["name"] for each in keys("list")["holders"]] == ["first"]
        keys("revoke", name="first")
    keys("add", name="first", tenant="north")
    mixed = store.read(KEYS).replace(b'"holders": [', b'"holders": [{"name": "other"},')
    assert b"other" in mixed
    store.write(KEYS, mixed)
    with pytest.raises(DktError, match="those of other have none"):
        Ring(store, lambda: 1, required=False)


def test_a_revoked_key_ends_though_nobody_tells_how_many_replicas_there_are(store, keys, monkeypatch):
    monkeypatch.setattr("dkt_ray.serving.ring.PERIOD_S", 0.01)
    asked, answered = threading.Event(), threading.Event()

    def replicas():
        if threading.current_thread() is not threading.main_thread():
            asked.set()
            answered.wait()
        return 2

    old = keys("add", name="platform")
    ring = Ring(store, replicas, required=True)
    end = ring.watch()
    try:
        assert asked.wait(PATIENCE_S)
        for _ in range(2):
            new = keys("rotate", name="platform")
            keys("revoke", name="platform", key=old["id"])
            give_up = time.monotonic() + PATIENCE_S
            while ring.known.keys.holder(old["key"], 0) != "unknown":
                assert time.monotonic() < give_up
                time.sleep(0.01)
            assert ring.known.keys.holder(new["key"], 0).name == "platform"
            old = new
        assert ring.known.replicas == 2
    finally:
        end.set()
        answered.set()


def test_without_keys_nothing_is_served_that_others_can_reach(store, keys):
    def check(host, **args):
        service.check_keys(ServeArgs(store=store.url, **args), ServiceConfig(store=store.url, host=host))

    check("127.0.0.1")
    assert Ring(store, lambda: 1, required=False).known.keys is None
    for refused in (
        lambda: check("0.0.0.0"),
        lambda: check("127.0.0.1", keys="required"),
        lambda: Ring(store, lambda: 1, required=True),
    ):
        with pytest.raises(ConfigError, match="dkt keys add"):
            refused()
    keys("add", name="platform")
    check("0.0.0.0", keys="required")
    Ring(store, lambda: 1, required=True)


def test_what_is_an_address_of_this_machine():
    assert [is_loopback(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "", None)] == [False] * 6
