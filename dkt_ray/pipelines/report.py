"""Reports: a JSON file, and one HTML file that opens offline, in any browser, without scripts.

A report is what `figures.make_report` returns; everything shown is in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import jinja2
from markupsafe import Markup

from dkt_ray.metrics import HISTORY_LENGTHS
from dkt_ray.pipelines.charts import Point, label_axis, legend, lines, range_axis, share_axis
from dkt_ray.storage import Store

REPORT: Final = "report"  # name of a run's out-of-fold report
TEMPLATE: Final = "report.html.jinja"
SECTIONS: Final = "sections.html.jinja"
BEFORE_AFTER: Final = ("before", "after")  # of the calibrator
KINDS: Final = ("oracle", "filter", "ensemble", "method", "member", "peer", "baseline")  # order of the table
COLUMNS: Final = {  # figure -> heading, whether more is better
    "auc_capped": ("AUROC, at most 500 rows a user", True),
    "auc_first_attempts": ("AUROC, first attempts", True),
    "auc_last_answers": ("AUROC, last answers", True),
    "auc_within_user": ("AUROC within student", True),
    "accuracy": ("accuracy", True),
    "log_loss": ("log-loss", False),
    "brier": ("Brier", False),
    "ece": ("ECE", False),
}
CHARTED: Final = ("ensemble", "counting")


def write_report(report: Mapping[str, Any], folder: Store, name: str) -> None:
    """Write the page, then the JSON: with it, the report is complete."""
    folder.write(f"{name}.html", render(report).encode())
    folder.write_json(f"{name}.json", report)


def read_report(folder: Store, name: str) -> dict[str, Any] | None:
    """A report that was written; None where there is none."""
    return folder.read_json(f"{name}.json") if folder.exists(f"{name}.json") else None


def outcome(report: Mapping[str, Any], folder: Store, name: str) -> dict[str, Any]:
    """What a job prints of its report."""
    chosen = report["models"][report["chosen"]]["auc"]
    printed = {
        "auc": {model: found["auc"]["value"] for model, found in report["models"].items()},
        "auc_interval": [chosen["low"], chosen["high"]],
        "weights": report["weights"].get(report["method"], {}),
        "fingerprint": report["fingerprint"],
        "openings": len(report["ledger"]),
        "report": f"{folder.url}/{name}.html",
    }
    if "yardstick" not in report:
        return printed
    measured = report["yardstick"]["models"].items()
    closed = {model: found["closed"]["value"] for model, found in measured if found["closed"] is not None}
    return printed | {"sample_auc": {model: found["auc"]["value"] for model, found in measured}, "closed": closed}


def render(report: Mapping[str, Any]) -> str:
    """The report as HTML."""
    return templates().get_template(TEMPLATE).render(**_shown(report))


def sections(report: Mapping[str, Any]) -> Markup:
    """The body of the page without its title, for a page that shows more."""
    return Markup(templates().get_template(SECTIONS).render(**_shown(report)))


def templates() -> jinja2.Environment:
    """The pages of the pipelines, with the ways of writing figures."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dkt_ray.pipelines", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"figure": figure, "interval": interval, "signed": signed}
    return environment


def _shown(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the templates read."""
    models, told = report["models"], report.get("ensemble")
    charted = [name for name in ordered(models) if _charted(name, models[name])]
    bins = {} if told is None else {name: {"calibration": told[name]["bins"]} for name in BEFORE_AFTER}
    return {
        "report": report,
        "models": {name: models[name] for name in ordered(models)},
        "ensemble": told,
        "removals": {} if told is None else {removal["member"]: removal for removal in told["removals"]},
        "yardstick": report.get("yardstick"),
        "measured": ordered(report["yardstick"]["models"]) if "yardstick" in report else [],
        "columns": {name: text for name, text in COLUMNS.items() if any(name in model for model in models.values())},
        "legend": Markup(legend(charted)),
        "calibration": Markup(_calibration(models, charted)),
        "calibrated": Markup(_calibration(bins, list(bins))),
        "before_after": Markup(legend(list(bins))),
        "lengths": Markup(_lengths(models, charted)),
    }


def ordered(models: Mapping[str, Any]) -> list[str]:
    """Names of the models as the table lists them: by kind, the best AUROC first."""
    return sorted(models, key=lambda name: (KINDS.index(models[name]["kind"]), -(models[name]["auc"]["value"] or 0.0)))


def figure(estimate: Mapping[str, float | None] | None) -> str:
    """A figure with four decimals; a dash where there is none."""
    return "–" if estimate is None or estimate["value"] is None else f"{estimate['value']:.4f}"


def interval(estimate: Mapping[str, float | None] | None) -> str:
    """The interval of a figure, or nothing."""
    return "" if estimate is None or estimate["low"] is None else f"{estimate['low']:.4f} – {estimate['high']:.4f}"


def signed(estimate: Mapping[str, float | None] | None) -> str:
    """A difference with its sign."""
    if estimate is None or estimate["value"] is None:
        return "–"
    return f"{round(estimate['value'], 4) + 0.0:+.4f}"  # + 0.0: no negative zero


def text_table(report: Mapping[str, Any]) -> str:
    """The table for a terminal: AUROC with its interval, the differences, accuracy, log-loss, and ECE."""
    head = ("model", "kind", "AUROC", "95 % interval", "vs best member", "vs counting", "accuracy", "log-loss", "ECE")
    versus = report["differences"]
    body = [
        (
            name,
            model["kind"],
            figure(model["auc"]),
            interval(model["auc"]),
            *(signed(versus[key]["models"].get(name)) for key in ("best_member", "counting")),
            *(figure(model[key]) for key in ("accuracy", "log_loss", "ece")),
        )
        for name, model in ((name, report["models"][name]) for name in ordered(report["models"]))
    ]
    table = _aligned((head, *body))
    return f"{table}\n{_yardstick_table(report['yardstick'])}" if "yardstick" in report else table


def _yardstick_table(found: Mapping[str, Any]) -> str:
    """Every model on the sample of students that the particle filter foresees."""
    models = found["models"]
    head = ("model", "kind", "AUROC", "95 % interval", "gap closed", "95 % interval")
    body = [
        (
            name,
            models[name]["kind"],
            figure(models[name]["auc"]),
            interval(models[name]["auc"]),
            figure(models[name]["closed"]),
            interval(models[name]["closed"]),
        )
        for name in ordered(models)
    ]
    sample = f"yardstick: {found['users']} students, {found['rows']} rows, {found['particles']} particles"
    return f"{sample}; gap: from counting (0) to filter (1)\n{_aligned((head, *body))}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _charted(name: str, model: Mapping[str, Any]) -> bool:
    """The charts show the ensemble, its members, and one baseline: more lines would hide each other."""
    return model["kind"] == "member" or name in CHARTED


def _calibration(models: Mapping[str, Any], charted: list[str]) -> str:
    series = {
        name: [
            Point(bin_["probability"], bin_["right"], note=f"{bin_['right']:.3f} right of {bin_['rows']} rows")
            for bin_ in models[name]["calibration"]
        ]
        for name in charted
    }
    return lines(series, share_axis("predicted probability"), share_axis("share of right answers"), diagonal=True)


def _lengths(models: Mapping[str, Any], charted: list[str]) -> str:
    names = [name for name, *_ in HISTORY_LENGTHS]
    series = {}
    for index, model in enumerate(charted):
        shift = 0.08 * (index - (len(charted) - 1) / 2)  # side by side, so that whiskers do not hide each other
        found = models[model]["auc_by_history_length"]
        series[model] = [
            Point(
                place + shift,
                found[name]["value"],
                found[name]["low"],
                found[name]["high"],
                note=f"{name} earlier rows: {figure(found[name])}",
            )
            for place, name in enumerate(names)
            if found[name]["value"] is not None
        ]
    ends = [
        end
        for points in series.values()
        for point in points
        for end in (point.y, point.low, point.high)
        if end is not None
    ]
    return lines(series, label_axis("earlier rows of the student", names), range_axis("AUROC", ends))
