"""`dkt ensemble` and `dkt evaluate` on real members of a simulated dataset: report, refusals, and the vault."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from dkt_ray.config import build
from dkt_ray.data.simulate import SimulateConfig
from dkt_ray.ensemble.blend import blend
from dkt_ray.ensemble.chain import Chain
from dkt_ray.errors import ConfigError, InputError, NotFoundError
from dkt_ray.features.dataset import Dataset
from dkt_ray.metrics import auc
from dkt_ray.pipelines import blend as ensemble
from dkt_ray.pipelines import evaluate, prepare, publish, simulate
from dkt_ray.storage import Store, open_store
from dkt_ray.training.folds import TrainingUsers, fit_members
from dkt_ray.training.protocol import Scored, evaluation_set
from dkt_ray.training.resources import Resources
from dkt_ray.training.selection import Chosen

FAMILIES = {"lightgbm": ({"rounds": 40}, 40), "lstm_attention": ({"width": 16}, 1)}
SAMPLES = 20
YARDSTICK = {"yardstick": 20, "particles": 100}


@pytest.fixture(scope="module")
def tuned(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a simulated dataset and a run of two members, fitted as the sweep fits them."""
    folder = tmp_path_factory.mktemp("ensemble")
    simulate.run(SimulateConfig(users=90, bank_fraction=0.1, out=f"{folder}/sim"))
    data = {"path": f"{folder}/sim/train_data.csv", "folds": 3, "test_fraction": 0.2}
    prepare.run(build(prepare.PrepareConfig, {"store": str(folder), "data": data}))
    store = open_store(folder)
    dataset = Dataset.open(store, "default")
    choices = [Chosen(name, name, settings, iterations, "x") for name, (settings, iterations) in FAMILIES.items()]
    users = ray.put(TrainingUsers(dataset.load(), dataset.state))
    fit_members(choices, dict.fromkeys(FAMILIES, Resources()), users, dataset.manifest, store.child("runs/default"))
    return folder


@pytest.fixture(scope="module")
def weighed(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The same store after `dkt ensemble`, and what that returned."""
    folder = tmp_path_factory.mktemp("weighed") / "store"
    shutil.copytree(tuned, folder)
    return folder, run(open_store(folder), truth=f"{tuned}/sim/truth.parquet", **YARDSTICK)


@pytest.fixture
def store(tuned: Path, tmp_path: Path) -> Store:
    """A copy of the tuned store that a test may change."""
    shutil.copytree(tuned, tmp_path / "store")
    return open_store(tmp_path / "store")


@pytest.fixture
def reported(weighed: tuple[Path, dict[str, Any]], tmp_path: Path) -> Store:
    """A copy of the weighed store that a test may change."""
    shutil.copytree(weighed[0], tmp_path / "store")
    return open_store(tmp_path / "store")


def run(store: Store, **settings: Any) -> dict[str, Any]:
    plain = {"method": "simplex", "at_least": 2, "calibrator": "none"}
    values = {"store": store.url, "samples": SAMPLES, "tune_trials": 3} | plain | settings
    return ensemble.run(build(ensemble.EnsembleConfig, values))


def final(store: Store, **settings: Any) -> dict[str, Any]:
    values = {"store": store.url, "samples": SAMPLES, "final": True, "reason": "a test"}
    return evaluate.run(build(evaluate.EvaluateConfig, values | settings))


def oof(store: Store, family: str) -> Scored:
    return Scored.from_table(store.read_table(f"runs/default/members/{family}/oof.parquet"), family)


def replace(store: Store, family: str, **columns: Any) -> None:
    """Change columns of a member's out-of-fold table."""
    table = store.read_table(f"runs/default/members/{family}/oof.parquet")
    for name, values in columns.items():
        index = table.schema.get_field_index(name)
        table = table.set_column(index, table.schema.field(name), [values])
    store.write_table(f"runs/default/members/{family}/oof.parquet", table)


def test_weights_and_report(weighed: tuple[Path, dict[str, Any]]) -> None:
    store, found = open_store(weighed[0]), weighed[1]
    assert set(found["auc"]) == {
        *(
            "ensemble",
            "ensemble_simplex",
            "ensemble_equal",
            "ensemble_logit",
            "ensemble_greedy",
            "ensemble_logistic",
            "ensemble_boosted",
        ),
        *("ensemble_tuned", "ensemble_rank", "lightgbm", "lstm_attention"),
        *("counting", "question_mean", "one_pl", "best_lr", "oracle"),
    }
    assert found["auc"]["question_mean"] < found["auc"]["ensemble"] < found["auc"]["oracle"]
    assert found["auc_interval"][0] < found["auc"]["ensemble"] < found["auc_interval"][1]
    assert found["sample_auc"]["question_mean"] < found["sample_auc"]["filter"] < found["sample_auc"]["oracle"]
    assert found["closed"].keys() == found["sample_auc"].keys() - {"oracle"}
    assert sum(found["weights"].values()) == pytest.approx(1, abs=1e-12)
    assert not found["reused"]
    folder = store.child("runs/default")
    weights, report = folder.read_json("blend.json"), folder.read_json("report.json")
    assert weights["method"] == "simplex"
    assert weights["chain"]["shares"] == found["weights"] == report["weights"]["simplex"]
    assert weights["chain"]["calibrator"] is None
    assert weights["metrics"]["auc"]["value"] == found["auc"]["ensemble"]
    manifest = Dataset.open(store, "default").manifest
    assert (
        found["fingerprint"] == weights["fingerprint"] == evaluation_set(manifest, oof(store, "lightgbm")).fingerprint
    )
    assert Path(found["report"]).read_text().startswith("<!doctype html>")
    assert report["ledger"] == []


def test_a_report_is_reused_until_a_setting_changes(reported: Store, tuned: Path) -> None:
    truth = f"{tuned}/sim/truth.parquet"
    before = reported.read_json("runs/default/report.json")
    assert run(reported, truth=truth, **YARDSTICK)["reused"]
    assert reported.read_json("runs/default/report.json") == before
    found = run(reported, method="tuned", ratio={"lightgbm": 3, "lstm_attention": 1})
    assert not found["reused"]
    assert "oracle" not in found["auc"]
    weights = reported.read_json("runs/default/report.json")["weights"]
    assert weights["fixed"] == {"lightgbm": 0.75, "lstm_attention": 0.25}
    assert found["weights"] == weights["tuned"] == reported.read_json("runs/default/blend.json")["chain"]["shares"]
    assert sum(found["weights"].values()) == pytest.approx(1, abs=1e-12)
    assert found["auc"]["ensemble_simplex"] == before["models"]["ensemble"]["auc"]["value"]
    members = [oof(reported, family) for family in FAMILIES]
    kept = members[0].headline
    mixed = blend(np.stack([m.probability for m in members], axis=1), np.array([0.75, 0.25]))
    assert found["auc"]["ensemble_fixed"] == auc(members[0].correct[kept], mixed[kept])


def test_the_best_way_is_found_and_what_is_served_is_what_was_reported(reported: Store) -> None:
    found = run(reported, method="best", at_least=1, calibrator="best", tune_trials=0)
    report, blended = (reported.read_json(f"runs/default/{name}.json") for name in ("report", "blend"))
    chain = build(Chain, blended["chain"])
    assert {"ensemble_simplex", *chain.members} <= set(found["auc"])
    assert set(found["weights"]) == set(FAMILIES)  # 0 for a member that was dropped
    assert [name for name, share in found["weights"].items() if share] == [m for m in chain.members if chain.shares[m]]
    told = report["ensemble"]
    assert {removal["member"] for removal in told["removals"] if removal["dropped"]} == set(FAMILIES) - {*chain.members}
    assert told["calibrator"] == (chain.calibrator and chain.calibrator.kind)
    assert all(0 < told[when]["log_loss"] < 1 for when in ("before", "after"))
    assert set(told["stability"]) == set(chain.members)
    done = publish.run(publish.PublishConfig(store=reported.url))
    assert done["metrics"]["auc"]["value"] == found["auc"]["ensemble"]


def test_one_member_is_its_own_ensemble(store: Store) -> None:
    found = run(store, members=["lightgbm"])
    assert found["weights"] == {"lightgbm": 1.0}
    assert found["auc"]["ensemble"] == found["auc"]["lightgbm"]
    assert "lstm_attention" not in found["auc"]


def test_members_that_do_not_fit_are_refused_by_name(store: Store) -> None:
    with pytest.raises(NotFoundError, match=r"no member bert in .*there: lightgbm, lstm_attention"):
        run(store, members=["lightgbm", "bert"])
    with pytest.raises(NotFoundError, match=r"no member at all.*dkt tune"):
        run(store, run="empty")
    with pytest.raises(ConfigError, match="missing: lstm_attention"):
        run(store, ratio={"lightgbm": 1})
    with pytest.raises(ConfigError, match="set tune_trials to 1 or more"):
        run(store, method="tuned", tune_trials=0)
    with pytest.raises(ConfigError, match=r"add up to 1\.5; expected 1 .*set ratio instead"):
        run(store, weights={"lightgbm": 1, "lstm_attention": 0.5})
    with pytest.raises(ConfigError, match="not both"):
        run(store, weights={"lightgbm": 1.0}, ratio={"lightgbm": 1})
    with pytest.raises(ConfigError, match="method=fixed needs a ratio or weights"):
        run(store, method="fixed")
    with pytest.raises(ConfigError, match="method is 'gru'"):
        run(store, method="gru")
    before = oof(store, "lstm_attention")
    bad = before.probability.copy()
    bad[7] = np.nan
    replace(store, "lstm_attention", probability=bad)
    with pytest.raises(InputError, match="member lstm_attention: row 7 has probability nan"):
        run(store)
    replace(store, "lstm_attention", probability=np.full(before.rows, 0.5))
    with pytest.raises(ConfigError, match=r"member lstm_attention scores every row 0\.5"):
        run(store)
    replace(store, "lstm_attention", probability=before.probability, correct=1 - before.correct)
    with pytest.raises(ConfigError, match="lstm_attention has another `correct` column than lightgbm"):
        run(store)
    assert not store.exists("runs/default/blend.json")  # nothing half-written


def test_a_dataset_that_was_prepared_anew_is_refused(store: Store) -> None:
    data = {"path": f"{store.url}/sim/train_data.csv", "folds": 3, "test_fraction": 0.2}
    prepare.run(build(prepare.PrepareConfig, {"store": store.url, "data": data, "context": 50}))
    with pytest.raises(ConfigError, match=r"member lightgbm was scored on evaluation set \w+.*run dkt tune again"):
        run(store)
    data["seed"] = 5  # other users in the vault
    prepare.run(build(prepare.PrepareConfig, {"store": store.url, "data": data}))
    with pytest.raises(ConfigError, match="rows of the members are not in dataset"):
        run(store)
    chain = Chain.weighted({"lightgbm": 1.0}).model_dump(mode="json")
    fact = store.read_json("runs/default/members/lightgbm/member.json")
    store.write_json("runs/default/blend.json", {"chain": chain, "members": {"lightgbm": fact["digest"]}})
    with pytest.raises(ConfigError, match=r"member lightgbm was fitted on \d+ users who are not training users"):
        final(store)
    assert store.list("ledger") == []  # the vault stayed shut


def test_the_vault_is_opened_by_a_final_evaluation_only(reported: Store, tuned: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nothing to evaluate .*dkt train, or .*dkt ensemble"):
        evaluate.run(build(evaluate.EvaluateConfig, {"store": f"{tuned}"}))
    with pytest.raises(NotFoundError, match=r"no blend.json .*dkt ensemble"):
        final(open_store(tuned))
    printed = evaluate.run(build(evaluate.EvaluateConfig, {"store": reported.url}))
    out_of_fold = reported.read_json("runs/default/report.json")
    assert printed["auc"] == {name: model["auc"]["value"] for name, model in out_of_fold["models"].items()}
    with pytest.raises(ConfigError, match="needs a reason"):
        final(reported, reason="")
    with pytest.raises(ConfigError, match=r"only test users can judge it.*final=true"):
        evaluate.run(build(evaluate.EvaluateConfig, {"store": reported.url, "bundle": "champion"}))
    assert reported.list("ledger") == []
    assert printed["openings"] == 0
    found = final(reported, truth=f"{tuned}/sim/truth.parquet")
    assert found["openings"] == 1
    assert found["fingerprint"] != printed["fingerprint"]
    assert found["auc"]["question_mean"] < found["auc"]["ensemble"] < found["auc"]["oracle"]
    report = reported.read_json("runs/default/final.json")
    dataset = Dataset.open(reported, "default")
    assert report["users"] == dataset.manifest.test_users
    assert report["evaluation_set"]["folds"] == 0
    assert [entry["why"] for entry in report["ledger"]] == ["a test"]
    bundle = publish.run(publish.PublishConfig(store=reported.url, promote=True))["bundle"]
    again = final(reported, bundle="champion")
    assert again["openings"] == 2
    for name in ("ensemble", *FAMILIES, "counting"):  # a bundle scores as the run that it was made of
        assert again["auc"][name] == pytest.approx(found["auc"][name], abs=1e-6)
    assert reported.read_json("runs/default/final.json")["title"] == f"Final report of bundle {bundle[:12]}"
    with pytest.raises(NotFoundError, match="nobody"):
        final(reported, bundle="nobody")
    again = evaluate.run(build(evaluate.EvaluateConfig, {"store": reported.url}))
    assert again["openings"] == 2  # the out-of-fold report prints the ledger too
    assert "test vault of this store: <b>2</b>" in reported.read("runs/default/report.html").decode()
