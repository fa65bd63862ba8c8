"""The metric set of the protocol, each figure with a bootstrap over users.

Every metric is a `Statistic`: a function of one weight per user. The figure itself is the statistic at weight 1; a
bootstrap resample is the statistic at the number of times that each user was drawn, so that nothing is copied. One seed
draws the same users for every statistic of an evaluation set: subtracting the samples of two models pairs them.

A figure that does not exist (one class only, an empty slice) is None. Answers are 1 or 0; leave hidden ones out.

Legend: N rows, U users, S resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, Final, TypedDict

import numpy as np
import numpy.typing as npt

from dkt_ray.errors import InputError
from dkt_ray.ranking import AT_ONCE, Ranked, rank_within, within_users

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.integer[Any]]
Ids = npt.NDArray[Any]
Statistic = Callable[[Floats], Any]  # [U] weights -> figure, or [S, U] -> [S]; nan where it does not exist

METRIC_VERSION: Final = 1  # part of an evaluation set's fingerprint: raise it when a definition below changes
ROWS_PER_USER: Final = 500  # cap of `auc_capped`
BINS: Final = 15  # of the calibration error
SAMPLES: Final = 200
HISTORY_LENGTHS: Final = (("0", 0, 0), ("1-5", 1, 5), ("6-20", 6, 20), ("21-100", 21, 100), ("> 100", 101, 2**31 - 1))


class Estimate(TypedDict):
    """A figure and its 95 % bootstrap interval over users."""

    value: float | None
    low: float | None
    high: float | None


# ---- plain figures -----------------------------------------------------------------------------------------------


def auc(y: Ints, p: Floats) -> float | None:
    """Area under the ROC curve: the share of (right, wrong) pairs in the right order, ties counting one half."""
    return _figure(auc_statistic(y, p, np.zeros(len(y), np.int64)), 1)


def accuracy(y: Ints, p: Floats) -> float | None:
    """Share of answers on the right side of 0.5 (0.5 itself counts as right)."""
    return _mean(_hits(*_checked(y, p)))


def log_loss(y: Ints, p: Floats) -> float | None:
    """Mean negative log-likelihood in nats; probabilities are clipped by one float64 epsilon."""
    return _mean(surprise(*_checked(y, p)))


def brier(y: Ints, p: Floats) -> float | None:
    """Mean squared error of the probability (Brier, 1950)."""
    y, p = _checked(y, p)
    return _mean((p - y) ** 2)


def ece(y: Ints, p: Floats, bins: int = BINS) -> float | None:
    """Expected calibration error over equally wide bins of the probability (Guo et al., 2017, equation 3)."""
    return _figure(ece_statistic(y, p, np.zeros(len(y), np.int64), bins), 1)


def auc_capped(y: Ints, p: Floats, user: Ints, cap: int = ROWS_PER_USER) -> float | None:
    """AUROC of at most `cap` rows of each user, so that a few heavy users do not decide it."""
    kept = evenly_capped(user, cap)
    return auc(y[kept], p[kept])


def auc_first_attempts(y: Ints, p: Floats, user: Ints, question: Ints) -> float | None:
    """AUROC of each user's first answer to each question (rows in time order within a user)."""
    first = first_attempts(user, question)
    return auc(y[first], p[first])


def auc_last_answers(y: Ints, p: Floats, user: Ints, position: Ints) -> float | None:
    """AUROC of each user's last row. Only for competition-type logs: elsewhere the end of a log is an artefact."""
    last = last_answers(user, position)
    return auc(y[last], p[last])


def auc_within_user(y: Ints, p: Floats, user: Ints) -> float | None:
    """Mean AUROC of the users with both kinds of answers, weighted by their rows (Zhu et al., 2018, section 5.3)."""
    index, users = _dense(user)
    return _figure(within_user_statistic(y, p, index), users)


def auc_by_history_length(y: Ints, p: Floats, position: Ints) -> dict[str, float | None]:
    """AUROC by the number of the user's earlier rows."""
    return {name: auc(y[rows], p[rows]) for name, rows in _by_history_length(position)}


def effective_users(user: Ints) -> float | None:
    """Number of equally busy users that would weigh as much: (sum n)^2 / sum n^2 (Kish, 1965)."""
    if not len(user):
        return None
    counts = np.unique(user, return_counts=True)[1].astype(np.float64)
    return float(counts.sum() ** 2 / (counts**2).sum())


def evenly_capped(user: Ints, cap: int = ROWS_PER_USER) -> Bools:
    """Mark at most `cap` rows of each user, evenly spread over the user's rows in the given order."""
    rank, size = rank_within(_dense(user)[0])
    take = np.minimum(size, cap)
    return ((rank + 1) * take // size != rank * take // size) if len(user) else np.empty(0, bool)


def first_attempts(user: Ints, question: Ints) -> Bools:
    """Mark each user's first row of each question; the rows of a user stand in time order."""
    index, _ = _dense(user)
    codes, questions = _dense(question)
    first = np.zeros(len(index), bool)
    first[np.unique(index * max(questions, 1) + codes, return_index=True)[1]] = True
    return first


def last_answers(user: Ints, position: Ints) -> Bools:
    """Mark each user's row with the highest position."""
    last = np.zeros(len(user), bool)
    order = np.lexsort((position, user))
    ends = np.append(user[order][1:] != user[order][:-1], True) if len(user) else np.empty(0, bool)
    last[order[ends]] = True
    return last


# ---- statistics: functions of user weights -----------------------------------------------------------------------


def auc_statistic(y: Ints, p: Floats, user: Ints) -> Statistic:
    """AUROC; `user` is an index into the weights."""
    y, p = _checked(y, p)
    return Ranked.of(y, p, user).auc


def mean_statistic(values: Floats, user: Ints) -> Statistic:
    """Mean of a value per row."""
    return _ratio(np.bincount(user, values).astype(np.float64), np.bincount(user).astype(np.float64))


def ece_statistic(y: Ints, p: Floats, user: Ints, bins: int = BINS) -> Statistic:
    """Expected calibration error: mean over bins of |mean probability - share of right answers|, weighted by rows."""
    y, p = _checked(y, p)
    users = int(user.max()) + 1 if len(user) else 0
    cell = user.astype(np.int64) * bins + _bin(p, bins)
    gap = np.bincount(cell, p - y, users * bins).reshape(users, bins)
    rows = np.bincount(user, minlength=users).astype(np.float64)

    def statistic(weight: Floats) -> Any:
        drawn = weight[..., :users]
        return _quotient(np.abs(drawn @ gap).sum(-1), drawn @ rows)

    return statistic


def within_user_statistic(y: Ints, p: Floats, user: Ints, order: Ints | None = None) -> Statistic:
    """AUROC within user, weighted by rows; `order`: the rows by ascending score, where it is known."""
    y, p = _checked(y, p)
    return _ratio(*within_users(y, p, user, np.argsort(p) if order is None else order))


# ---- bootstrap over users ----------------------------------------------------------------------------------------


def resamples(users: int, samples: int, seed: int) -> Iterator[Floats]:
    """How often each of U users was drawn in each resample of U users with replacement."""
    generator = np.random.default_rng(seed)
    for _ in range(samples):
        yield np.bincount(generator.integers(0, users, users), minlength=users).astype(np.float64)


def bootstrap(statistics: Mapping[str, Statistic], users: int, samples: int, seed: int) -> dict[str, Floats]:
    """Every statistic on the same resamples of users.

    Returns:
        [S] figures of each statistic, nan where a resample has none.
    """
    drawn: dict[str, Floats] = {name: np.full(samples, np.nan) for name in statistics}
    if users > 1:  # one user says nothing about the spread between users
        weights = resamples(users, samples, seed)
        for first in range(0, samples, AT_ONCE):
            block = np.stack(list(islice(weights, AT_ONCE)))
            for name, statistic in statistics.items():
                drawn[name][first : first + AT_ONCE] = statistic(block)
    return drawn


def estimate(value: float, drawn: Floats) -> Estimate:
    """A figure with the 2.5 % and 97.5 % percentiles of its resamples; None where they do not exist."""
    known = drawn[np.isfinite(drawn)]
    low, high = np.percentile(known, [2.5, 97.5]).tolist() if len(known) else (None, None)
    return {"value": None if np.isnan(value) else float(value), "low": low, "high": high}


def estimates(statistics: Mapping[str, Statistic], users: int, samples: int, seed: int) -> dict[str, Estimate]:
    """Every statistic with its interval."""
    return _estimated(statistics, users, samples, seed)[0]


def _estimated(
    statistics: Mapping[str, Statistic], users: int, samples: int, seed: int
) -> tuple[dict[str, Any], dict[str, Floats]]:
    drawn, ones = bootstrap(statistics, users, samples, seed), np.ones(users)
    return {name: estimate(statistic(ones), drawn[name]) for name, statistic in statistics.items()}, drawn


def bootstrap_auc(y: Ints, p: Floats, user: Ints, samples: int = SAMPLES, seed: int = 0) -> tuple[float, float] | None:
    """95 % interval of the AUROC by a percentile bootstrap over users (Efron and Tibshirani, 1993, chapter 13).

    Args:
        user: [N] integer code of the row's user.
    """
    index, users = _dense(user)
    found = estimates({"auc": auc_statistic(y, p, index)}, users, samples, seed)["auc"]
    return None if found["low"] is None or found["high"] is None else (found["low"], found["high"])


def paired_difference(y: Ints, p: Floats, other: Floats, user: Ints, samples: int = SAMPLES, seed: int = 0) -> Estimate:
    """AUROC of `p` minus AUROC of `other`, with an interval over the same resamples of users."""
    index, users = _dense(user)
    one, two = auc_statistic(y, p, index), auc_statistic(y, other, index)
    return estimates({"difference": lambda weight: one(weight) - two(weight)}, users, samples, seed)["difference"]


def summary(
    y: Ints,
    p: Floats,
    user: Ints,
    position: Ints,
    first: Bools | None = None,
    last: bool = False,
    samples: int = SAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """The whole metric set of one model on one evaluation set, ready for JSON.

    Args:
        user: [N] integer code of the row's user.
        position: [N] number of the user's earlier interactions.
        first: [N] first attempts at a question (see `first_attempts`); None leaves that figure out.
        last: also report the last answers (competition-type logs only).

    Returns:
        rows, users, effective_users, an `Estimate` per metric, and one per slice under `auc_by_history_length`.
    """
    return measured(y, p, user, position, first, last, samples, seed)[0]


def headline(y: Ints, p: Floats, user: Ints, samples: int, seed: int) -> tuple[dict[str, Any], Floats]:
    """As `measured`, only the figures of all rows together."""
    y, p = _checked(y, p)
    index, users = _dense(user)
    found, drawn = _estimated(_of_all_rows(y, p, index, np.argsort(p)), users, samples, seed)
    return {**_counts(index, users), **found}, drawn["auc"]


def measured(
    y: Ints, p: Floats, user: Ints, position: Ints, first: Bools | None, last: bool, samples: int, seed: int
) -> tuple[dict[str, Any], Floats]:
    """The `summary`, and the AUROC of each resample, [S]: those of two models of the same rows are paired."""
    y, p = _checked(y, p)
    index, users = _dense(user)
    slices = {"auc_capped": evenly_capped(index)}
    if first is not None:
        slices["auc_first_attempts"] = first
    if last:
        slices["auc_last_answers"] = last_answers(index, position)
    by_length = _by_history_length(position)
    order = np.argsort(p)  # once for all slices

    def ranked(rows: Bools) -> Statistic:
        kept = order[rows[order]]
        return Ranked.of_sorted(y[kept] == 1, p[kept], index[kept]).auc

    statistics = {
        **_of_all_rows(y, p, index, order),
        **{name: ranked(rows) for name, rows in slices.items()},
        "auc_within_user": within_user_statistic(y, p, index, order),
        **{f"length {name}": ranked(rows) for name, rows in by_length},
    }
    found, drawn = _estimated(statistics, users, samples, seed)
    lengths = {name: found.pop(f"length {name}") for name, _ in by_length}
    return {**_counts(index, users), **found, "auc_by_history_length": lengths}, drawn["auc"]


def _of_all_rows(y: Ints, p: Floats, index: Ints, order: Ints) -> dict[str, Statistic]:
    return {
        "auc": Ranked.of_sorted(y[order] == 1, p[order], index[order]).auc,
        "accuracy": mean_statistic(_hits(y, p), index),
        "log_loss": mean_statistic(surprise(y, p), index),
        "brier": mean_statistic((p - y) ** 2, index),
        "ece": ece_statistic(y, p, index),
    }


def _counts(index: Ints, users: int) -> dict[str, Any]:
    return {"rows": len(index), "users": users, "effective_users": effective_users(index)}


# ---- answers and predictions that come with ids ------------------------------------------------------------------


def align(ids: Ids, predicted_ids: Ids, p: Floats) -> Floats:
    """The predictions in the order of `ids`.

    Raises:
        InputError: an id is there twice, or stands on one side only; names the first ones.
    """
    for what, values in (("answers", ids), ("predictions", predicted_ids)):
        distinct, counts = np.unique(values, return_counts=True)
        if (counts > 1).any():
            raise InputError(f"{what}: id {_some(distinct[counts > 1])} is there more than once; ids must be distinct")
    missing, extra = np.setdiff1d(ids, predicted_ids), np.setdiff1d(predicted_ids, ids)
    if len(missing) or len(extra):
        raise InputError(
            f"predictions do not match the answers: {len(missing)} ids without a prediction ({_some(missing)}), "
            f"{len(extra)} predictions without an answer ({_some(extra)}); give exactly one prediction per id"
        )
    order = np.argsort(predicted_ids)
    return p[order[np.searchsorted(predicted_ids[order], ids)]]


def evaluate_by_id(ids: Ids, y: Ints, predicted_ids: Ids, p: Floats) -> dict[str, float | None]:
    """AUROC and accuracy of predictions that are matched to the answers by id, in whatever order they come."""
    aligned = align(ids, predicted_ids, p)
    return {"auc": auc(y, aligned), "accuracy": accuracy(y, aligned)}


def _checked(y: Ints, p: Floats) -> tuple[Ints, Floats]:
    y, p = np.asarray(y), np.asarray(p, np.float64)
    if y.shape != p.shape:
        raise InputError(f"{y.shape} answers and {p.shape} probabilities: expected one probability per answer")
    if not np.isin(y, (0, 1)).all():
        found = y[~np.isin(y, (0, 1))][0]
        raise InputError(f"answers must be 1 or 0 to be scored; found {found} (leave hidden answers out)")
    if not np.isfinite(p).all():
        row = int(np.flatnonzero(~np.isfinite(p))[0])
        raise InputError(f"probability of row {row} is {p[row]}; every scored row needs a finite one")
    return y, p


def _hits(y: Ints, p: Floats) -> Floats:
    return ((p >= 0.5) == (y == 1)).astype(np.float64)


def surprise(y: Ints, p: Floats) -> Floats:
    """[N] negative log-likelihood of each answer in nats; probabilities are clipped by one float64 epsilon."""
    clipped = np.clip(p, np.finfo(np.float64).eps, 1 - np.finfo(np.float64).eps)
    return -np.log(np.where(y == 1, clipped, 1 - clipped))


def _bin(p: Floats, bins: int) -> npt.NDArray[np.int64]:
    return np.clip((p * bins).astype(np.int64), 0, bins - 1)


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if len(values) else None


def _ratio(total: Floats, rows: Floats) -> Statistic:
    """Sum of a value over sum of rows, from both per user."""

    def statistic(weight: Floats) -> Any:
        return _quotient(weight[..., : len(total)] @ total, weight[..., : len(rows)] @ rows)

    return statistic


def _quotient(total: Any, rows: Any) -> Any:
    """`total` per row, of one weighing or of several; nan where there are no rows."""
    return np.divide(total, rows, out=np.full(np.shape(rows), np.nan), where=np.asarray(rows) > 0)[()]


def _figure(statistic: Statistic, users: int) -> float | None:
    value = statistic(np.ones(users))
    return None if np.isnan(value) else value


def _dense(codes: Ints) -> tuple[npt.NDArray[np.int64], int]:
    distinct, index = np.unique(codes, return_inverse=True)
    return index.astype(np.int64), len(distinct)


def _by_history_length(position: Ints) -> list[tuple[str, Bools]]:
    return [(name, (position >= low) & (position <= high)) for name, low, high in HISTORY_LENGTHS]


def _some(ids: Ids) -> str:
    return ", ".join(str(value) for value in ids[:3]) or "none"
