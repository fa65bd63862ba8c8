"""The protocol: what makes two figures comparable, and the out-of-fold tables that ensembles and reports are made from.

An out-of-fold table holds one score per question: each training user's known answers, scored by a model that was fitted
on the other folds. Headline figures leave out the first row of a history (position 0), which is a slice of its own.

Legend: U users, N rows of an out-of-fold table, K members.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dkt_ray.config import Config
from dkt_ray.data.history import Coded, Int8, Int32, Int64, Strings, graded
from dkt_ray.errors import ConfigError, InputError
from dkt_ray.features.batch import Rows
from dkt_ray.features.dataset import Manifest
from dkt_ray.features.encoder import EncoderConfig
from dkt_ray.metrics import METRIC_VERSION

FIRST_POSITION: Final = 1  # headline figures start at the second row of a history
ON_ALL_FOLDS: Final = 0  # `folds` of figures by models that were fitted on every training user
OOF_SCHEMA: Final = pa.schema(
    [
        ("user", pa.string()),
        ("position", pa.int32()),
        ("fold", pa.int8()),
        ("correct", pa.int8()),
        ("probability", pa.float64()),
    ]
)

Floats = npt.NDArray[np.float64]


class EvaluationSet(Config):
    """What was scored and how: figures are compared only where all of this is equal."""

    data: str
    """Digest of the input files' contents, whatever their names."""
    folds: int
    """Folds of users for out-of-fold scores; 0: the models were fitted on every training user."""
    rows: int
    """Scored rows."""
    pairs: str
    """Digest of the scored (user, position) pairs and their answers."""
    first_position: int
    """The lowest position that headline figures count."""
    context: int
    """Context rule: a network sees position t from (floor(t / context) - 1) * context on."""
    bundle: Literal["none", "test_run"]
    timestamp_is: Literal["shown", "submitted"]
    metric: int = METRIC_VERSION
    """Version of the metric definitions."""

    @property
    def fingerprint(self) -> str:
        """12 hexadecimal digits that every run prints beside its figures."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, eq=False)
class Scored:
    """Scored rows, sorted by (user, position)."""

    user: Coded  # [N]
    position: Int32  # [N] number of the user's earlier rows
    fold: Int8  # [N] fold that the row's user is in
    correct: Int8  # [N] 1 or 0
    probability: Floats  # [N]

    @property
    def rows(self) -> int:
        """Number of rows, N."""
        return len(self.position)

    @property
    def headline(self) -> npt.NDArray[np.bool_]:
        """[N] rows that headline figures count."""
        return self.position >= FIRST_POSITION

    def to_table(self) -> pa.Table:
        """The stored form."""
        columns = [self.user.arrow().cast(pa.string()), self.position, self.fold, self.correct, self.probability]
        return pa.table([pa.array(column) for column in columns], schema=OOF_SCHEMA)

    @classmethod
    def from_table(cls, table: pa.Table, what: str) -> Scored:
        """Read and check an out-of-fold table.

        Args:
            what: names the table in messages, e.g. the member and its key in the store.

        Raises:
            InputError: a missing column, a hidden answer, a probability outside 0 to 1, a pair twice, or another order.
        """
        missing = [name for name in OOF_SCHEMA.names if name not in table.column_names]
        if missing:
            raise InputError(f"{what}: columns {', '.join(missing)} are missing; found {', '.join(table.column_names)}")
        table = table.select(OOF_SCHEMA.names).cast(OOF_SCHEMA)
        columns = {name: table[name].to_numpy() for name in OOF_SCHEMA.names[1:]}
        scored = cls(Coded.of(table["user"]), **columns)
        _check(scored, what)
        return scored


def oof_key(name: str) -> str:
    """Key of a member's out-of-fold scores."""
    return f"members/{name}/oof.parquet"


def scored_rows(rows: Rows, users: Strings, fold: Int8, probability: Floats) -> Scored:
    """The rows with a known answer and their scores, in the order of an out-of-fold table.

    Args:
        rows: encoded rows of U users.
        users: [U] their names.
        fold: [U] their folds.
        probability: [rows.rows] scores; those of hidden answers are left out.
    """
    owner = np.repeat(np.arange(len(users)), np.diff(rows.offsets))
    by_name = pc.sort_indices(pa.array(users, pa.string())).to_numpy()
    rank = np.empty(len(users), np.int64)
    rank[by_name] = np.arange(len(users))
    kept = np.flatnonzero(graded(rows.correct))
    kept = kept[np.lexsort((rows.position[kept], rank[owner[kept]]))]
    return Scored(
        Coded(rank[owner[kept]].astype(np.int32), users[by_name]),
        rows.position[kept],
        fold[owner[kept]],
        rows.correct[kept],
        np.asarray(probability, np.float64)[kept],
    )


def evaluation_set(manifest: Manifest, scored: Scored, folds: int | None = None) -> EvaluationSet:
    """The evaluation set of scored rows of a dataset.

    Args:
        folds: `ON_ALL_FOLDS` for models that were fitted on every training user; None: the dataset's folds.
    """
    encoder = EncoderConfig.model_validate(manifest.config["encoder"])
    kept = np.flatnonzero(scored.headline)
    return EvaluationSet(
        data=_sha(*(digest.encode() for digest in sorted(manifest.inputs.values()))),
        folds=manifest.folds if folds is None else folds,
        rows=len(kept),
        pairs=_pairs(scored, kept),
        first_position=FIRST_POSITION,
        context=manifest.config["context"],
        bundle=encoder.bundle,
        timestamp_is=encoder.timestamp_is,
    )


def comparable(a: EvaluationSet, b: EvaluationSet, what: Sequence[str] = ("first", "second")) -> None:
    """Refuse to compare figures of different evaluation sets.

    Args:
        what: names of the two in the message.

    Raises:
        ConfigError: names both fingerprints and each field that differs.
    """
    one, two = a.model_dump(), b.model_dump()
    different = [f"{name}: {one[name]!r} and {two[name]!r}" for name in one if one[name] != two[name]]
    if different:
        raise ConfigError(
            f"{what[0]} ({a.fingerprint}) and {what[1]} ({b.fingerprint}) were not scored on the same evaluation set: "
            f"{'; '.join(different)}; score both on one evaluation set to compare them"
        )


def align_members(members: Mapping[str, Scored]) -> tuple[Scored, Floats]:
    """Put the members' scores side by side.

    Returns:
        The first member's rows, and [N, K] probabilities.

    Raises:
        ConfigError: names a member whose rows, answers or folds are not the others', or whose scores are constant.
    """
    (first, base), *others = members.items()
    for name, member in others:
        _check_same(first, base, name, member)
    for name, member in members.items():
        if member.rows and np.ptp(member.probability) == 0:
            raise ConfigError(
                f"member {name} scores every row {member.probability[0]:g}: it learned nothing and cannot be weighed; "
                f"leave it out, e.g. --set members=[{','.join(n for n in members if n != name)}]"
            )
    return base, np.stack([member.probability for member in members.values()]).T  # columns are contiguous


def locate(user: Coded, position: Int32, among: Scored) -> Int64:
    """[N] index in a (user, position) table of each row of `among`; -1 where it is not there."""
    names = pc.index_in(pa.array(among.user.values, pa.string()), pa.array(user.values, pa.string()))
    code = names.fill_null(-1).to_numpy()[among.user.codes].astype(np.int64)
    width = np.int64(max(position.max(initial=0), among.position.max(initial=0)) + 1)
    key = user.codes * width + position
    order = np.argsort(key, kind="stable")
    wanted = code * width + among.position
    place = np.minimum(np.searchsorted(key[order], wanted), max(len(key) - 1, 0))
    found = order[place] if len(key) else np.full(among.rows, -1)
    matches = (key[found] == wanted) & (code >= 0) if len(key) else np.zeros(among.rows, bool)
    return np.where(matches, found, -1)


def _check(scored: Scored, what: str) -> None:
    p, y = scored.probability, scored.correct
    if not ((p >= 0) & (p <= 1)).all():  # also refuses nan
        row = int(np.flatnonzero(~((p >= 0) & (p <= 1)))[0])
        raise InputError(f"{what}: row {row} has probability {p[row]}; expected a number from 0 to 1")
    if not np.isin(y, (0, 1)).all():
        raise InputError(f"{what}: found the answer {y[~np.isin(y, (0, 1))][0]}; out-of-fold rows have 1 or 0")
    rank = np.argsort(pc.sort_indices(pa.array(scored.user.values, pa.string())).to_numpy())
    key = rank[scored.user.codes] * np.int64(scored.position.max(initial=0) + 1) + scored.position
    wrong = np.flatnonzero(np.diff(key) <= 0)
    if len(wrong):
        row = int(wrong[0]) + 1
        raise InputError(
            f"{what}: row {row} (user {_user(scored, row)}, position {scored.position[row]}) is there twice or out of "
            "order; rows must be sorted by user and position"
        )


def _same_rows(base: Scored, member: Scored) -> bool:
    """Whether both list the same rows in the same words: what members of one run do."""
    pairs = ((base.position, member.position), (base.user.codes, member.user.codes))
    return all(np.array_equal(*pair) for pair in (*pairs, (base.user.values, member.user.values)))


def _check_same(first: str, base: Scored, name: str, member: Scored) -> None:
    place = np.arange(base.rows) if _same_rows(base, member) else locate(member.user, member.position, base)
    lost = np.flatnonzero(place < 0)
    if len(lost) or member.rows != base.rows:
        example = f"; e.g. user {_user(base, lost[0])}, position {base.position[lost[0]]}" if len(lost) else ""
        raise ConfigError(
            f"member {name} has other rows than {first}: {member.rows} and {base.rows} rows, {len(lost)} of {first}'s "
            f"are missing{example}; tune both on one dataset with one set of folds"
        )
    for field in ("correct", "fold"):
        if not np.array_equal(getattr(member, field), getattr(base, field)):
            raise ConfigError(f"member {name} has another `{field}` column than {first}; tune both on one dataset")


def _user(scored: Scored, row: Any) -> str:
    return str(scored.user.values[scored.user.codes[row]])


def _pairs(scored: Scored, rows: Int64) -> str:
    """Digest of (user, position, answer) rows that are sorted by user: names once, counts, positions, answers."""
    codes = scored.user.codes[rows]
    starts = np.flatnonzero(np.append(True, codes[1:] != codes[:-1])) if len(codes) else np.empty(0, np.int64)
    names = "\0".join(scored.user.values[codes[starts]])
    counts = np.diff(np.append(starts, len(codes)))
    arrays = (counts.astype("<i8"), scored.position[rows].astype("<i4"), scored.correct[rows].astype("<i1"))
    return _sha(names.encode(), *(array.tobytes() for array in arrays))


def _sha(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]
