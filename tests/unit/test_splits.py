"""Hashing users to buckets, folds and the test vault."""

import numpy as np
import pyarrow as pa
import pytest

from dkt_ray.data.splits import TEST, assign_folds, bucket_of, folds_from_file, stable_hash
from dkt_ray.errors import InputError

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
    split = split_file(["a", "b", "c", "d"], ["fold1", "fold2", "test", "fold1"])
    assert folds_from_file(users, split, 2).tolist() == [TEST, 0, 1]


@pytest.mark.parametrize(
    ("users", "names", "message"),
    [
        (["a", "b"], ["fold1", "fold9"], "found split 'fold9'; expected fold1 to fold2 or test"),
        (["a", "a", "b"], ["fold1", "fold2", "fold1"], "user a has two different splits"),
        (["a"], ["fold1"], "1 users of the data are not in it, e.g. 'b'"),
    ],
)
def test_a_split_file_that_does_not_fit(users, names, message):
    with pytest.raises(InputError, match=message):
        folds_from_file(np.array(["a", "b"], object), split_file(users, names), 2)


def test_a_user_named_twice_alike_is_fine():
    split = split_file(["a", "a"], ["fold2", "fold2"])
    assert folds_from_file(np.array(["a"], object), split, 2).tolist() == [1]
