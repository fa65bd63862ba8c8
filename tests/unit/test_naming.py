"""Users in `dkt prepare`: pseudonyms where they are asked for, and nobody who was deleted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from dkt_ray.errors import ConfigError
from dkt_ray.events import tombstones
from dkt_ray.privacy import Privacy
from dkt_ray.storage import open_store
from tests.datasets import content, opened, run

KEYED = Privacy(b"key of the tests")
USERS = [f"pupil-{number}" for number in range(12)]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    assert KEYED.key is not None
    monkeypatch.setenv("DKT_PRIVACY_KEY", KEYED.key.decode())


def logs(path: Path, users: list[str] = USERS, rows: int = 5, first: int = 0, question: str = "q") -> Path:
    """A log in which every user answers some questions, a minute each."""
    numbers = range(first, first + rows)
    frame = [
        (user, f"{question}{number}", "t", number % 2, 1_600_000_000 + 60 * number)
        for number in numbers
        for user in users
    ]
    columns = ["userID", "assessmentItemID", "testId", "answerCode", "Timestamp"]
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(frame, schema=columns, orient="row").write_csv(path)
    return path


def forget(store: Path, *users: str) -> None:
    """Let the store know that users were deleted."""
    tombstones.remember(open_store(str(store)), [KEYED.mark(KEYED.user(user)) for user in users], KEYED)


def traces(folder: Path, word: str) -> list[Path]:
    """Files below a folder that hold a word; Parquet is read."""
    found = []
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        text = (
            str(pl.read_parquet(path).to_dicts()) if path.suffix == ".parquet" else path.read_bytes().decode("latin-1")
        )
        if word in text:
            found.append(path)
    return found


def test_pseudonyms_change_names_only(tmp_path: Path) -> None:
    path = logs(tmp_path / "log.csv")
    run(path, tmp_path / "raw")
    run(path, tmp_path / "named", data={"pseudonyms": True})
    names = {user: KEYED.user(user) for user in USERS}
    raw, named = content(tmp_path / "raw"), content(tmp_path / "named")
    assert set(named) == set(names.values())
    for user in USERS:
        assert raw[user]["question"] == named[names[user]]["question"]
        assert raw[user]["correct"] == named[names[user]]["correct"]
    assert traces(tmp_path / "raw", "pupil-3")
    assert traces(tmp_path / "named", "pupil-") == []


def test_a_log_of_pseudonyms_and_one_of_raw_ids_speak_of_the_same_users(tmp_path: Path) -> None:
    one, two = logs(tmp_path / "a.csv"), logs(tmp_path / "b.csv", [KEYED.user(user) for user in USERS], first=5)
    told = run(tmp_path / "*.csv", tmp_path / "store", data={"pseudonyms": True, "path": [str(one), str(two)]})
    assert (told["users"], told["rows"]) == (12, 120)


def test_rejected_rows_name_nobody(tmp_path: Path) -> None:
    path = logs(tmp_path / "log.csv")
    with path.open("a") as log:
        log.write("pupil-3,q1,t,7,1600000000\npupil-3,q1,t,1,1600000000,too,wide\n")
    told = run(path, tmp_path / "store", data={"pseudonyms": True, "max_rejected": 1})
    assert told["rejected"] == 2
    assert traces(tmp_path / "store", "pupil-") == []
    assert traces(tmp_path / "store", f"{KEYED.user('pupil-3')},q1,t,7")


def test_a_published_split_names_users_as_the_logs_do(tmp_path: Path) -> None:
    path = logs(tmp_path / "log.csv")
    split = tmp_path / "split.csv"
    split.write_text(
        "userID,split\n"
        + "".join(f"{user},fold{n % 3 + 1}\n" for n, user in enumerate(USERS[1:]))
        + f"{USERS[0]},test\n"
    )
    run(path, tmp_path / "store", data={"pseudonyms": True, "split_file": str(split)})
    users = opened(tmp_path / "store").split
    assert users.names[users.fold < 0].tolist() == [KEYED.user(USERS[0])]


def test_pseudonyms_need_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DKT_PRIVACY_KEY")
    with pytest.raises(ConfigError, match="DKT_PRIVACY_KEY is not set"):
        run(logs(tmp_path / "log.csv"), tmp_path / "store", data={"pseudonyms": True})


def test_tombstones_of_another_key_are_not_overlooked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, store = logs(tmp_path / "log.csv"), tmp_path / "store"
    forget(store, "pupil-3")
    for key in ("another", ""):
        monkeypatch.setenv("DKT_PRIVACY_KEY", key)
        with pytest.raises(ConfigError, match="another DKT_PRIVACY_KEY"):
            run(path, store)


def test_another_key_makes_another_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = logs(tmp_path / "log.csv")
    first = run(path, tmp_path / "store", data={"pseudonyms": True})
    monkeypatch.setenv("DKT_PRIVACY_KEY", "another")
    second = run(path, tmp_path / "store", data={"pseudonyms": True})
    assert not second["reused"]
    assert first["fingerprint"] != second["fingerprint"]


@pytest.mark.parametrize("pseudonyms", [True, False])
def test_who_was_deleted_is_left_out_and_counted(tmp_path: Path, pseudonyms: bool) -> None:
    store, path = tmp_path / "store", logs(tmp_path / "log.csv")
    forget(store, "pupil-3", "pupil-4", "nobody here")
    told = run(path, store, data={"pseudonyms": pseudonyms})
    assert (told["users"], told["rows"], told["forgotten"]) == (10, 50, 10)
    others = logs(tmp_path / "others.csv", [user for user in USERS if user not in ("pupil-3", "pupil-4")])
    assert run(others, tmp_path / "other", data={"pseudonyms": pseudonyms})["content"] == told["content"]


def test_a_dataset_that_holds_somebody_who_was_deleted_is_made_anew_at_once(tmp_path: Path) -> None:
    store, path = tmp_path / "store", logs(tmp_path / "log.csv")
    first = run(path, store)
    forget(store, "nobody here")
    assert run(path, store)["reused"]  # it holds none of them
    forget(store, "pupil-3")
    told = run(path, store)
    assert (told["reused"], told["users"], told["forgotten"]) == (False, 11, 5)
    assert told["fingerprint"] != first["fingerprint"]
    assert traces(store, "pupil-3") == []  # also of the version before
    assert run(path, store)["reused"]


def test_new_files_are_added_without_those_who_were_deleted(tmp_path: Path) -> None:
    """Where the dataset holds one, all of its files are read again."""
    store, first, second = tmp_path / "store", logs(tmp_path / "1.csv"), logs(tmp_path / "2.csv", first=5)
    run(first, store)
    forget(store, "pupil-3")
    told = run(second, store, append=True)
    assert (told["users"], told["rows"], told["added"], told["forgotten"]) == (11, 110, 0, 10)
    newcomer = logs(tmp_path / "3.csv", ["pupil-20", "pupil-21"], first=10)
    forget(store, "pupil-20")
    told = run(newcomer, store, append=True)
    assert (told["users"], told["rows"], told["added"], told["forgotten"]) == (12, 115, 1, 15)
    nobody = logs(tmp_path / "4.csv", ["pupil-20"], first=20)
    told = run(nobody, store, append=True)
    assert (told["rows"], told["added"], told["forgotten"]) == (115, 1, 20)


def test_exports_sort_after_all_else(tmp_path: Path) -> None:
    raw = logs(tmp_path / "z" / "log.csv")
    part = tmp_path / "a" / "part-00000000000000000001.parquet"
    part.parent.mkdir()
    pl.read_csv(logs(tmp_path / "a.csv", first=5)).write_parquet(part)
    run(raw, tmp_path / "store")
    told: dict[str, Any] = run(part, tmp_path / "store", append=True)
    assert (told["rows"], told["added"]) == (120, 1)
    both = run(raw, tmp_path / "both", data={"path": [str(part), str(raw)]})
    assert both["content"] == told["content"]


def test_users_of_a_tenant_are_those_of_its_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, store = logs(tmp_path / "log.csv"), tmp_path / "store"
    theirs = KEYED.user("pupil-3", "school-a")
    tombstones.remember(open_store(str(store)), [KEYED.mark(theirs)], KEYED)
    assert run(path, store, data={"pseudonyms": True})["users"] == 12
    told = run(path, store, data={"pseudonyms": True, "tenant": "school-a"})
    assert (told["users"], told["forgotten"]) == (11, 5)
    assert set(content(store)) == {KEYED.user(user, "school-a") for user in USERS} - {theirs}
    assert run(path, store, data={"tenant": "school-a"})["users"] == 11
    monkeypatch.delenv("DKT_PRIVACY_KEY")
    with pytest.raises(ConfigError, match="tenant="):
        run(path, tmp_path / "other", data={"tenant": "school-a"})


def test_a_line_that_cannot_be_read_does_not_bring_a_deleted_user_back(tmp_path: Path) -> None:
    path, store = logs(tmp_path / "log.csv"), tmp_path / "store"
    with path.open("a") as log:
        log.write("pupil-3,q1,t,1,1600000000,too,wide\n")
    forget(store, "pupil-3")
    assert run(path, store, data={"max_rejected": 1})["rejected"] == 1
    assert traces(store, "pupil-3") == []
