"""A model of a family as a member's folder: what the model saved, and form.json, which names the family.

Beside the catalog's families there is `neighbours`, a member but no family of the catalog: it has no epochs and no
search space, and does not beat the counting model alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from dkt_ray.ensemble import neighbours
from dkt_ray.errors import ConfigError
from dkt_ray.models.base import Model, ModelSpec
from dkt_ray.models.catalog import CATALOG

FORM: Final = "form.json"
NEIGHBOURS: Final = "neighbours"
FAMILIES: Final[Mapping[str, ModelSpec]] = {**CATALOG, NEIGHBOURS: neighbours.SPEC}


def family_of(model: Model) -> str:
    """The family's name."""
    return next(name for name, spec in FAMILIES.items() if spec.model is type(model))


def save_family(model: Model, folder: Path) -> None:
    """Write a model and its form into an existing, empty folder."""
    write_form({"family": family_of(model)}, folder)
    model.save(folder)


def load_family(folder: Path) -> Model:
    """Read back what `save_family` wrote.

    Raises:
        ConfigError: no member is there, or one of a form or family that this package does not have.
    """
    form = read_form(folder)
    if form.get("family") not in FAMILIES:
        raise ConfigError(
            f"{folder / FORM} holds {form}; this package reads families {', '.join(FAMILIES)}, means, shifts and stacks"
        )
    return FAMILIES[form["family"]].model.load(folder)


def write_form(form: Mapping[str, Any], folder: Path) -> None:
    """Write form.json."""
    (folder / FORM).write_text(json.dumps(form) + "\n", encoding="utf-8")


def read_form(folder: Path) -> dict[str, Any]:
    """What form.json holds.

    Raises:
        ConfigError: it is not there, or not a JSON object.
    """
    path = folder / FORM
    try:
        form = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path}: not readable as JSON: {error}; fit the member again") from None
    if not isinstance(form, dict):
        raise ConfigError(f"{path}: expected a JSON object, found {form!r}; fit the member again")
    return form
