"""All numbers of the simulated platform, with defaults calibrated to the reference statistics.

The defaults are frozen by hash (tests/unit/test_simulate.py): simulated data that somebody measured on must not change
under their feet. docs/simulator.md says where each number comes from and how to change one on purpose.
"""

from __future__ import annotations

import hashlib
import json

from pydantic import Field

from dkt_ray.config import Config
from dkt_ray.data.simulation import reference

Numbers = tuple[float, ...]
Counts = tuple[int, ...]


class BankParameters(Config):
    """The question bank: ids, sizes, concepts, difficulty."""

    seed: int = 51
    """The bank does not depend on the cohort's seed: two cohorts meet the same questions."""
    questions_per_head: Counts = reference.QUESTIONS_PER_HEAD
    tests_per_head: Counts = reference.TESTS_PER_HEAD
    concepts_per_head: Counts = reference.CONCEPTS_PER_HEAD
    questions_per_tail: Counts = reference.QUESTIONS_PER_TAIL
    tests_per_size: Counts = reference.TESTS_PER_SIZE
    """Number of tests with 1, 2, 3, ... questions."""
    concept_ids: tuple[int, int] = (23, 11271)
    shared_concept: int = 7863
    """Id of the last concept of head 7, which is also the first of head 8."""
    size_spread: float = 1.4
    """Standard deviation of a test's size around its head's mean before the sizes are matched to `tests_per_size`."""
    size_by_mid: float = 0.1
    """Share of that spread which tests with the same mid have in common."""
    units_per_head: Counts = (64, 70, 72, 72, 78, 76, 52, 44, 25)
    """Units: consecutive tests about the same one or few concepts."""
    unit_spread: float = 0.55
    """Standard deviation of the log of a unit's length beyond one test."""
    popularity_spread: float = 0.06
    rare_popularity: tuple[float, float] = (0.18, 2.0)
    rare_share: float = 0.36
    """Most tests are about equally popular (log standard deviation), `rare_share` of them anywhere in a wide range."""
    prerequisite_share: float = 0.75
    """Share of concepts that build on a concept of the unit before or of the head below."""
    head_difficulty: Numbers = (-0.67, -0.117, 0.096, 0.361, 0.56, 0.045, 1.336, 1.519, 1.896)
    tail_difficulty: Numbers = (
        *(-0.961, -0.432, 0.038, 0.32, 0.467, 0.49, 0.495),
        *(0.629, 0.0, -0.112, 0.555, 0.353, 2.394),
    )
    last_difficulty: float = 1.1
    """Added to the last question of a test."""
    late_mid_ease: float = 1.3
    """Subtracted, rising linearly, over the last `late_mids` mids."""
    late_mids: int = 25
    test_spread: float = 0.48
    concept_spread: float = 0.15
    question_spread: float = 1.08
    discrimination_spread: float = 0.25
    """Standard deviation of the log discrimination."""
    guess: Numbers = (0.03, 0.2)
    """Chance of a right answer without the ability: typed answers, and multiple choice."""
    choice_share: float = 0.55
    slip: float = 0.005
    """Largest chance of a wrong answer in spite of the ability (uniform from 0)."""
    time_spread: float = 0.35
    """Standard deviation of a question's log response time."""


class StudentParameters(Config):
    """Who the students are and how their abilities move. Abilities are in logits."""

    length_levels: Numbers = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
    length_values: Numbers = (9.0, 20.0, 33.0, 78.0, 230.0, 508.0, 770.0, 945.0, 1310.0, 1860.0)
    """Quantile function of answers per student (linear in between)."""
    head_weights: Numbers = (0.1462, 0.0936, 0.1092, 0.1106, 0.1218, 0.1102, 0.124, 0.1205, 0.0639)
    """How many students have each head as their main one."""
    neighbour_heads: tuple[float, float] = (0.95, 2.5)
    """Expected number of further heads at the lowest and at the highest quantile of length."""
    head_share: float = 0.45
    """Each further head gets this share of the tests of the one before it."""
    head_distance_noise: float = 0.8
    general_mean: float = 0.75
    general_spread: float = 0.75
    general_by_length: float = 0.2
    """Correlation of the general ability with the (normal score of the) length."""
    head_spread: float = 0.4
    concept_spread: float = 0.9
    concept_inherited: float = 0.6
    """Correlation of a concept's ability with that of its prerequisite, beyond the general and head abilities."""
    gain: float = 0.18
    """Share of the distance to `ceiling` that one practised question closes, times the prerequisite's mastery."""
    gain_spread: float = 0.4
    """Standard deviation of the log of a student's own gain."""
    ceiling: float = 2.0
    prerequisite_slope: float = 1.2
    fade_days: float = 21.0
    haste_median: float = 0.015
    haste_spread: float = 1.3
    haste_limit: float = 0.9
    """A student's share of answers given in haste: log-normal, clipped."""
    pace_spread: float = 0.3
    """Standard deviation of a student's log response time."""


class CalendarParameters(Config):
    """When students work and on what."""

    month_starts: tuple[str, ...] = ("2019-12-31", *(f"2020-{month:02d}-01" for month in range(1, 13)), "2020-12-30")
    first_second: str = "2019-12-31T15:08:01"
    activity: tuple[Counts, ...] = reference.ACTIVITY
    """Relative activity per month (rows) and head (columns)."""
    hour_weights: Numbers = (
        *(1.5, 2.0, 2.8, 4.2, 7.5, 10.5, 12.5, 13.0, 11.0, 8.5, 6.5, 5.0),
        *(4.0, 3.0, 2.0, 1.0, 0.8, 0.7, 0.6, 0.6, 0.7, 0.8, 1.0, 1.2),
    )
    """How many sessions start in each hour (UTC)."""
    hour_effect: Numbers = (
        *(-0.076, -0.116, -0.141, -0.221, -0.222, -0.276, -0.221, -0.101, 0.138, 0.281, 0.441, 0.515),
        *(0.577, 0.474, 0.38, 0.189, -0.688, -0.899, -0.913, -1.121, -1.053, -0.6, -0.114, 0.017),
    )
    """Added to the logit of a right answer (UTC hour)."""
    window: tuple[float, float] = (0.1, 0.9)
    """Share of the year's activity over which the shortest and the longest histories spread."""
    season_pull: float = 1.5
    """How strongly a student prefers the tests that belong to his season (log odds of the choice)."""
    curriculum_noise: float = 0.02
    tests_per_session: float = 2.5
    repeat_share: float = 0.0204
    """Share of passes through a test that are followed by another pass."""
    repeat_days: float = 4.0
    postpone_share: float = 0.024
    """Share of questions that are skipped at first and answered later in the same pass."""
    pause_median_s: float = 25.0
    pause_spread: float = 1.0
    """Pause between two tests of a session."""
    together_share: float = 0.004
    """Share of answers that are sent together with the one before (same second)."""


class ResponseTimeParameters(Config):
    """Seconds from one answer to the next inside a test."""

    haste_median_s: float = 8.0
    haste_spread: float = 0.7
    median_s: float = 40.0
    spread: float = 0.8
    doubt: float = 0.7
    """Log seconds added times the chance of being wrong: who is unsure takes longer."""
    limit_s: float = 3000.0


class Parameters(Config):
    """The whole simulated platform."""

    bank: BankParameters = Field(default_factory=BankParameters)
    student: StudentParameters = Field(default_factory=StudentParameters)
    calendar: CalendarParameters = Field(default_factory=CalendarParameters)
    response_time: ResponseTimeParameters = Field(default_factory=ResponseTimeParameters)

    @property
    def digest(self) -> str:
        """The sha256 of the canonical JSON."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()
