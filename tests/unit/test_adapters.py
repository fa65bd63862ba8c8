"""The field's formats: each fixture, in the real format, becomes exactly the interactions that are in it."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest

from dkt_ray.config import build
from dkt_ray.data.adapters import catalog
from dkt_ray.data.adapters.base import FRACTION
from dkt_ray.data.adapters.riiid import LECTURE, NO_ANSWER, NO_SUCH_QUESTION
from dkt_ray.data.adapters.sequences import LINES_LEFT, UNEVEN, WRONG_LENGTH
from dkt_ray.data.buckets import deal, merge
from dkt_ray.data.engine import LocalEngine
from dkt_ray.data.ingest import DataConfig, inspect, read
from dkt_ray.data.parse import BAD_ORDER, UNKNOWN_ANSWER, WRONG_WIDTH, parse
from dkt_ray.data.reader import BLOCK_BYTES
from dkt_ray.errors import ConfigError, InputError
from dkt_ray.storage import open_store

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests/fixtures"
FORMAT_OF = {name: name for name in catalog.FORMATS} | {"assistments2009_collapsed": "assistments2009"}
ALL = "all"  # the test of data that know none

Row = tuple[str, str, str, str, int, int | None]  # user, question, test, concepts, correct, ms


class Loaded(NamedTuple):
    """What a path holds."""

    rows: list[Row]
    rejected: list[tuple[str, int, str]]  # name of the file, row, reason
    dropped: dict[str, int]
    blocks: int


def load(path: Path | str, block_bytes: int = BLOCK_BYTES, name: str = "auto", seed: int | None = None) -> Loaded:
    """Read, deal and merge in this process; with a seed, the shards arrive in another order."""
    found = catalog.find([str(path)], name, {})
    shards, bad, dropped, blocks = [], [], Counter(), 0
    for source in catalog.sources(found.format, list(found.columns)):
        columns = found.columns[source.path]
        for block in catalog.blocks(found.format, source, columns, found.questions, block_bytes):
            parsed = parse(block.raw, block.file, block.rows, found.format.milliseconds)
            bad += pl.concat([block.malformed, parsed.rejected]).rows()
            dropped.update(block.dropped)
            shards += deal(parsed.good, source.number, 1).values()
            blocks += 1
    if seed is not None:
        shards = [shards[at] for at in np.random.default_rng(seed).permutation(len(shards))]
    timed = all("timestamp" in columns for columns in found.columns.values())
    rejected = [(Path(file).name, row, reason) for file, row, reason, _ in bad]
    return Loaded(flat(shards, timed), rejected, dict(dropped), blocks)


def flat(shards: Sequence[object], timed: bool) -> list[Row]:
    histories, duplicates = merge(shards, timed)
    assert duplicates == 0
    users = np.repeat(histories.users, histories.lengths).tolist()
    times = [None] * histories.rows if histories.timestamp is None else histories.timestamp.tolist()
    columns = [each.strings().tolist() for each in (histories.question, histories.test, histories.concepts)]
    return list(zip(users, *columns, histories.correct.tolist(), times, strict=True))


ASSISTMENTS_2009 = [
    ("64525", "51", ALL, "", 1, None),
    ("ué", "50", ALL, "3", 1, None),
    ("ué", "51", ALL, "12_9", 0, None),
    ("ué", "52", ALL, "", 1, None),
]
EXPECTED: dict[str, list[Row]] = {
    "competition": [
        ("0", "A060001001", "A060000001", "7224", 1, 1585009031000),
        ("0", "A060001002", "A060000001", "7225", 0, 1585009034000),
        ("3", "A050023001", "A050000023", "2626", 1, 1578567391000),
        ("3", "A050023002", "A050000023", "2626", -1, 1578567417000),
    ],
    "assistments2009": ASSISTMENTS_2009,
    "assistments2009_collapsed": ASSISTMENTS_2009,
    "assistments2012": [
        ("61394", "901", ALL, "297", 1, 1348845087000),
        ("61394", "900", ALL, "297", 0, 1348845087000),
        ("61394", "903", ALL, "", 1, 1348845240500),
    ],
    "assistments2015": [
        ("50121", "7015", ALL, "7015", 1, None),
        ("50121", "7014", ALL, "7014", 0, None),
        ("50121", "7014", ALL, "7014", 1, None),
        ("51950", "7014", ALL, "7014", 0, None),
    ],
    "assistments2017": [
        ("8", "1", ALL, "properties-of-geometric-figures", 0, 1096470301000),
        ("8", "3", ALL, "", 1, 1096470350000),
        ("8", "2", ALL, "sum-of-angles", 1, 1096470360000),
    ],
    "ednet_kt1": [
        ("u1", "q1", "b1", "1_179_2", 0, 1565096190000),
        ("u1", "q2", "b2", "15", 1, 1565096190868),
        ("u20", "q3", "b2", "", 1, 5000),
        ("u20", "q1", "b1", "1_179_2", 1, 8000),
    ],
    "riiid": [
        ("115", "5692", "5692", "151", 1, 0),
        ("115", "5716", "5716", "168_38", 0, 56943),
        ("115", "128", "5716", "", 1, 56943),
    ],
    "lines3": [
        ("builder_train-0", "1", ALL, "1", 0, None),
        ("builder_train-0", "2", ALL, "2", 1, None),
        ("builder_train-0", "2", ALL, "2", 1, None),
        ("builder_train-1", "9", ALL, "9", 1, None),
    ],
    "lines4": [
        ("12", "53", ALL, "2", 1, None),
        ("12", "51", ALL, "1", 0, None),
        ("7", "51", ALL, "1", 0, None),
        ("7", "52", ALL, "2", 1, None),
        ("7", "51", ALL, "1", 1, None),
    ],
    "pykt": [
        ("5", "10", ALL, "1_3", 1, 1000),
        ("5", "11", ALL, "2_3_9", 0, 2000),
        ("5", "12", ALL, "3", 1, 3000),
        ("6", "10", ALL, "1_3", 1, 500),
    ],
}
DROPPED = {
    "assistments2012": {FRACTION: 1},
    "assistments2015": {FRACTION: 1},
    "ednet_kt1": {NO_ANSWER: 1},
    "riiid": {LECTURE: 1},
}
REJECTED = {"ednet_kt1": [("u20.csv", 2, WRONG_WIDTH), ("u20.csv", 1, NO_SUCH_QUESTION)]}


def test_every_format_has_a_fixture():
    assert {FORMAT_OF[path.name] for path in FIXTURES.iterdir()} == set(catalog.FORMATS)
    assert set(EXPECTED) == {path.name for path in FIXTURES.iterdir()}


@pytest.mark.parametrize("fixture", EXPECTED)
def test_a_fixture_holds_exactly_these_interactions(fixture):
    found = load(FIXTURES / fixture)
    assert found.rows == EXPECTED[fixture]
    assert found.dropped == DROPPED.get(fixture, {})
    assert found.rejected == REJECTED.get(fixture, [])


@pytest.mark.parametrize("block_bytes", [8, 200, 250])
@pytest.mark.parametrize("fixture", EXPECTED)
def test_neither_block_borders_nor_the_order_of_shards_matter(fixture, block_bytes):
    if not catalog.FORMATS[FORMAT_OF[fixture]].lines:
        block_bytes = max(block_bytes, 200)  # a header has to fit
    whole = load(FIXTURES / fixture)
    small = load(FIXTURES / fixture, block_bytes, seed=block_bytes)
    assert small.rows == whole.rows
    assert sorted(small.rejected) == sorted(whole.rejected)
    assert small.dropped == whole.dropped


@pytest.mark.parametrize("fixture", EXPECTED)
def test_a_fixture_is_recognised_as_its_own_format(fixture):
    found = catalog.find([str(FIXTURES / fixture)], "auto", {})
    assert found.format.name == FORMAT_OF[fixture]
    assert (found.format.timestamp_is is None) == all(row[5] is None for row in EXPECTED[fixture])


def test_a_time_of_a_start_is_when_the_question_was_shown():
    """Columns named start are known before the answer; `timestamp` of EdNet and Riiid is documented to be so."""
    shown = {"assistments2012", "assistments2017", "ednet_kt1", "riiid"}
    assert {name for name, each in catalog.FORMATS.items() if each.timestamp_is == "shown"} == shown
    for each in catalog.FORMATS.values():
        if each.columns.get("timestamp", "").lower().startswith("start"):
            assert each.timestamp_is == "shown", each.name


@pytest.mark.parametrize("name", catalog.FORMATS)
@pytest.mark.parametrize("fixture", EXPECTED)
def test_a_wrong_format_names_the_right_one(fixture, name):
    right = FORMAT_OF[fixture]
    if name == right:
        return
    with pytest.raises(InputError, match=rf"data\.format={name}.*set --set data\.format={right}"):
        catalog.find([str(FIXTURES / fixture)], name, {})


def test_files_of_two_formats_are_told_apart(tmp_path):
    shutil.copy(FIXTURES / "competition/train_data.csv", tmp_path / "a.csv")
    shutil.copy(FIXTURES / "riiid/train.csv", tmp_path / "b.csv")
    with pytest.raises(InputError, match=r"b\.csv: expected the first file's format, competition.*riiid"):
        catalog.find([str(tmp_path)], "auto", {})


def test_an_unknown_header_is_asked_for_the_columns_of_the_schema(tmp_path):
    (tmp_path / "log.csv").write_text("student,item,ok\n1,2,1\n")
    with pytest.raises(InputError, match="no column 'userID'"):
        catalog.find([str(tmp_path)], "auto", {})
    with pytest.raises(InputError, match=r"no column 'row_id', which riiid .* formats: competition, "):
        catalog.find([str(tmp_path)], "riiid", {})
    with pytest.raises(InputError, match="not lines3"):
        catalog.find([str(tmp_path)], "lines3", {})
    with pytest.raises(ConfigError, match=r"leave it out"):
        catalog.find([str(tmp_path)], "riiid", {"user": "student"})
    columns = {"user": "student", "question": "item", "correct": "ok"}
    assert catalog.find([str(tmp_path)], "auto", columns).format is catalog.COMPETITION


def test_a_format_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="expected auto, competition, assistments2009"):
        build(DataConfig, {"path": "x", "format": "assist09"})


def test_kt1_needs_its_questions_and_one_file_a_user(tmp_path):
    shutil.copytree(FIXTURES / "ednet_kt1/KT1", tmp_path / "a/KT1")
    with pytest.raises(InputError, match=r"no questions\.csv, which ednet_kt1 needs"):
        catalog.find([str(tmp_path / "a/KT1")], "auto", {})
    shutil.copy(FIXTURES / "ednet_kt1/contents/questions.csv", tmp_path / "a")
    assert catalog.find([str(tmp_path / "a/KT1")], "auto", {}).questions == str(tmp_path / "a/questions.csv")
    (tmp_path / "a/KT1/more").mkdir()
    shutil.copy(FIXTURES / "ednet_kt1/KT1/u1.csv", tmp_path / "a/KT1/more")
    with pytest.raises(InputError, match="files of one user"):
        catalog.find([str(tmp_path / "a/KT1")], "auto", {})


def test_many_small_files_are_one_task_and_few_blocks(tmp_path):
    shutil.copytree(FIXTURES / "ednet_kt1/contents", tmp_path / "contents")
    (tmp_path / "KT1").mkdir()
    header, row = "timestamp,solving_id,question_id,user_answer,elapsed_time\n", "{},1,q1,b,5\n"
    for user in range(300):
        (tmp_path / f"KT1/u{user}.csv").write_text(header + "".join(row.format(t) for t in range(user % 4)))
    found = catalog.find([str(tmp_path / "KT1")], "auto", {})
    assert len(catalog.sources(found.format, list(found.columns))) == 1
    loaded = load(tmp_path / "KT1", block_bytes=1000)
    assert 4 <= loaded.blocks <= 6  # 450 rows of 11 bytes
    assert Counter(row[0] for row in loaded.rows) == {f"u{user}": user % 4 for user in range(300) if user % 4}
    (tmp_path / "KT1/u7.csv").write_text("time,question\n1,2\n")
    with pytest.raises(InputError, match=r"u7\.csv: the header is"):
        load(tmp_path / "KT1")


def test_riiid_without_questions_knows_no_concepts(tmp_path):
    shutil.copy(FIXTURES / "riiid/train.csv", tmp_path)
    assert [row[1:4] for row in load(tmp_path).rows] == [(q, ALL, "") for q in ("5692", "5716", "128")]


def test_typed_parquet_is_read_as_its_csv(tmp_path):
    pl.read_csv(FIXTURES / "riiid/train.csv").write_parquet(tmp_path / "train.parquet")
    shutil.copy(FIXTURES / "riiid/questions.csv", tmp_path)
    assert load(tmp_path).rows == EXPECTED["riiid"]


def test_bad_groups_of_lines_are_rejected_with_the_number_of_their_first_line(tmp_path):
    (tmp_path / "log.txt").write_text("2\n1,2\n0,1\n" * 20 + "3\n1,2\n0,1\n" + "2\n1,2,3\n0,1\n" + "0\n\n\n" + "1\n4\n")
    found = load(tmp_path / "log.txt")
    assert sorted(found.rejected) == [
        ("log.txt", 60, WRONG_LENGTH),
        ("log.txt", 63, UNEVEN),
        ("log.txt", 69, LINES_LEFT),
        ("log.txt", 70, LINES_LEFT),
    ]
    assert len(found.rows) == 40


def test_bad_values_keep_their_row(tmp_path):
    (tmp_path / "log.csv").write_text("user_id,log_id,sequence_id,correct\n1,5,7,1\n1,x,7,1\n1,6,7,2\n")
    assert load(tmp_path).rejected == [("log.csv", 1, BAD_ORDER), ("log.csv", 2, UNKNOWN_ANSWER)]


def test_pykt_windows_that_overlap_count_each_answer_once(tmp_path):
    """test_window_sequences.csv: of later windows only the last position is selected."""
    header = "fold,uid,concepts,responses,selectmasks,is_repeat\n"
    first = '-1,1,"1,2,3","1,0,1","1,1,1","0,0,0"\n'
    later = '-1,1,"2,3,4","0,1,1","-1,-1,1","0,0,0"\n'
    (tmp_path / "test_window_sequences.csv").write_text(header + first + later)
    assert [row[1] for row in load(tmp_path).rows] == ["1", "2", "3", "4"]


def test_rows_of_one_key_but_two_questions_stay_two_and_the_first_answer_counts(tmp_path):
    header = "order_id,user_id,problem_id,correct,skill_id\n"
    (tmp_path / "log.csv").write_text(header + "1,u,a,1,x\n1,u,b,0,x\n1,u,a,0,y\n1,v,a,0,z\n")
    assert [row[:5] for row in load(tmp_path).rows] == [
        ("u", "a", ALL, "x_y", 1),
        ("u", "b", ALL, "x", 0),
        ("v", "a", ALL, "z", 0),
    ]


def test_a_latin_1_line_of_a_wrong_width_is_rejected_like_any_other(tmp_path):
    text = "order_id,user_id,problem_id,correct,skill_id\n1,u,a,1,x\n2,\u00e9,a,1\n3,\u00e9,b,0,y\n"
    (tmp_path / "log.csv").write_bytes(text.encode("latin-1"))
    found = load(tmp_path)
    assert found.rejected == [("log.csv", 1, WRONG_WIDTH)]
    assert [row[0] for row in found.rows] == ["u", "\u00e9"]


def test_ingest_reads_a_format_and_says_what_it_left_out(tmp_path):
    config = DataConfig(path=str(FIXTURES / "ednet_kt1/KT1"), max_rejected=0.5)
    inputs = inspect(config)
    assert (inputs.format, inputs.timestamp_is, inputs.timed) == ("ednet_kt1", "shown", True)
    assert inputs.identity[1] is not None
    store, rejected = open_store(tmp_path / "shards"), open_store(tmp_path / "rejected")
    shards = read(config, inputs, 1, store, rejected, LocalEngine())
    assert (shards.rejected, shards.dropped) == (2, {NO_ANSWER: 1})
    assert flat([store.read_table(key) for key in shards.keys[0]], timed=True) == EXPECTED["ednet_kt1"]


def test_the_document_has_a_row_for_every_format():
    text = (ROOT / "docs/data-formats.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([a-z0-9_]+)`", text, re.MULTILINE) == list(catalog.FORMATS)
