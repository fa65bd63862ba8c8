"""The figures of one evaluation set: every model's metrics, their paired differences, calibration, and correlation.

Legend: N scored rows, K models.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from dkt_ray import metrics
from dkt_ray.data.history import Coded
from dkt_ray.errors import ConfigError
from dkt_ray.features.dataset import Manifest
from dkt_ray.metrics import Estimate
from dkt_ray.storage import Store, open_object
from dkt_ray.training.protocol import FIRST_POSITION, EvaluationSet, Scored, locate

Floats = npt.NDArray[np.float64]
Kind = Literal["ensemble", "method", "member", "peer", "baseline", "oracle", "filter"]

CALIBRATION_BINS: Final = 10
_AT_ONCE: Final = 1 << 18  # rows
LEDGER: Final = "ledger"
NOT_MEASURED: Final = (
    "share of right answers that lower the mastery of their concept (aim <= 5 %): dkt publish measures it",
)


@dataclass(frozen=True)
class Settings:
    """How figures are bootstrapped, and whether those of last answers are asked for."""

    samples: int = metrics.SAMPLES
    seed: int = 0
    last_answers: bool = False


@dataclass(frozen=True)
class Heading:
    """What a report says of itself."""

    title: str
    how: str  # one sentence on how the figures came about
    dataset: str
    run: str


@dataclass(frozen=True, eq=False)
class Answers:
    """The scored rows, without scores."""

    y: npt.NDArray[np.int8]  # [N]
    user: npt.NDArray[np.int32]  # [N] code
    position: npt.NDArray[np.int32]  # [N]
    first: npt.NDArray[np.bool_]  # [N] first attempt at the question

    @classmethod
    def of(cls, scored: Scored, first: npt.NDArray[np.bool_]) -> Answers:
        """The answers of scored rows."""
        return cls(scored.correct, scored.user.codes, scored.position, first)

    @property
    def headline(self) -> npt.NDArray[np.bool_]:
        """[N] rows that headline figures count; the others are cold starts."""
        return self.position >= FIRST_POSITION

    def at(self, rows: npt.NDArray[np.bool_]) -> Answers:
        """Some of the rows."""
        return Answers(self.y[rows], self.user[rows], self.position[rows], self.first[rows])


@dataclass(frozen=True, eq=False)
class Contender:
    """A model's scores of all rows, or how they are made when they are wanted."""

    kind: Kind
    given: Floats | Callable[[], Floats]  # [N]

    @property
    def probability(self) -> Floats:
        """[N] scores."""
        return self.given() if callable(self.given) else self.given


Measured = tuple[dict[str, Any], Floats]  # a model's figures, and its AUROC on each resample of the users
Measure = Callable[[Answers, Mapping[str, Contender], Settings], dict[str, Measured]]


def make_report(
    heading: Heading,
    evaluation: EvaluationSet,
    answers: Answers,
    contenders: Mapping[str, Contender],
    weights: Mapping[str, Mapping[str, float]],
    how: Settings,
    measure: Measure,
) -> dict[str, Any]:
    """Everything that a report shows, ready for JSON; its writer adds the vault's ledger.

    Args:
        contenders: at least one is a member and one is `counting`; the report is about the `ensemble` where there is
            one, else about the best member.
        weights: per way of weighing, the one in use first; none without an ensemble.
        measure: gives each contender's figures; see `measure_in_turn`.
    """
    measured = measure(answers, contenders, how)
    models = {name: found for name, (found, _) in measured.items()}
    members = {name: c.probability for name, c in contenders.items() if c.kind == "member"}
    best = max(members, key=lambda name: models[name]["auc"]["value"] or 0.0)
    peers = [name for name, contender in contenders.items() if contender.kind == "peer"]
    versus = {"best_member": best, "counting": "counting", **{peer: peer for peer in peers}}
    compared = differences(measured, tuple(versus.values()))
    users = answers.user[answers.headline]
    return {
        **asdict(heading),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "fingerprint": evaluation.fingerprint,
        "evaluation_set": evaluation.model_dump(mode="json"),
        "users": len(np.unique(users)),
        "effective_users": metrics.effective_users(users),
        "samples": how.samples,
        "chosen": "ensemble" if "ensemble" in contenders else best,
        "method": next(iter(weights), None),
        "weights": {way: dict(found) for way, found in weights.items()},
        "models": models,
        "differences": {key: {"against": name, "models": compared[name]} for key, name in versus.items()},
        "correlation": correlation(members, answers.headline),
        "ledger": [],
        "not_measured": list(NOT_MEASURED),
    }


def measure_in_turn(answers: Answers, contenders: Mapping[str, Contender], how: Settings) -> dict[str, Measured]:
    """The figures of every contender, one after another."""
    return {name: model_figures(answers, contender, how) for name, contender in contenders.items()}


def model_figures(answers: Answers, contender: Contender, how: Settings) -> Measured:
    """All figures of one model, those of cold starts under history length 0 only; of a method, the headline ones."""
    headline, probability = answers.headline, contender.probability
    kept, p = answers.at(headline), probability[headline]
    if contender.kind == "method":
        found, drawn = metrics.headline(kept.y, p, kept.user, how.samples, how.seed)
        return {"kind": contender.kind, **found}, drawn
    found, drawn = metrics.measured(
        kept.y, p, kept.user, kept.position, kept.first, how.last_answers, samples=how.samples, seed=how.seed
    )
    cold, cold_p = answers.at(~headline), probability[~headline]
    interval = metrics.bootstrap_auc(cold.y, cold_p, cold.user, how.samples, how.seed) or (None, None)
    at_zero = {"value": metrics.auc(cold.y, cold_p), "low": interval[0], "high": interval[1]}
    found["auc_by_history_length"]["0"] = at_zero
    return {"kind": contender.kind, **found, "calibration": calibration(kept.y, p)}, drawn


def differences(measured: Mapping[str, Measured], against: Sequence[str]) -> dict[str, dict[str, Estimate]]:
    """AUROC of each model minus that of each one in `against`, on the same resamples of users."""
    value = {name: np.nan if (auc := found["auc"]["value"]) is None else auc for name, (found, _) in measured.items()}

    def difference(name: str, other: str) -> Estimate:
        return metrics.estimate(value[name] - value[other], measured[name][1] - measured[other][1])

    return {other: {name: difference(name, other) for name in measured if name != other} for other in against}


def calibration(y: npt.NDArray[np.int8], p: Floats, bins: int = CALIBRATION_BINS) -> list[dict[str, float]]:
    """Mean probability and share of right answers in equally wide bins of the probability (a reliability diagram)."""
    cell = np.clip((p * bins).astype(np.int64), 0, bins - 1)
    rows = np.bincount(cell, minlength=bins)
    mean, share = (np.bincount(cell, values, bins) / np.maximum(rows, 1) for values in (p, y))
    return [
        {"probability": float(mean[b]), "right": float(share[b]), "rows": int(rows[b])} for b in np.flatnonzero(rows)
    ]


def correlation(
    members: Mapping[str, Floats], rows: npt.NDArray[np.bool_] | slice = slice(None)
) -> dict[str, dict[str, float]]:
    """Pearson correlation of the members' probabilities of some of the rows."""
    columns = list(members.values())
    chosen = np.arange(len(columns[0]))[rows]
    mean = np.array([column[rows].mean() for column in columns])[:, None]
    products = np.zeros((len(columns), len(columns)))
    for first in range(0, len(chosen), _AT_ONCE):  # a stack of all rows would be all members once more
        off = np.stack([column[chosen[first : first + _AT_ONCE]] for column in columns]) - mean
        products += off @ off.T
    spread = np.sqrt(np.diag(products))
    matrix = np.clip(products / spread[:, None] / spread, -1.0, 1.0)
    return {a: {b: float(matrix[i, j]) for j, b in enumerate(members)} for i, a in enumerate(members)}


def ledger(store: Store) -> list[dict[str, Any]]:
    """Every opening of a test vault of this store, oldest first."""
    return [store.read_json(key) for key in store.list(LEDGER)]


def require_same(given: Mapping[str, str], expected: EvaluationSet) -> None:
    """Refuse members whose stored scores belong to another evaluation set.

    Args:
        given: fingerprint per member.

    Raises:
        ConfigError: names the member and both fingerprints.
    """
    for name, fingerprint in given.items():
        if fingerprint != expected.fingerprint:
            raise ConfigError(
                f"member {name} was scored on evaluation set {fingerprint}, the dataset is now {expected.fingerprint}: "
                "the data, its folds or its settings have changed; run dkt tune again"
            )


def read_truth(path: str, manifest: Manifest, base: Scored) -> Floats:
    """The true probabilities of scored rows, from the simulator's truth.parquet.

    Raises:
        ConfigError: the dataset's rows are not the simulator's.
    """
    if left_out := manifest.rejected + manifest.duplicates:
        raise ConfigError(
            f"truth={path}: the dataset left out {left_out} rows of its input, so positions do not match the "
            "simulator's; unset truth"
        )
    store, key = open_object(path)
    table = store.read_table(key, ["user", "position", "probability"])
    place = locate(Coded.of(table["user"]), table["position"].to_numpy(), base)
    if (place < 0).any():
        raise ConfigError(
            f"truth={path}: {int((place < 0).sum())} of {base.rows} scored rows are not in it; unset truth"
        )
    return table["probability"].to_numpy().astype(np.float64)[place]


def truth_version(path: str) -> str:
    """A token of the content of a truth.parquet."""
    store, key = open_object(path)
    return store.read_versioned(key)[1]
