"""`dkt automl` on a real Ray cluster: it chooses, judges, keeps settings for other jobs, and goes on after a kill."""

from __future__ import annotations

from typing import Any

import pytest

from dkt_ray.config import build, load
from dkt_ray.features.dataset import Dataset
from dkt_ray.models.lgbm import LightGBMConfig
from dkt_ray.pipelines import automl, experiment, train
from dkt_ray.pipelines.automl import AutomlConfig
from dkt_ray.pipelines.sweep import TuneConfig
from dkt_ray.pipelines.verdict import verdict
from dkt_ray.storage import open_store
from tests.sweep_data import SMALL, prepared

__all__ = ["prepared"]  # a fixture

QUICK = {"trials": 2, "elimination_rounds": 5, "drop": 0.7, "samples": 50, "settings": SMALL["lightgbm"]}


@pytest.fixture(scope="module")
def chosen(prepared: str) -> dict[str, Any]:
    return automl.run(build(AutomlConfig, {"store": prepared, **QUICK}))


def test_the_users_of_one_fold_judge_what_the_others_chose(prepared: str, chosen: dict[str, Any]) -> None:
    result = open_store(prepared).read_json("runs/automl/automl.json")
    dataset = Dataset.open(open_store(prepared), "default")
    assert result["users"] == len(dataset.training_users({0}))
    assert chosen["verdict"] == verdict(result["difference"]) == result["verdict"]
    assert result["auc"]["automl"]["value"] - result["auc"]["default"]["value"] == pytest.approx(
        result["difference"]["value"]
    )
    config = build(LightGBMConfig, chosen["settings"])
    assert [*(config.number_names or ()), *config.columns] == sorted(
        chosen["columns"], key=[*dataset.manifest.numbers, *LightGBMConfig().columns].index
    )
    everything = {*dataset.manifest.numbers, *LightGBMConfig().columns}
    assert set(chosen["columns"]) | set(result["dropped"]) == everything
    assert (result["trials"], config.rounds) == (QUICK["trials"], SMALL["lightgbm"]["rounds"])


def test_what_was_chosen_can_be_trained_tuned_and_shown(prepared: str, chosen: dict[str, Any]) -> None:
    trained = train.run(load(train.TrainConfig, chosen["train"], ["samples=10", "run=again"]))
    assert trained["family"] == "lightgbm"
    kept = open_store(prepared).read_json("runs/again/trained/lightgbm/train.json")["settings"]
    assert kept == chosen["settings"]
    assert load(TuneConfig, chosen["tune"]).overrides["lightgbm"] == chosen["settings"]
    shown = experiment.run(experiment.ReportConfig(store=prepared, run="automl"))
    assert (sum(shown["trials"].values()), shown["missing"]) == (QUICK["trials"], [])
    assert f"AutoML: {chosen['verdict']}" in open_store(prepared).read("runs/automl/experiment.html").decode()


def test_the_same_command_goes_on_where_a_killed_one_was(prepared: str, chosen: dict[str, Any]) -> None:
    store = open_store(prepared)
    assert automl.run(build(AutomlConfig, {"store": prepared, **QUICK}))["reused"]
    before = store.read_json("runs/automl/automl.json")
    work = f"runs/automl/automl/{before['digest']}/fold-0"
    for key in ("runs/automl/automl.json", f"{work}/automl.parquet"):
        store.delete(key)
    choice = store.read_versioned(f"{work}/choice.json")
    again = automl.run(build(AutomlConfig, {"store": prepared, **QUICK}))
    assert not again["reused"]
    assert store.read_versioned(f"{work}/choice.json") == choice
    assert store.read_json("runs/automl/automl.json") == before
