"""How well scores rank: weighted AUROC of many resamples of users in one pass, and a quick one over bins.

Legend: N rows, U users, S resamples.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.integer[Any]]

BINS: Final = 1 << 16  # of the quick AUROC: scores closer than this count as ties
AT_ONCE: Final = 64  # resamples whose weights are read together


class Ranked(NamedTuple):
    """Rows by ascending score: all that a weighted AUROC needs to know of them."""

    user: npt.NDArray[np.int32]  # [N] index into the weights
    right: npt.NDArray[np.bool_]  # [N]
    ends: npt.NDArray[np.bool_]  # [N] the last row of those that tie

    @classmethod
    def of(cls, y: Ints, p: Floats, user: Ints) -> Ranked:
        """Sort the rows."""
        order = np.argsort(p, kind="stable")
        return cls.of_sorted(y[order] == 1, p[order], user[order])

    @classmethod
    def of_sorted(cls, right: npt.NDArray[np.bool_], p: Floats, user: Ints) -> Ranked:
        """Rows that are sorted by `p` already."""
        return cls(user.astype(np.int32), right, np.append(p[1:] != p[:-1], True) if len(p) else np.empty(0, bool))

    def auc(self, weight: Floats) -> Any:
        """Weighted AUROC: of [U] weights a number, of [S, U] weights [S]; nan where a kind of answer is missing.

        Sums of whole weights are exact.
        """
        rows = np.atleast_2d(weight)
        found = np.concatenate([self._some(rows[first : first + AT_ONCE]) for first in range(0, len(rows), AT_ONCE)])
        return found if weight.ndim == 2 else float(found[0])

    def _some(self, weight: Floats) -> Floats:
        area, wrong = _pairs(self.user, self.right, self.ends, np.ascontiguousarray(weight.T))
        pairs = weight @ np.bincount(self.user[self.right], minlength=weight.shape[1]) * wrong
        return np.divide(area, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)


def binned_auc(y: Ints, p: Floats) -> float:
    """AUROC of scores from 0 to 1, off by less than 1e-4 for the ties that bins make; 0.5 if there is one kind only."""
    right, wrong = _histograms(y == 1, p, BINS)
    below = np.cumsum(wrong) - wrong
    pairs = right.sum() * wrong.sum()
    return float(right @ (below + wrong / 2) / pairs) if pairs > 0 else 0.5


def rank_within(user: Ints) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rank of each row among its user's rows (from 0, in the given order), and the number of these rows."""
    sizes = np.bincount(user)
    order = np.argsort(user, kind="stable")
    rank = np.empty(len(user), np.int64)
    rank[order] = np.arange(len(user)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return rank, sizes[user]


def within_users(y: Ints, p: Floats, user: Ints) -> tuple[Floats, Floats]:
    """AUROC of each user's rows times their number, [U], and their number; 0 for users with one kind of answer."""
    users = int(user.max()) + 1 if len(user) else 0
    by_score = np.argsort(p, kind="stable")
    order = by_score[np.argsort(user[by_score].astype(np.min_scalar_type(users)), kind="stable")]  # radix if < 2^16
    u, q, right = user[order], p[order], y[order] == 1
    starts = np.flatnonzero(np.append(True, (u[1:] != u[:-1]) | (q[1:] != q[:-1]))) if len(u) else np.empty(0, np.int64)
    sizes = np.diff(np.append(starts, len(u)))
    rank = np.repeat(starts + (sizes + 1) / 2, sizes)  # mid-rank in the whole, from 1
    rows = np.bincount(u, minlength=users).astype(np.float64)
    n_right = np.bincount(u, right, users)
    before = np.concatenate([[0.0], np.cumsum(rows)[:-1]]) if users else rows
    pairs = n_right * (rows - n_right)
    ordered = np.bincount(u, rank * right, users) - n_right * (before + (n_right + 1) / 2)
    both = pairs > 0
    return np.where(both, rows * ordered / np.where(both, pairs, 1.0), 0.0), np.where(both, rows, 0.0)


@numba.njit(cache=True, nogil=True)
def _pairs(
    user: npt.NDArray[np.int32], right: npt.NDArray[np.bool_], ends: npt.NDArray[np.bool_], weight: Floats
) -> tuple[Floats, Floats]:
    """Weight of pairs in the right order (ties one half), and of wrong answers, per resample.

    Args:
        weight: [U, S].
    """
    samples = weight.shape[1]
    area, wrong = np.zeros(samples), np.zeros(samples)
    tied_right, tied_wrong = np.zeros(samples), np.zeros(samples)
    alone = True
    for row in range(len(user)):
        u = user[row]
        if not alone or not ends[row]:
            tied = tied_right if right[row] else tied_wrong
            for s in range(samples):
                tied[s] += weight[u, s]
            alone = ends[row]
            if alone:
                for s in range(samples):
                    area[s] += tied_right[s] * (wrong[s] + 0.5 * tied_wrong[s])
                    wrong[s] += tied_wrong[s]
                tied_right[:] = 0.0
                tied_wrong[:] = 0.0
        elif right[row]:
            for s in range(samples):
                area[s] += weight[u, s] * wrong[s]
        else:
            for s in range(samples):
                wrong[s] += weight[u, s]
    return area, wrong


@numba.njit(cache=True, nogil=True)
def _histograms(right: npt.NDArray[np.bool_], p: Floats, bins: int) -> tuple[Floats, Floats]:
    """Right and wrong answers per bin of the score."""
    found = np.zeros((2, bins))
    for row in range(len(p)):
        found[int(right[row]), min(int(p[row] * bins), bins - 1)] += 1.0
    return found[1], found[0]
