"""Settings from YAML, `--set` and the command line; every mistake is answered with the field and the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import pytest
from pydantic import Field, ValidationError

from dkt_ray.config import Config, build, fields, load, parse
from dkt_ray.errors import ConfigError


class Reading(Config):
    path: str
    """Where the logs are."""
    max_rejected: float = Field(0.01, ge=0, le=1)
    columns: dict[str, str] = Field(default_factory=dict)


class Job(Config):
    positional: ClassVar[str | None] = "bundle"

    bundle: str | None = None
    data: Reading
    mode: Literal["shown", "submitted"] = "submitted"
    """When the clock
    of an answer stops."""
    folds: int = 3


GOOD = {"data": {"path": "logs"}}


def test_values_and_defaults() -> None:
    job = build(Job, {"data": {"path": "logs", "columns": {"user": "student"}}, "folds": 5})
    assert (job.data.path, job.data.columns, job.data.max_rejected, job.folds) == ("logs", {"user": "student"}, 0.01, 5)


def test_settings_are_frozen() -> None:
    job = build(Job, GOOD)
    with pytest.raises(ValidationError, match="frozen"):
        job.folds = 4  # type: ignore[misc]


def test_a_config_survives_json() -> None:
    job = build(Job, GOOD)
    assert Job.model_validate_json(job.model_dump_json()) == job


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**GOOD, "fold": 3}, "unknown setting fold (value 3); did you mean folds?"),
        ({"data": {"path": "x", "max_reject": 0.1}}, "unknown setting data.max_reject (value 0.1); did you mean data."),
        ({**GOOD, "path": "x"}, "unknown setting path (value 'x'); did you mean data.path?"),
        ({**GOOD, "zzz": 1}, "unknown setting zzz (value 1); known settings: bundle, data.path, data.max_rejected"),
        ({**GOOD, "folds": "three"}, "setting folds is 'three': input should be a valid integer"),
        ({**GOOD, "mode": "seen"}, "setting mode is 'seen': input should be 'shown' or 'submitted'"),
        ({"data": {"path": "x", "max_rejected": 2}}, "setting data.max_rejected is 2: input should be less than"),
        ({"data": "logs"}, "setting data is 'logs': input should be a valid dictionary"),
        ({}, "setting data is missing; give it with --set data=... or in the --config file"),
        ({"data": {}}, "setting data.path is missing; give it with --set data.path=..."),
    ],
)
def test_a_mistake_names_the_field_the_value_and_the_remedy(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build(Job, values)
    assert message in str(error.value)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        build(Job, {"data": {}, "folds": "x", "fold": 1})
    assert len(str(error.value).splitlines()) == 3


def test_overrides_go_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("data:\n  path: logs\n  max_rejected: 0.5\nfolds: 4\n")
    job = load(Job, file, ["data.path=other", "data.columns.user=student", "folds=7", "bundle=null"])
    assert job.data == Reading(path="other", max_rejected=0.5, columns={"user": "student"})
    assert job.folds == 7


def test_override_values_are_yaml_and_may_hold_an_equals_sign() -> None:
    job = load(Job, overrides=["data={path: a=b, columns: {user: id}}", "data.max_rejected=1e-1"])
    assert job.data == Reading(path="a=b", max_rejected=0.1, columns={"user": "id"})


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "empty.yaml"
    file.write_text("# nothing yet\n")
    assert load(Job, file, ["data.path=x"]).folds == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not valid YAML"),
        ("- folds\n- 3\n", "expected a mapping of settings, found list"),
        ("just text", "expected a mapping of settings, found str"),
    ],
)
def test_a_file_that_holds_no_settings(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        load(Job, file)
    assert str(file) in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--config .*absent\.yaml: no such file"):
        load(Job, tmp_path / "absent.yaml")


@pytest.mark.parametrize("where", ["folder", "binary"])
def test_a_file_that_is_no_text(tmp_path: Path, where: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"--config .* cannot be read"):
        load(Job, tmp_path / where)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("folds", "--set folds: expected key=value"),
        ("folds=[1", "--set folds=[1: the value is not valid YAML"),
        ("folds.x.y=1", "setting folds is {'x': {'y': 1}}"),
        ("data.path.x=1", "--set data.path.x: path is 'logs', not a group of settings"),
        ("=3", "unknown setting"),
    ],
)
def test_a_bad_override(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(Job, overrides=["data.path=logs", override])
    assert message in str(error.value)


def test_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("data: {path: logs}\nbundle: from-file\n")
    job = parse(Job, ["abc", "--config", str(file), "--set", "folds=5", "--set", "mode=shown"], "dkt job", "Do it.")
    assert (job.bundle, job.data.path, job.folds, job.mode) == ("abc", "logs", 5, "shown")
    assert parse(Job, ["--config", str(file)], "dkt job", "Do it.").bundle == "from-file"


def test_help_lists_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(Job, ["--help"], "dkt job", "Do it.")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for line in (
        "data.path (str, required)\n      Where the logs are.",
        "data.max_rejected (float, default 0.01)",
        "bundle (str | null, default None)",
        "folds (int, default 3)",
        "      When the clock of an answer stops.",
    ):
        assert line in text


def test_fields_are_the_leaves_in_order() -> None:
    names = [name for name, *_ in fields(Job)]
    assert names == ["bundle", "data.path", "data.max_rejected", "data.columns", "mode", "folds"]
