"""Reading a prepared dataset: folds, histories, the stored form of encoded rows, and the vault."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dkt_ray.data.history import Coded, Histories
from dkt_ray.data.splits import TEST
from dkt_ray.errors import ConfigError, NotFoundError, StorageError
from dkt_ray.features.batch import Rows
from dkt_ray.features.dataset import (
    MANIFEST,
    Dataset,
    Manifest,
    bucket_key,
    concatenate,
    encode_users,
    folder,
    rows_from_table,
    rows_to_table,
)
from dkt_ray.features.difficulty import count
from dkt_ray.features.encoder import encode
from dkt_ray.features.state import EncoderConfig, EncoderState, fit
from dkt_ray.storage import Store, open_store

FOLDS = 3


def histories_of(names: list[str], seed: int) -> Histories:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 30, len(names))
    rows = int(lengths.sum())
    return Histories(
        users=np.array(names, object),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        question=Coded.of([f"A010{n % 4 + 1:03d}{n % 3 + 1:03d}" for n in rng.integers(0, 12, rows)]),
        test=Coded.of([f"A010000{n % 4 + 1:03d}" for n in rng.integers(0, 12, rows)]),
        concepts=Coded.of([["", "1", "1_2", "1_2_3"][n] for n in rng.integers(0, 4, rows)]),
        correct=rng.integers(0, 2, rows).astype(np.int8),
        timestamp=np.sort(rng.integers(0, 10**9, rows)),
    )


BUCKETS = [
    (histories_of(["a", "b", "c", "d"], 0), np.array([0, TEST, 2, 1], np.int8)),
    (histories_of([], 1), np.empty(0, np.int8)),
    (histories_of(["e", "f", "g"], 2), np.array([2, 0, TEST], np.int8)),
]


@pytest.fixture(scope="module")
def state() -> EncoderState:
    return fit([count(histories, fold) for histories, fold in BUCKETS], EncoderConfig(min_count=1))


@pytest.fixture
def store(tmp_path: Path, state: EncoderState) -> Store:
    """A store with a dataset of three buckets; user g has a hidden answer."""
    store = open_store(str(tmp_path / "store"))
    files = store.child(folder("small"))
    for bucket, (histories, fold) in enumerate(BUCKETS):
        if bucket == 2:
            hidden = histories.correct.copy()
            hidden[-1] = -1
            histories = dataclasses.replace(histories, correct=hidden)
        table = histories.to_table().append_column("fold", pa.array(fold))
        files.write_table(bucket_key("histories", bucket), table)
        rows = encode_users(histories, fold, state)
        files.write_table(bucket_key("encoded", bucket), rows_to_table(rows, state.number_names))
    (tmp_path / "state").mkdir()
    state.save(tmp_path / "state")
    files.upload(tmp_path / "state", "state")
    rows = sum(histories.rows for histories, _ in BUCKETS)
    sizes = {"rows": rows, "users": 7, "test_users": 2, "hidden": 1, "rejected": 0, "duplicates": 0}
    manifest = Manifest(
        **sizes,
        dataset="small",
        fingerprint="f00d",
        buckets=3,
        folds=FOLDS,
        questions=12,
        concepts=3,
        timed=True,
        numbers=state.number_names,
        inputs={"log.csv": "abc"},
        config={},
        created="2026-01-01T00:00:00+00:00",
    )
    files.write_json(MANIFEST, manifest.model_dump(mode="json"))
    return store


def assert_equal(one: Rows, other: Rows) -> None:
    for field in dataclasses.fields(Rows):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if isinstance(left, dict):
            assert left.keys() == right.keys()
            assert all(np.array_equal(left[name], right[name]) for name in left)
        else:
            assert left.dtype == right.dtype
            assert np.array_equal(left, right)


def test_training_users_in_the_order_of_the_buckets(store):
    dataset = Dataset.open(store, "small")
    split = dataset.load()
    assert split.users.tolist() == ["a", "c", "d", "e", "f"]
    assert split.fold.tolist() == [0, 2, 1, 2, 0]
    assert split.rows.rows == sum(int(h.lengths[fold != TEST].sum()) for h, fold in BUCKETS)


def test_some_folds(store, state):
    dataset = Dataset.open(store, "small")
    split = dataset.load([2])
    assert split.users.tolist() == ["c", "e"]
    expected = [encode(BUCKETS[b][0].select(np.array([u])), None, state.excluding(2)).past for b, u in ((0, 2), (2, 0))]
    assert_equal(split.rows, concatenate(expected))


def test_histories_match_the_encoded_rows(store):
    dataset = Dataset.open(store, "small")
    for folds in (None, [0, 1], [2]):
        histories, fold = dataset.load_histories(folds)
        split = dataset.load(folds)
        assert histories.users.tolist() == split.users.tolist()
        assert fold.tolist() == split.fold.tolist()
        assert np.array_equal(histories.offsets, split.rows.offsets)
        assert np.array_equal(histories.correct, split.rows.correct)
    histories, fold = dataset.histories(0)
    assert (histories.users.tolist(), fold.tolist()) == (["a", "c", "d"], [0, 2, 1])


def test_a_selection_without_users_is_empty_not_an_error(store):
    dataset = Dataset.open(store, "small")
    split = dataset.load([])
    assert (split.rows.rows, len(split.users)) == (0, 0)
    assert dataset.load_histories([])[0].rows == 0


@pytest.mark.parametrize("fold", [TEST, FOLDS])
def test_test_users_and_unknown_folds_are_refused(store, fold):
    dataset = Dataset.open(store, "small")
    for load in (dataset.load, dataset.load_histories):
        with pytest.raises(ConfigError, match=f"no training fold {fold}; it has folds 0 to 2"):
            load([fold])


def test_the_vault_writes_its_ledger_before_it_opens(store, state):
    dataset = Dataset.open(store, "small")
    vault = dataset.open_vault("figure 3")
    assert vault.users.tolist() == vault.histories.users.tolist() == ["b", "g"]
    expected = encode(BUCKETS[0][0].select(np.array([1])), None, state).past
    assert_equal(vault.rows.take(np.arange(expected.rows), expected.offsets), expected)
    entry = store.read_json("ledger/00000.json")
    assert (entry["why"], entry["dataset"], entry["fingerprint"]) == ("figure 3", "small", "f00d")
    assert entry["who"]
    assert entry["when"]


def test_openings_never_overwrite_each_other(store):
    dataset = Dataset.open(store, "small")
    store.write("ledger/00001.json", b"{}")  # somebody else was faster: one entry, and it has our number
    dataset.open_vault("second")
    dataset.open_vault("third")
    assert store.read("ledger/00001.json") == b"{}"
    assert [store.read_json(f"ledger/{n:05d}.json")["why"] for n in (2, 3)] == ["second", "third"]


def test_an_opening_that_cannot_be_recorded_returns_nothing(store, monkeypatch):
    def refuse(*_: object) -> str:
        raise StorageError("read-only")

    monkeypatch.setattr(type(store), "write_if", refuse)
    with pytest.raises(StorageError, match="read-only"):
        Dataset.open(store, "small").open_vault("figure")


@pytest.mark.parametrize("reason", ["", "  "])
def test_the_vault_needs_a_reason(store, reason):
    with pytest.raises(ConfigError, match="needs a reason"):
        Dataset.open(store, "small").open_vault(reason)
    assert store.list("ledger") == []


def test_users_with_a_hidden_answer_are_queries_test_users_too(store):
    dataset = Dataset.open(store, "small")
    assert [dataset.queries(bucket).users.tolist() for bucket in range(3)] == [[], [], ["g"]]


def test_a_dataset_that_is_not_there_says_how_to_make_it(store):
    with pytest.raises(NotFoundError, match=r"no dataset 'other'.*dkt prepare .*--set dataset=other"):
        Dataset.open(store, "other")


def test_a_manifest_of_another_version_says_prepare_again(store):
    store.child(folder("small")).write_json(MANIFEST, {"dataset": "small"})
    with pytest.raises(StorageError, match="prepare it again"):
        Dataset.open(store, "small")


def test_encode_users_keeps_the_order_of_the_users_and_excludes_their_fold(state):
    histories, fold = BUCKETS[0]
    rows = encode_users(histories, fold, state)
    for user in range(len(fold)):
        fitted = state if fold[user] == TEST else state.excluding(int(fold[user]))
        own = encode(histories.select(np.array([user])), None, fitted).past
        chosen = np.arange(rows.offsets[user], rows.offsets[user + 1])
        assert_equal(rows.take(chosen, own.offsets), own)


def test_the_stored_form_has_lists_without_padding_and_comes_back_equal(state):
    histories, fold = BUCKETS[0]
    rows = encode_users(histories, fold, state)
    table = rows_to_table(rows, state.number_names)
    assert table.schema.field("concepts").type == pa.list_(pa.int32())
    assert set(map(len, table["concepts"].to_pylist())) == {0, 1, 2, 3}
    assert 0 not in {tag for tags in table["concepts"].to_pylist() for tag in tags}
    assert_equal(rows_from_table(table, rows.offsets, state.number_names, state.concepts_per_question), rows)
