"""cluster.yaml against Ray's own validation, and the promises that its comments make."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import hash_launch_conf, hash_runtime_conf, prepare_config, validate_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def prepared(cluster, monkeypatch, tmp_path) -> dict[str, Any]:
    """The config as `ray up` sees it: merged with Ray's AWS defaults."""
    monkeypatch.chdir(ROOT)
    return prepare_config(cluster)


def test_ray_accepts_the_file(cluster, prepared):
    validate_config(prepared)
    for name in cluster["available_node_types"]:
        assert hash_launch_conf(prepared["available_node_types"][name]["node_config"], prepared["auth"])


def test_ray_refuses_a_misspelt_key(cluster):
    with pytest.raises(ValidationError):
        validate_config(prepare_config(cluster | {"file_mount": {}}))


def test_the_code_is_mounted_whole(prepared, tmp_path):
    token = tmp_path / "auth_token"
    token.write_text("0" * 64)
    mounts = prepared["file_mounts"]
    assert mounts["~/dkt-ray"] == "."
    # the hash that decides whether a node must be set up again; of a small folder, for speed
    assert hash_runtime_conf({"~/dkt-ray": str(ROOT / "docs"), "~/.ray/auth_token": str(token)}, None, [])[0]
    unanchored = [pattern for pattern in prepared["rsync_exclude"] if not pattern.startswith("/")]
    assert unanchored == ["__pycache__"]  # "data" would also leave out dkt_ray/data


def test_cpu_head_cpu_workers_and_gpu_workers_from_zero(prepared):
    types = prepared["available_node_types"]
    assert prepared["head_node_type"] == "head"
    assert {name: types[name].get("min_workers", 0) for name in types} == {"head": 0, "cpu_worker": 0, "gpu_worker": 0}
    assert types["cpu_worker"]["max_workers"] > 0
    assert types["gpu_worker"]["max_workers"] > 0
    assert prepared["max_workers"] >= types["cpu_worker"]["max_workers"] + types["gpu_worker"]["max_workers"]
    instances = {name: types[name]["node_config"]["InstanceType"] for name in types}
    assert instances["gpu_worker"].startswith("g")
    assert not instances["head"].startswith(("g", "p"))


def test_s3_comes_from_instance_profiles_and_no_secret_is_in_the_file(cluster):
    for node in cluster["available_node_types"].values():
        assert node["node_config"]["IamInstanceProfile"]["Name"].startswith("dkt-ray-")
    text = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
    assert "AWS_SECRET" not in text
    assert "aws_secret" not in text


@pytest.mark.parametrize("commands", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_every_node_starts_with_the_token_and_without_usage_reports(prepared, commands):
    start = prepared[commands][-1]
    assert "RAY_AUTH_MODE=token" in start
    assert "RAY_USAGE_STATS_ENABLED=0" in start
    assert "--object-store-memory=" in start
    assert any("auth_token" in mount for mount in prepared["file_mounts"])
    assert any("chmod 600 ~/.ray/auth_token" in command for command in prepared["setup_commands"])


def test_the_dashboard_is_on_loopback(prepared):
    assert "--dashboard-host=127.0.0.1" in prepared["head_start_ray_commands"][-1]
    assert "0.0.0.0" not in "".join(prepared["head_start_ray_commands"])


def test_the_defaults_of_ray_are_all_replaced(prepared):
    groups = ("setup_commands", "head_setup_commands", "worker_setup_commands")
    commands = "\n".join(command for group in groups for command in prepared[group])
    assert not [word for word in ("anaconda", "ray-wheels", "boto3") if word in commands]
