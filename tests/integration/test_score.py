"""`dkt score`: every hidden row once, in the competition's order, with the predictor's own probability."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from dkt_ray.data.query import Query
from dkt_ray.errors import BundleError, ConfigError, InputError, NotFoundError
from dkt_ray.pipelines import scoring
from dkt_ray.pipelines.scoring import ScoreConfig
from dkt_ray.registry.store import Registry
from dkt_ray.serving.predictor import Predictor
from dkt_ray.storage import open_store
from tests import bundles, runs

USERS = [2, 10, 9, 100, 31, 7, 1, 55, 23, 400, 12, 3]  # the order of the numbers is not the order of the texts


@pytest.fixture(scope="module")
def served(ray_cluster, tmp_path_factory):
    """A store with a champion, and the same bundle loaded."""
    folder = tmp_path_factory.mktemp("score")
    digest = bundles.build(folder / "bundle", bundles.save_members(folder / "members"))
    registry = Registry(open_store(folder / "store"))
    registry.publish(folder / "bundle", digest)
    registry.promote("champion", digest, None, "test")
    return folder, Predictor.load(folder / "bundle")


@pytest.fixture(scope="module")
def log():
    """Histories whose last answers are hidden, and one more in the middle."""
    histories = bundles.simulate(len(USERS), seed=5)
    correct = histories.correct.copy()
    correct[histories.offsets[1:] - 1] = -1
    correct[histories.offsets[3] + 2] = -1
    return replace(histories, correct=correct)


def score(served, path, out, data=(), **more):
    folder, _ = served
    settings = {"store": str(folder / "store"), "out": str(out), "copies": str(folder / "copies")}
    return scoring.run(ScoreConfig(data={"path": str(path)} | dict(data), **settings | more))


def expected(log, predictor):
    """(user, position) -> probability, each asked as a request over the history before it."""
    answers = {}
    names, times = log.question.strings(), log.timestamp
    for user, start, stop in zip(USERS, log.offsets[:-1], log.offsets[1:], strict=True):
        for row in np.flatnonzero(log.correct[start:stop] == -1) + start:
            past = slice(start, row)
            query = Query(
                names[past].tolist(),
                log.correct[past].tolist(),
                [names[row]],
                timestamp=times[past].tolist(),
                at=int(times[row]),
            )
            answers[user, row - start] = predictor.answer([query])[0].probability[0]
    return answers


def test_the_submission_holds_every_hidden_row_in_order(served, log, tmp_path):
    path = runs.write_log(tmp_path / "test.csv", log, [str(user) for user in USERS])
    result = score(served, path, tmp_path / "out.csv", keys=str(tmp_path / "keys.csv"))
    wanted = expected(log, served[1])
    order = sorted(wanted)
    table = pl.read_csv(tmp_path / "out.csv")
    assert table.columns == ["id", "prediction"]
    assert table["id"].to_list() == list(range(len(USERS) + 1))
    np.testing.assert_allclose(table["prediction"], [wanted[key] for key in order], rtol=0, atol=1e-6)
    keys = pl.read_csv(tmp_path / "keys.csv")
    assert keys["user"].to_list() == [user for user, _ in order]
    assert keys.columns == ["id", "user", "question"]
    assert (result["rows"], result["users"], result["bundle"]) == (len(order), len(USERS), served[1].version)
    assert not open_store(served[0] / "store").list("tmp")


def test_the_order_of_the_input_does_not_matter(served, log, tmp_path):
    path = runs.write_log(tmp_path / "test.csv", log, [str(user) for user in USERS])
    score(served, path, tmp_path / "out.csv")
    rows = pl.read_csv(path, infer_schema=False)
    shuffled = rows.sample(fraction=1, shuffle=True, seed=3)
    shuffled[: len(rows) // 2].write_csv(tmp_path / "a.csv.gz", compression="gzip")
    shuffled[len(rows) // 2 :].write_parquet(tmp_path / "b.parquet")
    (tmp_path / "parts").mkdir()
    for name in ("a.csv.gz", "b.parquet"):
        (tmp_path / name).rename(tmp_path / "parts" / name)
    score(served, tmp_path / "parts", tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "out.csv").read_bytes()


def test_text_ids_are_sorted_as_text_and_columns_can_be_mapped(served, log, tmp_path):
    path = runs.write_log(tmp_path / "test.csv", log, [f"s{user}" for user in USERS])
    pl.read_csv(path, infer_schema=False).rename({"userID": "who", "assessmentItemID": "item"}).write_csv(path)
    keys = tmp_path / "keys.csv"
    columns = {"columns": {"user": "who", "question": "item"}}
    score(served, path, tmp_path / "out.csv", columns, keys=str(keys))
    users = pl.read_csv(keys)["user"].unique(maintain_order=True).to_list()
    assert users == sorted(f"s{user}" for user in USERS)


def test_a_file_of_hidden_answers_only_is_scored_as_a_cold_start(served, log, tmp_path):
    first = replace(log.head(np.ones(len(USERS), np.int64)), correct=np.full(len(USERS), -1, np.int8))
    path = runs.write_log(tmp_path / "test.csv", first, [str(user) for user in USERS])
    assert score(served, path, tmp_path / "out.csv")["rows"] == len(USERS)
    names = first.question.strings()
    cold = [served[1].answer([Query([], [], [names[index]])])[0].probability[0] for index in np.argsort(USERS)]
    np.testing.assert_allclose(pl.read_csv(tmp_path / "out.csv")["prediction"], cold, rtol=0, atol=1e-6)


def test_questions_never_seen_are_scored_too(served, log, tmp_path):
    path = runs.write_log(tmp_path / "test.csv", log, [str(user) for user in USERS])
    rows = pl.read_csv(path, infer_schema=False)
    hidden = pl.col("answerCode") == "-1"
    rows.with_columns(
        pl.when(hidden).then(pl.lit("new")).otherwise("assessmentItemID").alias("assessmentItemID")
    ).write_csv(path)
    assert score(served, path, tmp_path / "out.csv")["rows"] == len(USERS) + 1


def test_nothing_hidden_nothing_there_and_bad_rows_are_refused(served, log, tmp_path):
    known = replace(log, correct=np.maximum(log.correct, 0))
    path = runs.write_log(tmp_path / "known.csv", known, [str(user) for user in USERS])
    with pytest.raises(InputError, match="no hidden answer"):
        score(served, path, tmp_path / "out.csv")
    with pytest.raises(InputError, match="nowhere"):
        score(served, tmp_path / "nowhere.csv", tmp_path / "out.csv")
    path = runs.write_log(tmp_path / "test.csv", log, [str(user) for user in USERS])
    text = path.read_text().splitlines()
    path.write_text("\n".join([*text, "5,A1,T1,7,2020-01-01 00:00:00,1"]) + "\n")
    with pytest.raises(InputError, match="unknown answer code"):
        score(served, path, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()
    assert score(served, path, tmp_path / "out.csv", {"max_rejected": 0.1})["rows"] == len(USERS) + 1


def test_a_manifest_beside_the_submission_says_what_it_is(served, log, tmp_path):
    path = runs.write_log(tmp_path / "test.csv", log, [str(user) for user in USERS])
    result = score(served, path, tmp_path / "out-{auc}-{bundle}.csv", rows=len(USERS) + 1)
    name = f"out-0.7100-{served[1].version[:12]}.csv"
    assert result["out"] == str(tmp_path / name)
    told = json.loads((tmp_path / f"{name}.json").read_text())
    assert (told["rows"], told["expected_rows"], told["users"]) == (len(USERS) + 1, len(USERS) + 1, len(USERS))
    assert (told["bundle"], told["metrics"]["auc"]) == (served[1].version, 0.71)
    assert told["sha256"] == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == result["sha256"]


def test_another_number_of_hidden_answers_than_was_told_writes_nothing(served, log, tmp_path):
    path = runs.write_log(tmp_path / "test.csv", log, [str(user) for user in USERS])
    with pytest.raises(InputError, match="13 hidden answers, setting rows is 744"):
        score(served, path, tmp_path / "out.csv", rows=744)
    assert [found.name for found in tmp_path.iterdir()] == ["test.csv"]


def test_a_figure_in_the_name_is_one_that_the_bundle_has():
    assert scoring.file_name("a.csv", "0" * 64, {}) == "a.csv"
    assert (
        scoring.file_name("{auc}.csv", "0" * 64, {"auc": {"value": 0.78514, "low": 0.7, "high": 0.8}}) == "0.7851.csv"
    )
    with pytest.raises(ConfigError, match="no AUROC"):
        scoring.file_name("{auc}.csv", "0" * 64, {"auc": None})


def test_a_hidden_row_is_never_lost_silently(served, log, tmp_path):
    path = runs.write_log(tmp_path / "test.csv", log, [str(user) for user in USERS])
    text = path.read_text().splitlines()
    twice = next(line for line in text if ",-1," in line)
    path.write_text("\n".join([*text, twice]) + "\n")
    with pytest.raises(InputError, match="14 hidden rows, but 13 probabilities: 1 of the rows are exact duplicates"):
        score(served, path, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_a_missing_or_damaged_bundle_is_refused(served, log, tmp_path):
    folder, predictor = served
    path = runs.write_log(tmp_path / "test.csv", log, [str(user) for user in USERS])
    with pytest.raises(NotFoundError, match="expected a digest or an alias"):
        score(served, path, tmp_path / "out.csv", bundle="nobody")
    with pytest.raises(NotFoundError, match="is not in"):
        score(served, path, tmp_path / "out.csv", bundle="0" * 64)
    store = open_store(folder / "store")
    key = f"bundles/{predictor.version}/state/state.json"
    whole = store.read(key)
    store.write(key, whole.replace(b"1", b"2", 1))
    with pytest.raises(BundleError, match=r"state\.json: SHA-256"):
        score(served, path, tmp_path / "out.csv", copies=str(tmp_path / "fresh"))
    store.write(key, whole)
    assert not (tmp_path / "out.csv").exists()
