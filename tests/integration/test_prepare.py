"""`dkt prepare`: the whole job and its bad input, through Ray Data what only that can show, else in this process."""

from __future__ import annotations

import gzip
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from dkt_ray.data import parse as p
from dkt_ray.errors import ConfigError, InputError, StorageError
from dkt_ray.events import tombstones
from dkt_ray.pipelines import stages
from dkt_ray.privacy import Privacy
from dkt_ray.schema import RAW_COLUMNS
from dkt_ray.storage import open_input, open_store
from tests.datasets import content, opened
from tests.datasets import run as prepare

USERS = 60


def logs(seed: int = 0) -> pl.DataFrame:
    """Answers of USERS students, unique times, 1 to 40 rows each; the last answer of every 6th student is hidden."""
    rng = np.random.default_rng(seed)
    lengths = np.r_[1, 40, rng.integers(2, 40, USERS - 2)]
    user = np.repeat(np.arange(USERS), lengths)
    rows = len(user)
    head, mid, tail = rng.integers(1, 4, rows), rng.integers(1, 6, rows), rng.integers(1, 5, rows)
    correct = rng.integers(0, 2, rows)
    last = np.cumsum(lengths) - 1
    correct[last[::6]] = -1
    seconds = 1_577_836_800 + rng.permutation(10**6)[:rows] * 60
    return pl.DataFrame(
        {
            "userID": user,
            "assessmentItemID": [f"A{h:02d}0{m:03d}{t:03d}" for h, m, t in zip(head, mid, tail, strict=True)],
            "testId": [f"A{h:02d}0000{m:03d}" for h, m in zip(head, mid, strict=True)],
            "answerCode": correct,
            "Timestamp": pl.from_epoch(pl.Series(seconds)).dt.strftime("%Y-%m-%d %H:%M:%S"),
            "KnowledgeTag": [f"{m}_{h}" for h, m in zip(head, mid, strict=True)],
        }
    )


LOGS = logs()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "log.csv"
    path.parent.mkdir()
    LOGS.write_csv(path)
    return path


def test_the_whole_job_through_ray_and_here(ray_cluster, source, tmp_path):
    result = prepare(source, tmp_path / "store", engine="ray")
    hidden = int((LOGS["answerCode"] == -1).sum())
    expected = {"rows": len(LOGS), "users": USERS, "hidden": hidden, "rejected": 0, "duplicates": 0, "reused": False}
    assert expected.items() <= result.items()
    assert (result["engine"], prepare(source, tmp_path / "auto", engine="auto")["engine"]) == ("ray", "ray")
    dataset = opened(tmp_path / "store")
    queries = [dataset.queries(bucket) for bucket in range(result["buckets"])]
    assert sum(int((each.correct == -1).sum()) for each in queries) == hidden
    training = dataset.load()
    assert len(training.users) == USERS - result["test_users"]
    assert 0 < result["test_users"] < USERS
    assert training.rows.rows + dataset.open_vault("a test").rows.rows == len(LOGS)
    for user, history in content(tmp_path / "store").items():
        mine = LOGS.filter(pl.col("userID") == int(user)).sort("Timestamp")
        assert history["question"] == mine["assessmentItemID"].to_list()
        assert history["correct"] == mine["answerCode"].to_list()
        assert history["timestamp"] == mine["Timestamp"].str.to_datetime().dt.epoch("ms").to_list()
        assert history["concepts"] == ["_".join(sorted(set(tags.split("_")))) for tags in mine["KnowledgeTag"]]
    assert dataset.files.list("tmp") == []
    here = prepare(source, tmp_path / "here", engine="local")
    assert (here["engine"], here["content"]) == ("local", result["content"])
    assert [bucket.checksum for bucket in opened(tmp_path / "here").manifest.files] == [
        bucket.checksum for bucket in dataset.manifest.files
    ]
    assert opened(tmp_path / "here").manifest.files == dataset.manifest.files


def test_the_scaler_is_of_the_training_rows(source, tmp_path):
    prepare(source, tmp_path / "store", data={"buckets": 2})
    dataset = opened(tmp_path / "store")
    rows = dataset.load().rows
    assert np.allclose(dataset.state.mean, rows.numbers.mean(0), atol=1e-3)
    assert np.allclose(dataset.state.std, rows.numbers.std(0), atol=2e-2)


def test_the_content_does_not_depend_on_engine_buckets_files_blocks_or_row_order(ray_cluster, source, tmp_path):
    one = prepare(source, tmp_path / "one", data={"buckets": 1})
    shuffled = LOGS.sample(fraction=1, shuffle=True, seed=1)
    cut = tmp_path / "cut"
    cut.mkdir()
    shuffled[:200].write_csv(cut / "z.csv")
    with (cut / "a.csv.gz").open("wb") as file:
        file.write(_gzipped(shuffled[200:500]))
    shuffled[500:].write_parquet(cut / "m.parquet", row_group_size=100)
    result = prepare(cut, tmp_path / "seven", data={"buckets": 7}, engine="ray")
    assert (result["buckets"], result["content"]) == (7, one["content"])
    assert content(tmp_path / "seven") == content(tmp_path / "one")


def test_pseudonyms_and_deletions_through_ray_and_here(ray_cluster, source, tmp_path, monkeypatch):
    monkeypatch.setenv("DKT_PRIVACY_KEY", "of the driver: the workers started without one")
    privacy = Privacy.of_environment()
    gone = [privacy.mark(privacy.user(user)) for user in ("3", "4")]
    for engine in ("ray", "local"):
        tombstones.remember(open_store(str(tmp_path / engine)), gone, privacy)
        told = prepare(source, tmp_path / engine, data={"pseudonyms": True}, engine=engine)
        assert (told["users"], told["forgotten"]) == (USERS - 2, LOGS["userID"].is_in([3, 4]).sum())
    found = content(tmp_path / "ray")
    assert found == content(tmp_path / "local")
    assert set(found) == {privacy.user(str(user)) for user in range(USERS)} - {privacy.user("3"), privacy.user("4")}


def test_a_worker_that_is_killed_costs_nothing_but_time(ray_cluster, source, tmp_path):
    """kill -9 of the Ray worker that merges the first bucket; its task runs again in another process."""
    expected = prepare(source, tmp_path / "here", data={"buckets": 3})
    witness = tmp_path / "killed"
    original = stages._merge_bucket

    def dying(item: dict[str, Any], **given: Any) -> dict[str, Any]:
        if item["bucket"] == 1 and not witness.exists():
            witness.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return original(item, **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "_merge_bucket", dying)
        result = prepare(source, tmp_path / "store", data={"buckets": 3}, engine="ray")
    assert not Path(f"/proc/{witness.read_text()}").exists()
    assert int(witness.read_text()) != os.getpid()
    assert result["content"] == expected["content"]
    assert content(tmp_path / "store") == content(tmp_path / "here")


def test_questions_in_another_test_than_their_id_names_are_said(source, tmp_path, caplog):
    prepare(source, tmp_path / "sound")
    assert "is the test column right?" not in caplog.text
    other = LOGS.with_columns(pl.lit("A090000009").alias("testId"))
    other.write_csv(source)
    prepare(source, tmp_path / "odd")
    assert "A090000009; is the test column right?" in caplog.text


def test_rows_of_equal_time_keep_the_order_of_file_and_row(tmp_path):
    tied = LOGS.filter(pl.col("userID") == 1).with_columns(pl.lit("2020-01-01 00:00:00").alias("Timestamp"))
    tied = tied.with_columns(pl.format("question {}", pl.int_range(pl.len())).alias("assessmentItemID"))
    tied = pl.concat([tied, LOGS.filter(pl.col("userID") > 1)])
    folder = tmp_path / "in"
    folder.mkdir()
    tied[:25].write_csv(folder / "a.csv")
    tied[25:].write_csv(folder / "b.csv")
    prepare(folder, tmp_path / "store")
    assert content(tmp_path / "store")["1"]["question"] == tied["assessmentItemID"][:40].to_list()


def test_duplicates_are_dropped_and_counted(source, tmp_path):
    LOGS[10:30].write_csv(source.parent / "again.csv")
    result = prepare(source.parent, tmp_path / "store")
    assert (result["duplicates"], result["rows"]) == (20, len(LOGS))
    prepare(source, tmp_path / "once")
    assert content(tmp_path / "store") == content(tmp_path / "once")


def test_the_second_run_reuses_and_every_change_does_not(source, tmp_path):
    store = tmp_path / "store"
    first = prepare(source, store)
    again = prepare(source, store)
    assert again["reused"]
    assert again | {"reused": False, "seconds": 0} == first | {"seconds": 0}
    assert not prepare(source, store, force=True)["reused"]
    assert not prepare(source, store, encoder={"smoothing": 3.0})["reused"]
    assert not prepare(source, store)["reused"]  # the other settings' dataset stood there
    LOGS[:-1].write_csv(source)
    assert not prepare(source, store)["reused"]


def test_a_dataset_of_another_version_is_replaced_and_its_files_go(source, tmp_path):
    dataset = open_store(str(tmp_path / "store")).child("datasets/default")
    dataset.write("manifest.json", b'{"dataset": "default"}')
    for key in ("tmp/dead/b=000/00000-0000.parquet", "histories/b=000.parquet", "encoded/b=099.parquet"):
        dataset.write(key, b"of a run that was killed, or of a version before this one")
    prepare(source, tmp_path / "store")
    assert dataset.list("tmp") == dataset.list("encoded") == []
    assert not dataset.exists("histories/b=000.parquet")


def test_a_few_bad_rows_are_kept_aside_with_reason_file_and_row(source, tmp_path):
    lines = source.read_text().splitlines()
    lines[5] = lines[5].replace(",A", ",,A", 1)  # one column too many
    lines[8] = ",".join(["", *lines[8].split(",")[1:]])
    lines[11] = lines[11].replace("2020-", "in 2020 ")
    lines[14] = ",".join([*lines[14].split(",")[:3], "7", *lines[14].split(",")[4:]])
    source.write_text("\n".join(lines) + "\n")
    result = prepare(source, tmp_path / "store")
    assert (result["rejected"], result["rows"]) == (4, len(LOGS) - 4)
    rejected = opened(tmp_path / "store").files.child("rejected")
    found = pl.concat([pl.DataFrame(rejected.read_table(key)) for key in rejected.list()]).sort("row")
    assert found.columns == ["file", "row", "reason", "raw"]
    assert found["file"].unique().to_list() == [str(source)]
    assert found["row"].to_list() == [4, 7, 10, 13]
    assert found["reason"].to_list() == [p.WRONG_WIDTH, p.MISSING_USER, p.UNPARSABLE_TIME, p.UNKNOWN_ANSWER]
    assert found["raw"][3] == lines[14]


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [("answerCode", "5", "unknown answer code"), ("Timestamp", "yesterday", "unparsable timestamp")],
)
def test_too_many_bad_rows_stop_the_job_and_leave_the_old_dataset(ray_cluster, source, tmp_path, column, value, reason):
    good = prepare(source, tmp_path / "store")
    spoilt = pl.when(pl.int_range(pl.len()) % 10 == 3).then(pl.lit(value)).otherwise(pl.col(column).cast(pl.String))
    LOGS.with_columns(spoilt.alias(column)).write_csv(source)
    bad = len(range(3, len(LOGS), 10))
    message = rf"{bad} of {len(LOGS)} rows are bad .*\n  {bad} x {reason}.*log.csv, row 3: .*{value}.*\n.*rejected"
    with pytest.raises(InputError, match=message):
        prepare(source, tmp_path / "store", engine="ray")
    assert opened(tmp_path / "store").manifest.fingerprint == good["fingerprint"]
    assert open_store(str(tmp_path / "store")).list("datasets/default/tmp") == []


def test_other_column_names_are_mapped_and_optional_columns_may_be_missing(tmp_path):
    path = tmp_path / "log.csv"
    LOGS.select(student_id="userID", item="assessmentItemID", ok=pl.col("answerCode") == 1).write_csv(path)
    columns = {"user": "student_id", "question": "item", "correct": "ok"}
    result = prepare(path, tmp_path / "store", data={"columns": columns})
    assert (result["rows"], result["concepts"], result["duplicates"]) == (len(LOGS), 0, 0)
    assert not opened(tmp_path / "store").manifest.timed
    for user, history in content(tmp_path / "store").items():
        mine = LOGS.filter(pl.col("userID") == int(user))
        assert history["question"] == mine["assessmentItemID"].to_list()  # the order of the file
        assert set(history["test"]) == {p.ONE_TEST}
        assert set(history["concepts"]) == {""}
        assert "timestamp" not in history


def test_one_user_with_one_row(tmp_path):
    LOGS.filter(pl.col("userID") == 2)[:1].write_csv(tmp_path / "log.csv")
    result = prepare(tmp_path / "log.csv", tmp_path / "store", data={"test_fraction": 0.0})
    assert (result["rows"], result["users"]) == (1, 1)
    assert opened(tmp_path / "store").load().rows.rows == 1


def test_a_published_split(source, tmp_path):
    names = ["fold1", "fold2", "fold3", "test"]
    split = pl.DataFrame({"userID": range(USERS), "split": [names[user % 4] for user in range(USERS)]})
    split.write_csv(tmp_path / "split.csv")
    prepare(source, tmp_path / "store", data={"split_file": str(tmp_path / "split.csv")})
    for user, history in content(tmp_path / "store").items():
        assert history["fold"] == [0, 1, 2, -1][int(user) % 4]
    split[1:].write_csv(tmp_path / "split.csv")
    with pytest.raises(InputError, match=r"1 users of the data are not in it, e\.g\. '0'"):
        prepare(source, tmp_path / "store", data={"split_file": str(tmp_path / "split.csv")})


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.csv: no data there"):
        prepare(tmp_path / "nowhere.csv", tmp_path / "store")


def test_a_missing_column_says_how_to_map_it(source, tmp_path):
    LOGS.rename({"userID": "student_id"}).write_csv(source)
    with pytest.raises(InputError, match=r"no column 'userID'.*'student_id'.*--set data.columns.user="):
        prepare(source, tmp_path / "store")


def test_an_empty_file_is_named(source, tmp_path):
    (source.parent / "empty.csv").write_bytes(b"")
    with pytest.raises(InputError, match=r"empty.csv: the file is empty"):
        prepare(source.parent, tmp_path / "store")


def test_a_file_with_a_header_only(source, tmp_path):
    source.write_text(",".join(RAW_COLUMNS.values()) + "\n")
    with pytest.raises(InputError, match="there is a header but no row"):
        prepare(source, tmp_path / "store")


def test_only_hidden_answers_leave_nothing_to_learn_from(source, tmp_path):
    LOGS.with_columns(answerCode=pl.lit(-1)).write_csv(source)
    with pytest.raises(InputError, match=rf"all {len(LOGS)} answers are hidden \(-1\); training needs rows"):
        prepare(source, tmp_path / "store")


def test_timestamps_in_some_files_only(source, tmp_path):
    LOGS.drop("Timestamp").write_csv(source.parent / "other.csv")
    with pytest.raises(InputError, match=r"log.csv has the column 'Timestamp', .*other.csv has not"):
        prepare(source.parent, tmp_path / "store")


def test_no_buckets_cannot_be(tmp_path):
    with pytest.raises(ValueError, match=r"data.buckets is 0: .*greater than or equal to 1"):
        prepare(tmp_path, tmp_path / "store", data={"buckets": 0})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "temporal"}, "split=temporal and split_time belong together"),
        ({"split_time": "2020-01-01"}, "split=temporal and split_time belong together"),
        ({"split": "file"}, "split=file needs split_file"),
    ],
)
def test_half_a_split_is_refused(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        prepare(tmp_path, tmp_path / "store", data=settings)


def test_from_and_to_s3(ray_cluster, seaweedfs, source, tmp_path):
    inputs = open_store(f"{seaweedfs}/prepare/in")
    LOGS[:400].write_csv(source)
    inputs.write("a.csv", source.read_bytes())
    inputs.write("deep/b.csv.gz", _gzipped(LOGS[400:]))
    result = prepare(f"{seaweedfs}/prepare/in", f"{seaweedfs}/prepare/store", data={"buckets": 2}, engine="ray")
    assert result["rows"] == len(LOGS)
    LOGS.write_csv(source)
    prepare(source, tmp_path / "store")
    assert content(f"{seaweedfs}/prepare/store") == content(tmp_path / "store")
    assert prepare(f"{seaweedfs}/prepare/in", f"{seaweedfs}/prepare/store", data={"buckets": 2})["reused"]
    with open_input(f"{seaweedfs}/prepare/in/a.csv") as stream:
        assert stream.read().startswith(b"userID")


def test_a_bucket_that_does_not_exist(seaweedfs, source, tmp_path):
    with pytest.raises(StorageError, match=r"s3://no-such-bucket.*the bucket does not exist"):
        prepare("s3://no-such-bucket/log.csv", tmp_path / "store")
    with pytest.raises(StorageError, match=r"s3://no-such-bucket.*the bucket does not exist"):
        prepare(source, "s3://no-such-bucket/store")


def test_wrong_credentials(seaweedfs, source, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError, match="check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY"):
        prepare(source, f"{seaweedfs}/prepare/store")


@pytest.mark.real_data
def test_a_real_log(real_data, tmp_path):
    result = prepare(real_data / "ednet_kt1_92u.csv.gz", tmp_path / "store")
    known = {"rows": 77_419, "users": 92, "concepts": 188, "rejected": 0, "hidden": 0, "duplicates": 0}
    assert known.items() <= result.items()


def _gzipped(frame: pl.DataFrame) -> bytes:
    return gzip.compress(frame.write_csv().encode())
