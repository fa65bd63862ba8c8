"""What can be known of a simulated student from his history alone: a particle filter that knows the simulator.

It knows the question bank and every parameter, and sees what a model sees of a student: which questions he answered,
when he sent the answers, and whether they were right; not when a question was shown, nor his traits or his mastery. So
its AUC is the best that a model can reach, up to the number of particles. The laws stand in docs/simulator.md.

Bootstrap filter (Gordon, Salmond and Smith 1993) with systematic resampling (Kitagawa 1996) where the effective number
of particles falls below half of them. What has a closed form is never drawn (Doucet et al. 2000, "Rao-Blackwellised"):
general and head abilities are integrated out, so that the ability of a concept is drawn when it is met, given those
drawn before; and a student's pace is a Gaussian in each particle. Answers and seconds between answers are evidence.

Legend: U users, N rows, K concepts, S particles, D concepts met (and their prerequisites).
"""

from __future__ import annotations

import zlib
from typing import Final, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dkt_ray.data.history import Histories, Int8, Int32, Int64
from dkt_ray.data.simulation.answers import Items, Laws, chance_of_right, items, laws, readiness
from dkt_ray.data.simulation.bank import NONE, Bank
from dkt_ray.data.simulation.parameters import Parameters, StudentParameters
from dkt_ray.data.simulation.plan import DAY_S, HOUR_S
from dkt_ray.errors import InputError

Float64 = npt.NDArray[np.float64]

PARTICLES: Final = 4000
NOTHING_LEFT: Final = 1e-9  # a standard deviation that is rounding


class Seen(NamedTuple):
    """What the filter sees of the students."""

    offsets: Int64  # [U + 1]
    question: Int32  # [N], index into the bank
    test: Int32  # [N], of the question
    correct: Int8  # [N], 1, 0, or -1 where the answer is hidden
    second: Int64  # [N], when the answer was sent


class Prior(NamedTuple):
    """What is known before the first answer."""

    mean: float  # of every ability
    covariance: Float64  # [K, K] of a student's abilities
    gain: float
    gain_spread: float
    haste_median: float
    haste_spread: float
    haste_limit: float
    pace_variance: float
    session_share: float  # chance that a test starts a session
    hours: Float64  # [24], cumulative share of the sessions that start by each hour


class Cloud(NamedTuple):
    """The particles of one student."""

    weight: Float64  # [S], sums to 1
    gain: Float64  # [S]
    haste: Float64  # [S]
    pace: Float64  # [S], mean
    pace_variance: Float64  # [S]
    chance: Float64  # [S] of a right answer to the question at hand
    noise: Float64  # [D, S], standard normal: ability = mean + factor @ noise
    ability: Float64  # [D, S], before any practice
    practised: Float64  # [D, S], mastery at the second `at`
    at: Int64  # [D]
    factor: Float64  # [D, D], lower triangular: factor @ factor.T is the covariance
    concepts: Int64  # [D], in the order met
    slot: Int64  # [K], place of a concept among those met, or NONE


def filtered(
    histories: Histories, bank: Bank, parameters: Parameters, particles: int = PARTICLES, seed: int = 0
) -> Float64:
    """The probability of a right answer to each row given the rows before it (and its question), [N].

    A student's probabilities depend on his name, his rows and `seed`, not on the students beside him.

    Raises:
        InputError: a question that the bank does not have, or no times.
    """
    seen = _seen(histories, bank)
    seeds = np.array([zlib.crc32(f"{seed}/{name}".encode()) for name in histories.users], np.int64)
    probability = np.empty(histories.rows)
    known = _prior(bank, parameters), items(bank), laws(parameters)
    for user in range(len(seeds)):
        first, last = seen.offsets[user], seen.offsets[user + 1]
        cloud = _new_cloud(np.unique(seen.question[first:last]), bank, particles)
        _follow(int(seeds[user]), int(first), int(last), seen, *known, cloud, probability)
    return probability


def _seen(histories: Histories, bank: Bank) -> Seen:
    if histories.timestamp is None:
        raise InputError("the histories have no times, and a simulated student forgets with time")
    values = histories.question.values
    index = pc.index_in(pa.array(values, pa.string()), pa.array(bank.questions, pa.string())).fill_null(NONE).to_numpy()
    question = index[histories.question.codes].astype(np.int32)
    if (question == NONE).any():
        stranger = values[histories.question.codes[np.argmin(question)]]
        raise InputError(f"question {stranger} is not in the simulator's bank of {len(bank.difficulty)} questions")
    test = bank.question_test[question]
    return Seen(histories.offsets, question, test, histories.correct, histories.timestamp // 1000)


def _prior(bank: Bank, parameters: Parameters) -> Prior:
    student, calendar = parameters.student, parameters.calendar
    return Prior(
        mean=student.general_mean,
        covariance=ability_covariance(bank, student),
        gain=student.gain,
        gain_spread=student.gain_spread,
        haste_median=student.haste_median,
        haste_spread=student.haste_spread,
        haste_limit=student.haste_limit,
        pace_variance=student.pace_spread**2,
        session_share=1 / calendar.tests_per_session,
        hours=np.cumsum(calendar.hour_weights) / sum(calendar.hour_weights),
    )


def ability_covariance(bank: Bank, student: StudentParameters) -> Float64:
    """Covariance of a student's abilities before any practice, [K, K]; see `answers.draw_traits`.

    A concept's own part is autoregressive along prerequisites, so two of them correlate by `concept_inherited` to the
    power of the steps between them.
    """
    concepts = len(bank.prerequisite)
    own = np.eye(concepts)
    for concept, prerequisite in enumerate(bank.prerequisite):  # ascending: a prerequisite comes first
        if prerequisite != NONE:
            own[concept, :concept] = student.concept_inherited * own[prerequisite, :concept]
            own[:concept, concept] = own[concept, :concept]
    same_head = bank.concept_head[:, None] == bank.concept_head
    return student.general_spread**2 + student.head_spread**2 * same_head + student.concept_spread**2 * own


def _new_cloud(questions: Int32, bank: Bank, particles: int) -> Cloud:
    """Room for the particles of a student who answers these questions."""
    concepts = np.unique(bank.question_concept[questions])
    before = bank.prerequisite[concepts]
    room = len(np.union1d(concepts, before[before != NONE]))
    weight, gain, haste, pace, pace_variance, chance = np.empty((6, particles))
    noise, ability, practised = np.empty((3, room, particles))
    return Cloud(
        weight=weight,
        gain=gain,
        haste=haste,
        pace=pace,
        pace_variance=pace_variance,
        chance=chance,
        noise=noise,
        ability=ability,
        practised=practised,
        at=np.zeros(room, np.int64),
        factor=np.zeros((room, room)),
        concepts=np.full(room, NONE, np.int64),
        slot=np.full(len(bank.prerequisite), NONE, np.int64),
    )


@numba.njit(cache=True)
def _follow(
    seed: int,
    first: int,
    last: int,
    seen: Seen,
    prior: Prior,
    items: Items,
    laws: Laws,
    cloud: Cloud,
    probability: Float64,
) -> None:
    """One student's rows in order: foresee, look at the answer, let him practise."""
    np.random.seed(seed)
    _draw_traits(prior, cloud)
    met, start, pauses, paused_s = 0, first, 0, 0.0
    for row in range(first, last):
        question, sent = seen.question[row], np.int64(seen.second[row])
        before = seen.second[row - 1] if row > first else np.int64(0)
        concept = items.concept[question]
        for needed in (items.prerequisite[concept], concept):
            if needed != NONE and cloud.slot[needed] == NONE:
                _meet(needed, met, prior, cloud)
                met += 1
        opens = row == first or _opens(row, start, seen)
        shown = before
        if opens:  # when the question was shown is not known before the answer, and guessed after it
            start = row
            gap_s = paused_s / pauses if pauses else float(7 * DAY_S)
            probability[row] = _foresee(question, row == first, before, gap_s, prior, items, laws, cloud)
            shown = max(before, sent - np.int64(np.exp(laws.log_s + items.log_time[question])))
            if row > first and sent - before > HOUR_S:
                pauses, paused_s = pauses + 1, paused_s + sent - before
        _fade(cloud.slot[concept], shown, laws, cloud)
        _chances(question, shown, items, laws, cloud)
        if not opens:
            probability[row] = np.sum(cloud.weight * cloud.chance)
        if seen.correct[row] >= 0:
            _weigh(question, seen.correct[row] == 1, np.int64(0) if opens else sent - before, items, laws, cloud)
        _practise(concept, sent, items, laws, cloud)
        if np.sum(cloud.weight**2) * len(cloud.weight) > 2:  # 1 / sum(w²) is the effective number
            _resample(met, cloud)


@numba.njit(cache=True)
def _draw_traits(prior: Prior, cloud: Cloud) -> None:
    count = len(cloud.weight)
    for i in range(count):
        cloud.weight[i] = 1 / count
        cloud.gain[i] = min(prior.gain * np.exp(prior.gain_spread * np.random.standard_normal()), 1.0)
        haste = prior.haste_median * np.exp(prior.haste_spread * np.random.standard_normal())
        cloud.haste[i] = min(haste, prior.haste_limit)
        cloud.pace[i] = 0.0
        cloud.pace_variance[i] = prior.pace_variance


@numba.njit(cache=True)
def _opens(row: int, start: int, seen: Seen) -> bool:
    """Whether the row starts a pass through a test: another test than before, or a question that this pass has had."""
    if seen.test[row] != seen.test[row - 1]:
        return True
    return bool(np.any(seen.question[start:row] == seen.question[row]))


@numba.njit(cache=True)
def _meet(concept: int, met: int, prior: Prior, cloud: Cloud) -> None:
    """Draw the ability in a new concept given those in the concepts met: the next row of a Cholesky factor."""
    row = cloud.factor[met]
    left = prior.covariance[concept, concept]
    for j in range(met):
        value = prior.covariance[concept, cloud.concepts[j]]
        for i in range(j):
            value -= cloud.factor[j, i] * row[i]
        row[j] = value / cloud.factor[j, j] if cloud.factor[j, j] > NOTHING_LEFT else 0.0
        left -= row[j] ** 2
    row[met] = np.sqrt(max(left, 0.0))
    ability = cloud.ability[met]
    for i in range(len(ability)):
        ability[i] = prior.mean
        cloud.noise[met, i] = np.random.standard_normal()
        cloud.practised[met, i] = 0.0
    for j in range(met + 1):
        for i in range(len(ability)):
            ability[i] += row[j] * cloud.noise[j, i]
    cloud.concepts[met], cloud.slot[concept] = concept, met


@numba.njit(cache=True)
def _foresee(
    question: int, first: bool, before: np.int64, gap_s: float, prior: Prior, items: Items, laws: Laws, cloud: Cloud
) -> float:
    """Chance of a right answer to the first question of a test, which is shown soon or when the next session starts."""
    slot = cloud.slot[items.concept[question]]
    hour = before % DAY_S // HOUR_S
    expected = 0.0
    for i in range(len(cloud.weight)):
        gap, effect = 0.0, laws.hour_effect[hour]
        if first or np.random.random() < prior.session_share:
            place = np.searchsorted(prior.hours[:-1], np.random.random())
            gap, effect = gap_s, laws.hour_effect[place]
        faded = cloud.practised[slot, i] * np.exp((cloud.at[slot] - before - gap) / laws.fade_s)
        ability = cloud.ability[slot, i] + faded
        expected += cloud.weight[i] * chance_of_right(question, ability, cloud.haste[i], effect, items)
    return expected


@numba.njit(cache=True)
def _fade(slot: np.int64, now: np.int64, laws: Laws, cloud: Cloud) -> None:
    """What is left of the mastery of a concept."""
    cloud.practised[slot] *= np.exp((cloud.at[slot] - now) / laws.fade_s)
    cloud.at[slot] = now


@numba.njit(cache=True)
def _chances(question: int, now: np.int64, items: Items, laws: Laws, cloud: Cloud) -> None:
    """Every particle's chance of a right answer to a question that is shown now."""
    slot = cloud.slot[items.concept[question]]
    effect = laws.hour_effect[now % DAY_S // HOUR_S]
    for i in range(len(cloud.weight)):
        ability = cloud.ability[slot, i] + cloud.practised[slot, i]
        cloud.chance[i] = chance_of_right(question, ability, cloud.haste[i], effect, items)


@numba.njit(cache=True)
def _weigh(question: int, right: bool, seconds: np.int64, items: Items, laws: Laws, cloud: Cloud) -> None:
    """Weigh the particles by the chance of the answer, and of the seconds that it took where they are known (not 0).

    The seconds are a mixture of hasty and thoughtful answers; the pace is updated as far as the answer was thoughtful.
    """
    log_s = np.log(min(seconds + 0.5, laws.limit_s))  # whole seconds were cut off
    for i in range(len(cloud.weight)):
        chance = cloud.chance[i] if right else 1 - cloud.chance[i]
        if seconds <= 0:
            cloud.weight[i] *= chance
            continue
        guessed = items.guess[question] if right else 1 - items.guess[question]
        hasty = cloud.haste[i] * guessed
        mean = laws.log_s + cloud.pace[i] + items.log_time[question] + laws.doubt * (1 - cloud.chance[i])
        quick = hasty * _normal(log_s - laws.haste_log_s, laws.haste_spread**2)
        slow = (chance - hasty) * _normal(log_s - mean, laws.spread**2 + cloud.pace_variance[i])
        cloud.weight[i] *= quick + slow
        share = slow / max(quick + slow, 1e-300) / laws.spread**2
        cloud.pace_variance[i] = 1 / (1 / cloud.pace_variance[i] + share) if cloud.pace_variance[i] > 0 else 0.0
        cloud.pace[i] += cloud.pace_variance[i] * share * (log_s - mean)
    cloud.weight[:] /= np.sum(cloud.weight)


@numba.njit(cache=True)
def _normal(distance: float, variance: float) -> float:
    """Density of a normal distribution, up to a constant."""
    return np.exp(-(distance**2) / (2 * variance)) / np.sqrt(variance)


@numba.njit(cache=True)
def _practise(concept: int, now: np.int64, items: Items, laws: Laws, cloud: Cloud) -> None:
    """Mastery grows, the more, the better the prerequisite is mastered."""
    slot, before = cloud.slot[concept], items.prerequisite[concept]
    if before == NONE:
        cloud.practised[slot] += cloud.gain * (laws.ceiling - cloud.practised[slot])
        return
    place = cloud.slot[before]
    left = np.exp((cloud.at[place] - now) / laws.fade_s)
    for i in range(len(cloud.weight)):
        mastery = cloud.ability[place, i] + left * cloud.practised[place, i]
        cloud.practised[slot, i] += cloud.gain[i] * readiness(mastery, laws) * (laws.ceiling - cloud.practised[slot, i])


@numba.njit(cache=True)
def _resample(met: int, cloud: Cloud) -> None:
    """Systematic resampling: equally many particles, equal weights."""
    count = len(cloud.weight)
    chosen = np.empty(count, np.int64)
    place, below = 0, cloud.weight[0]
    offset = np.random.random()
    for i in range(count):
        while below < (i + offset) / count and place < count - 1:
            place += 1
            below += cloud.weight[place]
        chosen[i] = place
    cloud.weight[:] = 1 / count
    for trait in (cloud.gain, cloud.haste, cloud.pace, cloud.pace_variance):
        trait[:] = trait[chosen]
    for state in (cloud.noise, cloud.ability, cloud.practised):
        for slot in range(met):
            state[slot] = state[slot][chosen]
