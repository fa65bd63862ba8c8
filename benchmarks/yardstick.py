"""What the yardstick's filter knows that a model cannot know, and what each piece of it is worth in AUROC.

The filter knows every question exactly; a model learns the questions from the answers of the training students.
`learned` is the filter with questions as they can be learned at best: posterior means of difficulty, discrimination and
guess (on a grid, by the simulator's own priors) given the answers of all students outside the sample, *whose abilities
are known*. The other parts leave out one piece each. The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from typing import Any, Final

import numba
import numpy as np
import numpy.typing as npt

from benchmarks.environment import environment, seconds_of
from dkt_ray import metrics
from dkt_ray.config import build
from dkt_ray.data.simulate import SimulateConfig, Simulation, simulate
from dkt_ray.data.simulation.answers import draw_traits
from dkt_ray.data.simulation.bank import NONE, Bank
from dkt_ray.data.simulation.filter import filtered
from dkt_ray.data.simulation.parameters import Parameters
from dkt_ray.data.simulation.plan import draw_cohort

Floats = npt.NDArray[np.float64]

DIFFICULTY_SPREAD: Final = 1.4  # of questions of one kind: question, test and concept, and a little more for the rest
READY: Final = 0.7  # mean factor of the gain by a prerequisite
BLIND: Final = {"response_time": {"spread": 1e3, "haste_spread": 1e3}}  # as likely whatever the seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=300, help="sample that is foreseen")
    parser.add_argument("--particles", type=int, default=4000)
    parser.add_argument("--quick", action="store_true", help="shows that it runs")
    options = parser.parse_args(arguments)
    config = SimulateConfig(users=200, bank_fraction=0.05) if options.quick else SimulateConfig()
    users, particles = (20, 100) if options.quick else (options.users, options.particles)
    figures = measure(simulate(config), users, particles)
    print(json.dumps({"benchmark": "yardstick", "environment": environment(), **figures}))


def measure(simulation: Simulation, users: int, particles: int) -> dict[str, Any]:
    """AUROC of the oracle and of each filter on a sample of the students, positions >= 1."""
    chosen = np.sort(np.random.default_rng(0).permutation(simulation.users)[:users])
    histories = simulation.histories().select(chosen)
    rows = np.flatnonzero(np.isin(simulation.user, chosen) & (simulation.position >= 1))
    kept = np.flatnonzero(simulation.position[np.isin(simulation.user, chosen)] >= 1)
    y = simulation.correct[rows]
    bank, parameters = simulation.bank, simulation.config.parameters
    questions = learned(simulation, ~np.isin(simulation.user, chosen))
    blind = build(Parameters, {**parameters.model_dump(), **BLIND})
    alone = np.full_like(bank.prerequisite, NONE)
    slower = {"student": {**parameters.student.model_dump(), "gain": READY * parameters.student.gain}}
    no_order = build(Parameters, {**parameters.model_dump(), **slower})
    neither = build(Parameters, {**blind.model_dump(), **slower})
    parts = {
        "filter": (bank, parameters),
        "twice_the_particles": (bank, parameters),
        "no_seconds": (bank, blind),
        "no_prerequisites": (dataclasses.replace(bank, prerequisite=alone), no_order),
        "learned": (questions, parameters),
        "learned_no_seconds": (questions, blind),
        "learned_neither": (dataclasses.replace(questions, prerequisite=alone), neither),
    }
    found: dict[str, Any] = {"users": users, "rows": len(rows), "particles": particles}
    found["oracle"] = _auc(y, simulation.probability[rows].astype(np.float64))
    for name, (known, laws) in parts.items():
        count = 2 * particles if name == "twice_the_particles" else particles
        seconds, p = seconds_of(lambda known=known, laws=laws, count=count: filtered(histories, known, laws, count))
        found[name] = _auc(y, p[kept])
        print(f"{name}: AUROC {found[name]:.4f}, {seconds:.0f} s", flush=True)
    return found


def learned(simulation: Simulation, rows: npt.NDArray[np.bool_]) -> Bank:
    """The bank with posterior means in place of difficulty, discrimination and guess, from the given rows.

    The prior mean of a difficulty is that of its head and its place in the test.
    """
    bank, parameters = simulation.bank, simulation.config.parameters
    known = parameters.bank
    kind = np.array(known.head_difficulty)[bank.test_head[bank.question_test]]
    kind = kind + np.array(known.tail_difficulty)[bank.question_tail - 1]
    last = np.isin(np.arange(len(kind)), bank.offsets[1:] - 1)
    kind = kind + known.last_difficulty * last
    question = simulation.question.codes[rows]
    order = np.argsort(question, kind="stable")
    start = np.searchsorted(question[order], np.arange(len(kind) + 1))
    ability, haste, effect = (values[rows][order] for values in _students(simulation))
    guesses = np.array([*known.guess, 1 - known.choice_share])
    means = _posterior_means(
        start, ability, haste, effect, simulation.correct[rows][order], kind, guesses, known.discrimination_spread
    )
    return dataclasses.replace(bank, difficulty=means[0], discrimination=means[1], guess=means[2])


def _students(simulation: Simulation) -> tuple[Floats, Floats, Floats]:
    """Ability with mastery, haste, and effect of the hour, of each row: what the truth says of the students, [N] each.

    The hour is that of the row before it (or its own, for the first one), which is right but at the start of a session.
    """
    config, bank, question = simulation.config, simulation.bank, simulation.question.codes
    cohort, _, _, traits, _ = (np.random.default_rng(s) for s in np.random.SeedSequence(config.seed).spawn(5))
    student = draw_traits(bank, draw_cohort(config.users, cohort), config.parameters.student, traits)
    haste = student.haste[simulation.user]
    second = simulation.timestamp // 1000
    same = np.append(False, simulation.test.codes[1:] == simulation.test.codes[:-1]) & (simulation.position > 0)
    shown = np.where(same, np.roll(second, 1), second)
    effect = np.array(config.parameters.calendar.hour_effect)[shown % 86_400 // 3_600]
    known = (simulation.probability - bank.guess[question]) / (1 - haste)
    share = np.clip(known / (1 - bank.guess[question] - bank.slip[question]), 1e-5, 1 - 1e-5)
    logit = np.log(share / (1 - share)) - effect
    return logit / bank.discrimination[question] + bank.difficulty[question], haste, effect


@numba.njit(cache=True)
def _posterior_means(
    start: Any, ability: Any, haste: Any, effect: Any, y: Any, kind: Any, guesses: Any, spread: float
) -> Any:
    """[3, Q] difficulty, discrimination and guess: a coarse search for the difficulty, then a grid around it."""
    means = np.empty((3, len(kind)))
    for q in range(len(kind)):
        best, centre = -np.inf, 0.0
        for step in range(33):
            b = kind[q] + (step - 16) * 0.3
            value = _evidence(start[q], start[q + 1], ability, haste, effect, y, b, 1.0, 0.1)
            value -= (b - kind[q]) ** 2 / (2 * DIFFICULTY_SPREAD**2)
            if value > best:
                best, centre = value, b
        total, top = np.zeros(4), best
        for i in range(-6, 7):
            for j in range(-3, 4):
                for guess in range(2):
                    b, a = centre + 0.15 * i, np.exp(0.75 * spread * j)
                    value = _evidence(start[q], start[q + 1], ability, haste, effect, y, b, a, guesses[guess])
                    value -= (b - kind[q]) ** 2 / (2 * DIFFICULTY_SPREAD**2) + (0.75 * j) ** 2 / 2
                    weight = np.exp(value - top) * (guesses[2] if guess == 0 else 1 - guesses[2])
                    total += weight * np.array([b, a, guesses[guess], 1.0])
        means[:, q] = total[:3] / total[3]
    return means


@numba.njit(cache=True)
def _evidence(
    first: int, last: int, ability: Any, haste: Any, effect: Any, y: Any, b: float, a: float, guess: float
) -> float:
    """Log-likelihood of the answers to a question."""
    total = 0.0
    for row in range(first, last):
        chance = guess + (1 - haste[row]) * (1 - guess) / (1 + np.exp(-a * (ability[row] - b) - effect[row]))
        total += np.log(chance if y[row] == 1 else 1 - chance)
    return total


def _auc(y: Any, p: Floats) -> float:
    found = metrics.auc(y, p)
    assert found is not None
    return round(found, 5)


if __name__ == "__main__":
    main()
