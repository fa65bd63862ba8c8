"""`dkt prepare` in this process: content does not depend on how the input is cut, new days are added, runs go on."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dkt_ray.data.engine import LocalEngine, ResumingEngine
from dkt_ray.errors import ConfigError, ConflictError, InputError
from dkt_ray.features.dataset import MANIFEST
from dkt_ray.pipelines import engines, stages
from dkt_ray.storage import lease as leases
from dkt_ray.storage import open_store
from dkt_ray.storage.lease import LEASE, lease
from tests.builders import random_histories
from tests.datasets import content, opened, run
from tests.runs import write_log

ROOT = Path(__file__).parents[2]
HISTORIES = random_histories(np.random.default_rng(7), 40, hidden=0.02)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """Interactions of 40 users, as text, in the order of their time; equal times and equal rows occur."""
    path = write_log(tmp_path_factory.mktemp("log") / "log.csv", HISTORIES)
    rows = pl.read_csv(path, infer_schema=False)
    return rows.sort("Timestamp", maintain_order=True)


def write_days(folder: Path, logs: pl.DataFrame, cuts: list[int]) -> list[Path]:
    """The log cut into files whose names sort in time."""
    folder.mkdir(parents=True, exist_ok=True)
    edges = [0, *cuts, len(logs)]
    paths = [folder / f"day-{number}.csv" for number in range(len(edges) - 1)]
    for path, start, stop in zip(paths, edges[:-1], edges[1:], strict=True):
        logs[start:stop].write_csv(path)
    return paths


def test_nothing_depends_on_the_number_of_buckets(logs, tmp_path):
    logs.write_csv(tmp_path / "log.csv")
    one = run(tmp_path / "log.csv", tmp_path / "1", data={"buckets": 1})
    for buckets in (7, 64):
        made = run(tmp_path / "log.csv", tmp_path / str(buckets), data={"buckets": buckets})
        assert made["buckets"] == len(opened(tmp_path / str(buckets)).manifest.files) == buckets
        assert (made["content"], made["fingerprint"]) == (one["content"], one["fingerprint"])
        assert content(tmp_path / str(buckets)) == content(tmp_path / "1")
        left, right = opened(tmp_path / "1"), opened(tmp_path / str(buckets))
        assert left.state.digest == right.state.digest
        assert left.load().users.tolist() == right.load().users.tolist()
        assert np.array_equal(left.load().rows.numbers, right.load().rows.numbers)
        assert left.sample(5).users.tolist() == right.sample(5).users.tolist()
        assert np.array_equal(left.open_vault("t").rows.numbers, right.open_vault("t").rows.numbers)


@settings(max_examples=4)
@given(seed=st.integers(0, 10**6), files=st.integers(1, 5), buckets=st.integers(1, 9))
def test_nothing_depends_on_the_order_of_rows_files_or_blocks(logs, tmp_path_factory, seed, files, buckets):
    folder = tmp_path_factory.mktemp("order")
    logs = logs.unique(["userID", "Timestamp"], keep="first", maintain_order=True)  # else file and row decide
    logs.write_csv(folder / "log.csv")
    shuffled = logs.sample(fraction=1, shuffle=True, seed=seed)
    cuts = np.sort(np.random.default_rng(seed).integers(0, len(logs), files - 1)).tolist()
    write_days(folder / "cut", shuffled, cuts)
    one = run(folder / "log.csv", folder / "one", data={"buckets": 3})
    many = run(folder / "cut", folder / "many", data={"buckets": buckets})
    assert one["content"] == many["content"]
    assert content(folder / "one") == content(folder / "many")


def test_the_checksum_sees_every_value_and_every_place():
    found = {stages.checksum(HISTORIES)}
    parts = [HISTORIES.select(np.arange(0, 40, 2)), HISTORIES.select(np.arange(1, 40, 2))]
    assert sum(map(stages.checksum, parts)) % (1 << 64) == stages.checksum(HISTORIES)
    row = int(np.flatnonzero(HISTORIES.correct == 1)[3])
    flipped, later, other = HISTORIES.correct.copy(), HISTORIES.timestamp.copy(), HISTORIES.question.codes.copy()
    flipped[row], later[row], other[row] = 0, later[row] + 1, (other[row] + 1) % 20
    names = HISTORIES.users.copy()
    names[0] = "somebody"
    first, second = HISTORIES.offsets[0], HISTORIES.offsets[0] + 1
    swapped = HISTORIES.correct.copy()
    swapped[[first, second]] = 1, 0
    unswapped = HISTORIES.correct.copy()
    unswapped[[first, second]] = 0, 1
    for changed in (
        replace(HISTORIES, correct=flipped),
        replace(HISTORIES, timestamp=later),
        replace(HISTORIES, question=HISTORIES.question._replace(codes=other)),
        replace(HISTORIES, users=names),
        replace(HISTORIES, timestamp=None),
    ):
        found.add(stages.checksum(changed))
    assert len(found) == 6
    assert stages.checksum(replace(HISTORIES, correct=swapped)) != stages.checksum(
        replace(HISTORIES, correct=unswapped)
    )


@settings(max_examples=6)
@given(st.data())
def test_adding_days_equals_preparing_everything_anew(logs, tmp_path_factory, data):
    """Random days, with rows of the old ones again in the new ones, with and without `append`."""
    folder = tmp_path_factory.mktemp("days")
    cuts = sorted(data.draw(st.lists(st.integers(1, len(logs) - 1), min_size=1, max_size=2, unique=True)))
    again = logs[: data.draw(st.integers(0, 20))]
    days = write_days(folder / "in", logs, cuts)
    pl.concat([again, pl.read_csv(days[-1], infer_schema=False)]).write_csv(days[-1])
    kind = data.draw(st.sampled_from(["hash", "balanced", "last_answer"]))
    settings = {"split": kind, "buckets": data.draw(st.sampled_from([1, 4, 7]))}
    anew = run(folder / "in", folder / "anew", data=settings)
    (folder / "grown").mkdir()
    for number, day in enumerate(days):
        if data.draw(st.booleans()) and number:
            made = run(day, folder / "store", data=settings, append=True)
        else:
            for known in days[: number + 1]:
                (folder / "in" / known.name).touch()
            listed = f"{folder}/in/day-[0-{number}].csv"
            made = run(listed, folder / "store", data=settings)
        assert (made["added"], made["reused"]) == (int(number > 0), False)
    same = ("content", "fingerprint", "rows", "users", "test_users", "held_out", "hidden", "duplicates", "rejected")
    assert {name: made[name] for name in same} == {name: anew[name] for name in same}
    assert content(folder / "store") == content(folder / "anew")
    assert opened(folder / "store").state.digest == opened(folder / "anew").state.digest
    kept = [(bucket.histories, bucket.counts) for bucket in opened(folder / "store").manifest.files]
    assert kept == [(bucket.histories, bucket.counts) for bucket in opened(folder / "anew").manifest.files]


@pytest.mark.parametrize("append", [False, True])
def test_a_new_day_reads_its_own_file_and_touches_its_own_buckets_only(append, logs, tmp_path, monkeypatch):
    """Old files are hashed unless `append`; the fit reads all histories twice: docs/operations.md says so."""
    user = logs["userID"][0]
    monday, tuesday = tmp_path / "in" / "1.csv", tmp_path / "in" / "2.csv"
    write_days(tmp_path / "in", logs, [])[0].rename(monday)
    run(monday.parent, tmp_path / "store", data={"buckets": 16})
    before = opened(tmp_path / "store").manifest
    late = logs.filter(pl.col("userID") == user)[:2].with_columns(pl.lit("2030-01-01 00:00:00").alias("Timestamp"))
    late.write_csv(tuesday)
    ran: list[tuple[str, int]] = []
    plain = LocalEngine.run

    def watched(self: LocalEngine, task: Any, items: Any, stage: str) -> Any:
        ran.append((stage, len(items)))
        return plain(self, task, items, stage)

    monkeypatch.setattr(LocalEngine, "run", watched)
    made = run(tuesday if append else monday.parent, tmp_path / "store", data={"buckets": 16}, append=append)
    assert made["added"] == 1
    once = {"read files": 1, "merge buckets": 1, "count answers": 1}
    assert dict(ran) == {"hash files": 1 if append else 2, "profile questions": 16, "measure numbers": 16} | once
    after = opened(tmp_path / "store").manifest
    changed = [one for one, other in zip(before.files, after.files, strict=True) if one != other]
    assert len(changed) == 1
    assert opened(tmp_path / "store").files.exists(changed[0].histories)  # for readers that opened the old manifest


def test_a_split_file_says_how_many_folds_there_are(logs, tmp_path):
    logs.write_csv(tmp_path / "log.csv")
    users = logs["userID"].unique(maintain_order=True).to_list()
    names = ["test", "fold4", "fold1", "fold3", "fold2"]

    def prepare(folds: int | None, names: list[str] = names) -> dict[str, Any]:
        split = [names[index % len(names)] for index in range(len(users))]
        pl.DataFrame({"userID": users, "split": split}).write_csv(tmp_path / "split.csv")
        data = {"split_file": str(tmp_path / "split.csv"), "folds": folds}
        return run(tmp_path / "log.csv", tmp_path / "store", data=data)

    with pytest.raises(ConfigError, match=r"data\.folds is 5, but the split file has 4 folds"):
        prepare(5)
    with pytest.raises(InputError, match="no user is in fold2; expected"):
        prepare(None, names[:-1])
    assert not (tmp_path / "store/datasets/default/histories").exists()
    prepare(None)
    dataset = opened(tmp_path / "store")
    assert dataset.manifest.folds == 4
    assert set(dataset.load().fold.tolist()) == {0, 1, 2, 3}
    with pytest.raises(ConfigError, match="no training fold 4; it has folds 0 to 3"):
        dataset.load([4])
    assert prepare(4)["reused"]  # said or not, it is the same


def test_the_number_of_folds_is_five_where_nothing_says_otherwise(logs, tmp_path):
    logs.write_csv(tmp_path / "log.csv")
    run(tmp_path / "log.csv", tmp_path / "store", data={"folds": None})
    assert opened(tmp_path / "store").manifest.folds == 5
    assert run(tmp_path / "log.csv", tmp_path / "store", data={"folds": 5})["reused"]


def test_the_same_files_are_reused_also_with_append(logs, tmp_path):
    days = write_days(tmp_path / "in", logs, [200])
    first = run(tmp_path / "in", tmp_path / "store")
    assert not first["reused"]
    for again in (run(tmp_path / "in", tmp_path / "store"), run(days[1], tmp_path / "store", append=True)):
        assert again["reused"]
        assert again["content"] == first["content"]


def test_what_cannot_be_added_is_prepared_anew_and_refused_with_append(logs, tmp_path, caplog):
    days = write_days(tmp_path / "in", logs, [100, 200])
    run(f"{tmp_path}/in/day-[12].csv", tmp_path / "store")
    with pytest.raises(InputError, match=r"day-0.csv is new, but does not sort after .*append=false"):
        run(days[0], tmp_path / "store", append=True)
    with pytest.raises(InputError, match=r"its settings .* are others.*append=false"):
        run(days[0], tmp_path / "store", append=True, encoder={"smoothing": 3.0})
    caplog.set_level(logging.INFO, "dkt_ray")
    made = run(tmp_path / "in", tmp_path / "store")
    assert "is prepared anew" in caplog.text
    assert (made["added"], made["rows"]) == (0, run(tmp_path / "in", tmp_path / "anew")["rows"])
    pl.read_csv(days[1], infer_schema=False)[1:].write_csv(days[1])
    with pytest.raises(InputError, match=r"day-1.csv has changed"):
        run(days[1], tmp_path / "store", append=True)
    assert run(tmp_path / "in", tmp_path / "store")["rows"] == made["rows"] - 1
    days[2].unlink()
    run(tmp_path / "in", tmp_path / "store")
    assert "day-2.csv is not among the files" in caplog.text
    with pytest.raises(ConfigError, match="there is no dataset 'default' to add to"):
        run(days[1], tmp_path / "other", append=True)


STAGES = ["hash files", "read files", "merge buckets", "count answers", "profile questions", "measure numbers"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_crashed_goes_on_where_it_stopped(logs, tmp_path, monkeypatch, caplog, stage):
    """The second task of a stage fails as a full machine would; the old dataset stays readable meanwhile."""
    write_days(tmp_path / "in", logs, [300])
    old = run(tmp_path / "in" / "day-0.csv", tmp_path / "store", data={"buckets": 3}, encoder={"smoothing": 5.0})
    expected = run(tmp_path / "in", tmp_path / "anew", data={"buckets": 3})
    ran = count_tasks(monkeypatch, fail=(stage, 2))
    with pytest.raises(MemoryError, match="injected"):
        run(tmp_path / "in", tmp_path / "store", data={"buckets": 3})
    assert opened(tmp_path / "store").manifest.content == old["content"]
    assert opened(tmp_path / "store").load().rows.rows > 0
    before = dict(ran)
    monkeypatch.undo()
    again = count_tasks(monkeypatch)
    caplog.set_level(logging.INFO, "dkt_ray")
    made = run(tmp_path / "in", tmp_path / "store", data={"buckets": 3})
    assert made["content"] == expected["content"]
    assert content(tmp_path / "store") == content(tmp_path / "anew")
    for each in STAGES[1 : STAGES.index(stage)]:
        assert again[each] == 0
    if stage != "hash files":
        assert before[stage] == 2
        assert again[stage] == (2 if stage == "read files" else 3) - 1
        assert f"{stage}: 1 of {again[stage] + 1} tasks were finished by an earlier run" in caplog.text
    assert opened(tmp_path / "store").files.list("tmp") == []


def count_tasks(monkeypatch: pytest.MonkeyPatch, fail: tuple[str, int] | None = None) -> dict[str, int]:
    """Count the tasks of each stage; one may be made to fail."""
    ran = dict.fromkeys(STAGES, 0)
    plain = LocalEngine.run

    def watched(self: LocalEngine, task: Any, items: Any, stage: str) -> Any:
        def counted(item: dict[str, Any]) -> dict[str, Any]:
            ran[stage] += 1
            if fail == (stage, ran[stage]):
                raise MemoryError("injected")
            return task(item)

        return plain(self, counted, items, stage)

    monkeypatch.setattr(LocalEngine, "run", watched)
    return ran


def test_finished_tasks_are_not_run_again(tmp_path):
    ran = []

    def task(item: dict[str, Any]) -> dict[str, Any]:
        ran.append(item["n"])
        if item["n"] == 2 and len(ran) == 3:
            raise KeyboardInterrupt
        return {"twice": item["n"] * 2}

    items = [{"n": n} for n in range(4)]
    with pytest.raises(KeyboardInterrupt):
        list(ResumingEngine(LocalEngine(), open_store(tmp_path)).run(task, items, "some stage"))
    results = list(ResumingEngine(LocalEngine(), open_store(tmp_path)).run(task, items, "some stage"))
    assert [result["twice"] for result in results] == [0, 2, 4, 6]
    assert ran == [0, 1, 2, 2, 3]
    assert [r["twice"] for r in ResumingEngine(LocalEngine(), open_store(tmp_path)).run(task, items[:2], "other")] == [
        0,
        2,
    ]


def test_a_driver_that_is_killed_is_forgotten_its_finished_work_is_not(logs, tmp_path, monkeypatch):
    logs.write_csv(tmp_path / "log.csv")
    expected = run(tmp_path / "log.csv", tmp_path / "anew", data={"buckets": 3})
    code = (
        "import pathlib, sys; from tests.unit import test_prepare as t; t.prepare_and_hang(pathlib.Path(sys.argv[1]))"
    )
    child = subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=ROOT)
    files = open_store(tmp_path / "store").child("datasets/default")
    give_up = time.monotonic() + 30
    while not files.exists("hanging") and time.monotonic() < give_up:
        time.sleep(0.02)
    assert files.exists(LEASE)
    with pytest.raises(ConflictError, match=rf"process {child.pid} on .* is at work on it"):
        run(tmp_path / "log.csv", tmp_path / "store", data={"buckets": 3})
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert not files.exists(MANIFEST)
    ran = count_tasks(monkeypatch)
    assert run(tmp_path / "log.csv", tmp_path / "store", data={"buckets": 3})["content"] == expected["content"]
    assert (ran["read files"], ran["merge buckets"]) == (0, 2)
    assert not files.exists(LEASE)
    assert files.list("tmp") == []


def prepare_and_hang(folder: str) -> None:
    """What the process does that is killed: it stops in the middle of its second bucket."""
    plain = stages._merge_bucket

    def hanging(item: dict[str, Any], **more: Any) -> dict[str, Any]:
        if item["bucket"] == 1:
            open_store(f"{folder}/store").write("datasets/default/hanging", b"")
            time.sleep(60)
        return plain(item, **more)

    stages._merge_bucket = hanging
    run(f"{folder}/log.csv", f"{folder}/store", data={"buckets": 3})


def test_a_lease_is_exclusive_renewed_and_expires(tmp_path, monkeypatch):
    files = open_store(tmp_path)
    monkeypatch.setattr(leases, "RENEW_S", 0.05)
    with lease(files, "it"):
        first = files.read_json(LEASE)
        with pytest.raises(ConflictError, match="it: process"), lease(files, "it"):
            pytest.fail("two writers")
        give_up = time.monotonic() + 10
        while files.read_json(LEASE)["seen"] == first["seen"] and time.monotonic() < give_up:
            time.sleep(0.02)
        assert files.read_json(LEASE)["seen"] > first["seen"]
    assert not files.exists(LEASE)
    files.write_json(LEASE, first | {"host": "another", "seen": time.time() - 10})
    with pytest.raises(ConflictError, match="on another is at work"), lease(files, "it"):
        pytest.fail("two writers")
    files.write_json(LEASE, first | {"host": "another", "seen": time.time() - 100})
    with lease(files, "it"):
        assert files.read_json(LEASE)["host"] != "another"


def test_a_run_that_lost_its_lease_does_not_overwrite_the_other_ones_dataset(logs, tmp_path, monkeypatch):
    logs.write_csv(tmp_path / "log.csv")
    run(tmp_path / "log.csv", tmp_path / "store")
    plain = stages.divide

    def meanwhile(*given: Any) -> Any:
        monkeypatch.setattr(stages, "divide", plain)
        files = open_store(tmp_path / "store").child("datasets/default")
        files.delete(LEASE)  # as if we had slept for longer than it lasts
        run(tmp_path / "log.csv", tmp_path / "store", encoder={"smoothing": 3.0})
        return plain(*given)

    monkeypatch.setattr(stages, "divide", meanwhile)
    with pytest.raises(ConflictError, match="somebody else prepared it meanwhile"):
        run(tmp_path / "log.csv", tmp_path / "store", encoder={"smoothing": 5.0})
    manifest = opened(tmp_path / "store").manifest
    assert manifest.config["encoder"]["smoothing"] == 3.0
    assert opened(tmp_path / "store").load().rows.rows == manifest.rows - manifest.held_out


def test_old_files_stay_for_one_version_and_then_go(logs, tmp_path):
    days = write_days(tmp_path / "in", logs, [200, 300, 400])
    kept = []
    for number in range(4):
        run(f"{tmp_path}/in/day-[0-{number}].csv", tmp_path / "store", data={"buckets": 2})
        kept.append(opened(tmp_path / "store"))
    assert len(days) == 4
    kept[-2].load()
    assert not any(kept[0].files.exists(bucket.histories) for bucket in kept[0].manifest.files)


@pytest.mark.parametrize(
    ("kind", "environment", "size", "expected"),
    [
        ("auto", {}, 10, "local"),
        ("auto", {}, 11, "ray"),
        ("auto", {"RAY_ADDRESS": "auto"}, 0, "ray"),
        ("local", {"RAY_ADDRESS": "auto"}, 99, "local"),
        ("ray", {}, 0, "ray"),
        ("local", {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}, 0, "ray"),
    ],
)
def test_which_engine_is_chosen(monkeypatch, kind, environment, size, expected):
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(engines, "_initialised", lambda: False)
    connected = []
    monkeypatch.setattr(engines.session, "connect", lambda: connected.append(True))
    assert engines.choose(kind, size, 10).name == expected
    assert connected == ([True] if expected == "ray" else [])


def test_the_local_engine_does_not_import_ray(logs, tmp_path):
    logs.write_csv(tmp_path / "log.csv")
    code = (
        "import sys; from dkt_ray import cli\n"
        f"code = cli.main(['prepare', '--set', 'data.path={tmp_path}/log.csv', '--set', 'store={tmp_path}/store'])\n"
        "sys.exit(code or 'ray' in sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert opened(tmp_path / "store").manifest.users == 40


def test_files_whose_rows_have_an_order_of_their_own_are_prepared_anew(tmp_path, caplog):
    header = "order_id,user_id,problem_id,correct,skill_id,ms_first_response\n"
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "a.csv").write_text(header + "1,u,q1,1,s1,10\n5,u,q5,0,s5,10\n2,v,q1,0,s1,10\n")
    run(folder, tmp_path / "store", data={"format": "assistments2009"})
    (folder / "b.csv").write_text(header + "3,u,q3,1,s3,10\n5,u,q5,0,s6,10\n")
    caplog.set_level(logging.INFO)
    grown = run(folder, tmp_path / "store", data={"format": "assistments2009"})
    assert "the order of its rows is a column of the files" in caplog.text
    assert grown["content"] == run(folder, tmp_path / "anew", data={"format": "assistments2009"})["content"]
    assert grown["rows"] == 4


def test_what_stays_on_without_concepts_is_said(logs, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    logs.drop("KnowledgeTag").write_csv(tmp_path / "log.csv")
    run(tmp_path / "log.csv", tmp_path / "store")
    assert "4 of core stay on, but repeat the rate of the head or are constant: concept_log_odds, " in caplog.text
