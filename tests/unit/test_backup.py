"""`dkt backup`: a copy of one moment, made while others write."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from dkt_ray.errors import ConfigError, UnavailableError
from dkt_ray.events.backup import BackupConfig, run
from dkt_ray.events.sql import Events, open_events
from tests.event_promises import ANN, PRIVACY, answer, until


def test_a_copy_made_under_writers_is_of_one_moment(tmp_path: Path) -> None:
    """Events come in pairs, in one transaction: a copy never holds half of one."""
    events = open_events(f"sqlite:///{tmp_path}/events.db", PRIVACY)
    ended = threading.Event()

    def write() -> None:
        number = 0
        while not ended.is_set():
            events.log.append([answer(number), answer(number + 1)])
            number += 2

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    counts: list[int] = []
    try:
        _copied(events, tmp_path, counts)
    finally:
        ended.set()
        writer.join()
        events.close()
    assert [count % 2 for count in counts] == [0] * 5
    assert counts == sorted(set(counts))


def _copied(events: Events, tmp_path: Path, counts: list[int]) -> None:
    for turn in range(5):
        until(lambda: events.log.count() > (counts[-1] if counts else 0))
        copy = tmp_path / "backup" / f"{turn}.db"
        counts.append(run(BackupConfig(events=str(events.engine.url), target=str(copy)))["events"])
        assert [path.name for path in copy.parent.glob(f"{turn}.db*")] == [copy.name]
        restored = open_events(f"sqlite:///{copy}", PRIVACY)
        found = [graded.sequence for graded in restored.log.read(0, 10**6)]
        assert found == list(range(1, counts[-1] + 1))
        assert len(restored.histories.get(ANN, 10**6).question) == counts[-1]
        assert restored.log.append([answer(0)]).repeated == 1
        restored.close()


def test_what_cannot_be_copied_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pg_dump"):
        run(BackupConfig(events="postgresql+psycopg://host/events", target=str(tmp_path / "x")))
    with pytest.raises(ConfigError, match="no such file"):
        run(BackupConfig(events=f"sqlite:///{tmp_path}/none.db", target=str(tmp_path / "x")))
    (tmp_path / "torn.db").write_bytes(b"no database" * 100)
    with pytest.raises(UnavailableError, match="not a database"):
        run(BackupConfig(events=f"sqlite:///{tmp_path}/torn.db", target=str(tmp_path / "x")))
    assert not (tmp_path / "x").exists()
