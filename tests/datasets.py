"""Manifests without a dataset, and small datasets that the real `dkt prepare` makes in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dkt_ray.config import build
from dkt_ray.features.dataset import Dataset, Manifest
from dkt_ray.features.encoder import EncoderConfig
from dkt_ray.pipelines import prepare
from dkt_ray.storage import open_store


def manifest(**changes: Any) -> Manifest:
    """A manifest of three folds, as far as the training reads it."""
    facts = {
        **dict.fromkeys(("rows", "users", "buckets", "questions", "concepts", "sources"), 1),
        **dict.fromkeys(("test_users", "held_out", "hidden", "rejected", "duplicates", "stored_bytes"), 0),
        **dict.fromkeys(("settings", "content", "split", "state", "created"), ""),
        **dict.fromkeys(("files", "rejects", "numbers"), ()),
        **{"dataset": "d", "fingerprint": "f00d", "folds": 3, "timed": True, "stages": {}},
        "inputs": {"a.csv": "1111", "b.csv": "2222"},
        "config": {"context": 100, "encoder": EncoderConfig().model_dump(mode="json")},
    }
    return Manifest.model_validate(facts | changes)


def run(path: Path | str, store: Path | str, **settings: Any) -> dict[str, Any]:
    """Prepare the dataset `default`, locally unless `engine` says otherwise."""
    data = {"path": str(path), "folds": 3, "test_fraction": 0.2} | settings.pop("data", {})
    values = {"store": str(store), "data": data, "engine": "local", **settings}
    return prepare.run(build(prepare.PrepareConfig, values))


def opened(store: Path | str) -> Dataset:
    """The dataset `default`."""
    return Dataset.open(open_store(str(store)), "default")


def content(store: Path | str) -> dict[str, Any]:
    """Everything that a dataset says of each user, whatever bucket holds the user."""
    dataset = opened(store)
    users: dict[str, Any] = {}
    place = {name: index for index, name in enumerate(dataset.split.names)}
    for bucket in dataset.manifest.files:
        for row in dataset.files.read_table(bucket.histories).to_pylist():
            index = place[row["user"]]
            users[row["user"]] = row | {"fold": int(dataset.split.fold[index]), "cut": int(dataset.split.cut[index])}
    return users
