"""A small store: a dataset that the real `dkt prepare` made, and a run whose members were trained for a moment."""

from __future__ import annotations

import tempfile
from pathlib import Path

import polars as pl

from dkt_ray.data.history import Histories
from dkt_ray.data.ingest import DataConfig
from dkt_ray.ensemble import member
from dkt_ray.ensemble.chain import Chain
from dkt_ray.features.dataset import Dataset
from dkt_ray.features.encoder import EncoderConfig
from dkt_ray.models.catalog import CATALOG
from dkt_ray.pipelines import prepare
from dkt_ray.storage import open_store
from dkt_ray.training.fit import TrainingData, fit
from tests import bundles

METRICS = {"auc": {"value": 0.71, "low": 0.65, "high": 0.77}}


def write_log(path: Path, histories: Histories, users: list[str] | None = None) -> Path:
    """Write histories as a six-column CSV."""
    names = histories.users.tolist() if users is None else users
    owners = [name for name, length in zip(names, histories.lengths, strict=True) for _ in range(length)]
    times = pl.Series(histories.timestamp).cast(pl.Datetime("ms")).dt.strftime("%Y-%m-%d %H:%M:%S%.3f")
    pl.DataFrame(
        {
            "userID": owners,
            "assessmentItemID": histories.question.strings().tolist(),
            "testId": histories.test.strings().tolist(),
            "answerCode": histories.correct,
            "Timestamp": times,
            "KnowledgeTag": histories.concepts.strings().tolist(),
        }
    ).write_csv(path)
    return path


def prepare_dataset(store: str, folder: Path) -> Dataset:
    """The dataset `default` of the small world."""
    data = DataConfig(path=str(write_log(folder / "log.csv", bundles.simulate())), folds=2, buckets=2)
    prepare.run(prepare.PrepareConfig(store=store, data=data, encoder=EncoderConfig(min_count=2)))
    return Dataset.open(open_store(store), "default")


def make_run(store: str, dataset: Dataset, name: str = "default", seed: int = 0) -> None:
    """What `dkt tune` and `dkt ensemble` leave, as far as `dkt publish` reads it."""
    run = open_store(store).child(f"runs/{name}")
    data = TrainingData(dataset.load().rows, None, dataset.state)
    for family, settings in bundles.SMALL.items():
        config = CATALOG[family].config(seed=seed, **settings)
        with tempfile.TemporaryDirectory() as model:
            member.save(fit(family, config, data, iterations=bundles.ITERATIONS[family]).model, Path(model))
            run.upload(Path(model), f"members/{family}/model")
        facts = {"name": family, "family": family, "origin": "default", "seeds": 1, "served": "refit"}
        facts |= {"config": config.model_dump(mode="json"), "auc": 0.7, "best_iteration": 1, "score_us": 1.0}
        facts |= {"fingerprint": "e" * 16, "dataset": dataset.manifest.fingerprint, "digest": f"{family}-{seed}"}
        run.write_json(f"members/{family}/member.json", facts)
    blend = {"method": "simplex", "chain": Chain.weighted(bundles.WEIGHTS).model_dump(mode="json")}
    blend |= {"members": {family: f"{family}-{seed}" for family in bundles.SMALL}}
    run.write_json("blend.json", blend | {"metrics": METRICS, "fingerprint": "e" * 16})
