"""`dkt report`: everything that a run holds, as one HTML page that opens offline: trials, members, ensemble, ledger.

Nothing is computed anew but the importance of settings: the page shows what `dkt tune`, `dkt ensemble`, `dkt train`
and `dkt automl` left in the run, and of what is not there it says which command makes it.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import Any, ClassVar, Final

from pydantic import Field

from dkt_ray.config import Config
from dkt_ray.errors import NotFoundError
from dkt_ray.pipelines import figures, trained
from dkt_ray.pipelines.experiment_page import Experiment, render
from dkt_ray.pipelines.report import REPORT, read_report
from dkt_ray.pipelines.runs import TRIALS
from dkt_ray.storage import Store, open_store

logger = logging.getLogger(__name__)

PAGE: Final = "experiment.html"
AUTOML: Final = "automl.json"  # as `dkt automl` writes it
NAMES: Final = 20  # runs that a message names


class ReportConfig(Config):
    """Settings of `dkt report`."""

    positional: ClassVar[str | None] = "run"

    store: str = "data/store"
    """Folder or s3://bucket/prefix."""
    run: str = Field(default="default", pattern=r"^[A-Za-z0-9._-]+$")
    """The run that is described; `dkt runs` lists them."""


def run(config: ReportConfig) -> dict[str, Any]:
    """Write the page of a run, runs/<run>/experiment.html.

    Returns:
        run, report (where the page is), trials (number by status), members (out-of-fold AUROC by name), missing (parts
        that the run does not have), bytes, seconds.

    Raises:
        NotFoundError: no such run.
    """
    started = time.monotonic()
    store = open_store(config.store)
    experiment = read(store, config)
    page = render(experiment).encode()
    folder = store.child(f"runs/{config.run}")
    folder.write(PAGE, page)
    for part, command in experiment.missing.items():
        logger.info("%s: not in the run; %s", part, command)
    return {
        "run": config.run,
        "report": f"{folder.url}/{PAGE}",
        "trials": dict(Counter(trial["status"] for trial in experiment.trials)),
        "members": {name: facts["auc"] for name, facts in experiment.members.items()},
        "missing": list(experiment.missing),
        "bytes": len(page),
        "seconds": round(time.monotonic() - started, 2),
    }


def read(store: Store, config: ReportConfig) -> Experiment:
    """Everything of a run that its page shows.

    Raises:
        NotFoundError: no such run; it names those that are there.
    """
    folder = store.child(f"runs/{config.run}")
    keys = set(folder.list())
    if not keys:
        others = sorted({key.split("/")[1] for key in store.list("runs")})
        named = ", ".join(others[:NAMES]) or "none: make one with dkt tune"
        raise NotFoundError(f"no run {config.run!r} in {store.url}; runs there: {named}")
    names = sorted(key.split("/")[1] for key in keys if key.startswith("members/") and key.endswith("/member.json"))
    models = trained.models(folder)
    found = Experiment(
        run=config.run,
        trials=next((folder.read_table(key).to_pylist() for key in TRIALS if key in keys), []),
        members={name: folder.read_json(f"members/{name}/member.json") for name in names},
        report=read_report(folder, REPORT),
        models=models,
        automl=folder.read_json(AUTOML) if AUTOML in keys else None,
        ledger=figures.ledger(store),
        missing={},
    )
    return found._replace(missing=_missing(found, f"--set store={config.store} --set run={config.run}"))


def _missing(found: Experiment, where: str) -> dict[str, str]:
    """The parts of a sweep that a run lacks, and the command that makes each; other jobs' runs need not have them."""
    parts: dict[str, tuple[Any, str]] = {
        "trials": (found.trials, f"dkt tune {where}"),
        "members": (found.members, f"dkt tune {where}"),
        "ensemble": (found.report, f"dkt ensemble {where}"),
    }
    if not found.members and not found.report and (found.models or found.automl):
        return {}
    return {name: f"make it with {command}" for name, (there, command) in parts.items() if not there}
