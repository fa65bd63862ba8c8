"""The particle filter: as good as a model can be, never better than the truth, and blind to what comes later."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from dkt_ray.config import build
from dkt_ray.data.history import Coded, Histories
from dkt_ray.data.simulate import SimulateConfig, Simulation, simulate
from dkt_ray.data.simulation.answers import draw_traits
from dkt_ray.data.simulation.bank import build_bank
from dkt_ray.data.simulation.filter import ability_covariance, filtered
from dkt_ray.data.simulation.parameters import Parameters
from dkt_ray.data.simulation.plan import draw_cohort
from dkt_ray.errors import InputError
from dkt_ray.metrics import auc
from dkt_ray.schema import UNKNOWN

NO_SECRETS = dict.fromkeys(
    ("general_spread", "head_spread", "concept_spread", "gain_spread", "haste_spread", "pace_spread"), 0.0
)


@pytest.fixture(scope="module")
def cohort() -> Simulation:
    return simulate(SimulateConfig(users=300, bank_fraction=0.1))


@pytest.fixture(scope="module")
def some(cohort: Simulation) -> Histories:
    return cohort.histories().select(np.arange(0, 300, 6))


def foresee(simulation: Simulation, histories: Histories, particles: int = 200, seed: int = 0) -> Any:
    return filtered(histories, simulation.bank, simulation.config.parameters, particles, seed)


@pytest.fixture(scope="module")
def foreseen(cohort: Simulation, some: Histories) -> Any:
    return foresee(cohort, some)


def rows_of(simulation: Simulation, histories: Histories) -> Any:
    """[N] rows of the simulation that the histories hold."""
    return np.flatnonzero(np.isin(simulation.user, histories.users.astype(int)))


def test_it_beats_simple_models_and_not_the_truth(cohort, some, foreseen):
    question, y, user = cohort.question.codes, cohort.correct, cohort.user
    kept = rows_of(cohort, some)
    others = ~np.isin(user, some.users.astype(int))
    asked, right = (np.bincount(question[others], values, len(cohort.question.values)) for values in (None, y[others]))
    mean = ((right + 6.5) / (asked + 10))[question]
    own = np.cumsum(y) - y
    rate = (own - own[cohort.offsets[user]] + 6.5) / (cohort.position + 10)
    running = np.log(mean / (1 - mean)) + np.log(rate / (1 - rate))
    aucs = [auc(y[kept], p) for p in (mean[kept], running[kept], foreseen, cohort.probability[kept].astype(float))]
    assert aucs[0] + 0.02 < aucs[1] + 0.01 < aucs[2] < aucs[3] - 0.01


def test_it_is_calibrated(some, foreseen):
    assert abs(foreseen.mean() - some.correct.mean()) < 0.02
    for low in (0.2, 0.4, 0.6, 0.8):
        inside = (foreseen >= low) & (foreseen < low + 0.2)
        assert inside.sum() > 500
        assert abs(foreseen[inside].mean() - some.correct[inside].mean()) < 0.035


def test_nothing_later_changes_what_was_foreseen(cohort, some, foreseen):
    for user in (0, 7, 21):
        one = some.select(np.array([user]))
        known = foreseen[some.offsets[user] : some.offsets[user + 1]]
        cut = one.rows // 2
        later = np.arange(one.rows) >= cut
        answers = np.where(later, 1 - one.correct, one.correct).astype(np.int8)
        question = Coded(np.where(later, one.question.codes[::-1], one.question.codes), one.question.values)
        time = one.timestamp + np.where(later, 7 * 86_400_000, 0)
        for changed in (
            dataclasses.replace(one, correct=answers),
            dataclasses.replace(one, correct=np.where(later, np.int8(UNKNOWN), one.correct)),
            dataclasses.replace(one, question=question, timestamp=time),
            one.head(np.array([cut])),
        ):
            found = foresee(cohort, changed)
            np.testing.assert_array_equal(found[:cut], known[:cut])
            assert len(found) == cut or (found[cut + 1 :] != known[cut + 1 :]).any()
        np.testing.assert_array_equal(foresee(cohort, dataclasses.replace(one, correct=answers))[cut], known[cut])
        submitted = dataclasses.replace(one, timestamp=one.timestamp + np.where(np.arange(one.rows) == cut, 5000, 0))
        np.testing.assert_array_equal(foresee(cohort, submitted)[cut], known[cut])  # not the time of its own answer


def test_without_anything_hidden_it_is_the_truth():
    parameters = build(
        Parameters, {"student": NO_SECRETS | {"fade_days": 1e9}, "calendar": {"hour_effect": [0.0] * 24}}
    )
    simulation = simulate(SimulateConfig(users=20, bank_fraction=0.05, parameters=parameters))
    found = foresee(simulation, simulation.histories(), particles=4)
    np.testing.assert_allclose(found, simulation.probability, atol=1e-6)


def test_inside_a_test_it_knows_the_hour_and_what_has_faded():
    simulation = simulate(SimulateConfig(users=20, bank_fraction=0.05, parameters={"student": NO_SECRETS}))
    found = foresee(simulation, simulation.histories(), particles=4)
    test, user = simulation.test.codes, simulation.user
    inside = np.flatnonzero((test[1:] == test[:-1]) & (user[1:] == user[:-1])) + 1
    again = np.abs(found[inside] - simulation.probability[inside]) > 1e-3  # a pass that follows one of the same test
    assert again.mean() < 0.01
    assert np.abs(found - simulation.probability).max() > 0.01, "when the first question was shown is not known"


def test_more_particles_come_closer_to_each_other(cohort, some):
    few = some.select(np.arange(8))
    twice = ((foresee(cohort, few, count), foresee(cohort, few, count, seed=1)) for count in (10, 1000))
    spread = [np.sqrt(np.mean((a - b) ** 2)) for a, b in twice]
    assert spread[1] < 0.7 * spread[0]


def test_a_student_is_foreseen_alike_in_any_company(cohort, some, foreseen):
    alone = foresee(cohort, some.select(np.array([3])))
    np.testing.assert_array_equal(alone, foreseen[some.offsets[3] : some.offsets[4]])
    assert (alone != foresee(cohort, some.select(np.array([3])), seed=1)).any()


def test_abilities_are_drawn_with_the_covariance_that_it_assumes():
    parameters = Parameters()
    bank = build_bank(parameters.bank, 0.02)
    rng = np.random.default_rng(0)
    drawn = draw_traits(bank, draw_cohort(20_000, rng), parameters.student, rng).ability
    assert (bank.prerequisite >= 0).sum() > 5
    np.testing.assert_allclose(np.cov(drawn.T), ability_covariance(bank, parameters.student), atol=0.06)


def test_histories_of_another_platform_are_refused(cohort, some):
    strange = some.question.values.copy()
    strange[some.question.codes[5]] = "X1"
    with pytest.raises(InputError, match=r"question X1 is not in the simulator's bank of \d+ questions"):
        foresee(cohort, dataclasses.replace(some, question=Coded(some.question.codes, strange)))
    with pytest.raises(InputError, match="no times"):
        foresee(cohort, dataclasses.replace(some, timestamp=None))
