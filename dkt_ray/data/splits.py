"""Which users train, in which fold, and which wait in the test vault: a seeded, platform-independent hash of the user.

Legend: N strings, U users.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dkt_ray.data.history import Int8, Strings
from dkt_ray.errors import InputError

TEST: Final = -1  # the fold of a test user

UInt64 = npt.NDArray[np.uint64]

_FNV_OFFSET: Final = 0xCBF29CE484222325
_FNV_PRIME: Final = np.uint64(0x100000001B3)
_GOLDEN: Final = 0x9E3779B97F4A7C15
_TEST_STREAM, _FOLD_STREAM, _BUCKET_STREAM = range(3)  # modulo 3, so that no seed meets another stream


def stable_hash(strings: Sequence[str] | Strings | pa.Array | pa.ChunkedArray, seed: int) -> UInt64:
    """Hash strings to 64 bits, the same on every platform, process and version.

    FNV-1a over the UTF-8 bytes, started at `offset basis xor mix(seed)`, finished by the SplitMix64 mixer (Steele, Lea
    and Flood 2014), whose avalanche makes low bits and high bits equally usable.

    Returns:
        uint64 [N].
    """
    column = strings if isinstance(strings, pa.Array | pa.ChunkedArray) else pa.array(strings, pa.string())
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if not pa.types.is_dictionary(column.type):
        column = column.cast(pa.large_string()).dictionary_encode()
    distinct = _hash_distinct(column.dictionary.cast(pa.large_binary()), seed)
    return distinct[column.indices.to_numpy(zero_copy_only=False)]


def bucket_of(users: pa.Array | pa.ChunkedArray | Strings, buckets: int) -> npt.NDArray[np.int64]:
    """The bucket that holds each user, [N]; `buckets` is a power of two, so doubling it splits every bucket in two."""
    return (stable_hash(users, _BUCKET_STREAM) & np.uint64(buckets - 1)).astype(np.int64)


def assign_folds(users: Strings, seed: int, test_fraction: float, folds: int) -> Int8:
    """Split users by hash: a user's place depends on the user and the settings, never on who else is there.

    Args:
        users: [U] user names.
        seed: another seed is another, independent split.
        test_fraction: expected share of test users.
        folds: number of training folds, K.

    Returns:
        int8 [U], `TEST` or 0 to K - 1.
    """
    streams = 3 * seed
    chance = (stable_hash(users, streams + _TEST_STREAM) >> np.uint64(11)) * 2.0**-53
    fold = (stable_hash(users, streams + _FOLD_STREAM) % np.uint64(folds)).astype(np.int8)
    return np.where(chance < test_fraction, np.int8(TEST), fold)


def folds_from_file(users: Strings, split: pa.Table, folds: int) -> Int8:
    """Read the users' folds from a published split.

    Args:
        users: [U] user names.
        split: columns `user` and `split` as text; split is `fold1` to `foldK`, or `test`.
        folds: number of training folds, K.

    Returns:
        int8 [U], `TEST` or 0 to K - 1.

    Raises:
        InputError: an unknown split name, a user with two different ones, or a user that the file does not name.
    """
    names = {f"fold{k + 1}": k for k in range(folds)} | {"test": TEST}
    unknown = sorted(set(split["split"].unique().to_pylist()) - set(names), key=str)
    if unknown:
        expected = f"fold1 to fold{folds} or test (data.folds={folds})"
        raise InputError(f"split file: found split {unknown[0]!r}; expected {expected}")
    known = split.group_by(["user", "split"]).aggregate([])
    if known.num_rows != pc.count_distinct(known["user"]).as_py():
        seen = known["user"].value_counts()
        twice = seen.filter(pc.greater(pc.struct_field(seen, "counts"), 1))[0]["values"]
        raise InputError(f"split file: user {twice} has two different splits; expected one line a user")
    place = pc.index_in(pa.array(users, pa.string()), known["user"].combine_chunks())
    if place.null_count:
        lost = users[place.is_null().to_numpy(zero_copy_only=False)]
        raise InputError(
            f"split file: {len(lost)} users of the data are not in it, e.g. {lost[0]!r}; "
            "add them, or unset data.split_file to split by hash"
        )
    codes = np.array([names[name] for name in known["split"].to_pylist()], np.int8)
    return codes[place.to_numpy()]


def _hash_distinct(values: pa.Array, seed: int) -> UInt64:
    """FNV-1a + SplitMix64 over the values of a large_binary array, one byte position of all values at a time."""
    _, offset_buffer, data_buffer = values.buffers()
    first = values.offset
    offsets = np.frombuffer(offset_buffer, np.int64)[first : first + len(values) + 1]
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer is not None else np.empty(0, np.uint8)
    lengths = np.diff(offsets)
    start = _mix(np.array([(seed * _GOLDEN) & 0xFFFFFFFFFFFFFFFF], np.uint64)) ^ np.uint64(_FNV_OFFSET)
    state = np.repeat(start, len(values))
    longer = np.arange(len(values))
    for k in range(int(lengths.max(initial=0))):
        longer = longer[lengths[longer] > k]
        state[longer] = (state[longer] ^ data[offsets[longer] + k]) * _FNV_PRIME
    return _mix(state)


def _mix(z: UInt64) -> UInt64:
    z = z + np.uint64(_GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
