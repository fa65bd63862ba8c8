"""A prepared dataset in the store: its manifest, its histories and its split; rows are encoded when they are read.

Whatever a reader gets is ordered by user name, so nothing depends on the number of buckets.

Legend: U users, N rows.
"""

from __future__ import annotations

import datetime
import getpass
import os
import socket
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dkt_ray.config import Config, build
from dkt_ray.data.history import Histories, Int8, Int64, Strings, graded
from dkt_ray.data.splits import TEST, bucket_of, stable_hash
from dkt_ray.errors import ConfigError, ConflictError, NotFoundError, StorageError
from dkt_ray.features.batch import Rows
from dkt_ray.features.chunks import encode_users
from dkt_ray.features.state import EncoderState
from dkt_ray.schema import UNKNOWN
from dkt_ray.storage import Store, json_bytes

MANIFEST: Final = "manifest.json"
MOST_THREADS: Final = 4  # that encode at one time when a dataset is loaded
SPLIT_SETTINGS: Final = ("split", "split_file", "split_time", "seed", "test_fraction")
HISTORY_COLUMNS: Final = ("user", "question", "test", "concepts", "correct", "timestamp")

Mask = npt.NDArray[np.bool_]


class Bucket(Config):
    """The files of one bucket of users; they are named by their content and never change."""

    histories: str
    """Key of the histories, one row per user."""
    counts: str
    """Key of the item counts of its training rows."""
    rows: int
    users: int
    duplicates: int
    """Rows that were left out."""
    histories_bytes: int
    counts_bytes: int
    checksum: str
    """Of the histories; those of all buckets add up to the same sum however users are dealt to buckets."""


class Manifest(Config):
    """What a dataset holds and what it was made from; written last, so where it is, the dataset is complete."""

    dataset: str
    fingerprint: str
    """Hash of settings, inputs and feature version: an equal fingerprint means equal content."""
    settings: str
    """Hash of the settings and versions alone: new files are added only under equal ones."""
    content: str
    """Checksum of histories, split and fitted state, equal for every number of buckets."""
    rows: int
    users: int
    test_users: int
    """Users who train nothing."""
    held_out: int
    """Rows in the vault."""
    hidden: int
    """Rows whose answer is hidden (-1)."""
    rejected: int
    duplicates: int
    forgotten: int = 0
    """Rows that were left out, of users who were deleted."""
    buckets: int
    folds: int
    questions: int
    concepts: int
    timed: bool
    """Whether the rows have timestamps; without them only the order is known."""
    numbers: tuple[str, ...]
    """Names of the numeric columns, in order."""
    inputs: dict[str, str]
    """Content digest of each input file."""
    sources: int
    """Read tasks that the inputs were cut into."""
    files: tuple[Bucket, ...]
    """The buckets' files, in order."""
    split: str
    """Key of the split: user, rows, fold, cut; users in order."""
    state: str
    """Prefix of the encoder's fitted state."""
    rejects: tuple[str, ...]
    """Prefixes of the rejected rows, of the first run and of those that added files."""
    stored_bytes: int
    """Size of all of this."""
    config: dict[str, Any]
    """The settings that made it."""
    stages: dict[str, float]
    """Seconds that each stage of the last run took."""
    created: str

    @property
    def split_settings(self) -> dict[str, Any]:
        """What decides which rows are held out, beside the rows themselves."""
        return {name: self.config["data"][name] for name in SPLIT_SETTINGS}

    def owns(self, key: str) -> bool:
        """Whether an object of the dataset's folder belongs to this version of the dataset."""
        return key in self._keys or key.startswith((f"{self.state}/", *(f"{prefix}/" for prefix in self.rejects)))

    @cached_property
    def _keys(self) -> set[str]:
        return {self.split} | {key for bucket in self.files for key in (bucket.histories, bucket.counts)}


class Split(NamedTuple):
    """Encoded rows of some users, in memory."""

    rows: Rows
    users: Strings  # [U], sorted
    fold: Int8  # [U]


class Vault(NamedTuple):
    """Users with held-out rows, encoded with the full state, and the histories that they were made from."""

    rows: Rows
    users: Strings  # [U], sorted
    fold: Int8  # [U], all TEST: no fold's model is asked
    histories: Histories
    first: Int64  # [U] position of the first row that is held out; rows before it were trained on


class _Users(NamedTuple):
    """The split of the dataset."""

    names: Strings  # [U], sorted
    rows: Int64  # [U]
    fold: Int8  # [U]
    cut: Int64  # [U] rows before it train


@dataclass(frozen=True, eq=False)
class Dataset:
    """A complete dataset; `open` it."""

    store: Store  # the store's root
    name: str
    manifest: Manifest

    @classmethod
    def open(cls, store: Store, name: str) -> Dataset:
        """Open a dataset that `dkt prepare` completed.

        Raises:
            NotFoundError: there is none of that name, or it was never completed.
            StorageError: another version of the package made it.
        """
        try:
            found = store.child(folder(name)).read_json(MANIFEST)
        except NotFoundError:
            raise NotFoundError(
                f"no dataset {name!r} in {store.url}; make it with: dkt prepare --set store={store.url} "
                f"--set dataset={name} --set data.path=FILE_OR_FOLDER"
            ) from None
        try:
            return cls(store, name, build(Manifest, found))
        except ConfigError as error:
            raise StorageError(f"dataset {name!r} was made by another version; prepare it again ({error})") from None

    @property
    def files(self) -> Store:
        """The dataset's own part of the store."""
        return self.store.child(folder(self.name))

    @cached_property
    def state(self) -> EncoderState:
        """The encoder's state, fitted on all training rows."""
        with tempfile.TemporaryDirectory() as local:
            self.files.download(self.manifest.state, Path(local))
            return EncoderState.load(Path(local))

    @cached_property
    def split(self) -> _Users:
        """Every user's fold and the number of rows that train, users in order."""
        table = self.files.read_table(self.manifest.split)
        rows, fold, cut = (table[name].to_numpy() for name in ("rows", "fold", "cut"))
        return _Users(table["user"].to_numpy().astype(object), rows, fold, cut)

    def training_users(self, folds: Collection[int] | None = None) -> Strings:
        """Names of the users that train (in the given folds), sorted."""
        return self.split.names[self._training(folds)]

    def load(self, folds: Collection[int] | None = None) -> Split:
        """Encoded training rows of the users in the given folds (default: all folds), users in order.

        Raises:
            ConfigError: a fold that does not exist; held-out rows are reached by `open_vault` only.
        """
        histories, fold = self.load_histories(folds)
        threads = min(MOST_THREADS, len(os.sched_getaffinity(0)))
        return Split(encode_users(histories, fold, self.state, threads), histories.users, fold)

    def load_histories(self, folds: Collection[int] | None = None) -> tuple[Histories, Int8]:
        """Histories (training rows) and folds of the same users, in the same order, as `load` returns.

        Raises:
            ConfigError: as `load`.
        """
        return self._trained(range(self.manifest.buckets), self._training(folds))

    def stream(self, folds: Collection[int] | None = None) -> Iterator[Split]:
        """What `load` returns, bucket by bucket, for data larger than memory; users are in order within a bucket.

        Raises:
            ConfigError: as `load`.
        """
        chosen = self._training(folds)
        for bucket in range(self.manifest.buckets):
            histories, fold = self._trained([bucket], chosen)
            yield Split(encode_users(histories, fold, self.state), histories.users, fold)

    def sample(self, users: int) -> Histories:
        """Training rows of some users, the same ones for every number of buckets: those with the smallest hashes."""
        names = self.training_users()
        chosen = np.zeros(len(self.split.names), bool)
        few = names[np.argsort(stable_hash(names, 0), kind="stable")[:users]]
        chosen[np.searchsorted(self.split.names, few)] = True
        return self._trained(sorted(set(bucket_of(few, self.manifest.buckets).tolist())), chosen)[0]

    def queries(self, bucket: int) -> Histories:
        """The users of one bucket, test users too, who have a hidden answer to be predicted."""
        histories = Histories.from_table(self._read(bucket))
        owners = np.repeat(np.arange(len(histories.users)), histories.lengths)[~graded(histories.correct)]
        return histories.select(np.unique(owners))

    def test_inputs(self) -> Histories:
        """What the users of the vault were asked, and when: every answer is hidden, so nothing enters the ledger."""
        histories, _ = self._ordered(range(self.manifest.buckets), self.split.cut < self.split.rows)
        return replace(histories, correct=np.full(histories.rows, UNKNOWN, np.int8))

    def open_vault(self, reason: str) -> Vault:
        """The users with held-out rows, after a ledger entry of who opened the vault, when and why.

        Args:
            reason: why the final figure is wanted; reports print it.
        """
        if not reason.strip():
            raise ConfigError("opening the test vault needs a reason, e.g. --set reason='final figure for the paper'")
        _enter(self.store.child("ledger"), self.name, self.manifest.fingerprint, reason)
        held_out = self.split.cut < self.split.rows
        histories, place = self._ordered(range(self.manifest.buckets), held_out)
        fold = np.full(len(place), TEST, np.int8)
        return Vault(encode_users(histories, fold, self.state), histories.users, fold, histories, self.split.cut[place])

    def _training(self, folds: Collection[int] | None) -> Mask:
        """[U] who trains in the given folds."""
        known = set(range(self.manifest.folds))
        wanted = known if folds is None else {int(fold) for fold in folds}
        if not wanted <= known:
            raise ConfigError(
                f"dataset {self.name!r} has no training fold {min(wanted - known)}; it has folds 0 to {len(known) - 1} "
                "(held-out rows are opened by dkt evaluate --set final=true only)"
            )
        return np.isin(self.split.fold, sorted(wanted)) & (self.split.cut > 0)

    def _trained(self, buckets: Collection[int], chosen: Mask) -> tuple[Histories, Int8]:
        """Training rows and folds of those of the chosen users, [U], who are in the given buckets."""
        histories, place = self._ordered(buckets, chosen)
        return histories.head(self.split.cut[place]), self.split.fold[place]

    def _ordered(self, buckets: Collection[int], chosen: Mask) -> tuple[Histories, Int64]:
        """Whole histories of chosen users in the order of their names, and the place of each in the split."""
        wanted = pa.array(self.split.names[chosen], pa.string())
        tables = [self._read(bucket) for bucket in buckets]
        found = Histories.from_table(pa.concat_tables([t.filter(pc.is_in(t["user"], wanted)) for t in tables]))
        ordered = found.select(pc.sort_indices(pa.array(found.users, pa.string())).to_numpy().astype(np.int64))
        return ordered, np.searchsorted(self.split.names, ordered.users)

    def _read(self, bucket: int) -> pa.Table:
        columns = [name for name in HISTORY_COLUMNS if name != "timestamp" or self.manifest.timed]
        return self.files.read_table(self.manifest.files[bucket].histories, columns)


def held_out(rows: Rows, first: Int64) -> Rows:
    """Rows of the vault; answers that were trained on (of users whose later rows are held out) hidden: not scored.

    Args:
        first: [U] position of each user's first row that is held out.
    """
    seen = rows.position < np.repeat(first, np.diff(rows.offsets))
    return replace(rows, correct=np.where(seen, np.int8(UNKNOWN), rows.correct))


def folder(name: str) -> str:
    """Where a dataset lives in the store."""
    return f"datasets/{name}"


def _enter(ledger: Store, dataset: str, fingerprint: str, reason: str) -> None:
    """Write the next ledger entry; two openings at once never share a number."""
    entry = {
        "who": f"{getpass.getuser()}@{socket.gethostname()}",
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "why": reason,
        "dataset": dataset,
        "fingerprint": fingerprint,
    }
    number = len(ledger.list())
    while True:
        try:
            ledger.write_if(f"{number:05d}.json", json_bytes(entry), None)
        except ConflictError:
            number += 1
        else:
            return
