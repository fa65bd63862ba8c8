"""Abilities, answers and response times: the recursion over each user's rows.

The equations stand in docs/simulator.md. Legend: U users, N rows, K concepts.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from dkt_ray.data.history import Int8, Int32, Int64, ranges
from dkt_ray.data.simulation.bank import NONE, Bank
from dkt_ray.data.simulation.parameters import CalendarParameters, Parameters, StudentParameters
from dkt_ray.data.simulation.plan import DAY_S, HOUR_S, Cohort, Plan

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


class Rows(NamedTuple):
    """What is decided before anybody answers, in the order of answering."""

    offsets: Int64  # [U + 1]
    question: Int32  # [N]
    earliest: Int64  # [N], second before which a cycle does not start; -1 inside a cycle
    pause: Float64  # [N], seconds of pause before a cycle
    together: npt.NDArray[np.bool_]  # [N], sent in the same second as the row before
    luck: Float64  # [N], uniform: decides the answer
    hurry: Float64  # [N], uniform: decides whether it was given in haste
    pace: Float64  # [N], normal: response time


class Traits(NamedTuple):
    """What a student brings along."""

    ability: Float32  # [U, K], logits, before any practice
    gain: Float64  # [U]
    haste: Float64  # [U]
    pace: Float64  # [U], deviation of the log response time


class Items(NamedTuple):
    """What the recursion needs of the bank."""

    concept: Int32
    difficulty: Float64
    discrimination: Float64
    guess: Float64
    slip: Float64
    log_time: Float64
    prerequisite: Int32


class Laws(NamedTuple):
    """The constants of the recursion."""

    ceiling: float
    prerequisite_slope: float
    fade_s: float
    hour_effect: Float64  # [24]
    haste_log_s: float
    haste_spread: float
    log_s: float
    spread: float
    doubt: float
    limit_s: float


class Answers(NamedTuple):
    """The outcome, one entry a row."""

    correct: Int8
    second: Int64
    probability: Float32


def lay_out(bank: Bank, plan: Plan, users: int, calendar: CalendarParameters, rng: np.random.Generator) -> Rows:
    """Turn cycles into rows: questions in order, except for the postponed ones."""
    question, offsets = ranges(bank.offsets[plan.test], bank.offsets[plan.test + 1])
    count = len(question)
    cycle = np.repeat(np.arange(len(plan.test), dtype=np.int32), np.diff(offsets))
    postponed = rng.random(count) < calendar.postpone_share
    moved = np.zeros(len(plan.test), bool)
    moved[cycle[postponed]] = True
    rows = np.flatnonzero(moved[cycle])
    key = question[rows] + np.where(postponed[rows], 1.5 + 4 * rng.random(len(rows)), 0)
    question[rows] = question[rows][np.lexsort((key, cycle[rows]))]
    earliest = np.full(count, -1, np.int64)
    earliest[offsets[:-1]] = plan.start
    pause = np.zeros(count)
    pause[offsets[:-1]] = calendar.pause_median_s * np.exp(calendar.pause_spread * rng.standard_normal(len(plan.test)))
    user_cycles = np.searchsorted(plan.user, np.arange(users + 1))
    return Rows(
        offsets=offsets[user_cycles],
        question=question.astype(np.int32),
        earliest=earliest,
        pause=pause,
        together=(rng.random(count) < calendar.together_share) & (earliest < 0),
        luck=rng.random(count),
        hurry=rng.random(count),
        pace=rng.standard_normal(count),
    )


def draw_traits(bank: Bank, cohort: Cohort, student: StudentParameters, rng: np.random.Generator) -> Traits:
    """Draw the students' abilities and habits."""
    users = len(cohort.length)
    correlation = student.general_by_length
    general = correlation * ndtri(cohort.length) + np.sqrt(1 - correlation**2) * ndtri(cohort.general)
    by_head = student.head_spread * rng.standard_normal((users, int(bank.concept_head.max()) + 1))
    own = rng.standard_normal((len(bank.prerequisite), users), dtype=np.float32)
    inherited = np.float32(student.concept_inherited)
    fresh = np.float32(np.sqrt(1 - student.concept_inherited**2))
    for concept, prerequisite in enumerate(bank.prerequisite):  # ascending: a prerequisite comes first
        if prerequisite != NONE:
            own[concept] = inherited * own[prerequisite] + fresh * own[concept]
    level = (student.general_mean + student.general_spread * general[:, None] + by_head).astype(np.float32)
    haste = student.haste_median * np.exp(student.haste_spread * ndtri(cohort.haste))
    return Traits(
        ability=np.ascontiguousarray(level[:, bank.concept_head] + np.float32(student.concept_spread) * own.T),
        gain=np.minimum(student.gain * np.exp(student.gain_spread * rng.standard_normal(users)), 1),
        haste=np.minimum(haste, student.haste_limit),
        pace=student.pace_spread * rng.standard_normal(users),
    )


def items(bank: Bank) -> Items:
    """What the recursion needs of the bank."""
    return Items(
        bank.question_concept,
        bank.difficulty,
        bank.discrimination,
        bank.guess,
        bank.slip,
        bank.log_time,
        bank.prerequisite,
    )


def laws(parameters: Parameters) -> Laws:
    """The constants of the recursion."""
    student, times = parameters.student, parameters.response_time
    return Laws(
        ceiling=student.ceiling,
        prerequisite_slope=student.prerequisite_slope,
        fade_s=student.fade_days * DAY_S,
        hour_effect=np.array(parameters.calendar.hour_effect),
        haste_log_s=float(np.log(times.haste_median_s)),
        haste_spread=times.haste_spread,
        log_s=float(np.log(times.median_s)),
        spread=times.spread,
        doubt=times.doubt,
        limit_s=times.limit_s,
    )


def answer(bank: Bank, rows: Rows, traits: Traits, parameters: Parameters) -> Answers:
    """Let every student answer: see `_answer_user`."""
    count = len(rows.question)
    answers = Answers(np.empty(count, np.int8), np.empty(count, np.int64), np.empty(count, np.float32))
    _answer_all(rows, traits, items(bank), laws(parameters), answers)
    return answers


@numba.njit(cache=True)
def chance_of_right(question: int, ability: float, haste: float, effect: float, items: Items) -> float:
    """P(right) of docs/simulator.md, from ability with mastery, and the effect of the hour."""
    logit = items.discrimination[question] * (ability - items.difficulty[question]) + effect
    known = (1 - items.guess[question] - items.slip[question]) / (1 + np.exp(-logit))
    return items.guess[question] + (1 - haste) * known


@numba.njit(cache=True)
def readiness(mastery: float, laws: Laws) -> float:
    """How much of the gain by practice the mastery of the prerequisite admits."""
    return 1 / (1 + np.exp(-laws.prerequisite_slope * mastery))


@numba.njit(cache=True)
def _answer_all(rows: Rows, traits: Traits, items: Items, laws: Laws, answers: Answers) -> None:
    for user in range(len(rows.offsets) - 1):
        _answer_user(user, rows, traits, items, laws, answers)


@numba.njit(cache=True)
def _answer_user(user: int, rows: Rows, traits: Traits, items: Items, laws: Laws, answers: Answers) -> None:
    """One student's rows in order: time passes, mastery fades, the answer is drawn, practice adds mastery."""
    practised = np.zeros(traits.ability.shape[1])  # mastery gained by practice, at the second `at`
    at = np.zeros(traits.ability.shape[1], np.int64)
    now = np.int64(0)
    for row in range(rows.offsets[user], rows.offsets[user + 1]):
        if rows.earliest[row] >= 0:
            now = max(rows.earliest[row], now + np.int64(rows.pause[row]))
        question = rows.question[row]
        concept = items.concept[question]
        practised[concept] *= np.exp((at[concept] - now) / laws.fade_s)
        at[concept] = now
        ability = traits.ability[user, concept] + practised[concept]
        effect = laws.hour_effect[now % DAY_S // HOUR_S]
        probability = np.float32(chance_of_right(question, ability, traits.haste[user], effect, items))
        right = rows.luck[row] < probability
        # haste given the answer (Bayes): a hasty answer is right with the chance of a guess
        hasty = items.guess[question] / probability if right else (1 - items.guess[question]) / (1 - probability)
        if rows.together[row]:
            seconds = 0.0
        elif rows.hurry[row] < traits.haste[user] * hasty:
            seconds = np.exp(laws.haste_log_s + laws.haste_spread * rows.pace[row])
        else:
            mean = laws.log_s + traits.pace[user] + items.log_time[question] + laws.doubt * (1 - probability)
            seconds = min(np.exp(mean + laws.spread * rows.pace[row]), laws.limit_s)
        now += np.int64(seconds)
        answers.correct[row] = right
        answers.second[row] = now
        answers.probability[row] = probability
        ready = 1.0
        before = items.prerequisite[concept]
        if before >= 0:
            mastery = traits.ability[user, before] + practised[before] * np.exp((at[before] - now) / laws.fade_s)
            ready = readiness(mastery, laws)
        practised[concept] += traits.gain[user] * ready * (laws.ceiling - practised[concept])
