"""Typed configuration: the base class, the YAML loader, and the `--config FILE --set a.b=1` parser of every job.

Each stage owns a frozen model beside the code that it configures; units stand in the names (`timeout_s`). The same
object survives YAML, `--set`, Tune samples, a manifest's JSON and Serve's arguments.
"""

from __future__ import annotations

import argparse
import difflib
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from dkt_ray.errors import ConfigError


class Config(BaseModel):
    """Base of all settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True)

    positional: ClassVar[str | None] = None  # a field that may be given without --set, e.g. `dkt rollout BUNDLE`


C = TypeVar("C", bound=Config)


def build(cls: type[C], values: Mapping[str, Any]) -> C:
    """Validate `values` as a `cls`.

    Raises:
        ConfigError: names each field, the value found, what was expected, and for an unknown key the nearest known one.
    """
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(cls, problem) for problem in error.errors())) from None


def load(cls: type[C], path: str | Path | None = None, overrides: Sequence[str] = ()) -> C:
    """Read a YAML file (optional) and apply `a.b=value` overrides (values are YAML).

    Raises:
        ConfigError: missing or malformed file, malformed override, or a value that does not validate.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except FileNotFoundError:
            raise ConfigError(f"--config {path}: no such file") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--config {path}: cannot be read as a YAML file: {error}") from None
        except yaml.YAMLError as error:
            raise ConfigError(f"--config {path}: not valid YAML: {error}") from None
        if not isinstance(values, dict):
            raise ConfigError(f"--config {path}: expected a mapping of settings, found {type(values).__name__}")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override}: expected key=value, e.g. --set data.path=logs.csv")
        try:
            _put(values, key.split("."), yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override}: the value is not valid YAML: {error}") from None
    return build(cls, values)


def parse(cls: type[C], argv: Sequence[str], prog: str, description: str) -> C:
    """Parse a job's command line; `--help` lists every field with its type and default."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_fields_help(cls),
    )
    if cls.positional:
        parser.add_argument(cls.positional, nargs="?", help=f"same as --set {cls.positional}=...")
    parser.add_argument("--config", metavar="FILE", help="YAML file with settings")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides", help="override one setting"
    )
    arguments = parser.parse_args(argv)
    overrides = list(arguments.overrides)
    if cls.positional and getattr(arguments, cls.positional) is not None:
        overrides.append(f"{cls.positional}={getattr(arguments, cls.positional)}")
    return load(cls, arguments.config, overrides)


def fields(cls: type[Config], prefix: str = "") -> Iterator[tuple[str, str, Any, str]]:
    """Every leaf setting as (dotted name, type, default, one-line doc)."""
    for name, field in cls.model_fields.items():
        nested = _config_type(field.annotation)
        if nested is not None:
            yield from fields(nested, f"{prefix}{name}.")
            continue
        default = "required" if field.is_required() else field.get_default(call_default_factory=True)
        yield f"{prefix}{name}", _type_name(field.annotation), default, " ".join((field.description or "").split())


def _config_type(annotation: Any) -> type[Config] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and not get_args(candidate) and issubclass(candidate, Config):
            return candidate
    return None


def _type_name(annotation: Any) -> str:
    if get_origin(annotation) in (Union, types.UnionType):
        return " | ".join(_type_name(a) for a in get_args(annotation))
    if annotation is type(None):
        return "null"
    return str(
        annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else annotation
    ).replace("typing.", "")


def _fields_help(cls: type[Config]) -> str:
    lines = ["settings (for --config and --set):"]
    for name, kind, default, doc in fields(cls):
        lines.append(f"  {name} ({kind}, {'required' if default == 'required' else f'default {default!r}'})")
        if doc:
            lines.append(f"      {doc}")
    return "\n".join(lines)


def _put(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        below = values.setdefault(part, {})
        if not isinstance(below, dict):
            raise ConfigError(f"--set {'.'.join(path)}: {part} is {below!r}, not a group of settings")
        values = below
    values[path[-1]] = value


def _explain(cls: type[Config], problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = [name for name, *_ in fields(cls)]
        close = (
            difflib.get_close_matches(where, known, n=1)
            or [name for name in known if name.rsplit(".", 1)[-1] == where.rsplit(".", 1)[-1]][:1]
        )
        hint = f"did you mean {close[0]}?" if close else f"known settings: {', '.join(known)}"
        return f"unknown setting {where} (value {problem['input']!r}); {hint}"
    if problem["type"] == "missing":
        return f"setting {where} is missing; give it with --set {where}=... or in the --config file"
    return f"setting {where} is {problem['input']!r}: {_message(problem)}"


def _message(problem: Any) -> str:
    """Pydantic's words, as the end of a sentence."""
    text: str = problem["msg"].removeprefix("Value error, ")
    return text[:1].lower() + text[1:]
