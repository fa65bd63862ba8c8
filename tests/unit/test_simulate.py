"""The simulated platform: its files, its seeds, its equations, and that its data can be learned."""

from __future__ import annotations

import io
import re

import numpy as np
import polars as pl
import pytest

from dkt_ray.config import build
from dkt_ray.data.simulate import SimulateConfig, Simulation, simulate, write
from dkt_ray.data.simulation.answers import answer, draw_traits, lay_out
from dkt_ray.data.simulation.bank import NONE, build_bank
from dkt_ray.data.simulation.calibration import calibrate, table
from dkt_ray.data.simulation.parameters import Parameters
from dkt_ray.data.simulation.plan import draw_cohort, make_plan
from dkt_ray.errors import ConfigError
from dkt_ray.metrics import auc
from dkt_ray.schema import RAW_COLUMNS, UNKNOWN
from dkt_ray.storage import Store, open_store

FROZEN = "d0bbcabda97db35969a55080d1e709d59f9eb906877b7bed993e33b8f10a19a6"


@pytest.fixture(scope="module")
def small() -> Simulation:
    return simulate(SimulateConfig(users=120, bank_fraction=0.1))


@pytest.fixture(scope="module")
def store(small: Simulation, tmp_path_factory: pytest.TempPathFactory) -> Store:
    opened = open_store(tmp_path_factory.mktemp("simulated"))
    write(small, opened)
    return opened


def csv(store: Store, key: str) -> pl.DataFrame:
    return pl.read_csv(io.BytesIO(store.read(key)))


def with_student(**settings: float) -> Parameters:
    return build(Parameters, {"student": settings})


def test_default_parameters_are_frozen() -> None:
    assert Parameters().digest == FROZEN, (
        "The defaults of the simulator changed, and with them all simulated data and every figure measured on them. "
        "If that is wanted: run tests/integration/test_simulate_calibration.py (the table must hold), measure the AUCs "
        "in docs/simulator.md anew, say it in CHANGELOG.md, and put the new digest here."
    )


def test_ids_follow_the_reference_pattern(small: Simulation) -> None:
    tests = small.test.strings()
    for question, test in {*zip(small.question.strings(), tests, strict=True)}:
        head, mid = re.fullmatch(r"A(0[1-9]0)(\d{3})0\d{2}", question).groups()  # type: ignore[union-attr]
        assert test == f"A{head}000{mid}"


def test_same_seed_same_data_other_seed_other_students_of_the_same_bank(small: Simulation) -> None:
    again = simulate(small.config)
    other = simulate(small.config.model_copy(update={"seed": 1}))
    for name in ("offsets", "correct", "timestamp", "probability", "is_test"):
        np.testing.assert_array_equal(getattr(again, name), getattr(small, name))
    np.testing.assert_array_equal(again.question.codes, small.question.codes)
    assert list(other.question.values) == list(small.question.values)
    assert other.rows != small.rows or (other.correct != small.correct).any()


def test_a_part_of_the_bank_keeps_heads_tests_and_prerequisites_whole() -> None:
    parameters = Parameters().bank
    whole, part = build_bank(parameters), build_bank(parameters, 0.1)
    assert 0.05 < len(part.tests) / len(whole.tests) < 0.2
    assert set(part.test_head) == set(range(9))
    assert set(part.questions) <= set(whole.questions)
    sizes = dict(zip(whole.tests, np.diff(whole.offsets), strict=True))
    assert [sizes[test] for test in part.tests] == np.diff(part.offsets).tolist()
    assert (part.prerequisite < np.arange(len(part.prerequisite))).all()
    assert (part.prerequisite != NONE).mean() > 0.5


def test_rows_are_ordered_by_student_and_time(small: Simulation) -> None:
    same_user = np.diff(small.user) == 0
    assert (np.diff(small.user) >= 0).all()
    assert (np.diff(small.timestamp)[same_user] >= 0).all()
    assert (np.diff(small.timestamp)[same_user] == 0).any()  # some answers are sent together
    assert (small.timestamp % 1000 == 0).all()
    assert np.diff(small.offsets).min() >= 6


def test_files_hold_every_row_once_and_hide_the_last_answers(small: Simulation, store: Store) -> None:
    train, test, answers = (csv(store, f"{name}.csv") for name in ("train_data", "test_data", "test_answers"))
    assert train.columns == test.columns == list(RAW_COLUMNS.values())
    assert len(train) + len(test) == small.rows
    assert not set(train["userID"]) & set(test["userID"])
    assert (train["answerCode"] != UNKNOWN).all()
    last = test.with_row_index().group_by("userID").last().sort("userID")
    hidden = test.with_row_index().filter(pl.col("answerCode") == UNKNOWN)
    assert hidden["index"].to_list() == last["index"].to_list()
    assert answers["id"].to_list() == list(range(12))
    assert answers["userID"].to_list() == hidden["userID"].to_list() == sorted(set(test["userID"]))
    assert answers["answer"].to_list() == small.correct[small.hidden].tolist()


def test_files_say_what_the_simulation_says(small: Simulation, store: Store) -> None:
    train = csv(store, "train_data.csv")
    rows = ~small.is_test[small.user]
    assert train["userID"].to_list() == small.user[rows].tolist()
    assert train["assessmentItemID"].to_list() == small.question.strings()[rows].tolist()
    assert train["KnowledgeTag"].cast(pl.String).to_list() == small.concepts.strings()[rows].tolist()
    assert train["answerCode"].to_list() == small.correct[rows].tolist()
    times = train["Timestamp"].str.to_datetime("%Y-%m-%d %H:%M:%S").dt.epoch("ms")
    assert times.to_list() == small.timestamp[rows].tolist()
    assert store.read_json("manifest.json")["parameters_sha256"] == FROZEN


def test_truth_has_the_probability_of_every_answer(small: Simulation, store: Store) -> None:
    truth = store.read_table("truth.parquet")
    assert truth["user"].to_pylist() == small.user.astype(str).tolist()
    assert truth["position"].to_pylist() == [i for n in np.diff(small.offsets) for i in range(n)]
    np.testing.assert_array_equal(truth["probability"].to_numpy(), small.probability)
    assert (np.array(truth["split"].to_pylist()) == "test").tolist() == small.is_test[small.user].tolist()


def test_histories_hide_what_the_files_hide(small: Simulation) -> None:
    shown, hidden = small.histories(), small.histories(hide=True)
    assert shown.rows == hidden.rows == small.rows
    assert (shown.correct != UNKNOWN).all()
    assert np.flatnonzero(hidden.correct == UNKNOWN).tolist() == small.hidden.tolist()


def test_probabilities_are_those_of_the_answers() -> None:
    simulation = simulate(SimulateConfig(users=400, bank_fraction=0.2, seed=3))
    p, y = simulation.probability.astype(float), simulation.correct
    for low in np.arange(0, 1, 0.1):
        chosen = (p >= low) & (p < low + 0.1)
        error = np.sqrt((p * (1 - p))[chosen].sum())
        assert abs((y - p)[chosen].sum()) < 4 * error


def test_abilities_follow_the_documented_equations() -> None:
    """docs/simulator.md, in plain Python, against the compiled recursion."""
    parameters = Parameters()
    rng = np.random.default_rng(5)
    bank = build_bank(parameters.bank, 0.1)
    cohort = draw_cohort(3, rng)
    rows = lay_out(bank, make_plan(bank, cohort, parameters, rng), 3, parameters.calendar, rng)
    traits = draw_traits(bank, cohort, parameters.student, rng)
    answers = answer(bank, rows, traits, parameters)
    student, hour_effect = parameters.student, parameters.calendar.hour_effect
    fade = student.fade_days * 86_400
    for user in range(3):
        gained, when, now = {}, {}, 0
        haste, gain = traits.haste[user], traits.gain[user]

        def mastery(concept: int, at: int) -> float:
            return gained.get(concept, 0.0) * np.exp(-(at - when.get(concept, at)) / fade)  # noqa: B023

        for row in range(rows.offsets[user], rows.offsets[user + 1]):
            if rows.earliest[row] >= 0:
                now = max(rows.earliest[row], now + int(rows.pause[row]))
            q = rows.question[row]
            k, guess, slip = bank.question_concept[q], bank.guess[q], bank.slip[q]
            m = mastery(k, now)
            logit = bank.discrimination[q] * (traits.ability[user, k] + m - bank.difficulty[q])
            logit += hour_effect[now // 3600 % 24]
            expected = guess + (1 - haste) * (1 - guess - slip) / (1 + np.exp(-logit))
            assert answers.probability[row] == pytest.approx(expected, abs=1e-6)
            assert answers.correct[row] == (rows.luck[row] < answers.probability[row])
            shown, now = now, int(answers.second[row])
            assert now >= shown
            before = bank.prerequisite[k]
            ready = 1.0
            if before != NONE:
                level = traits.ability[user, before] + mastery(before, now)
                ready = 1 / (1 + np.exp(-student.prerequisite_slope * level))
            gained[k], when[k] = m + gain * ready * (student.ceiling - m), shown


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        pytest.param({}, {"gain": 0.0}, id="practice raises abilities"),
        pytest.param({"fade_days": 1000.0}, {"fade_days": 1.0}, id="abilities fade"),
        pytest.param({"prerequisite_slope": 1000.0}, {"prerequisite_slope": -1000.0}, id="prerequisites help to learn"),
    ],
)
def test_parts_of_the_mechanism_move_the_answers(better: dict[str, float], worse: dict[str, float]) -> None:
    high, low = (
        simulate(SimulateConfig(users=80, bank_fraction=0.1, parameters=with_student(**settings)))
        for settings in (better, worse)
    )
    assert high.probability.mean() > low.probability.mean() + 0.01


def test_history_matters() -> None:
    simulation = simulate(SimulateConfig(users=400, test_fraction=0.4, bank_fraction=0.2))
    question, user, y = simulation.question.codes, simulation.user, simulation.correct
    train, test = ~simulation.is_test[user], simulation.is_test[user]
    right = np.bincount(question[train], y[train], len(simulation.question.values))
    mean = (right + 6.5) / (np.bincount(question[train], minlength=len(right)) + 10)
    before = np.cumsum(y) - y
    own = before - before[simulation.offsets[user]]
    rate = (own + 6.5) / (simulation.position + 10)
    easy = np.log(mean / (1 - mean))[question]
    able = np.log(rate / (1 - rate))
    plain, with_history, oracle = (
        auc(y[test], scores[test]) for scores in (easy, easy + able, simulation.probability.astype(float))
    )
    assert 0.7 < plain < with_history - 0.02
    assert with_history < oracle - 0.05


@pytest.mark.parametrize("users", [1, 2, 3])
def test_tiny_cohorts(users: int, tmp_path) -> None:
    simulation = simulate(SimulateConfig(users=users, bank_fraction=0.01))
    write(simulation, open_store(tmp_path))
    assert (tmp_path / "test_data.csv").read_text().splitlines() == [",".join(RAW_COLUMNS.values())]
    assert len((tmp_path / "train_data.csv").read_text().splitlines()) == simulation.rows + 1


def test_calibration_marks_what_is_outside(small: Simulation) -> None:
    cells = calibrate(small)
    assert len(cells) >= 40
    named = {cell.name: cell for cell in cells}
    assert not named["questions"].holds  # a tenth of the bank
    assert named["questions whose id is not that of their test"].holds
    assert "<- outside" in table(cells)
    assert f"{sum(c.holds for c in cells)} of {len(cells)} hold" in table(cells)


@pytest.mark.parametrize("setting", [{"users": 0}, {"test_fraction": 1.0}, {"bank_fraction": 0.0}, {"usres": 5}])
def test_impossible_settings_are_named(setting: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        build(SimulateConfig, setting)
