"""`dkt events`: a log goes to the service row by row, once, whatever is interrupted."""

import gzip
from functools import partial

import polars as pl
import pytest

from dkt_ray.client import Client
from dkt_ray.data import reader
from dkt_ray.errors import DktError, InputError
from dkt_ray.log import Progress
from dkt_ray.pipelines import events
from tests.requests import forwarded

HEADER = "userID,assessmentItemID,testId,answerCode,Timestamp,KnowledgeTag"


@pytest.fixture
def send(api, monkeypatch):
    monkeypatch.setattr(events, "Client", partial(Client, transport=forwarded(api)))

    def send(path=None, **settings):
        return events.run(events.EventsConfig(path=path and str(path), **settings))

    return send


def write(path, rows):
    path.write_text("\n".join([HEADER, *rows, ""]))
    return path


def test_a_log_is_sent_once_however_often_the_command_is_given(send, api, tmp_path):
    rows = [f"u{i % 3},q{i},t,{i % 2},2026-03-02 16:{i // 60:02}:{i % 60:02},7_3" for i in range(2_500)]
    log = write(tmp_path / "log.csv", [*rows, "u1,later,t,-1,2026-03-03 16:00:00,", "u2,,t,1,2026-03-03 16:00:00,"])
    first = send(log)
    assert {word: first[word] for word in ("added", "waiting", "repeated", "rejected")} == {
        "added": 2_500,
        "waiting": 1,
        "repeated": 0,
        "rejected": 1,
    }
    assert send() == {"events": 2_500}
    again = send(log)
    assert (again["added"], again["repeated"]) == (0, 2_501)
    user = api.get("/v1/users/u1?answers=1").json()
    assert user["answers"] == len(rows[1::3])
    assert user["latest"] == [{"question": "q2497", "correct": 1, "answered_at": "2026-03-02T16:41:37Z"}]


def test_parquet_with_names_of_its_own_and_without_times_is_sent_too(send, api, tmp_path):
    pl.DataFrame({"who": [7, 7], "what": [1, 2], "right": [True, False]}).write_parquet(tmp_path / "log.parquet")
    columns = {"user": "who", "question": "what", "correct": "right"}
    assert send(tmp_path / "log.parquet", columns=columns)["added"] == 2
    assert send(tmp_path / "log.parquet", columns=columns)["repeated"] == 2
    latest = api.get("/v1/users/7?answers=2").json()["latest"]
    assert [(each["question"], each["correct"]) for each in latest] == [("1", 1), ("2", 0)]


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet"])
def test_a_log_is_read_once_and_the_progress_is_that_of_its_bytes(send, tmp_path, monkeypatch, kind):
    log, opened, told = tmp_path / f"log.{kind}", [], []
    rows = pl.DataFrame({"userID": "u", "assessmentItemID": [f"q{number}" for number in range(3_000)], "answerCode": 1})
    if kind == "parquet":
        rows.write_parquet(log, row_group_size=1_500)
    else:
        text = rows.write_csv().encode()
        log.write_bytes(gzip.compress(text) if kind == "csv.gz" else text)
    blocks = reader.blocks
    monkeypatch.setattr(reader, "blocks", lambda source, columns: opened.append(source) or blocks(source, columns))
    advance = Progress.advance
    monkeypatch.setattr(Progress, "advance", lambda done, steps: advance(done, steps) or told.append(done.done))
    assert send(log)["added"] == 3_000
    assert [(source.path, source.group) for source in opened] == (
        [(str(log), 0), (str(log), 1)] if kind == "parquet" else [(str(log), None)]
    )
    assert told == sorted(set(told))  # each part sent is progress, and only the last ends it
    assert (len(told), told[-1]) == (5 if kind == "parquet" else 4, log.stat().st_size)


def test_what_is_refused_in_the_middle_names_the_place_and_keeps_what_came_before(send, tmp_path):
    rows = [f"u,q{i},,1,2026-03-02 16:00:00," for i in range(1_500)]
    rows[1_200] = f"{'u' * 201},q,,1,2026-03-02 16:00:00,"
    log = write(tmp_path / "log.csv", rows)
    with pytest.raises(DktError, match=r"/events/200/user_id.*all events before log.csv:1000 are kept"):
        send(log)
    assert send() == {"events": 1_000}
    rows[1_200] = rows[0]
    assert send(write(log, rows))["added"] == 500


def test_another_file_under_the_same_name_is_refused(send, tmp_path):
    send(write(tmp_path / "log.csv", ["u,q,,1,2026-03-02 16:00:00,"]))
    other = write(tmp_path / "log.csv", ["u,r,,1,2026-03-02 16:00:00,"])
    with pytest.raises(DktError, match="409"):
        send(other)
    assert send(other, name="march")["added"] == 1


def test_a_log_without_the_columns_is_refused_with_the_remedy(send, tmp_path):
    (tmp_path / "log.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"--set data\.columns\.user"):
        send(tmp_path / "log.csv")


def test_files_of_one_name_in_several_folders_are_not_the_same_events(send, tmp_path):
    for day in ("day1", "day2"):
        (tmp_path / "logs" / day).mkdir(parents=True)
        write(tmp_path / "logs" / day / "part-0.csv", [f"u,{day},,1,2026-03-02 16:00:00,"])
        assert send(tmp_path / "logs")["added"] == 1  # the first day's is the same with and without the second
    assert send(tmp_path / "logs" / "*" / "part-*.csv")["repeated"] == 2
    with pytest.raises(InputError, match="name='x'"):
        send(tmp_path / "logs", name="x")
