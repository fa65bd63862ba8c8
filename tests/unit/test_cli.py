"""The `dkt` command: usage, wrong names, wrong settings, and the one JSON line of a job."""

import importlib
import json
from pathlib import Path

import pytest

from dkt_ray import cli
from dkt_ray.config import Config, fields, load

GIVEN = {"rollout": ["bundle=champion"], "champion": ["data.path=logs.csv"]}  # what differs from run to run
ROOT = Path(__file__).resolve().parents[2]


def test_usage_lists_every_job(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    usage = capsys.readouterr().out
    assert all(name in usage for name in cli.JOBS)


def test_unknown_job_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == 2
    message = capsys.readouterr().err
    assert "'trian'" in message
    assert "tune" in message


@pytest.mark.parametrize("name", cli.JOBS)
def test_every_job_has_a_run_a_config_with_documented_settings_and_a_script(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    job = cli.JOBS[name]
    module = importlib.import_module(f"dkt_ray.{job.module}")
    config = getattr(module, job.config)
    assert issubclass(config, Config)
    assert callable(module.run)
    script = (ROOT / "jobs" / f"{name}.py").read_text(encoding="utf-8")
    assert f'run_job("{name}"' in script
    assert len(script.splitlines()) <= 40
    with pytest.raises(SystemExit) as stop:
        cli.run_job(name, ["--help"])
    assert stop.value.code == 0
    help_text = capsys.readouterr().out
    missing = [setting for setting, *_ in fields(config) if setting not in help_text]
    assert not missing


@pytest.mark.parametrize("path", sorted((ROOT / "jobs" / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_config_file_loads(path: Path) -> None:
    job = cli.JOBS[path.stem]
    load(getattr(importlib.import_module(f"dkt_ray.{job.module}"), job.config), path, GIVEN.get(path.stem, []))


def test_result_is_the_last_line_and_wrong_input_is_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["simulate", "--set", "users=40", "--set", f"out={tmp_path}/logs"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["users"] == 40
    assert (tmp_path / "logs" / "train_data.csv").exists()
    assert cli.main(["simulate", "--set", "user=40"]) == 2
    captured = capsys.readouterr()
    assert "did you mean users?" in captured.err
    assert captured.out == ""
