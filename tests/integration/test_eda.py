"""`dkt eda` on a dataset that `dkt prepare` made: what the report counts is what the manifest says."""

import pytest

from dkt_ray.config import build
from dkt_ray.data.simulate import SimulateConfig
from dkt_ray.features.dataset import Dataset
from dkt_ray.pipelines import eda, prepare, simulate
from dkt_ray.schema import UNKNOWN
from dkt_ray.storage import open_store

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_the_report_of_a_prepared_dataset_counts_its_training_users(tmp_path):
    simulate.run(build(SimulateConfig, {"users": 60, "bank_fraction": 0.05, "out": f"{tmp_path}/logs"}))
    data = {"path": f"{tmp_path}/logs/*_data.csv", "test_fraction": 0.3, "folds": 2}
    made = prepare.run(build(prepare.PrepareConfig, {"store": str(tmp_path), "data": data}))
    result = eda.run(build(eda.EdaConfig, {"store": str(tmp_path), "map_users": 20}))
    assert 0 < made["test_users"] < 60
    assert result["users"] == 60 - made["test_users"]
    folder = open_store(tmp_path).child("eda/default")
    groups = folder.read_table("tables/drift.groups.parquet").to_pylist()
    assert sum(group["rows"] for group in groups) == made["rows"]
    hidden = Dataset.open(open_store(tmp_path), "default").test_inputs()
    assert (hidden.correct == UNKNOWN).all()
    (vault,) = [group for group in groups if "vault" in group["group"]]
    assert (vault["users"], vault["known"], vault["accuracy"]) == (made["test_users"], 0, None)
    assert not open_store(tmp_path).list("ledger")  # the vault was not opened
