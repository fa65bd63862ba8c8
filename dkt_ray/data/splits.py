"""Which users and rows train, in which fold, and which wait in the test vault.

Every split is a pure function of facts about the users; randomness is a seeded, platform-independent hash of the name.

Legend: N strings, U users, K training folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dkt_ray.data.history import Int8, Int64, Strings
from dkt_ray.errors import ConfigError, InputError

TEST: Final = -1  # the fold of a test user
FOLDS: Final = 5  # K where nothing says otherwise
MOST_FOLDS: Final = 100
IN_A_FILE: Final = {f"fold{k + 1}": k for k in range(MOST_FOLDS)} | {"test": TEST}  # names of a published split

UInt64 = npt.NDArray[np.uint64]
SplitKind = Literal["hash", "file", "population", "balanced", "temporal", "last_answer"]

_FNV_OFFSET: Final = 0xCBF29CE484222325
_FNV_PRIME: Final = np.uint64(0x100000001B3)
_GOLDEN: Final = 0x9E3779B97F4A7C15
_TEST_STREAM, _FOLD_STREAM, _BUCKET_STREAM = range(3)  # modulo 3, so that no seed meets another stream


class UserFacts(NamedTuple):
    """What a split may know of the users of the whole dataset, one entry per user."""

    users: Strings  # [U], sorted, distinct
    rows: Int64  # [U] interactions
    hidden: Int64  # [U] of them with a hidden answer (-1)
    graded: Int64  # [U] of them with a known answer
    last: Int64  # [U] position of the last row with a known answer, -1 if none
    before: Int64  # [U] rows with a timestamp before the split time (0 where no split time is given)


class Split(NamedTuple):
    """Where each user's rows go: rows before `cut` train in `fold`, rows from `cut` on are held out."""

    fold: Int8  # [U] training fold 0..K-1, or TEST (-1): trains nothing
    cut: Int64  # [U] number of rows that train; 0 for TEST users, rows[u] for users that only train


def split(
    facts: UserFacts, kind: SplitKind, *, seed: int, test_fraction: float, folds: int, file: pa.Table | None = None
) -> Split:
    """Split users, or each user's rows, into training folds and the vault.

    `hash`: every user by the hash of the name. `file`: every user as a published split says. `population`: users with
    a hidden answer are the vault, the others get hash folds. `balanced`: vault and folds hold rows in proportion.
    `temporal`: rows before the split time train, later ones are held out; a user without earlier rows is TEST.
    `last_answer`: a share of the users holds out the last known answer and all that follows it; everything else trains.

    Args:
        facts: of all users.
        kind: the kind of split.
        seed: another seed is another, independent split (not used by `file`).
        test_fraction: share of users (`balanced`: of rows) that are held out; `last_answer`: share of users whose last
            answer is; not used by `file`, `population` and `temporal`.
        folds: number of training folds, K: with a file, as `number_of_folds` found it.
        file: the table that `folds_from_file` reads; `file` only.

    Raises:
        InputError: the data do not fit the kind of split, or the file does not fit the data.
    """
    hashed = assign_folds(facts.users, seed, 0.0, folds)
    match kind:
        case "hash":
            found = _of_users(facts, assign_folds(facts.users, seed, test_fraction, folds))
        case "file":
            assert file is not None, "the kind 'file' needs the table of the split file"
            found = _of_users(facts, folds_from_file(facts.users, file))
        case "population":
            _some(facts.hidden > 0, "user has a hidden answer (-1)", kind)
            _some(facts.hidden == 0, "user has known answers only, so nobody is left to train", kind)
            found = _of_users(facts, np.where(facts.hidden > 0, np.int8(TEST), hashed))
        case "balanced":
            found = _of_users(facts, _balanced_folds(facts, seed, test_fraction, folds))
        case "temporal":
            _some(facts.before > 0, "row lies before data.split_time", kind, "data.split_time")
            _some(facts.before < facts.rows, "row lies at or after data.split_time", kind, "data.split_time")
            found = _of_rows(hashed, facts.before)
        case "last_answer":
            held_out = (_chance(facts.users, seed) < test_fraction) & (facts.last >= 0)
            found = _of_rows(hashed, np.where(held_out, facts.last, facts.rows))
    assert_disjoint(facts, found, kind)
    return found


def assert_disjoint(facts: UserFacts, found: Split, kind: SplitKind) -> None:
    """Fail where a user (for the kinds that cut histories: a row) is both trained on and held out."""
    assert np.all(facts.users[:-1] < facts.users[1:]), "users are not sorted and distinct: one could be in two places"
    assert np.all((found.cut >= 0) & (found.cut <= facts.rows)), "a cut lies outside its user's history"
    assert not np.any((found.fold == TEST) & (found.cut > 0)), "a test user would train"
    if kind == "temporal":
        assert np.all(found.cut <= facts.before), "a row at or after the split time would train"
    elif kind == "last_answer":
        assert np.all((found.cut == facts.rows) | ((found.cut == facts.last) & (facts.last >= 0))), (
            "a held-out last answer would train"
        )
    else:
        assert not np.any((found.cut > 0) & (found.cut < facts.rows)), "a user would be trained on and held out"
        assert not np.any((found.fold != TEST) & (found.cut < facts.rows)), "a training user would be held out"


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
    """The bucket that holds each user, [N]; doubling the number of buckets splits every bucket in two."""
    return (stable_hash(users, _BUCKET_STREAM) % np.uint64(buckets)).astype(np.int64)


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
    fold = (stable_hash(users, 3 * seed + _FOLD_STREAM) % np.uint64(folds)).astype(np.int8)
    return np.where(_chance(users, seed) < test_fraction, np.int8(TEST), fold)


def number_of_folds(wanted: int | None, file: pa.Table | None) -> int:
    """K of a dataset: of its split file where there is one, else what is wanted, or `FOLDS`.

    Args:
        wanted: `data.folds`; None: unset.
        file: the table that `folds_from_file` reads.

    Raises:
        InputError: the file has an unknown split name, fewer than two folds, or not every fold from 1 to K.
        ConfigError: another number is wanted than the file has.
    """
    if file is None:
        return FOLDS if wanted is None else wanted
    names = set(file["split"].unique().to_pylist())
    unknown = sorted(names - set(IN_A_FILE), key=str)
    if unknown:
        raise InputError(f"split file: found split {unknown[0]!r}; expected fold1 to foldK (K <= {MOST_FOLDS}) or test")
    folds = max((IN_A_FILE[name] + 1 for name in names), default=0)
    missing = [name for name in list(IN_A_FILE)[: max(folds, 2)] if name not in names]
    if missing:
        raise InputError(
            f"split file: no user is in {', '.join(missing)}; expected users in every fold from fold1 to the last one, "
            "and two folds or more"
        )
    if wanted not in (None, folds):
        raise ConfigError(
            f"data.folds is {wanted}, but the split file has {folds} folds, fold1 to fold{folds}; leave data.folds out "
            f"(also of the config file), or set it to {folds}"
        )
    return folds


def folds_from_file(users: Strings, split: pa.Table) -> Int8:
    """Read the users' folds from a published split.

    Args:
        users: [U] user names.
        split: columns `user` and `split` as text; its names are those that `number_of_folds` has checked.

    Returns:
        int8 [U], `TEST` or 0 to K - 1.

    Raises:
        InputError: a user with two different folds, or a user that the file does not name.
    """
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
    codes = np.array([IN_A_FILE[name] for name in known["split"].to_pylist()], np.int8)
    return codes[place.to_numpy()]


def _of_users(facts: UserFacts, fold: Int8) -> Split:
    """A split that leaves every history whole."""
    return Split(fold, np.where(fold == TEST, 0, facts.rows))


def _of_rows(fold: Int8, cut: Int64) -> Split:
    """A split that cuts histories; a user with no row to train on is TEST."""
    return Split(np.where(cut > 0, fold, np.int8(TEST)), cut.astype(np.int64))


def _some(found: npt.NDArray[np.bool_], what: str, kind: SplitKind, setting: str = "data.path") -> None:
    if len(found) and not found.any():
        raise InputError(f"data.split={kind}: no {what}; change {setting} or choose another split")


def _chance(users: Strings, seed: int) -> npt.NDArray[np.float64]:
    """A number in [0, 1) of each user, [U]."""
    return (stable_hash(users, 3 * seed + _TEST_STREAM) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _balanced_folds(facts: UserFacts, seed: int, test_fraction: float, folds: int) -> Int8:
    """Deal users, big ones first, each to the part that is emptiest for its size.

    Users of about the same size (equal power of two) are dealt in the order of their hash, so that another seed is
    another split.
    """
    mixed = stable_hash(facts.users, 3 * seed + _FOLD_STREAM)
    size = np.frexp(facts.rows.astype(np.float64))[1]
    order = np.lexsort((mixed, -size))  # stable: users are sorted
    share = np.array([*[(1 - test_fraction) / folds] * folds, test_fraction])
    part = np.empty(len(order), np.int8)
    part[order] = _deal(facts.rows[order], share[share > 0])
    return np.where(part == folds, np.int8(TEST), part)


@numba.njit(cache=True)
def _deal(rows: Int64, share: npt.NDArray[np.float64]) -> Int8:
    part = np.empty(len(rows), np.int8)
    load = np.zeros(len(share), np.int64)
    for user in range(len(rows)):
        part[user] = np.argmin((load + rows[user]) / share)
        load[part[user]] += rows[user]
    return part


def _hash_distinct(values: pa.Array, seed: int) -> UInt64:
    """FNV-1a + SplitMix64 over the values of a large_binary array, one byte position of all values at a time."""
    _, offset_buffer, data_buffer = values.buffers()
    first = values.offset
    offsets = np.frombuffer(offset_buffer, np.int64)[first : first + len(values) + 1]
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer is not None else np.empty(0, np.uint8)
    lengths = np.diff(offsets)
    start = mix(np.array([(seed * _GOLDEN) & 0xFFFFFFFFFFFFFFFF], np.uint64)) ^ np.uint64(_FNV_OFFSET)
    state = np.repeat(start, len(values))
    longer = np.arange(len(values))
    for k in range(int(lengths.max(initial=0))):
        longer = longer[lengths[longer] > k]
        state[longer] = (state[longer] ^ data[offsets[longer] + k]) * _FNV_PRIME
    return mix(state)


def mix(z: UInt64) -> UInt64:
    """The SplitMix64 mixer (Steele, Lea and Flood 2014): the next number of each stream."""
    z = z + np.uint64(_GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
