"""The yardstick of simulated data: one sample for all, shares of the gap, refusals, and a run of the real jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dkt_ray import metrics
from dkt_ray.config import build
from dkt_ray.data.history import Coded
from dkt_ray.data.simulate import SimulateConfig, simulate, write
from dkt_ray.errors import ConfigError
from dkt_ray.pipelines import evaluate, prepare, report, train
from dkt_ray.pipelines import simulate as simulate_job
from dkt_ray.pipelines.blend import EnsembleConfig
from dkt_ray.pipelines.figures import Answers, Contender, Settings
from dkt_ray.pipelines.yardstick import Simulator, closed, oracle, sample, yardstick
from dkt_ray.storage import open_store
from dkt_ray.training.protocol import Scored
from tests.datasets import manifest

HOW = Settings(samples=10)


def blurred(truth: Any, amount: float) -> Any:
    return np.clip(truth + amount * np.random.default_rng(3).normal(size=len(truth)), 0.001, 0.999)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A store with a model of 50 simulated students, and the simulation's folder."""
    folder = tmp_path_factory.mktemp("yardstick")
    simulate_job.run(SimulateConfig(users=50, bank_fraction=0.05, out=f"{folder}/sim"))
    data = {"path": f"{folder}/sim/train_data.csv", "folds": 2, "test_fraction": 0.2}
    prepare.run(build(prepare.PrepareConfig, {"store": f"{folder}/store", "data": data, "engine": "local"}))
    settings = {"store": f"{folder}/store", "family": "lightgbm", "settings": {"rounds": 10}, "samples": 10}
    train.run(build(train.TrainConfig, settings | {"refit": True}))
    return f"{folder}/store", folder / "sim"


def judge(world: tuple[str, Path], **values: Any) -> dict[str, Any]:
    store, sim = world
    settings = {"store": store, "samples": 10, "truth": f"{sim}/truth.parquet", "yardstick": 12, "particles": 100}
    return evaluate.run(build(evaluate.EvaluateConfig, settings | values))


def test_every_model_is_measured_on_the_sample_that_the_filter_foresees(world):
    printed = judge(world)
    found = open_store(world[0]).read_json("runs/default/report.json")
    assert found["yardstick"]["users"] == 12
    assert found["yardstick"]["rows"] < found["evaluation_set"]["rows"]
    models = found["yardstick"]["models"]
    assert set(models) == {*found["models"], "filter"}
    assert models["filter"]["kind"] == "filter"
    assert "filter" not in found["models"], "its figures are of other rows than those of this table"
    aucs = {name: model["auc"]["value"] for name, model in models.items()}
    assert printed["sample_auc"] == aucs
    assert aucs["question_mean"] < aucs["filter"] < aucs["oracle"]
    assert printed["closed"]["filter"] == 1
    assert printed["closed"]["counting"] == 0
    gap = aucs["filter"] - aucs["counting"]
    assert printed["closed"]["lightgbm"] == pytest.approx((aucs["lightgbm"] - aucs["counting"]) / gap)
    assert models["oracle"]["closed"] is None
    table = report.text_table(found)
    assert f"yardstick: 12 students, {found['yardstick']['rows']} rows, 100 particles" in table
    assert f"{printed['closed']['lightgbm']:.4f}" in table
    page = open_store(world[0]).read("runs/default/report.html").decode()
    assert "Yardstick" in page
    assert f"{aucs['filter']:.4f}" in page
    plain = judge(world, yardstick=0)
    assert "closed" not in plain
    assert "oracle" in plain["auc"]
    assert "Yardstick" not in open_store(world[0]).read("runs/default/report.html").decode()


def test_the_final_report_has_one_too(world):
    printed = judge(world, final=True, reason="a test")
    assert printed["sample_auc"]["question_mean"] < printed["sample_auc"]["oracle"]
    assert printed["closed"]["filter"] == 1
    found = open_store(world[0]).read_json("runs/default/final.json")
    assert found["yardstick"]["users"] == found["users"]  # all there are


def test_a_simulation_that_is_not_there_is_named(world, tmp_path):
    truth = (world[1] / "truth.parquet").read_bytes()
    (tmp_path / "truth.parquet").write_bytes(truth)
    with pytest.raises(ConfigError, match=r"needs the manifest.json of dkt simulate beside truth=.*yardstick to 0"):
        judge(world, truth=f"{tmp_path}/truth.parquet")
    other = SimulateConfig(users=2, bank_fraction=0.01, out=str(tmp_path))
    simulate_job.run(other)
    (tmp_path / "truth.parquet").write_bytes(truth)
    with pytest.raises(ConfigError, match=r"is not of this dataset: question \w+ is not in the simulator's bank"):
        judge(world, truth=f"{tmp_path}/truth.parquet")


@pytest.mark.parametrize("config", [evaluate.EvaluateConfig(yardstick=300), EnsembleConfig(yardstick=300)])
def test_data_that_nobody_simulated_have_no_yardstick(config):
    with pytest.raises(ConfigError, match=r"yardstick=300 is for simulated data only.*set truth to the truth.parquet"):
        Simulator.of(config.truth, config.yardstick, config.particles)
    assert Simulator.of(None, 0, 10) is None
    assert oracle(None, manifest(), None) == {}


@pytest.mark.parametrize(
    "asked", [{"truth": "t.parquet", "yardstick": 9}, {"truth": "t.parquet"}, {"peers": {"theirs": "p.parquet"}}]
)
def test_a_report_that_is_only_printed_takes_nothing_new(tmp_path, asked):
    open_store(tmp_path).write_json("runs/default/report.json", {})  # as dkt ensemble leaves one
    with pytest.raises(ConfigError, match=r"printed as it is: give truth and yardstick to dkt ensemble, or .*final=tr"):
        evaluate.run(build(evaluate.EvaluateConfig, {"store": f"{tmp_path}"} | asked))


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("timestamp_is", "shown", "timestamp_is=shown of times of submission"),
        ("bundle", "test_run", "sees the answers of a test one after the other"),
    ],
)
def test_a_dataset_whose_models_see_what_the_filter_does_not_or_less_is_refused(world, setting, value, message):
    simulator = Simulator(f"{world[1]}/truth.parquet", users=5)
    simulator.check(manifest())
    other = manifest()
    other.config["encoder"][setting] = value
    with pytest.raises(ConfigError, match=message):
        simulator.check(other)
    Simulator("nowhere/truth.parquet").check(other)  # no yardstick is asked for


def test_the_sample_is_drawn_from_those_who_have_scored_rows():
    names = np.array(["a", "b", "c", "d", "e", "f"], object)
    codes = np.array([0, 0, 2, 3, 3, 5], np.int32)
    zeros = np.zeros(6)
    base = Scored(
        Coded(codes, names), np.arange(6, dtype=np.int32), codes.astype(np.int8), zeros.astype(np.int8), zeros
    )
    assert sample(base, 9, 0).tolist() == [0, 2, 3, 5]
    drawn = [tuple(sample(base, 2, seed)) for seed in range(20)]
    assert set(drawn) > {drawn[0]}
    assert all(set(two) < {0, 2, 3, 5} for two in drawn)
    assert sample(base, 2, 7).tolist() == sample(base, 2, 7).tolist()


def test_scores_and_foresight_meet_in_the_right_rows(tmp_path):
    """The filter's probabilities follow users and positions, whatever the order of the histories."""
    simulation = simulate(SimulateConfig(users=15, bank_fraction=0.05, out=str(tmp_path)))
    write(simulation, open_store(tmp_path))
    names, truth = simulation.user.astype(str), simulation.probability.astype(float)
    order = np.lexsort((simulation.position, names))
    base = Scored(
        Coded(np.unique(names[order], return_inverse=True)[1].astype(np.int32), np.unique(names).astype(object)),
        simulation.position[order],
        np.zeros(simulation.rows, np.int8),
        simulation.correct[order],
        truth[order],
    )
    answers = Answers.of(base, base.position >= 0)
    several = {
        "oracle": Contender("oracle", truth[order]),
        "counting": Contender("baseline", blurred(truth[order], 0.5)),
    }
    simulator = Simulator(f"{tmp_path}/truth.parquet", users=8, particles=50)
    histories = simulation.histories()
    found = yardstick(simulator, histories, base, answers, several, HOW)["yardstick"]
    backwards = histories.select(np.arange(15)[::-1])
    assert yardstick(simulator, backwards, base, answers, several, HOW)["yardstick"] == found
    assert found["models"]["filter"]["auc"]["value"] > metrics.auc(base.correct, blurred(truth[order], 0.3))
    assert yardstick(None, histories, base, answers, several, HOW) == {}


def test_no_gap_no_share():
    y = np.tile(np.array([0, 1, 1, 0, 1], np.int8), 20)
    user = np.repeat(np.arange(20, dtype=np.int32), 5)
    answers = Answers(y, user, np.tile(np.arange(1, 6, dtype=np.int32), 20), y >= 0)
    flat = Contender("baseline", np.full(100, 0.5))
    found = closed(answers, {"counting": flat, "filter": flat, "m": Contender("member", y * 0.5)}, HOW)
    assert found["m"]["auc"]["value"] == 1
    assert found["m"]["closed"] == {"value": None, "low": None, "high": None}
