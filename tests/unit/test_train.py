"""`dkt train`: a complete run folder, exact resume, refusals, and the evaluation of the models of a run."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tensorboardX.proto import event_pb2

from dkt_ray.config import build
from dkt_ray.data.ingest import DataConfig
from dkt_ray.errors import ConfigError, NotFoundError
from dkt_ray.features.dataset import Dataset
from dkt_ray.metrics import auc
from dkt_ray.pipelines import evaluate, prepare, train
from dkt_ray.storage import Store, open_store
from dkt_ray.training.progress import Progress
from dkt_ray.training.protocol import Scored
from dkt_ray.training.tracking import Tracker
from tests import bundles
from tests.runs import write_log

NETWORK = {"width": 8, "context": 10, "epochs": 4, "patience": 4, "batch_rows": 512}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with a small dataset: three folds and a test vault."""
    folder = tmp_path_factory.mktemp("train")
    data = DataConfig(
        path=str(write_log(folder / "log.csv", bundles.simulate())), folds=3, buckets=2, test_fraction=0.2
    )
    prepare.run(prepare.PrepareConfig(store=str(folder / "store"), data=data))
    return str(folder / "store")


def run(url: str, **values: Any) -> dict[str, Any]:
    settings = {"store": url, "family": "lstm_attention", "settings": NETWORK, "samples": 10} | values
    return train.run(build(train.TrainConfig, settings))


def judge(url: str, **values: Any) -> dict[str, Any]:
    return evaluate.run(build(evaluate.EvaluateConfig, {"store": url, "samples": 10} | values))


def folder(url: str, run_name: str, name: str) -> Store:
    return open_store(url).child(f"runs/{run_name}/trained/{name}")


def points(path: Path) -> list[tuple[str, int, float]]:
    """The scalars of a TensorBoard file: records of length, checksum, event, checksum."""
    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
        found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
        at += length + 16
    return found


def test_a_run_folder_holds_all_there_is_to_know(url):
    result = run(url, run="whole", refit=True)
    kept = folder(url, "whole", "lstm_attention")
    assert kept.read_json("config.json")["settings"]["width"] == 8
    assert {"revision", "packages", "cores", "started", "dkt_ray"} <= kept.read_json("environment.json").keys()
    epochs = [json.loads(line) for line in kept.read("epochs.jsonl").decode().splitlines()]
    assert [epoch["iteration"] for epoch in epochs] == [1, 2, 3, 4]
    assert all(epoch["rows_per_s"] > 0 for epoch in epochs)
    assert epochs[-1]["best"] == max(epoch["auc"] for epoch in epochs)
    assert result["iterations"] == 1 + int(np.argmax([epoch["auc"] for epoch in epochs]))
    [events] = Path(kept.url).glob("tensorboard/events*")
    shown = {step: value for tag, step, value in points(events) if tag == "validation/auc"}
    assert shown == {epoch["iteration"]: pytest.approx(epoch["auc"], abs=1e-6) for epoch in epochs}
    assert kept.list("checkpoint") == []
    assert kept.list("refit/checkpoint") == []

    scored = Scored.from_table(kept.read_table("scores.parquet"), "scores")
    counted = scored.headline
    assert result["auc"]["lstm_attention"] == auc(scored.correct[counted], scored.probability[counted])
    dataset = Dataset.open(open_store(url), "default")
    assert set(scored.user.strings()) <= set(dataset.training_users({0}))
    report = kept.read_json("report.json")
    assert report["chosen"] == "lstm_attention"
    assert set(report["models"]) == {"lstm_attention", "question_mean", "one_pl", "counting", "best_lr"}
    page = kept.read("report.html").decode()
    assert "Calibration" in page
    assert "AUROC by length of the history" in page
    assert "Weights" not in page

    assert run(url, run="whole", refit=True)["reused"] is True


def test_an_interrupted_run_goes_on_to_the_same_bits(url, monkeypatch):
    run(url, run="bits", name="whole")

    def interrupted(self: Tracker, progress: Progress) -> None:
        noted(self, progress)
        if progress.iteration == 2:
            raise KeyboardInterrupt

    noted = Tracker.__call__
    monkeypatch.setattr(Tracker, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(url, run="bits", name="halves")
    monkeypatch.undo()
    assert folder(url, "bits", "halves").list("checkpoint") != []
    run(url, run="bits", name="halves")
    whole, halves = (folder(url, "bits", name) for name in ("whole", "halves"))
    assert halves.read("model/weights.safetensors") == whole.read("model/weights.safetensors")
    curves = [[(e["iteration"], e["auc"], e["loss"]) for e in map(json.loads, s.read("epochs.jsonl").splitlines())]
              for s in (whole, halves)]  # fmt: skip
    assert curves[0] == curves[1]


def test_a_name_belongs_to_one_model(url):
    run(url, run="names", settings=NETWORK | {"epochs": 1})
    with pytest.raises(ConfigError, match=r"other settings \(epochs 1 there, 2 here\); choose another name"):
        run(url, run="names", settings=NETWORK | {"epochs": 2})
    assert run(url, run="names", settings=NETWORK | {"epochs": 2}, resume=False)["reused"] is False
    assert folder(url, "names", "lstm_attention").read_json("config.json")["settings"]["epochs"] == 2


def test_wrong_settings_are_named(url):
    with pytest.raises(ConfigError, match="settings: unknown setting widht"):
        run(url, settings={"widht": 8})
    with pytest.raises(ConfigError, match="no model family 'lstm_atention'; the catalog has"):
        run(url, family="lstm_atention")
    with pytest.raises(ConfigError, match="no training fold 7"):
        run(url, fold=7)


@pytest.fixture(scope="module")
def compared(url: str) -> str:
    """The store, with a run of two models that were refitted on all folds."""
    run(url, run="two", refit=True, settings=NETWORK | {"epochs": 1})
    run(url, run="two", refit=True, family="lightgbm", settings={"rounds": 10, "min_data_in_leaf": 5})
    return url


def test_the_models_of_a_run_are_compared_and_averaged(compared, tmp_path):
    scored = Scored.from_table(folder(compared, "two", "lightgbm").read_table("scores.parquet"), "scores")
    table = scored.to_table().set_column(4, "probability", pa.array(np.full(scored.rows, 0.5) + scored.correct * 1e-3))
    open_store(tmp_path).write_table("peer.parquet", table)
    result = judge(compared, run="two", peers={"theirs": str(tmp_path / "peer.parquet")})
    assert result["weights"] == {"lightgbm": 0.5, "lstm_attention": 0.5}
    assert result["auc"]["theirs"] == 1.0  # it knows the answers
    report = open_store(compared).read_json("runs/two/report.json")
    assert report["models"]["theirs"]["kind"] == "peer"
    assert report["differences"]["theirs"]["models"]["ensemble"]["value"] < 0

    open_store(tmp_path).write_table("short.parquet", table.slice(5))
    with pytest.raises(ConfigError, match=r"peers\.theirs: 5 of \d+ scored rows are not in it"):
        judge(compared, run="two", peers={"theirs": str(tmp_path / "short.parquet")})
    for taken in ("lightgbm", "ensemble", "counting", "oracle", "filter"):
        with pytest.raises(ConfigError, match=f"peers names {taken}, as the report names a line of its own"):
            judge(compared, run="two", peers={taken: str(tmp_path / "peer.parquet")})
    with pytest.raises(NotFoundError, match="members names bert; run two has models lightgbm, lstm_attention"):
        judge(compared, run="two", members=["bert"])


def test_the_vault_is_scored_by_the_refitted_models(compared):
    result = judge(compared, run="two", final=True, reason="a test")
    assert result["openings"] >= 1
    assert {"ensemble", "lightgbm", "lstm_attention", "counting"} <= result["auc"].keys()
    models = {name: folder(compared, "two", name) for name in ("lightgbm", "lstm_attention")}
    for kept in models.values():
        weights = next(key for key in kept.list("model") if "booster" in key or "weights" in key)
        assert kept.read(weights) != kept.read(f"refit/{weights}"), "the refit must differ, or this proves nothing"
    final = open_store(compared).read_json("runs/two/final.json")
    assert final["evaluation_set"]["folds"] == 0
    run(compared, run="two", name="elsewhere", fold=1, settings=NETWORK | {"epochs": 1})
    with pytest.raises(ConfigError, match="validated on different folds"):
        judge(compared, run="two")
