"""A simulated learning platform: answer logs in the six-column schema, with the true probability of every answer.

It is calibrated to the statistics of the reference data (reference-system.md, sections 1.1-1.5; the table is
`simulation.calibration.calibrate`). The mechanism, with its equations, is described in docs/simulator.md:

* bank: heads, tests, questions, concepts, a prerequisite for most concepts, difficulty, discrimination, guess, slip;
* plan: a student works through tests, mostly of one head, in sessions over a season, in the order of the curriculum;
* answers: an ability for every concept, correlated within a head and along prerequisites, grows with practice (the
  more, the better the prerequisite is mastered) and fades with time; hour and haste matter.

The same config gives the same bytes, whatever the number of threads. The first n students of a large cohort are not the
students of a cohort of n.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
from pydantic import Field

from dkt_ray.config import Config
from dkt_ray.data.history import Coded, Histories, Int8, Int32, Int64
from dkt_ray.data.simulation.answers import answer, draw_traits, lay_out
from dkt_ray.data.simulation.bank import Bank, build_bank
from dkt_ray.data.simulation.parameters import Parameters
from dkt_ray.data.simulation.plan import draw_cohort, make_plan
from dkt_ray.schema import RAW_COLUMNS, UNKNOWN
from dkt_ray.storage import Store


class SimulateConfig(Config):
    """Settings of `dkt simulate`."""

    users: int = Field(default=7442, ge=1)
    """Number of students; ids are 0 to users - 1."""
    test_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of the students whose last answer is hidden (train and test students are disjoint)."""
    seed: int = Field(default=0, ge=0)
    """Seed of the cohort; the question bank has its own (parameters.bank.seed)."""
    bank_fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of the question bank that exists: smaller means more answers per question."""
    out: str = "data/simulated"
    """Folder or s3://bucket/prefix for the files."""
    parameters: Parameters = Field(default_factory=Parameters)
    """All numbers of the mechanism; the defaults are calibrated and frozen."""


@dataclass(frozen=True, eq=False)
class Simulation:
    """The answers of U students, N rows ordered by student and time."""

    config: SimulateConfig
    bank: Bank
    is_test: npt.NDArray[np.bool_]  # [U]: students whose last answer is hidden in the files
    offsets: Int64  # [U + 1]: rows of a student
    question: Coded  # [N]
    test: Coded  # [N]
    concepts: Coded  # [N], one concept a row
    correct: Int8  # [N], 0 or 1: nothing is hidden here
    timestamp: Int64  # [N], ms UTC, whole seconds: when the answer was sent
    probability: npt.NDArray[np.float32]  # [N]: true chance of a right answer, given the student's state before it

    @property
    def rows(self) -> int:
        """Number of answers, N."""
        return int(self.offsets[-1])

    @property
    def users(self) -> int:
        """Number of students, U."""
        return len(self.is_test)

    @property
    def user(self) -> Int32:
        """The student of each row, [N]."""
        return np.repeat(np.arange(self.users, dtype=np.int32), np.diff(self.offsets))

    @property
    def position(self) -> Int32:
        """Place of each row in its student's time order, from 0, [N]."""
        return (np.arange(self.rows) - np.repeat(self.offsets[:-1], np.diff(self.offsets))).astype(np.int32)

    @property
    def hidden(self) -> Int64:
        """The rows whose answers the files hide: the last one of each test student."""
        return self.offsets[1:][self.is_test] - 1

    def histories(self, hide: bool = False) -> Histories:
        """The same answers as `Histories`; `hide` puts UNKNOWN where the files do."""
        correct = self.correct
        if hide:
            correct = correct.copy()
            correct[self.hidden] = UNKNOWN
        users = np.arange(self.users).astype(str).astype(object)
        return Histories(users, self.offsets, self.question, self.test, self.concepts, correct, self.timestamp)


def simulate(config: SimulateConfig) -> Simulation:
    """Simulate a cohort; a pure function of `config`."""
    parameters = config.parameters
    bank = build_bank(parameters.bank, config.bank_fraction)
    cohort_rng, plan_rng, row_rng, trait_rng, test_rng = (
        np.random.default_rng(sequence) for sequence in np.random.SeedSequence(config.seed).spawn(5)
    )
    cohort = draw_cohort(config.users, cohort_rng)
    plan = make_plan(bank, cohort, parameters, plan_rng)
    rows = lay_out(bank, plan, config.users, parameters.calendar, row_rng)
    traits = draw_traits(bank, cohort, parameters.student, trait_rng)
    answers = answer(bank, rows, traits, parameters)
    is_test = np.zeros(config.users, bool)
    is_test[test_rng.permutation(config.users)[: round(config.test_fraction * config.users)]] = True
    return Simulation(
        config=config,
        bank=bank,
        is_test=is_test,
        offsets=rows.offsets,
        question=Coded(rows.question, bank.questions),
        test=Coded(bank.question_test[rows.question], bank.tests),
        concepts=Coded(bank.question_concept[rows.question], bank.concepts),
        correct=answers.correct,
        timestamp=answers.second * 1000,
        probability=answers.probability,
    )


def write(simulation: Simulation, store: Store) -> None:
    """Write the platform's files.

    `train_data.csv` and `test_data.csv` are the six columns; `test_answers.csv` has the hidden answers (`id` is the
    test student's place in ascending order, as in a submission); `truth.parquet` the true probability of every answer;
    `manifest.json`, written last, the resolved config.
    """
    is_test = simulation.is_test[simulation.user]
    hidden = simulation.hidden
    correct = simulation.histories(hide=True).correct
    store.write("train_data.csv", _csv(simulation, np.flatnonzero(~is_test), correct))
    store.write("test_data.csv", _csv(simulation, np.flatnonzero(is_test), correct))
    answers = pl.DataFrame(
        {
            "id": np.arange(len(hidden)),
            "answer": simulation.correct[hidden],
            RAW_COLUMNS["user"]: np.flatnonzero(simulation.is_test),
        }
    )
    store.write("test_answers.csv", answers.write_csv().encode())
    store.write_table("truth.parquet", _truth(simulation, is_test))
    store.write_json(
        "manifest.json",
        {
            "config": simulation.config.model_dump(mode="json"),
            "parameters_sha256": simulation.config.parameters.digest,
            "rows": simulation.rows,
            "users": simulation.users,
            "test_users": len(hidden),
        },
    )


def _csv(simulation: Simulation, rows: Int64, correct: Int8) -> bytes:
    """The given rows in the raw schema, with a header."""
    frame = pl.DataFrame(
        {
            "user": simulation.user[rows],
            "question": pl.from_arrow(simulation.question.take(rows).arrow()),
            "test": pl.from_arrow(simulation.test.take(rows).arrow()),
            "correct": correct[rows],
            "timestamp": pl.Series(simulation.timestamp[rows]).cast(pl.Datetime("ms")),
            "concepts": pl.from_arrow(simulation.concepts.take(rows).arrow()),
        }
    ).rename(RAW_COLUMNS)
    buffer = io.BytesIO()
    frame.write_csv(buffer, datetime_format="%Y-%m-%d %H:%M:%S")
    return buffer.getvalue()


def _truth(simulation: Simulation, is_test: npt.NDArray[np.bool_]) -> pa.Table:
    users = Coded(simulation.user, np.arange(simulation.users).astype(str).astype(object))
    split = Coded(is_test.astype(np.int32), np.array(["train", "test"], object))
    return pa.table(
        {
            "user": users.arrow(),
            "position": simulation.position,
            "probability": simulation.probability,
            "split": split.arrow(),
        }
    )
