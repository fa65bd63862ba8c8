"""`dkt eda`: a data report of a prepared dataset, one HTML file that opens offline, and its tables as Parquet."""

from __future__ import annotations

import datetime
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import jinja2
from markupsafe import Markup
from pydantic import Field

from dkt_ray.analysis.contents import SECTIONS
from dkt_ray.analysis.interactions import interactions
from dkt_ray.analysis.section import Material, Section, Settings
from dkt_ray.config import Config
from dkt_ray.errors import ConfigError
from dkt_ray.features.dataset import Dataset
from dkt_ray.log import progress
from dkt_ray.storage import Store, open_store

logger = logging.getLogger(__name__)

TEMPLATE: Final = "eda.html.jinja"
INDEX: Final = "report.json"
PAGE: Final = "report.html"
SHOWN: Final = 40  # rows of a table on the page


class EdaConfig(Config):
    """Settings of `dkt eda`."""

    store: str = "data/store"
    """Folder or s3://bucket/prefix."""
    dataset: str = "default"
    """The prepared dataset."""
    sections: tuple[str, ...] | None = None
    """Sections to make, e.g. [accuracy, drift]; unset: all."""
    support: int = Field(30, ge=1)
    """Users behind a pair of concepts, at least; pairs with fewer are stored, but not drawn."""
    elapsed_support: int = Field(100, ge=0)
    """A duration is shown where it has more answers than this."""
    concepts: int = Field(1000, ge=2)
    """Most answered concepts that enter the prerequisite matrix."""
    curves: int = Field(10, ge=1, le=50)
    """Users with a learning curve of their own."""
    window: int = Field(20, ge=1)
    """Rows of a random window, in the comparison of loaders."""
    context: int = Field(100, ge=1)
    """Rows of a context window, in the comparison of loaders."""
    map_users: int = Field(1500, ge=0)
    """Users of the t-SNE map; 0: none."""
    seed: int = Field(0, ge=0)
    """Seed of random windows and of the t-SNE."""


@dataclass(frozen=True)
class Made:
    """A section and the seconds that it took."""

    section: Section
    seconds: float


def run(config: EdaConfig) -> dict[str, Any]:
    """Analyse a dataset and write the report to `eda/<dataset>/` in the store.

    Returns:
        dataset, users, rows, sections (seconds of each), tables (how many), bytes (of the page), seconds, report.

    Raises:
        NotFoundError: no such dataset.
        ConfigError: no such section.
    """
    started = time.perf_counter()
    chosen = _chosen(config)
    store = open_store(config.store)
    dataset = Dataset.open(store, config.dataset)
    material = load(dataset, settings(config))
    made = make(material, chosen)
    folder = store.child(f"eda/{config.dataset}")
    heading = {
        "title": f"Data report of {config.dataset}",
        "dataset": config.dataset,
        "fingerprint": dataset.manifest.fingerprint,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "users": len(material.log.users),
        "rows": len(material.log.rows),
        "vault_users": 0 if material.vault is None else len(material.vault.users),
    }
    page = write(heading, made, folder, config)
    seconds = round(time.perf_counter() - started, 2)
    tables = sum(len(each.section.tables) for each in made.values())
    logger.info("data report: %d sections, %d tables, %.1f MB, %.1f s", len(made), tables, page / 1e6, seconds)
    return {
        "dataset": config.dataset,
        "users": heading["users"],
        "rows": heading["rows"],
        "sections": {name: each.seconds for name, each in made.items()},
        "tables": tables,
        "bytes": page,
        "seconds": seconds,
        "report": f"{folder.url}/{PAGE}",
    }


def settings(config: EdaConfig) -> Settings:
    """What the sections are asked for."""
    return Settings(
        support=config.support,
        elapsed_support=config.elapsed_support,
        tags=config.concepts,
        curves=config.curves,
        window=config.window,
        context=config.context,
        map_users=config.map_users,
        seed=config.seed,
    )


def load(dataset: Dataset, wanted: Settings) -> Material:
    """The training users, and the test users without their answers."""
    histories, _ = dataset.load_histories()
    vault = dataset.test_inputs()
    return Material(interactions(histories), interactions(vault) if len(vault.users) else None, wanted)


def make(material: Material, names: tuple[str, ...]) -> dict[str, Made]:
    """Make the named sections, one after another."""
    made = {}
    with progress("data report", len(names)) as reporter:
        for name in names:
            started = time.perf_counter()
            section = SECTIONS[name].make(material)
            made[name] = Made(section, round(time.perf_counter() - started, 2))
            logger.info("section %s: %.1f s", name, made[name].seconds)
            reporter.advance(note=name)
    return made


def write(heading: Mapping[str, Any], made: Mapping[str, Made], folder: Store, config: EdaConfig) -> int:
    """Write tables, then the page, then the index: where it is, the report is complete; returns the page's bytes."""
    folder.delete(INDEX)
    keys = {}
    for name, each in made.items():
        for table, frame in each.section.tables.items():
            keys[f"{name}.{table}"] = f"tables/{name}.{table}.parquet"
            folder.write_table(keys[f"{name}.{table}"], frame.to_arrow())
    page = render(heading, made).encode()
    folder.write(PAGE, page)
    sections = {
        name: {"title": SECTIONS[name].title, "seconds": each.seconds, "missing": each.section.missing}
        for name, each in made.items()
    }
    index = {**heading, "sections": sections, "tables": keys, "config": config.model_dump(mode="json")}
    folder.write_json(INDEX, index)
    for key in set(folder.list("tables")) - set(keys.values()):
        folder.delete(key)  # of an earlier report with other sections
    return len(page)


def render(heading: Mapping[str, Any], made: Mapping[str, Made]) -> str:
    """The report as one HTML file: plotly's script is in it, and nothing is loaded."""
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dkt_ray.pipelines", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"cell": cell, "thousands": "{:,}".format}
    figures = [exhibit.figure for each in made.values() for exhibit in each.section.exhibits]
    return environment.get_template(TEMPLATE).render(
        heading=heading,
        made=made,
        contents=SECTIONS,
        shown=SHOWN,
        plotly=Markup(get_plotlyjs()),
        figures=Markup(json.dumps(figures, allow_nan=False, separators=(",", ":")).replace("</", "<\\/")),
    )


def cell(value: Any) -> str:
    """A value as a table shows it: thousands separated, four decimals, a dash where there is none."""
    if value is None:
        return "–"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{round(value, 4) + 0.0:,.4f}" if abs(value) < 1000 else f"{value:,.1f}"  # + 0.0: no negative zero


def _chosen(config: EdaConfig) -> tuple[str, ...]:
    if config.sections is None:
        return tuple(SECTIONS)
    for name in config.sections:
        if name not in SECTIONS:
            raise ConfigError(f"sections: there is no section {name!r}; sections: {', '.join(SECTIONS)}")
    return tuple(name for name in SECTIONS if name in config.sections)
