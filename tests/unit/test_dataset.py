"""Reading a prepared dataset: folds, order, training rows only, encoding at read, and the vault."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from dkt_ray.data.splits import TEST
from dkt_ray.errors import ConfigError, NotFoundError, StorageError
from dkt_ray.features.batch import Rows
from dkt_ray.features.chunks import encode_chunks, encode_users
from dkt_ray.features.dataset import MANIFEST, Dataset, folder
from dkt_ray.features.encoder import encode
from dkt_ray.storage import Store, open_store
from tests import datasets, runs
from tests.builders import random_histories

NAMES = ["g", "b", "e", "a", "f", "c", "d", "aa"]
FOLDS = {"a": 0, "b": TEST, "c": 2, "d": 1, "e": 2, "f": 0, "g": TEST, "aa": 1}
TRAINING = ["a", "aa", "c", "d", "e", "f"]
HISTORIES = random_histories(np.random.default_rng(0), len(NAMES), hidden=0.0)
HISTORIES = dataclasses.replace(HISTORIES, users=np.array(NAMES, object))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with a dataset of three buckets; the last answer of user g is hidden."""
    path = tmp_path_factory.mktemp("dataset")
    hidden = HISTORIES.correct.copy()
    hidden[HISTORIES.offsets[1] - 1] = -1
    runs.write_log(path / "log.csv", dataclasses.replace(HISTORIES, correct=hidden))
    split = ["test" if FOLDS[name] == TEST else f"fold{FOLDS[name] + 1}" for name in NAMES]
    pl.DataFrame({"userID": NAMES, "split": split}).write_csv(path / "split.csv")
    data = {"split_file": str(path / "split.csv"), "buckets": 3}
    datasets.run(path / "log.csv", path / "store", data=data, encoder={"min_count": 1})
    return str(path / "store")


@pytest.fixture
def store(made: str) -> Store:
    store = open_store(made)
    store.delete_prefix("ledger")
    return store


@pytest.fixture
def dataset(store: Store) -> Dataset:
    return Dataset.open(store, "default")


def assert_equal(one: Rows, other: Rows) -> None:
    for field in dataclasses.fields(Rows):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if isinstance(left, dict):
            assert left.keys() == right.keys()
            assert all(np.array_equal(left[name], right[name]) for name in left)
        else:
            assert left.dtype == right.dtype
            assert np.array_equal(left, right)


def own(rows: Rows, user: int) -> Rows:
    chosen = np.arange(rows.offsets[user], rows.offsets[user + 1])
    return rows.take(chosen, np.array([0, len(chosen)]))


def test_training_users_in_the_order_of_their_names(dataset):
    split = dataset.load()
    assert split.users.tolist() == dataset.training_users().tolist() == TRAINING
    assert split.fold.tolist() == [FOLDS[name] for name in TRAINING]
    assert split.rows.rows == sum(int(HISTORIES.lengths[NAMES.index(name)]) for name in TRAINING)


def test_rows_are_encoded_with_a_state_that_excludes_their_fold(dataset):
    split = dataset.load([2])
    histories, _ = dataset.load_histories([2])
    assert split.users.tolist() == histories.users.tolist() == dataset.training_users([2]).tolist() == ["c", "e"]
    assert_equal(split.rows, encode(histories, None, dataset.state.excluding(2)).past)
    assert not np.array_equal(split.rows.numbers, encode(histories, None, dataset.state).past.numbers)


def test_histories_match_the_encoded_rows(dataset):
    for folds in (None, [0, 1], [2]):
        histories, fold = dataset.load_histories(folds)
        split = dataset.load(folds)
        assert histories.users.tolist() == split.users.tolist()
        assert fold.tolist() == split.fold.tolist()
        assert np.array_equal(histories.offsets, split.rows.offsets)
        assert np.array_equal(histories.correct, split.rows.correct)


def test_a_stream_gives_what_load_gives_bucket_by_bucket(dataset):
    parts = list(dataset.stream([0, 1]))
    assert len(parts) == 3
    whole = dataset.load([0, 1])
    place = {name: index for index, name in enumerate(whole.users)}
    assert sorted(name for part in parts for name in part.users) == whole.users.tolist()
    for part in parts:
        assert part.users.tolist() == sorted(part.users)
        for index, name in enumerate(part.users):
            assert part.fold[index] == whole.fold[place[name]]
            assert_equal(own(part.rows, index), own(whole.rows, place[name]))


def test_a_selection_without_users_is_empty_not_an_error(dataset):
    split = dataset.load([])
    assert (split.rows.rows, len(split.users)) == (0, 0)
    assert dataset.load_histories([])[0].rows == 0


def test_a_sample_is_training_users_in_order(dataset):
    few = dataset.sample(3)
    assert len(few.users) == 3
    assert few.users.tolist() == sorted(set(few.users) & set(TRAINING))
    assert dataset.sample(100).users.tolist() == TRAINING


@pytest.mark.parametrize("fold", [TEST, 3])
def test_test_users_and_unknown_folds_are_refused(dataset, fold):
    for load in (
        dataset.load,
        dataset.load_histories,
        dataset.training_users,
        lambda folds: list(dataset.stream(folds)),
    ):
        with pytest.raises(ConfigError, match=f"no training fold {fold}; it has folds 0 to 2"):
            load([fold])


def test_the_vault_writes_its_ledger_before_it_opens(store, dataset):
    vault = dataset.open_vault("figure 3")
    assert vault.users.tolist() == vault.histories.users.tolist() == ["b", "g"]
    assert (vault.first.tolist(), vault.fold.tolist()) == ([0, 0], [TEST, TEST])
    assert_equal(vault.rows, encode(vault.histories, None, dataset.state).past)
    entry = store.read_json("ledger/00000.json")
    assert (entry["why"], entry["dataset"]) == ("figure 3", "default")
    assert entry["fingerprint"] == dataset.manifest.fingerprint
    assert entry["who"]
    assert entry["when"]


def test_openings_never_overwrite_each_other(store, dataset):
    store.write("ledger/00001.json", b"{}")  # somebody else was faster: one entry, and it has our number
    dataset.open_vault("second")
    dataset.open_vault("third")
    assert store.read("ledger/00001.json") == b"{}"
    assert [store.read_json(f"ledger/{n:05d}.json")["why"] for n in (2, 3)] == ["second", "third"]


def test_an_opening_that_cannot_be_recorded_returns_nothing(store, dataset, monkeypatch):
    def refuse(*_: object) -> str:
        raise StorageError("read-only")

    monkeypatch.setattr(type(store), "write_if", refuse)
    with pytest.raises(StorageError, match="read-only"):
        dataset.open_vault("figure")


@pytest.mark.parametrize("reason", ["", "  "])
def test_the_vault_needs_a_reason(store, dataset, reason):
    with pytest.raises(ConfigError, match="needs a reason"):
        dataset.open_vault(reason)
    assert store.list("ledger") == []


def test_users_with_a_hidden_answer_are_queries_test_users_too(dataset):
    assert sorted(name for bucket in range(3) for name in dataset.queries(bucket).users) == ["g"]


def test_a_dataset_that_is_not_there_says_how_to_make_it(store):
    with pytest.raises(NotFoundError, match=r"no dataset 'other'.*dkt prepare .*--set dataset=other"):
        Dataset.open(store, "other")


def test_a_manifest_of_another_version_says_prepare_again(store):
    store.child(folder("old")).write_json(MANIFEST, {"dataset": "old"})
    with pytest.raises(StorageError, match="prepare it again"):
        Dataset.open(store, "old")


def test_rows_that_are_held_out_in_time_are_in_the_vault_with_the_rows_before_them(tmp_path: Path):
    histories = dataclasses.replace(
        random_histories(np.random.default_rng(1), 12), users=np.array([*"abcdefghijkl"], object)
    )
    middle = int(np.median(histories.timestamp)) // 1000 * 1000
    runs.write_log(tmp_path / "log.csv", histories)
    when = np.datetime64(middle, "ms").astype(str)
    datasets.run(tmp_path / "log.csv", tmp_path / "store", data={"split": "temporal", "split_time": when, "folds": 2})
    dataset = datasets.opened(tmp_path / "store")
    trained, _ = dataset.load_histories()
    vault = dataset.open_vault("a test")
    times = np.array([t for row in datasets.content(tmp_path / "store").values() for t in row["timestamp"]])
    assert 0 < trained.rows == int((times < middle).sum()) < len(times)
    assert (trained.timestamp < middle).all()
    assert dataset.manifest.held_out == vault.histories.rows - int(vault.first.sum()) == int((times >= middle).sum())
    position = vault.rows.position
    held_out = position >= np.repeat(vault.first, np.diff(vault.rows.offsets))
    assert np.array_equal(held_out, vault.histories.timestamp >= middle)
    assert (vault.first > 0).any()
    counted = dataset.state.questions["count"].to_numpy().sum()
    assert counted == trained.rows


def test_encode_users_keeps_the_order_of_the_users_and_excludes_their_fold(dataset):
    histories = random_histories(np.random.default_rng(5), 9)
    fold = np.array([0, TEST, 2, 1, 0, 0, TEST, 2, 1], np.int8)
    rows = encode_users(histories, fold, dataset.state)
    for user in range(len(fold)):
        fitted = dataset.state if fold[user] == TEST else dataset.state.excluding(int(fold[user]))
        assert_equal(own(rows, user), encode(histories.select(np.array([user])), None, fitted).past)


@pytest.mark.parametrize("chunk_rows", [1, 20, 10**6])
def test_chunks_hold_whole_users_and_every_user_once(dataset, chunk_rows):
    histories = random_histories(np.random.default_rng(5), 30)
    fold = (np.arange(30) % 3 - 1).astype(np.int8)
    chunks = list(encode_chunks(histories, fold, dataset.state, chunk_rows))
    assert sorted(np.concatenate([users for users, _ in chunks]).tolist()) == list(range(30))
    assert len(chunks) == {1: 30, 10**6: 3}.get(chunk_rows, len(chunks))
    for users, rows in chunks:
        assert len(set(fold[users])) == 1
        assert rows.rows - histories.lengths[users[-1]] < chunk_rows


def test_the_manifest_names_files_that_are_there(store, dataset):
    files = dataset.files
    assert [key for key in files.list() if key != MANIFEST and not dataset.manifest.owns(key)] == []
    for bucket in dataset.manifest.files:
        assert files.exists(bucket.histories)
        assert files.exists(bucket.counts)
    sizes = sum(Path(files.url, key).stat().st_size for key in files.list() if key != MANIFEST)
    assert dataset.manifest.stored_bytes == sizes
    assert json.loads(files.read(MANIFEST))["content"] == dataset.manifest.content
