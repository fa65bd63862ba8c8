"""The simulated platform at the reference size against the reference statistics, and byte for byte reproducible."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dkt_ray.data.simulate import SimulateConfig, simulate
from dkt_ray.data.simulation.calibration import Calibration, calibrate, table
from dkt_ray.pipelines.simulate import run


@pytest.fixture(scope="module")
def cells() -> list[Calibration]:
    return calibrate(simulate(SimulateConfig()))


def test_every_statistic_is_within_its_tolerance(cells: list[Calibration]) -> None:
    print(table(cells))
    assert len({cell.name for cell in cells}) == len(cells) >= 40
    assert [cell for cell in cells if not cell.holds] == []


def test_the_table_would_notice_other_parameters(cells: list[Calibration]) -> None:
    other = SimulateConfig.model_validate({"parameters": {"student": {"general_mean": 0.0}}})
    outside = [cell.name for cell in calibrate(simulate(other)) if not cell.holds]
    assert "accuracy" in outside
    assert len(outside) > 20


def test_the_same_config_gives_the_same_bytes_for_any_number_of_threads(tmp_path: Path) -> None:
    def digests(folder: Path) -> dict[str, str]:
        names = ("train_data.csv", "test_data.csv", "test_answers.csv", "truth.parquet")
        return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}

    config = SimulateConfig(users=300, bank_fraction=0.2, out=str(tmp_path / "here"))
    result = run(config)
    program = (
        "from dkt_ray.data.simulate import SimulateConfig\nfrom dkt_ray.pipelines.simulate import run\n"
        f"run(SimulateConfig(users=300, bank_fraction=0.2, out={str(tmp_path / 'there')!r}))"
    )
    threads = {"POLARS_MAX_THREADS": "5", "NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "3", "ARROW_NUM_THREADS": "3"}
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | threads)
    assert digests(tmp_path / "here") == digests(tmp_path / "there")
    assert result["users"] == 300
    assert result["test_users"] == 30
    assert result["rows"] > 60_000
