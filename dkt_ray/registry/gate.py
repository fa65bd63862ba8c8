"""The quality gate: may a challenger take the champion's place, judged by the answers of one frozen evaluation set?

Legend: N rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from pydantic import Field

from dkt_ray import metrics
from dkt_ray.config import Config
from dkt_ray.metrics import HISTORY_LENGTHS, Estimate, Floats, Ints, Statistic

FIRST_POSITION: Final = 1  # the headline leaves out cold starts, which are a slice of their own


class GateConfig(Config):
    """Who judges a challenger, and how much worse than the champion it may be."""

    dataset: str | None = None
    """Dataset of the store whose users judge; unset: the one that the challenger was trained on. (`gate=false` leaves
    the gate out, which the alias's history then says.)"""
    users: Literal["test", "all"] = "test"
    """test: its test users, from whom both bundles were kept, as they were trained on the same data, or on others under
    the same split by hash or time (each opening of their vault is written to the ledger); all: what trains in a dataset
    that neither bundle was trained on, such as newer logs, none of whose files is in the bundles' datasets."""
    most_users: int = Field(default=2000, ge=2)
    """Judges at most: those with the smallest hashes."""
    auc_margin: float = Field(default=0.001, ge=0)
    """The lower bound of the AUROC's paired difference (challenger minus champion) must be at least minus this."""
    ece_margin: float = Field(default=0.005, ge=0)
    """The upper bound of the calibration error's paired difference must be at most this."""
    slice_margin: float = Field(default=0.001, ge=0)
    """No slice by history length may be worse by more than this beyond chance: by its whole interval."""
    samples: int = Field(default=metrics.SAMPLES, ge=20)
    """Bootstrap resamples of the users."""
    seed: int = 0
    """Seed of the bootstrap."""
    override: str = ""
    """Why a challenger that fails may serve all the same; kept in the report and in the alias's history."""


@dataclass(frozen=True)
class Comparison:
    """A figure of both, and challenger minus champion on the same resamples of users."""

    champion: Estimate
    challenger: Estimate
    difference: Estimate


@dataclass(frozen=True)
class GateReport:
    """What the gate found; ready for JSON with `dataclasses.asdict`."""

    passed: bool
    """Every condition holds; an override does not change that."""
    failures: tuple[str, ...]
    """Which conditions do not, in words."""
    rows: int
    users: int
    auc: Comparison
    ece: Comparison
    slices: dict[str, Comparison]
    """AUROC by history length."""
    settings: dict[str, Any]
    """The margins and the override; who judged."""


def judge(y: Ints, user: Ints, position: Ints, champion: Floats, challenger: Floats, config: GateConfig) -> GateReport:
    """Compare two bundles' probabilities of the same answers.

    Args:
        y: [N] 1 or 0.
        user: [N] code of the row's user.
        position: [N] number of the user's earlier rows; the slices go by it, the headline starts at 1.
        champion: [N] probabilities.
        challenger: [N] probabilities.
    """
    distinct, index = np.unique(user, return_inverse=True)
    headline = position >= FIRST_POSITION
    kept = {"auc": headline, "ece": headline}
    kept |= {name: (position >= low) & (position <= high) for name, low, high in HISTORY_LENGTHS}
    statistics = {
        name: tuple(
            (metrics.ece_statistic if name == "ece" else metrics.auc_statistic)(y[rows], p[rows], index[rows])
            for p in (champion, challenger)
        )
        for name, rows in kept.items()
    }
    found = _compare(statistics, len(distinct), config)
    auc, ece = found.pop("auc"), found.pop("ece")
    failures = _failures(auc, ece, found, config)
    return GateReport(
        not failures, failures, int(headline.sum()), len(distinct), auc, ece, found, config.model_dump(mode="json")
    )


def _compare(statistics: Mapping[str, tuple[Statistic, ...]], users: int, config: GateConfig) -> dict[str, Comparison]:
    """Each pair of statistics (champion, challenger) and their difference, all on the same resamples."""
    named = {f"{name} {side}": each for name, pair in statistics.items() for side, each in enumerate(pair)}
    drawn, ones = metrics.bootstrap(named, users, config.samples, config.seed), np.ones(users)
    found = {}
    for name, pair in statistics.items():
        (old, new), (old_drawn, new_drawn) = (s(ones) for s in pair), (drawn[f"{name} {side}"] for side in (0, 1))
        found[name] = Comparison(
            metrics.estimate(old, old_drawn),
            metrics.estimate(new, new_drawn),
            metrics.estimate(new - old, new_drawn - old_drawn),
        )
    return found


def _failures(
    auc: Comparison, ece: Comparison, slices: Mapping[str, Comparison], config: GateConfig
) -> tuple[str, ...]:
    failures = []
    low, high = auc.difference["low"], ece.difference["high"]
    if low is None or high is None:
        failures.append("the figures cannot be compared: too few users, or answers of one kind only; take more users")
    elif low < -config.auc_margin:
        failures.append(f"AUROC {_told(auc)}: lower bound below auc_margin -{config.auc_margin:g}")
    if high is not None and high > config.ece_margin:
        failures.append(f"calibration error {_told(ece)}: upper bound above ece_margin {config.ece_margin:g}")
    for name, found in slices.items():
        best = found.difference["high"]
        if best is not None and best < -config.slice_margin:
            failures.append(
                f"AUROC after {name} answers {_told(found)}: all of it below slice_margin -{config.slice_margin:g}"
            )
    return tuple(failures)


def _told(found: Comparison) -> str:
    difference = found.difference
    return (
        f"{found.challenger['value']:.4f} against {found.champion['value']:.4f}, difference {difference['value']:+.4f} "
        f"({difference['low']:+.4f} to {difference['high']:+.4f})"
    )
