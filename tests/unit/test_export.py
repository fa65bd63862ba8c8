"""`dkt export`: every graded event once, whatever is killed, and none of a user who was deleted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dkt_ray.errors import ConfigError, ConflictError, StorageError
from dkt_ray.events import backup, parts, tombstones
from dkt_ray.events.model import Event
from dkt_ray.events.sql import Events, open_events
from dkt_ray.pipelines import export
from dkt_ray.storage import Store, open_store
from dkt_ray.storage.lease import lease, take_away
from tests.event_promises import ANN, BOB, PRIVACY, answer
from tests.reliability import export_kill


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PRIVACY.key is not None
    monkeypatch.setenv("DKT_PRIVACY_KEY", PRIVACY.key.decode())


@pytest.fixture
def events(tmp_path: Path) -> Iterator[Events]:
    opened = open_events(f"sqlite:///{tmp_path}/events.db")
    yield opened
    opened.close()


@pytest.fixture
def files(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store")).child(parts.folder("events"))


def run(tmp_path: Path, **settings: Any) -> dict[str, Any]:
    given = {"events": f"sqlite:///{tmp_path}/events.db", "store": str(tmp_path / "store"), "part_rows": 4} | settings
    return export.run(export.ExportConfig(**given))


def test_each_run_goes_on_where_the_last_one_ended(events: Events, files: Store, tmp_path: Path) -> None:
    assert run(tmp_path)["rows"] == 0
    events.log.append([answer(number, correct=None if number == 2 else 1) for number in range(6)])
    first = run(tmp_path)
    assert (first["rows"], first["parts"], first["after"]) == (5, 2, 5)
    events.log.append([answer(2), answer(9)])
    assert (run(tmp_path)["rows"], run(tmp_path)["rows"]) == (2, 0)
    assert parts.keys(files) == [f"part-{number:020d}.parquet" for number in (1, 5, 6)]
    assert export_kill.rows(tmp_path / "store") == [1, 2, 3, 4, 5, 6, 7]


def test_a_row_is_what_prepare_reads(events: Events, files: Store, tmp_path: Path) -> None:
    events.log.append([Event("e", ANN, "q1", 1_700_000_000_123, 1_700_000_009_000, 0, "B", None, "t1", "3_7")])
    run(tmp_path)
    (row,) = files.read_table(parts.key_of(1)).to_pylist()
    assert row["Timestamp"].timestamp() == 1_700_000_000.123
    assert row["receivedAt"].timestamp() == 1_700_000_009
    del row["Timestamp"], row["receivedAt"]
    assert row == {
        **{"sequence": 1, "eventID": "e", "userID": ANN, "assessmentItemID": "q1", "testId": "t1", "answerCode": 0},
        **{"KnowledgeTag": "3_7", "shownAt": None},
    }


def test_exactly_once_whatever_is_killed(tmp_path: Path) -> None:
    found = export_kill.run(tmp_path, kills=3)
    assert found["events"] == 3 * export_kill.STEP


def test_what_a_killed_run_left_is_taken_as_it_is(events: Events, files: Store, tmp_path: Path) -> None:
    events.log.append([answer(number) for number in range(3)])
    export_kill.killed(str(events.engine.url), tmp_path / "store", 2)  # the part is there, the pointer is not
    left = files.read(parts.key_of(1))
    assert not files.exists(parts.POINTER)
    events.log.append([answer(3)])
    told = run(tmp_path)
    assert (told["adopted"], told["rows"], told["parts"]) == (1, 4, 2)
    assert files.read(parts.key_of(1)) == left


def test_who_was_deleted_while_a_part_was_written_is_not_in_it(events: Events, files: Store, tmp_path: Path) -> None:
    events.log.append([answer(1), answer(2, BOB)])
    export_kill.killed(str(events.engine.url), tmp_path / "store", 2)
    events.histories.delete(ANN)
    told = run(tmp_path)
    assert (told["rows"], told["forgotten"], told["total"], told["after"]) == (1, 1, 1, 2)
    assert files.read_table(parts.key_of(1))["userID"].to_pylist() == [BOB]
    assert tombstones.forgotten(open_store(str(tmp_path / "store")), PRIVACY) == {PRIVACY.mark(ANN)}
    assert run(tmp_path)["rows"] == 0


def test_one_exporter_at_a_time(events: Events, files: Store, tmp_path: Path) -> None:
    with lease(files, "export"), pytest.raises(ConflictError, match="is at work"):
        run(tmp_path)


def test_an_exporter_that_slept_does_not_move_the_pointer_of_another(
    events: Events, files: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events.log.append([answer(1)])
    without = parts.without

    def and_overtaken(*arguments: Any) -> Any:
        files.write(parts.POINTER, b'{"after": 1, "rows": 1, "log": "x"}')
        return without(*arguments)

    monkeypatch.setattr(parts, "without", and_overtaken)
    with pytest.raises(ConflictError, match="meanwhile"):
        run(tmp_path)


def test_a_file_that_is_no_part_is_refused(events: Events, files: Store, tmp_path: Path) -> None:
    events.log.append([answer(1)])
    files.write_table(parts.key_of(7), parts.table([]))
    with pytest.raises(StorageError, match="not a part"):
        run(tmp_path)


def test_without_a_database_there_is_nothing_to_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DKT_EVENTS_URL", raising=False)
    with pytest.raises(ConfigError, match="DKT_EVENTS_URL"):
        run(tmp_path, events=None)
    with pytest.raises(ConfigError, match="no such file"):
        run(tmp_path)
    assert not list(tmp_path.glob("events.db*"))


def test_old_rows_are_left_out_of_a_part() -> None:
    part = parts.ending(parts.table([]), 5)
    assert parts.without(part, {"mark"}, PRIVACY, kept_from=0).schema.metadata == part.schema.metadata


def test_an_older_copy_of_the_database_is_refused(events: Events, tmp_path: Path) -> None:
    events.log.append([answer(number) for number in range(3)])
    copy = backup.run(backup.BackupConfig(events=str(events.engine.url), target=str(tmp_path / "copy.db")))
    assert (copy["events"], run(tmp_path)["rows"]) == (3, 3)
    events.log.append([answer(9)])
    run(tmp_path)
    with pytest.raises(ConfigError, match="backup was put back"):
        run(tmp_path, events=f"sqlite:///{tmp_path}/copy.db")
    assert run(tmp_path, events=f"sqlite:///{tmp_path}/copy.db", name="again")["rows"] == 3
    grown = open_events(f"sqlite:///{tmp_path}/copy.db")  # beyond the pointer, by other events at the same places
    grown.log.append([answer(number) for number in range(20, 28)])
    grown.close()
    with pytest.raises(ConfigError, match="name=NAME"):
        run(tmp_path, events=f"sqlite:///{tmp_path}/copy.db")
    assert run(tmp_path, events=f"sqlite:///{tmp_path}/copy.db", name="again")["rows"] == 8
    for user in (ANN, BOB):  # the newest events are gone, the places stay given
        events.histories.delete(user)
    assert run(tmp_path)["after"] == 4


def test_who_the_store_knows_to_be_deleted_is_not_exported_from_a_restored_log(events: Events, tmp_path: Path) -> None:
    events.log.append([answer(1), answer(2, BOB)])
    tombstones.remember(open_store(str(tmp_path / "store")), [PRIVACY.mark(ANN)], PRIVACY)
    told = run(tmp_path)
    assert (told["rows"], told["forgotten"]) == (1, 1)
    assert export_kill.rows(tmp_path / "store") == [2]


def test_an_exporter_that_slept_writes_no_second_part_of_the_same_events(
    events: Events, files: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease was taken over, and the first event was deleted before the other one read."""
    events.log.append([answer(1), answer(2, BOB), answer(3, BOB)])
    ending = parts.ending

    def and_overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr(parts, "ending", ending)
        take_away(files)
        events.histories.delete(ANN)
        assert run(tmp_path)["rows"] == 2
        return ending(*arguments)

    monkeypatch.setattr(parts, "ending", and_overtaken)
    with pytest.raises(ConflictError):
        run(tmp_path)
    assert run(tmp_path)["rows"] == 0
    assert export_kill.rows(tmp_path / "store") == [2, 3]
