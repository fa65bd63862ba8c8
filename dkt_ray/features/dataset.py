"""A prepared dataset in the store: its manifest, its histories, its encoded rows, and the vault of its test users.

Legend: U users, N rows, C concepts per question, F numeric columns.
"""

from __future__ import annotations

import datetime
import getpass
import socket
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dkt_ray.config import Config, build
from dkt_ray.data.history import Histories, Int8, Int32, Int64, Strings, graded, ranges
from dkt_ray.data.splits import TEST
from dkt_ray.errors import ConfigError, ConflictError, NotFoundError, StorageError
from dkt_ray.features.batch import Rows
from dkt_ray.features.encoder import encode
from dkt_ray.features.state import ID_COLUMNS, EncoderState
from dkt_ray.schema import UNKNOWN
from dkt_ray.storage import Store, json_bytes

MANIFEST: Final = "manifest.json"
ROW_COLUMNS: Final = ("correct", "position", "visible")


class Manifest(Config):
    """What a dataset holds and what it was made from; written last, so where it is, the dataset is complete."""

    dataset: str
    fingerprint: str
    """Hash of settings, inputs and feature version: an equal fingerprint means equal content."""
    rows: int
    users: int
    test_users: int
    hidden: int
    """Rows whose answer is hidden (-1)."""
    rejected: int
    duplicates: int
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
    config: dict[str, Any]
    """The settings that made it."""
    created: str


class Split(NamedTuple):
    """Encoded rows of some users, in memory."""

    rows: Rows
    users: Strings  # [U]
    fold: Int8  # [U]


class Vault(NamedTuple):
    """The test users: a `Split` and the histories that it was made from."""

    rows: Rows
    users: Strings  # [U]
    fold: Int8  # [U], all TEST
    histories: Histories


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
        """The encoder's state, fitted on all training users."""
        with tempfile.TemporaryDirectory() as local:
            self.files.download("state", Path(local))
            return EncoderState.load(Path(local))

    def histories(self, bucket: int) -> tuple[Histories, Int8]:
        """The training users of one bucket and their folds, [U]."""
        return self._histories([bucket], self._training(None))

    def queries(self, bucket: int) -> Histories:
        """The users of one bucket, test users too, who have a hidden answer to be predicted."""
        table = self.files.read_table(bucket_key("histories", bucket))
        histories = Histories.from_table(table)
        owners = np.repeat(np.arange(len(histories.users)), histories.lengths)[~graded(histories.correct)]
        return histories.select(np.unique(owners))

    def load(self, folds: Collection[int] | None = None) -> Split:
        """Encoded rows of the training users in the given folds (default: all folds), buckets in order.

        Raises:
            ConfigError: a fold that does not exist; test users are reached by `open_vault` only.
        """
        return self._load(self._training(folds))

    def load_histories(self, folds: Collection[int] | None = None) -> tuple[Histories, Int8]:
        """Histories and folds of the same users, in the same order, as `load` returns.

        Raises:
            ConfigError: as `load`.
        """
        return self._histories(range(self.manifest.buckets), self._training(folds))

    def test_inputs(self) -> Histories:
        """What the test users were asked, and when: every answer is hidden, so nothing enters the ledger."""
        histories, _ = self._histories(range(self.manifest.buckets), {TEST})
        return replace(histories, correct=np.full(histories.rows, UNKNOWN, np.int8))

    def open_vault(self, reason: str) -> Vault:
        """The test users, after a ledger entry of who opened the vault, when and why.

        Args:
            reason: why the final figure is wanted; reports print it.
        """
        if not reason.strip():
            raise ConfigError("opening the test vault needs a reason, e.g. --set reason='final figure for the paper'")
        _enter(self.store.child("ledger"), self.name, self.manifest.fingerprint, reason)
        split = self._load({TEST})
        histories, _ = self._histories(range(self.manifest.buckets), {TEST})
        return Vault(*split, histories)

    def _training(self, folds: Collection[int] | None) -> set[int]:
        known = set(range(self.manifest.folds))
        wanted = known if folds is None else {int(fold) for fold in folds}
        if not wanted <= known:
            raise ConfigError(
                f"dataset {self.name!r} has no training fold {min(wanted - known)}; it has folds 0 to {len(known) - 1} "
                "(test users are opened by dkt evaluate --set final=true only)"
            )
        return wanted

    def _histories(self, buckets: Collection[int], folds: set[int]) -> tuple[Histories, Int8]:
        wanted = pa.array(sorted(folds), pa.int8())
        tables = [self.files.read_table(bucket_key("histories", bucket)) for bucket in buckets]
        table = pa.concat_tables([t.filter(pc.is_in(t["fold"], wanted)) for t in tables])
        return Histories.from_table(table), table["fold"].to_numpy().astype(np.int8)

    def _load(self, folds: set[int]) -> Split:
        parts = [self._load_bucket(bucket, folds) for bucket in range(self.manifest.buckets)]
        rows, users, fold = zip(*parts, strict=True)
        return Split(concatenate(rows), np.concatenate(users), np.concatenate(fold))

    def _load_bucket(self, bucket: int, folds: set[int]) -> Split:
        owners = self.files.read_table(bucket_key("histories", bucket), ["user", "fold", "correct"])
        fold = owners["fold"].to_numpy().astype(np.int8)
        chosen = np.flatnonzero(np.isin(fold, sorted(folds)))
        offsets = np.concatenate([[0], np.cumsum(pc.list_value_length(owners["correct"]).to_numpy())]).astype(np.int64)
        table = self.files.read_table(bucket_key("encoded", bucket))
        rows = rows_from_table(table, offsets, self.manifest.numbers, self.state.concepts_per_question)
        if len(chosen) < len(fold):
            rows = rows.take(*ranges(offsets[chosen], offsets[chosen + 1]))
        return Split(rows, owners["user"].to_numpy().astype(object)[chosen], fold[chosen])


def folder(name: str) -> str:
    """Where a dataset lives in the store."""
    return f"datasets/{name}"


def bucket_key(kind: str, bucket: int) -> str:
    """Key of one bucket's file inside the dataset."""
    return f"{kind}/b={bucket:03d}.parquet"


def encode_users(histories: Histories, fold: Int8, state: EncoderState) -> Rows:
    """Encode users with what was fitted on others: fold k with a state that excludes k, test users with the full state.

    Args:
        fold: [U] fold of each user.
        state: fitted on all training users.
    """
    groups = [(each, np.flatnonzero(fold == each)) for each in np.unique(fold)]
    if not groups:
        return encode(histories, None, state).past
    parts = [
        encode(histories.select(users), None, state if each == TEST else state.excluding(int(each))).past
        for each, users in groups
    ]
    grouped = concatenate(parts)
    place = np.argsort(np.concatenate([users for _, users in groups]))
    return grouped.take(*ranges(grouped.offsets[place], grouped.offsets[place + 1]))


def rows_schema(numbers: Sequence[str]) -> pa.Schema:
    """Columns of an encoded bucket, one row per interaction."""
    return pa.schema(
        [(name, pa.int32()) for name in ID_COLUMNS]
        + [("concepts", pa.list_(pa.int32()))]
        + [(name, pa.float32()) for name in numbers]
        + [("correct", pa.int8()), ("position", pa.int32()), ("visible", pa.int32())]
    )


def rows_to_table(rows: Rows, numbers: Sequence[str]) -> pa.Table:
    """Encoded rows in the stored form: small types, and concept lists without their padding."""
    present = rows.concepts != 0
    offsets = np.concatenate([[0], np.cumsum(present.sum(1))]).astype(np.int32)
    concepts = pa.ListArray.from_arrays(pa.array(offsets), pa.array(rows.concepts[present], pa.int32()))
    columns: list[Any] = [rows.ids[name] for name in ID_COLUMNS]
    columns += [concepts]
    columns += [np.ascontiguousarray(rows.numbers[:, f]) for f in range(len(numbers))]
    columns += [getattr(rows, name) for name in ROW_COLUMNS]
    return pa.Table.from_arrays([pa.array(c) for c in columns], schema=rows_schema(numbers))


def rows_from_table(table: pa.Table, offsets: Int64, numbers: Sequence[str], width: int) -> Rows:
    """Read back what `rows_to_table` made.

    Args:
        offsets: [U + 1] of the users that the rows belong to.
        width: C, the number of concept columns.
    """

    def column(name: str) -> npt.NDArray[Any]:
        return table[name].to_numpy()

    stacked = np.empty((table.num_rows, len(numbers)), np.float32)
    for f, name in enumerate(numbers):
        stacked[:, f] = column(name)
    return Rows(
        offsets=offsets,
        ids={name: column(name) for name in ID_COLUMNS},
        concepts=_padded(table["concepts"], width),
        numbers=stacked,
        correct=column("correct"),
        position=column("position"),
        visible=column("visible"),
    )


def concatenate(parts: Sequence[Rows]) -> Rows:
    """Rows of several groups of users, one after another."""
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    return Rows(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        ids={name: np.concatenate([part.ids[name] for part in parts]) for name in parts[0].ids},
        concepts=np.concatenate([part.concepts for part in parts]),
        numbers=np.concatenate([part.numbers for part in parts]),
        correct=np.concatenate([part.correct for part in parts]),
        position=np.concatenate([part.position for part in parts]),
        visible=np.concatenate([part.visible for part in parts]),
    )


def _padded(lists: pa.ChunkedArray, width: int) -> Int32:
    lengths = pc.list_value_length(lists).to_numpy()
    padded = np.zeros((len(lengths), width), np.int32)
    padded[np.arange(width) < lengths[:, None]] = pc.list_flatten(lists).to_numpy()
    return padded


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
