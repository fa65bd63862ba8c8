"""`dkt forget`: nothing of a deleted user is left in exports and datasets, and bundles trained on him are marked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dkt_ray.events import backup, parts, tombstones
from dkt_ray.events.model import Event, ForgottenError
from dkt_ray.events.sql import Events, open_events
from dkt_ray.features.dataset import MANIFEST
from dkt_ray.pipelines import export, forget, prepare, publish, stages
from dkt_ray.pipelines.forget import DAY_MS
from dkt_ray.registry.forgotten import forgotten
from dkt_ray.registry.store import Registry
from dkt_ray.storage import open_store
from dkt_ray.storage.lease import lease
from tests import datasets
from tests.event_promises import PRIVACY
from tests.registry_promises import make_bundle
from tests.reliability import forgetting
from tests.unit.test_naming import logs, traces

NOW = round(time.time() * 1000)
USERS = [f"pupil-{number}" for number in range(12)]
NAMES = {user: PRIVACY.user(user) for user in USERS}


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PRIVACY.key is not None
    monkeypatch.setenv("DKT_PRIVACY_KEY", PRIVACY.key.decode())
    monkeypatch.delenv("DKT_EVENTS_URL", raising=False)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/events.db"


@pytest.fixture
def events(url: str) -> Iterator[Events]:
    """Every user's answers: one a day, the latest now."""
    opened = open_events(url)
    opened.log.append(
        [
            Event(f"{user} {day}", name, f"q{day}", NOW - day * DAY_MS - place, NOW, day % 2, test="t")
            for day in range(6)
            for place, (user, name) in enumerate(NAMES.items())
        ]
    )
    yield opened
    opened.close()


@pytest.fixture
def exported(events: Events, url: str, store: Path) -> Path:
    """The folder of the export, in parts of 20 rows."""
    export.run(export.ExportConfig(events=url, store=str(store), part_rows=20))
    return store / "exports" / "events"


def run(store: Path, url: str | None, **settings: Any) -> dict[str, Any]:
    return forget.run(forget.ForgetConfig(store=str(store), events=url, **settings))


def settings(store: Path, log: str, **changes: Any) -> prepare.PrepareConfig:
    """To prepare a log that lies beside the store."""
    data = {"path": str(store.parent / log), "folds": 3, "test_fraction": 0.2}
    return prepare.PrepareConfig.model_validate({"store": str(store), "data": data, "engine": "local"} | changes)


def keys(store: Path) -> dict[str, bytes]:
    """Everything in a store but what says when something was done."""
    return {str(path): path.read_bytes() for path in sorted(store.rglob("*.parquet"))}


def test_nothing_is_left_of_who_was_deleted(
    events: Events, exported: Path, url: str, store: Path, tmp_path: Path
) -> None:
    raw = logs(tmp_path / "raw.csv", USERS)
    settings = {"pseudonyms": True, "path": [str(raw), str(exported)]}
    datasets.run("", store, data=settings)
    datasets.run("", store, data=settings | {"seed": 1})  # the version before holds him too
    deleted = [NAMES["pupil-3"], NAMES["pupil-7"]]
    for name in deleted:
        assert traces(store, name)
        events.histories.delete(name)
    told = run(store, url)
    assert (told["users"], told["new"], told["exports"]) == (2, 2, {"events": {"rows": 12, "parts": 4}})
    assert (told["datasets"], told["remaining"]) == (["default"], [])
    for name in deleted:
        assert traces(store, name) == []
    assert datasets.opened(store).manifest.users == 10
    assert traces(store, NAMES["pupil-4"])
    before = keys(store)
    again = run(store, url)
    assert (again["new"], again["datasets"], again["exports"]) == (0, [], {"events": {"rows": 0, "parts": 0}})
    assert keys(store) == before


def test_planted_users_are_nowhere_after_their_deletion(tmp_path: Path) -> None:
    found = forgetting.run(tmp_path, 20)
    assert forgetting.proven(found["control"], found["traces"], "forgetting") == []
    assert [place for place, files in found["planted"].items() if files] == ["database", "exports", "prepared", "store"]
    assert found["remembered"] == [False, True] * 20
    assert found["datasets"] == ["default"]


def test_a_part_keeps_its_place_in_the_log(events: Events, exported: Path, url: str, store: Path) -> None:
    for user in USERS:
        events.histories.delete(NAMES[user])
    assert run(store, url)["exports"] == {"events": {"rows": 72, "parts": 4}}
    events.log.append([Event("new", PRIVACY.user("new"), "q", NOW, NOW, 1)])
    told = export.run(export.ExportConfig(events=url, store=str(store)))
    assert (told["rows"], told["after"], told["total"]) == (1, 73, 73)
    assert [parts.first_of(path.name) for path in sorted(exported.glob("*.parquet"))] == [1, 21, 41, 61, 73]


def test_what_is_too_old_leaves_the_database_the_exports_and_the_datasets(
    events: Events, exported: Path, url: str, store: Path
) -> None:
    name = NAMES["pupil-5"]
    assert len(events.histories.get(name, 10).question) == 6
    datasets.run(exported, store)
    told = run(store, url, retention_days=2.5)
    assert {name: rows for name, rows in told["removed"].items() if rows} == {"events": 36}
    assert told["exports"]["events"]["rows"] == 36
    assert (told["users"], told["datasets"]) == (0, ["default"])
    assert (datasets.opened(store).manifest.rows, events.log.count()) == (36, 36)
    histories = list((store / "datasets/default/histories").glob("*.parquet"))
    assert len(histories) == len(datasets.opened(store).manifest.files)  # none of the version before
    events.histories._meet_deletions()
    assert events.histories.get(name, 10).question == ("q2", "q1", "q0")


def test_a_dataset_has_the_folds_of_its_split_file_whatever_was_asked_for(
    events: Events, url: str, store: Path, tmp_path: Path
) -> None:
    split = tmp_path / "split.csv"
    split.write_text("userID,split\n" + "".join(f"{user},fold{n % 2 + 1}\n" for n, user in enumerate(USERS)))
    data = {"split_file": str(split), "folds": None}
    datasets.run(logs(tmp_path / "raw.csv", USERS), store, data=data)
    dataset = open_store(store).child("datasets/default")
    manifest = dataset.read_json(MANIFEST)
    manifest["config"]["data"]["folds"] = 5  # as earlier versions did by default
    dataset.write_json(MANIFEST, manifest)
    events.histories.delete(NAMES["pupil-3"])
    told = run(store, url)
    assert (told["datasets"], told["remaining"]) == (["default"], [])
    assert (datasets.opened(store).manifest.users, datasets.opened(store).manifest.folds) == (11, 2)


def test_what_cannot_be_followed_up_is_named(events: Events, url: str, store: Path, tmp_path: Path) -> None:
    raw = logs(tmp_path / "raw.csv", USERS)
    datasets.run(raw, store)
    events.histories.delete(NAMES["pupil-3"])
    (named,) = run(store, url, prepare=False)["remaining"]
    assert (named["dataset"], named["users"]) == ("default", 1)
    raw.unlink()
    (named,) = run(store, url)["remaining"]
    assert "raw.csv" in named["reason"]
    logs(raw, USERS)
    assert run(store, None)["remaining"] == []  # the store knows of the deletion
    assert traces(store, "pupil-3") == []


def test_bundles_that_were_trained_on_them_are_marked(events: Events, url: str, store: Path, tmp_path: Path) -> None:
    folder, digest = make_bundle(tmp_path / "source", "a")
    (folder / "users.txt").write_text("".join(f"{each}\n" for each in sorted(map(PRIVACY.mark, NAMES.values()))))
    registry = Registry(open_store(str(store)))
    registry.publish(folder, digest)
    assert run(store, url)["bundles"] == []
    events.histories.delete(NAMES["pupil-3"])
    assert run(store, url)["bundles"] == [digest]
    assert forgotten(registry)[digest].count == 1


def test_it_waits_for_nobody(events: Events, exported: Path, url: str, store: Path) -> None:
    datasets.run(logs(store.parent / "raw.csv", USERS), store)
    events.histories.delete(NAMES["pupil-3"])
    with lease(open_store(str(store)).child("exports/events"), "export"):
        told = run(store, url)
        assert [(each["export"], "at work" in each["reason"]) for each in told["remaining"]] == [("events", True)]
    assert (told["exports"], told["datasets"]) == ({}, ["default"])
    prepare.run(settings(store, "raw.csv", dataset="busy"))
    events.histories.delete(NAMES["pupil-4"])
    with lease(open_store(str(store)).child("datasets/busy"), "busy"):
        told = run(store, url)
    assert (told["exports"]["events"]["rows"], told["datasets"]) == (12, ["default"])
    assert [each["dataset"] for each in told["remaining"]] == ["busy"]
    assert run(store, url)["datasets"] == ["busy"]


def test_a_prepared_dataset_without_users_who_were_deleted_is_left_alone(
    events: Events, url: str, store: Path, tmp_path: Path
) -> None:
    raw = logs(tmp_path / "raw.csv", USERS[4:])
    data = {"path": str(raw), "folds": 3, "test_fraction": 0.2}
    prepare.run(prepare.PrepareConfig.model_validate({"store": str(store), "data": data, "engine": "local"}))
    before = keys(store)
    events.histories.delete(NAMES["pupil-3"])
    assert run(store, url)["datasets"] == []
    assert keys(store) == before


def test_who_was_deleted_after_a_backup_is_deleted_from_what_it_brings_back(
    events: Events, url: str, store: Path
) -> None:
    copy = store.parent / "copy.db"
    backup.run(backup.BackupConfig(events=url, target=str(copy)))
    events.histories.delete(NAMES["pupil-3"])
    events.histories.delete(PRIVACY.user("nobody here"))
    run(store, url)
    restored = open_events(f"sqlite:///{copy}")
    assert restored.log.count() == 72
    run(store, f"sqlite:///{copy}")
    assert restored.log.count() == 66
    for name in (NAMES["pupil-3"], PRIVACY.user("nobody here")):
        with pytest.raises(ForgottenError):
            restored.log.append([Event("late", name, "q", NOW, NOW, 1)])
    restored.close()


def test_nobody_slips_into_a_first_version_that_is_at_work(
    events: Events, url: str, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs(store.parent / "raw.csv", USERS)
    read, told = prepare._read, []

    def and_deleted_meanwhile(*arguments: Any) -> Any:
        found = read(*arguments)
        if not told:
            events.histories.delete(NAMES["pupil-3"])
            told.append(run(store, url))
        return found

    monkeypatch.setattr(prepare, "_read", and_deleted_meanwhile)
    made = prepare.run(settings(store, "raw.csv"))
    assert [each["dataset"] for each in told[0]["remaining"]] == ["default"]
    assert (made["users"], made["forgotten"]) == (11, 5)
    assert traces(store, "pupil-3") == []


class Killed(BaseException):
    pass


def test_a_killed_first_version_keeps_nobody(
    events: Events, url: str, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs(store.parent / "raw.csv", USERS)

    def killed(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(stages, "merge_buckets", killed)
    with pytest.raises(Killed):
        prepare.run(settings(store, "raw.csv"))
    assert traces(store, "pupil-3")
    events.histories.delete(NAMES["pupil-3"])
    assert run(store, url)["remaining"] == []
    assert traces(store, "pupil-3") == []


def test_a_late_retry_finds_the_user_of_a_restored_copy_closed(
    events: Events, url: str, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = PRIVACY.user("ann")
    late = Event("late", ann, "q", NOW, NOW, 1)
    tombstones.remember(open_store(str(store)), [PRIVACY.mark(ann)], PRIVACY)
    users_of = tombstones.users_of

    def and_a_late_retry(*arguments: Any) -> Any:
        with pytest.raises(ForgottenError):
            events.log.append([late])
        return users_of(*arguments)

    monkeypatch.setattr(tombstones, "users_of", and_a_late_retry)
    run(store, url)
    assert events.log.count() == 72


def test_who_was_closed_by_a_run_that_was_killed_is_deleted_by_the_next(events: Events, url: str, store: Path) -> None:
    tombstones.bury(events.engine, [PRIVACY.mark(NAMES["pupil-3"])])
    run(store, url)
    assert events.log.count() == 66


def test_a_reader_goes_on_where_nobody_is_to_be_forgotten(events: Events, url: str, store: Path) -> None:
    logs(store.parent / "raw-1.csv", USERS)
    events.histories.delete(NAMES["pupil-3"])
    run(store, url)
    prepare.run(settings(store, "raw-*.csv"))
    reader = datasets.opened(store)
    logs(store.parent / "raw-2.csv", USERS, first=5)
    prepare.run(settings(store, "raw-*.csv"))
    assert run(store, url)["datasets"] == []
    assert len(reader.load_histories()[0].users) > 0
    events.histories.delete(NAMES["pupil-4"])
    assert run(store, url)["datasets"] == ["default"]
    assert traces(store, "pupil-4") == []


def test_who_is_left_in_the_version_before_goes(events: Events, url: str, store: Path) -> None:
    logs(store.parent / "raw.csv", USERS)
    events.histories.delete(NAMES["pupil-3"])
    prepare.run(settings(store, "raw.csv"))
    assert traces(store, "pupil-3")
    logs(store.parent / "raw.csv", USERS[5:])
    prepare.run(settings(store, "raw.csv"))  # knows nothing of the deletion, and keeps the version before
    assert traces(store / "datasets", "pupil-3")
    assert run(store, url)["datasets"] == []
    assert traces(store / "datasets", "pupil-3") == []


def test_a_part_that_changed_is_known_by_any_name(events: Events, exported: Path, url: str, store: Path) -> None:
    (store.parent / "link").symlink_to(store)
    datasets.run(store.parent / "link" / "exports" / "events", store)
    assert run(store, url, retention_days=2.5)["datasets"] == ["default"]
    assert datasets.opened(store).manifest.rows == 36


def test_bundles_know_the_users_of_raw_logs_as_the_service_does(store: Path) -> None:
    path = logs(store.parent / "raw.csv", USERS)
    for tenant in ("", "school-a"):
        datasets.run(path, store, data={"tenant": tenant}, force=True)
        trained = datasets.opened(store).training_users()
        assert list(publish._training_users(datasets.opened(store))) == [PRIVACY.user(each, tenant) for each in trained]
