"""Canary and shadow: which of two bundles answers a student, what both are measured by, and when that is bad enough.

A student keeps one side while the share grows, wherever the request arrives; another rollout deals students anew. Who
gives no student id is answered by the champion, and so is everybody when nobody has repeated the share for a while:
after a rollout's death, and while its replicas are being replaced at the end.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import Field

from dkt_ray.config import Config

BINS: Final = 160  # of latencies, each 10 % wider than the one before: 0.05 ms to three minutes
FIRST_MS: Final = 0.05
GROWTH: Final = 1.1
QUANTILE: Final = 0.95


class Traffic(Config):
    """How requests are dealt; a setting that changes without a restart."""

    share: float = Field(default=0.0, ge=0, le=1)
    """Share of the students whom the challenger answers."""
    compared: float = Field(default=0.0, ge=0, le=1)
    """Share of the requests that the other one answers too, unseen, to be compared."""


class Limits(Config):
    """What ends a canary, a shadow or a watch."""

    error_share: float = Field(default=0.01, ge=0, le=1)
    """Share of the challenger's answers that may fail, or lack a member."""
    latency_factor: float = Field(default=2.0, gt=0)
    """Its 95 % latency may be so many times the champion's ..."""
    latency_slack_ms: float = Field(default=200.0, ge=0)
    """... and this much more."""
    disagreement: float = Field(default=0.15, ge=0, le=1)
    """How far the two may be apart: mean absolute difference of their probabilities."""
    at_least: int = Field(default=20, ge=1)
    """Answers of each below which nothing is concluded."""


@dataclass
class Counts:
    """What one bundle did."""

    answered: int = 0
    errors: int = 0
    latency: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    asked: int = 0
    """Also those that are open, refused, or left by their client, and comparisons that found no room."""

    def add(self, seconds: float, failed: bool | None) -> None:
        """One more request has ended.

        Args:
            failed: None: its client has gone, for whatever reason; it waited so long at least.
        """
        self.answered += failed is False
        self.errors += failed is True
        steps = math.log(max(1000 * seconds, FIRST_MS) / FIRST_MS) / math.log(GROWTH)
        self.latency[min(int(steps), BINS - 1)] += 1

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.answered + other.answered,
            self.errors + other.errors,
            self.latency + other.latency,
            self.asked + other.asked,
        )

    @property
    def ended(self) -> int:
        """Requests that ended, one way or the other."""
        return self.answered + self.errors

    @property
    def p95_ms(self) -> float | None:
        """Upper edge of the bin that holds the 95 % quantile of the latency."""
        timed = int(self.latency.sum())
        if not timed:
            return None
        at = int(np.searchsorted(np.cumsum(self.latency), QUANTILE * timed))
        return float(FIRST_MS * GROWTH ** (at + 1))


@dataclass
class Findings:
    """What both did, in one replica or in several."""

    champion: Counts = field(default_factory=Counts)
    challenger: Counts = field(default_factory=Counts)
    compared: int = 0
    apart: float = 0.0
    """Sum over compared requests of the mean absolute difference."""

    def __add__(self, other: Findings) -> Findings:
        return Findings(
            self.champion + other.champion,
            self.challenger + other.challenger,
            self.compared + other.compared,
            self.apart + other.apart,
        )

    @property
    def disagreement(self) -> float | None:
        """Mean absolute difference of the probabilities; None where nothing was compared."""
        return self.apart / self.compared if self.compared else None

    def figures(self) -> dict[str, Any]:
        """Ready for JSON and for a log line."""
        sides = {"champion": self.champion, "challenger": self.challenger}
        told: dict[str, Any] = {
            name: {
                "asked": side.asked,
                "answered": side.answered,
                "errors": side.errors,
                "p95_ms": _rounded(side.p95_ms, 1),
            }
            for name, side in sides.items()
        }
        return told | {"compared": self.compared, "disagreement": _rounded(self.disagreement, 4)}


def place(student: str, key: str) -> float:
    """Where a student stands between 0 and 1: stable, even, and unrelated under another key (keyed BLAKE2b)."""
    digest = hashlib.blake2b(student.encode(), digest_size=8, key=key.encode()[:64]).digest()
    return int.from_bytes(digest, "big") / 2**64


def is_challengers(student: str | None, share: float, key: str) -> bool:
    """Whether the challenger answers a student."""
    return student is not None and place(student, key) < share


def reason_to_abort(found: Findings, limits: Limits) -> str | None:
    """Which limit is crossed, in words; None where none is, or where too little is known."""
    champion, challenger = found.champion, found.challenger
    if challenger.ended >= limits.at_least and challenger.errors > limits.error_share * challenger.ended:
        return f"errors: {challenger.errors} of {challenger.ended} answers failed, {limits.error_share:.1%} may"
    old, new = champion.p95_ms, challenger.p95_ms
    if min(champion.ended, challenger.ended) >= limits.at_least and old is not None and new is not None:
        most = limits.latency_factor * old + limits.latency_slack_ms
        if new > most:
            return f"latency: 95 % within {new:.0f} ms, the champion {old:.0f} ms, at most {most:.0f} ms is allowed"
    apart = found.disagreement
    if found.compared >= limits.at_least and apart is not None and apart > limits.disagreement:
        return (
            f"disagreement: {apart:.3f} apart on average of {found.compared} requests, {limits.disagreement:g} may be"
        )
    return None


def silence(found: Findings, limits: Limits) -> str | None:
    """That the challenger leaves most requests without an end, in words; None where it does not, or few were asked.

    Only for a stage whose time is over: a good one, too, begins with requests that are open.
    """
    asked, ended = found.challenger.asked, found.challenger.ended
    if asked >= limits.at_least and ended < min(limits.at_least, asked / 2):
        return f"silence: {ended} of {asked} requests were answered or failed, the others were refused or hang"
    return None


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
