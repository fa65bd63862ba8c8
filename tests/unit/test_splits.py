"""Hashing users to buckets, folds and the test vault."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dkt_ray.data.splits import (
    FOLDS,
    TEST,
    Split,
    UserFacts,
    assert_disjoint,
    assign_folds,
    bucket_of,
    folds_from_file,
    number_of_folds,
    split,
    stable_hash,
)
from dkt_ray.errors import ConfigError, InputError

USERS = np.array([f"user-{n}" for n in range(20_000)], object)


def fnv1a_splitmix(text: str, seed: int) -> int:
    """The documented algorithm, one byte at a time."""

    def mix(z: int) -> int:
        z = (z + 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    state = mix(seed * 0x9E3779B97F4A7C15 % 2**64) ^ 0xCBF29CE484222325
    for byte in text.encode():
        state = (state ^ byte) * 0x100000001B3 % 2**64
    return mix(state)


@pytest.mark.parametrize("seed", [0, 1, 12345, -3])
def test_the_hash_is_the_documented_one(seed):
    texts = ["", "0", "a", "A010001001", "학생", "x" * 300]
    assert stable_hash(texts, seed).tolist() == [fnv1a_splitmix(text, seed) for text in texts]


def test_the_hash_is_frozen():
    assert stable_hash(["0", "7441"], 0).tolist() == [14542243490739126293, 9151125054219808269]


def test_the_hash_reads_any_arrow_form_of_the_strings():
    texts = ["b", "a", "b", "", "c"]
    plain = stable_hash(texts, 5)
    array = pa.array(["skipped", *texts])[1:]
    chunks = pa.chunked_array([texts[:2], texts[2:]])
    for form in (array, array.dictionary_encode(), array.cast("large_string"), chunks):
        assert stable_hash(form, 5).tolist() == plain.tolist()


def test_folds_have_the_expected_sizes():
    fold = assign_folds(USERS, seed=0, test_fraction=0.1, folds=5)
    counts = np.bincount(fold + 1, minlength=6)
    expected = np.array([0.1] + [0.18] * 5) * len(USERS)
    assert np.all(np.abs(counts - expected) < 4 * np.sqrt(expected))


def test_a_users_fold_does_not_depend_on_the_others():
    everyone = assign_folds(USERS, 3, 0.2, 4)
    some = np.arange(0, len(USERS), 7)
    assert assign_folds(USERS[some], 3, 0.2, 4).tolist() == everyone[some].tolist()


def test_no_test_users_where_none_are_wanted():
    assert assign_folds(USERS, 0, 0.0, 5).min() == 0


def test_seeds_folds_and_buckets_are_independent():
    first, second = (assign_folds(USERS, seed, 0.0, 4) for seed in (0, 1))
    bucket = bucket_of(USERS, 4)
    for one, other in ((first, second), (first, bucket), (second, bucket)):
        table = np.bincount(one * 4 + other, minlength=16)
        expected = len(USERS) / 16
        chi_square = ((table - expected) ** 2 / expected).sum()
        assert chi_square < 45  # 15 degrees of freedom: P < 1e-4


def test_doubling_the_buckets_splits_each_in_two():
    assert np.array_equal(bucket_of(USERS, 8) % 4, bucket_of(USERS, 4))


def split_file(users: list[str], names: list[str]) -> pa.Table:
    return pa.table({"user": users, "split": names})


def test_folds_from_a_published_split():
    users = np.array(["c", "a", "b"], object)
    published = split_file(["a", "b", "c", "d"], ["fold1", "fold2", "test", "fold1"])
    assert folds_from_file(users, published).tolist() == [TEST, 0, 1]


@pytest.mark.parametrize(
    ("users", "names", "message"),
    [
        (["a", "a", "b"], ["fold1", "fold2", "fold1"], "user a has two different splits"),
        (["a"], ["fold1"], "1 users of the data are not in it, e.g. 'b'"),
    ],
)
def test_a_split_file_that_does_not_fit(users, names, message):
    with pytest.raises(InputError, match=message):
        folds_from_file(np.array(["a", "b"], object), split_file(users, names))


def test_the_number_of_folds_is_that_of_the_file():
    assert number_of_folds(None, None) == FOLDS
    assert number_of_folds(7, None) == 7
    file = split_file(list("abcde"), ["fold3", "test", "fold1", "fold2", "fold3"])
    assert number_of_folds(None, file) == number_of_folds(3, file) == 3


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["fold1", "valid"], "found split 'valid'; expected fold1 to foldK"),
        (["fold0", "fold1"], "found split 'fold0'"),
        (["fold1", "fold101"], r"found split 'fold101'; expected fold1 to foldK \(K <= 100\)"),
        (["fold1", "fold4", "fold2", "test"], "no user is in fold3;"),
        (["fold2", "fold12"], "no user is in fold1, fold3, fold4, .*fold11;"),
        (["fold1", "test"], "no user is in fold2; .*two folds or more"),
        (["test", "test"], "no user is in fold1, fold2;"),
    ],
)
def test_a_split_file_without_all_its_folds_is_refused(names, message):
    with pytest.raises(InputError, match=message):
        number_of_folds(None, split_file([str(number) for number in range(len(names))], names))


@pytest.mark.parametrize("wanted", [2, 5])
def test_another_number_of_folds_than_the_files_is_refused(wanted):
    file = split_file(list("abc"), ["fold1", "fold2", "fold3"])
    says = rf"data\.folds is {wanted}, but the split file has 3 folds.*leave data\.folds out .*set it to 3"
    with pytest.raises(ConfigError, match=says):
        number_of_folds(wanted, file)


def test_a_user_named_twice_alike_is_fine():
    published = split_file(["a", "a"], ["fold2", "fold2"])
    assert folds_from_file(np.array(["a"], object), published).tolist() == [1]


KINDS = ("hash", "population", "balanced", "temporal", "last_answer")


def facts_of(rows: list[int], hidden: list[int] | None = None, before: list[int] | None = None) -> UserFacts:
    """Users whose hidden answers, if any, are their last rows; by default half of them are before the split time."""
    count = np.array(rows, np.int64)
    unknown = np.zeros_like(count) if hidden is None else np.array(hidden, np.int64)
    early = count // 2 if before is None else np.array(before, np.int64)
    names = np.array([f"u{n:06d}" for n in range(len(rows))], object)
    return UserFacts(names, count, unknown, count - unknown, count - unknown - 1, early)


def heavy_tailed(users: int, seed: int) -> UserFacts:
    rng = np.random.default_rng(seed)
    return facts_of(np.clip(rng.lognormal(5.3, 1.1, users).astype(int), 9, 1860).tolist())


@given(
    st.sampled_from(KINDS),
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 2), st.integers(0, 30)), min_size=3, max_size=30),
    st.integers(0, 5),
)
def test_no_row_and_no_user_is_both_trained_on_and_held_out(kind, drawn, seed):
    drawn = [(5, 1, 2), (5, 0, 2), *drawn]  # so that every kind has something on both sides
    rows, hidden, before = (list(column) for column in zip(*drawn, strict=True))
    hidden = [min(h, n) for h, n in zip(hidden, rows, strict=True)]
    before = [min(b, n) for b, n in zip(before, rows, strict=True)]
    facts = facts_of(rows, hidden, before)
    found = split(facts, kind, seed=seed, test_fraction=0.3, folds=3)
    assert found.fold.dtype == np.int8
    assert found.cut.dtype == np.int64
    for fold, cut, n, h, b in zip(*found, rows, hidden, before, strict=True):
        assert TEST <= fold < 3
        assert 0 <= cut <= n
        if fold == TEST:
            assert cut == 0
        elif kind == "temporal":
            assert cut == b > 0
        elif kind == "last_answer":
            assert cut in {n, n - h - 1}
        else:
            assert cut == n


def test_the_hash_split_is_the_one_of_assign_folds():
    facts = heavy_tailed(500, 0)
    found = split(facts, "hash", seed=3, test_fraction=0.2, folds=4)
    assert found.fold.tolist() == assign_folds(facts.users, 3, 0.2, 4).tolist()


def test_the_split_of_a_file():
    file = split_file(["u000000", "u000001"], ["fold2", "test"])
    found = split(facts_of([4, 6]), "file", seed=0, test_fraction=0.1, folds=2, file=file)
    assert (found.fold.tolist(), found.cut.tolist()) == ([1, TEST], [4, 0])


def test_the_population_split_holds_out_exactly_the_users_with_a_hidden_answer():
    facts = facts_of([3, 4, 5, 6], hidden=[0, 1, 0, 2])
    found = split(facts, "population", seed=0, test_fraction=0.5, folds=3)
    assert (found.fold == TEST).tolist() == [False, True, False, True]
    trains = assign_folds(facts.users, 0, 0.0, 3)
    assert found.fold[[0, 2]].tolist() == trains[[0, 2]].tolist()
    assert found.cut.tolist() == [3, 0, 5, 0]


def test_the_temporal_split_cuts_histories_at_the_split_time():
    facts = facts_of([3, 4, 5], before=[0, 4, 2])
    found = split(facts, "temporal", seed=0, test_fraction=0.1, folds=2)
    assert found.cut.tolist() == [0, 4, 2]
    assert found.fold[0] == TEST
    assert found.fold[1:].tolist() == assign_folds(facts.users, 0, 0.0, 2)[1:].tolist()


def test_the_last_answer_split_cuts_before_the_last_known_answer():
    facts = facts_of([3, 4, 5, 1, 2], hidden=[0, 1, 0, 0, 2])
    found = split(facts, "last_answer", seed=0, test_fraction=0.999999, folds=2)
    assert found.cut.tolist() == [2, 2, 4, 0, 2]  # a user without any known answer holds none out
    assert (found.fold == TEST).tolist() == [False, False, False, True, False]
    some = split(heavy_tailed(5000, 1), "last_answer", seed=0, test_fraction=0.1, folds=2)
    held_out = (some.cut < heavy_tailed(5000, 1).rows).sum()
    assert abs(held_out - 500) < 4 * np.sqrt(450)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("test_fraction", [0.0, 0.1])
def test_balanced_parts_hold_their_share_of_rows_within_one_percent(seed, test_fraction):
    facts = heavy_tailed(2000, seed)
    found = split(facts, "balanced", seed=seed, test_fraction=test_fraction, folds=5)
    rows = np.bincount(found.fold + 1, facts.rows, minlength=6)
    share = np.array([test_fraction, *[(1 - test_fraction) / 5] * 5])
    np.testing.assert_allclose(rows, share * facts.rows.sum(), rtol=0.01)


def test_a_user_bigger_than_a_part_fills_it_alone():
    found = split(facts_of([900, *[10] * 60]), "balanced", seed=0, test_fraction=0.1, folds=2)
    assert (found.fold == found.fold[0]).sum() == 1
    assert sorted(np.bincount(found.fold + 1, [900, *[10] * 60]).tolist())[:2] == [110, 490]


def test_seeds_give_other_balanced_splits():
    facts = heavy_tailed(600, 0)
    first, second = (split(facts, "balanced", seed=seed, test_fraction=0, folds=3).fold for seed in (0, 1))
    assert 150 < (first == second).sum() < 250


@pytest.mark.parametrize("kind", ["hash", "population", "temporal", "last_answer"])
def test_a_users_place_does_not_depend_on_the_other_users(kind):
    facts = facts_of([5] * 200, hidden=[0, 1] * 100, before=[0, 1, 2, 5] * 50)
    some = np.flatnonzero(np.arange(200) % 7 < 3)
    everyone = split(facts, kind, seed=1, test_fraction=0.2, folds=4)
    alone = split(UserFacts(*(column[some] for column in facts)), kind, seed=1, test_fraction=0.2, folds=4)
    assert alone.fold.tolist() == everyone.fold[some].tolist()
    assert alone.cut.tolist() == everyone.cut[some].tolist()


@pytest.mark.parametrize(
    ("kind", "facts", "message"),
    [
        ("population", facts_of([3, 4]), "split=population: no user has a hidden answer"),
        ("population", facts_of([3, 4], hidden=[1, 1]), "so nobody is left to train"),
        ("temporal", facts_of([3, 4], before=[0, 0]), "no row lies before data.split_time"),
        ("temporal", facts_of([3, 4], before=[3, 4]), "no row lies at or after data.split_time"),
    ],
)
def test_data_that_a_split_cannot_divide(kind, facts, message):
    with pytest.raises(InputError, match=message):
        split(facts, kind, seed=0, test_fraction=0.1, folds=2)


@pytest.mark.parametrize(
    ("kind", "fold", "cut", "message"),
    [
        ("hash", [0, TEST], [3, 1], "a test user would train"),
        ("hash", [0, 1], [3, 5], "outside its user's history"),
        ("balanced", [0, 1], [3, 2], "a user would be trained on and held out"),
        ("population", [0, 1], [3, 0], "a training user would be held out"),
        ("temporal", [0, 1], [1, 3], "after the split time would train"),
        ("last_answer", [0, 1], [3, 2], "last answer would train"),
    ],
)
def test_the_assertion_fires_on_a_planted_overlap(kind, fold, cut, message):
    planted = Split(np.array(fold, np.int8), np.array(cut, np.int64))
    with pytest.raises(AssertionError, match=message):
        assert_disjoint(facts_of([3, 4]), planted, kind)


def test_a_user_that_stands_twice_in_the_facts_is_an_overlap():
    facts = facts_of([3, 4])._replace(users=np.array(["a", "a"], object))
    with pytest.raises(AssertionError, match="could be in two places"):
        split(facts, "hash", seed=0, test_fraction=0.1, folds=2)


def test_no_users_at_all():
    for kind in KINDS:
        assert len(split(facts_of([]), kind, seed=0, test_fraction=0.1, folds=2).fold) == 0
