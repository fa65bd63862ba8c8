"""Who works on which test, and when: the plan of a cohort, before anybody answers.

Legend: U users, C cycles (a user's pass through a test), H heads. Times are seconds since 1970 (UTC).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dkt_ray.data.history import Int32, Int64, ranges
from dkt_ray.data.simulation.bank import Bank
from dkt_ray.data.simulation.parameters import CalendarParameters, Parameters

Float64 = npt.NDArray[np.float64]
DAY_S = 86_400
HOUR_S = 3_600


class Cohort(NamedTuple):
    """What tells students apart, as quantiles among all students, each [U]; jointly spread evenly for any U."""

    length: Float64
    main_head: Float64
    season: Float64
    general: Float64
    haste: Float64


@dataclass(frozen=True, eq=False)
class Plan:
    """The passes of all users through tests, ordered by user and time."""

    user: Int32  # [C]
    test: Int32  # [C]
    start: Int64  # [C], earliest second at which the cycle starts


def draw_cohort(users: int, rng: np.random.Generator) -> Cohort:
    """A shifted and shuffled Kronecker sequence (Roberts 2018, "R_d"): small cohorts resemble large ones."""
    dimensions = len(Cohort._fields)
    ratio = 2.0
    for _ in range(50):  # the positive root of x^(d + 1) = x + 1
        ratio = (1 + ratio) ** (1 / (dimensions + 1))
    steps = ratio ** -np.arange(1.0, dimensions + 1)
    points = (rng.random(dimensions) + rng.permutation(users)[:, None] * steps) % 1
    return Cohort(*np.clip(points.T, 1e-9, 1 - 1e-9))


def make_plan(bank: Bank, cohort: Cohort, parameters: Parameters, rng: np.random.Generator) -> Plan:
    """Draw each user's heads, tests, sessions and repeats."""
    calendar = parameters.calendar
    counts = _cycles_per_head(bank, cohort, parameters, rng)
    low, high = calendar.window
    width = low + (high - low) * cohort.length
    parts = [
        _head_cycles(bank, head, counts[:, head], cohort.season, width, calendar, rng)
        for head in range(counts.shape[1])
    ]
    user, test, start, order = (np.concatenate([part[i] for part in parts]) for i in range(4))
    again = np.flatnonzero(rng.random(len(user)) < calendar.repeat_share)
    delay = (calendar.repeat_days * DAY_S * rng.standard_exponential(len(again))).astype(np.int64)
    later = start[again] + delay
    later = np.where(later < start.max(), later, start[again])
    user, test = np.append(user, user[again]), np.append(test, test[again])
    start, order = np.append(start, later), np.append(order, order[again])
    rows = np.lexsort((order, start, user))
    return Plan(user[rows], test[rows], start[rows])


def _cycles_per_head(bank: Bank, cohort: Cohort, parameters: Parameters, rng: np.random.Generator) -> Int64:
    """How many tests of each head each user takes, [U, H]: mostly the main head, less of its neighbours."""
    student = parameters.student
    users, heads = len(cohort.length), len(student.head_weights)
    available = np.bincount(bank.test_head, minlength=heads)
    size = np.bincount(bank.test_head, np.diff(bank.offsets), heads) / available
    weights = np.cumsum(student.head_weights) / sum(student.head_weights)
    main = np.searchsorted(weights, cohort.main_head, "right")
    distance = np.abs(np.arange(heads) - main[:, None] + 0.25)
    noise = student.head_distance_noise * rng.standard_exponential((users, heads))
    noise[np.arange(users), main] = -heads
    ranking = np.argsort(distance + noise, axis=1)
    low, high = student.neighbour_heads
    chosen = 1 + rng.poisson(low + (high - low) * cohort.length)
    share = np.where(np.arange(heads) < chosen[:, None], student.head_share ** np.arange(heads), 0)
    length = np.interp(cohort.length, student.length_levels, student.length_values)
    length /= 1 + parameters.calendar.repeat_share  # repeats come on top
    wanted = share / share.sum(1, keepdims=True) * length[:, None] / size[ranking]
    whole = np.floor(wanted + rng.random((users, 1))).astype(np.int64)
    whole[:, 0] = np.maximum(whole[:, 0], 2)
    taken = np.minimum(whole, available[ranking])
    rest = (whole - taken).sum(1)
    for rank in range(heads):  # what does not fit into a head goes to the next one
        more = np.minimum(available[ranking[:, rank]] - taken[:, rank], rest)
        taken[:, rank] += more
        rest -= more
    counts = np.zeros((users, heads), np.int64)
    np.put_along_axis(counts, ranking, taken, 1)
    return counts


def _head_cycles(
    bank: Bank,
    head: int,
    counts: Int64,
    season: Float64,
    width: Float64,
    calendar: CalendarParameters,
    rng: np.random.Generator,
) -> tuple[Int32, Int32, Int64, Int64]:
    """The first passes through the tests of one head: user, test, start of the session, order inside the session."""
    tests = np.flatnonzero(bank.test_head == head)
    active = np.flatnonzero(counts)
    stage = ((np.arange(len(tests)) + 0.5) / len(tests) - season[active, None]) % 1  # place in the user's own year
    keys = rng.standard_exponential(stage.shape) / bank.popularity[tests]
    keys *= np.where(stage < width[active, None], 1, np.exp(calendar.season_pull))
    chosen = np.argsort(np.argsort(keys, axis=1), axis=1) < counts[active, None]
    stage += calendar.curriculum_noise * rng.standard_normal(stage.shape)
    taught = np.argsort(np.where(chosen, stage, np.inf), axis=1)
    rank, offsets = ranges(np.zeros(len(active), np.int64), counts[active])
    owner = np.repeat(np.arange(len(active)), counts[active])
    test = tests[taught[owner, rank]]
    first = rng.random(len(owner)) < 1 / calendar.tests_per_session
    first[offsets[:-1]] = True
    start = _session_starts(owner[first], season[active], width[active], head, calendar, rng)
    session = np.cumsum(first) - 1
    user = active[owner]
    return user.astype(np.int32), test.astype(np.int32), start[session], rank


def _session_starts(
    owner: Int64,
    season: Float64,
    width: Float64,
    head: int,
    calendar: CalendarParameters,
    rng: np.random.Generator,
) -> Int64:
    """When sessions start; `owner` is ascending.

    A user's sessions lie evenly (jittered) in a window of the head's year, in which time is measured by activity; the
    window starts anywhere and wraps around, so that over all users the activity per month comes out as given.
    """
    per_owner = np.bincount(owner, minlength=len(season))
    index = np.arange(len(owner)) - np.repeat(np.cumsum(per_owner) - per_owner, per_owner)
    place = (index + rng.random(len(owner))) / per_owner[owner]
    quantile = (season[owner] + width[owner] * place) % 1
    bounds = np.array(calendar.month_starts, "datetime64[D]").astype(np.int64)
    activity = np.concatenate([[0], np.cumsum([month[head] for month in calendar.activity])])
    day = np.floor(np.interp(quantile * activity[-1], activity, bounds)).astype(np.int64)
    weights = np.cumsum(calendar.hour_weights) / sum(calendar.hour_weights)
    hour = np.searchsorted(weights, rng.random(len(owner)), "right")
    seconds = day * DAY_S + hour * HOUR_S + rng.integers(0, HOUR_S, len(owner))
    first = np.datetime64(calendar.first_second, "s").astype(np.int64)
    return np.where(seconds < first, first + seconds % (DAY_S // 4), seconds)
