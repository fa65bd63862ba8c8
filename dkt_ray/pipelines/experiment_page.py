"""The page of a run: leaderboard, learning curves, parallel coordinates, importance of settings, ensemble, ledger.

Charts are SVG in the page: nothing is loaded and no script runs.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from markupsafe import Markup

from dkt_ray.models.base import Between
from dkt_ray.models.catalog import CATALOG
from dkt_ray.pipelines.charts import (
    Axis,
    Scale,
    Trace,
    bars,
    parallel,
    range_axis,
    traces,
)
from dkt_ray.pipelines.report import sections, templates
from dkt_ray.training.sensitivity import LEAST, importance, is_number, varied

TEMPLATE: Final = "experiment.html.jinja"
SHADES: Final = 5  # colours of trials, from the lowest to the highest AUROC
_LOW: Final = 0.1  # share of the values of learning curves that may lie below the chart: first reports tell little


class Experiment(NamedTuple):
    """What a run holds, as its files have it; empty or None: not there."""

    run: str
    trials: list[dict[str, Any]]  # rows of trials.parquet
    members: dict[str, dict[str, Any]]  # member.json
    report: dict[str, Any] | None  # report.json
    models: dict[str, dict[str, Any]]  # train.json of each model of `dkt train`
    automl: dict[str, Any] | None  # automl.json
    ledger: list[dict[str, Any]]
    missing: dict[str, str]  # part -> what makes it


class Family(NamedTuple):
    """What the page shows of a family's trials."""

    name: str
    trials: int
    failed: int
    best: dict[str, Any] | None
    curves: Markup
    coordinates: Markup
    importance: Markup
    why_no_importance: str


def render(experiment: Experiment) -> str:
    """The page as HTML."""
    trials = [trial | {"settings": json.loads(trial["config"])} for trial in experiment.trials]
    families = {name: [each for each in trials if each["family"] == name] for name in _families(trials)}
    environment, report = templates(), experiment.report
    environment.filters["number"] = _number
    return environment.get_template(TEMPLATE).render(
        experiment=experiment,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        leaderboard=leaderboard(families),
        families=[family(name, each) for name, each in families.items()],
        members=member_table(experiment),
        ensemble=None if report is None else sections(report | {"ledger": experiment.ledger}),
        shades=SHADES,
    )


def leaderboard(families: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each trial, the best first and the failed last; of its settings, those that vary in its family."""
    rows = []
    for trials in families.values():
        names = varied([trial["settings"] for trial in trials])
        for trial in trials:
            told = {name: text(trial["settings"][name]) for name in names}
            rows.append({**trial, "reports": len(trial["curve"] or ()), "told": told})
    return sorted(rows, key=lambda row: -math.inf if row["auc"] is None else row["auc"], reverse=True)


def member_table(experiment: Experiment) -> list[dict[str, Any]]:
    """A row for each member, the best first; of its settings, those that are not its family's defaults."""
    report = experiment.report or {"weights": {}, "method": None}
    weights = report["weights"].get(report["method"], {})
    rows = [
        {"name": name, **facts, "weight": weights.get(name), "told": changed(facts["family"], facts["config"])}
        for name, facts in experiment.members.items()
    ]
    return sorted(rows, key=lambda row: row["auc"] or 0.0, reverse=True)


def changed(family: str, settings: Mapping[str, Any]) -> dict[str, str]:
    """The settings that differ from the family's defaults, as texts."""
    default = CATALOG[family].config().model_dump(mode="json") if family in CATALOG else {}
    nothing = object()
    return {name: text(value) for name, value in settings.items() if default.get(name, nothing) != value}


def family(name: str, trials: Sequence[Mapping[str, Any]]) -> Family:
    """The charts of a family's trials."""
    scored = sorted((trial for trial in trials if trial["auc"] is not None), key=lambda trial: trial["auc"])
    names = varied([trial["settings"] for trial in trials])
    logs = _logs(name)
    shares = importance([trial["settings"] for trial in scored], [trial["auc"] for trial in scored], logs)
    why = "" if shares else f"{len(scored)} trials with an AUROC: importance needs {LEAST}, and settings that vary."
    return Family(
        name=name,
        trials=len(trials),
        failed=sum(trial["status"] == "failed" for trial in trials),
        best=dict(scored[-1]) if scored else None,
        curves=Markup(_curves(scored)),
        coordinates=Markup(_coordinates(trials, names, logs)),
        importance=Markup(bars(shares, "share of the variance of the AUROC") if shares else ""),
        why_no_importance=why,
    )


def text(value: Any) -> str:
    """A setting's value, short."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def scale(name: str, values: Sequence[Any], log: bool = False, digits: int = 3) -> tuple[Scale, list[float]]:
    """An axis for the values of a setting, and the place of each value on it.

    >>> scale("rate", [1, 100, 10], log=True)[1]
    [0.0, 1.0, 0.5]
    """
    if not all(map(is_number, values)):
        labels = sorted({text(value) for value in values})
        ticks = [((place + 0.5) / len(labels), label) for place, label in enumerate(labels)]
        places = {label: place for place, label in ticks}
        return Scale(name, ticks), [places[text(value)] for value in values]
    log = log and min(values) > 0
    numbers = np.log(values) if log else np.asarray(values, np.float64)
    low, high = float(numbers.min()), float(numbers.max())
    spread = (high - low) or 1.0
    ends = [(share, low + share * spread) for share in (0.0, 0.5, 1.0)]
    values = [math.exp(end) if log else end for _, end in ends]
    ticks = [
        (share, f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}")
        for (share, _), value in zip(ends, values, strict=True)
    ]
    return Scale(f"{name} (log)" if log else name, ticks), ((numbers - low) / spread).tolist()


def _curves(scored: Sequence[Mapping[str, Any]]) -> str:
    """AUROC by report of each trial, the best one on top."""
    kept = [trial for trial in scored if trial["curve"]]
    if not kept:
        return ""
    longest = max(len(trial["curve"]) for trial in kept)
    values = np.array([value for trial in kept for value in trial["curve"]], np.float64)
    y = range_axis("best AUROC so far", [float(np.nanquantile(values, _LOW)), float(np.nanmax(values))])
    steps = sorted({round(1 + share * (longest - 1)) for share in (0, 0.25, 0.5, 0.75, 1)})
    x = Axis("report", 0.5, longest + 0.5, [(float(step), str(step)) for step in steps])
    drawn = [
        Trace(
            [(at, value) for at, value in enumerate(trial["curve"], start=1) if math.isfinite(value)],
            _note(trial),
            kind,
        )
        for trial, kind in zip(kept, _shades(kept), strict=True)
    ]
    return traces(drawn, x, y)


def _coordinates(trials: Sequence[Mapping[str, Any]], names: Sequence[str], logs: Sequence[str]) -> str:
    """Settings and AUROC of each trial, the best one on top; failed ones end before the AUROC."""
    scored = sorted((trial for trial in trials if trial["auc"] is not None), key=lambda trial: trial["auc"])
    if not names or not scored:
        return ""
    drawn = [*(trial for trial in trials if trial["auc"] is None), *scored]
    made = [scale(name, [trial["settings"][name] for trial in drawn], name in logs) for name in names]
    outcome, heights = scale("AUROC", [trial["auc"] for trial in scored], digits=4)
    columns = [places for _, places in made]
    ends: list[float | None] = [*[None] * (len(drawn) - len(scored)), *heights]
    kinds = ["failed"] * (len(drawn) - len(scored)) + _shades(scored)
    rows = []
    for place, (trial, kind) in enumerate(zip(drawn, kinds, strict=True)):
        points = [(float(axis), column[place]) for axis, column in enumerate(columns)]
        end = ends[place]
        rows.append(Trace(points if end is None else [*points, (float(len(names)), end)], _note(trial), kind))
    return parallel([*(axis for axis, _ in made), outcome], rows)


def _shades(scored: Sequence[Mapping[str, Any]]) -> list[str]:
    """A class for each trial by its rank, and one of its own for the best, which comes last."""
    shades = [f"q{place * SHADES // len(scored)}" for place in range(len(scored))]
    return [*shades[:-1], f"{shades[-1]} best"]


def _note(trial: Mapping[str, Any]) -> str:
    score = "no AUROC" if trial["auc"] is None else f"{trial['auc']:.4f}"
    return f"trial {trial['trial']}: {score}, {trial['status']}"


def _logs(family: str) -> list[str]:
    """Settings that the family's space searches on a logarithmic scale."""
    space = CATALOG[family].space if family in CATALOG else {}
    return [name for name, domain in space.items() if isinstance(domain, Between) and domain.log]


def _families(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(trial["family"] for trial in trials))


def _number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
