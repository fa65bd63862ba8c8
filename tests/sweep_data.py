"""A small prepared dataset, shared by the tests of the sweep."""

from __future__ import annotations

import polars as pl
import pytest

from dkt_ray.data.ingest import DataConfig
from dkt_ray.data.simulate import SimulateConfig, simulate, write
from dkt_ray.pipelines import prepare
from dkt_ray.storage import open_store

USERS, ROWS, FOLDS = 60, 60, 3

SMALL = {  # settings with which a fit takes a second
    "lightgbm": {"rounds": 30, "report_rounds": 10, "min_data_in_leaf": 20},
    "lstm_attention": {"epochs": 3, "context": 32, "batch_rows": 4096},
}


@pytest.fixture(scope="session")
def prepared(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Url of a store with the dataset `default`: at most ROWS answers of each of USERS simulated students."""
    folder = tmp_path_factory.mktemp("sweep")
    write(simulate(SimulateConfig(users=USERS, bank_fraction=0.1, out=str(folder))), open_store(folder))
    logs = pl.read_csv(folder / "train_data.csv", infer_schema=False)
    logs.filter(pl.int_range(pl.len()).over("userID") < ROWS).write_csv(folder / "short.csv")
    data = DataConfig(path=str(folder / "short.csv"), folds=FOLDS, test_fraction=0.1)
    prepare.run(prepare.PrepareConfig(store=str(folder / "store"), data=data, context=32))
    return str(folder / "store")
