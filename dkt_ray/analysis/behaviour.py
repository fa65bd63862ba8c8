"""Sections on how users answer: accuracy (F07), months (F09), exposure (F11), curves (F12), pace (F13), order (F14)."""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl

from dkt_ray.analysis import accuracy, curves, exposure, figures
from dkt_ray.analysis.figures import Panel
from dkt_ray.analysis.measures import line
from dkt_ray.analysis.section import Exhibit, Material, Section, needs

SHARE: Final = "share of right answers"
AXES: Final = {
    "head": "head",
    "mid": "mid (number of the test in its head)",
    "tail": "tail (number of the question in its test)",
}


def rates(material: Material) -> Section:
    """F07: accuracy by head, mid, tail and hour, and at the end of histories."""
    log = material.log
    tables = {f"by_{part}": table for part, table in accuracy.by_part(log).items()}
    panels = [
        Panel([figures.shares(table[part], table, number, line=part != "head")], AXES[part], SHARE)
        for number, (part, table) in enumerate((part, tables[f"by_{part}"]) for part in AXES)
        if len(table)
    ]
    if log.timed:
        tables["by_hour"] = accuracy.by_hour(log)
        panels.append(
            Panel([figures.shares(tables["by_hour"]["hour"], tables["by_hour"], 5)], "hour of the day (UTC)", SHARE)
        )
    tables["ends"] = accuracy.of_ends(log)
    ends = figures.shares(tables["ends"]["answers"], tables["ends"], 2, line=False)
    exhibits = [
        Exhibit("Accuracy by part of the question's id and by hour, with 95 % intervals.", figures.figure(panels, 2)),
        Exhibit(
            "The last answer of a history is harder than the average one: where the task's prior lies.",
            figures.figure([Panel([ends], "which answers", SHARE)]),
        ),
    ]
    return Section(tables, exhibits[0 if panels else 1 :], needs(material, "time", "heads"))


def months(material: Material) -> Section:
    """F09: interactions per month and head."""
    if not material.log.timed:
        return Section(missing=needs(material, "time"))
    table = accuracy.by_month(material.log)
    heads = [name for name in table.columns if name not in ("month", "all")] or ["all"]
    traces = [
        figures.curve(table["month"], table[head], number, f"head {head}" if head != "all" else "all", marks=True)
        for number, head in enumerate(heads)
    ]
    drawing = figures.figure(
        [Panel(traces, "month (UTC)", "answers per month", axes={"x": {"type": "category"}})], height=420
    )
    seen = Exhibit("When each head is worked on; a head that stops early meets other users later.", drawing)
    return Section({"per_month": table}, [seen], needs(material, "heads"))


def exposures(material: Material) -> Section:
    """F11: number of answers against accuracy, for users, tags and tests."""
    table, split = exposure.correlations(material.units), exposure.split_at_mean(material.units)
    clouds, densities = [], []
    for unit, bins in exposure.BINS.items():
        found = exposure.ways(material.units[unit], bins)
        if not len(found["raw"]):
            continue
        drawn = figures.thinned(found["raw"].sort("n", "accuracy"), material.settings.drawn)
        traces = [
            figures.points(drawn["n"], drawn["accuracy"], 0, "one unit"),
            figures.curve(found["binned"]["n"], found["binned"]["accuracy"], 5, "mean per bin of the count"),
        ]
        if fitted := line(found["raw"]["n"], found["raw"]["accuracy"]):
            ends = np.array([found["raw"]["n"].min(), found["raw"]["n"].max()], np.float64)
            traces.append(figures.curve(ends, fitted[0] * ends + fitted[1], 8, "least squares line"))
        clouds.append(Panel(traces, f"answers per {unit}", f"accuracy of the {unit}", f"{unit}s"))
        halves = split.filter(pl.col("unit") == unit).partition_by("group", maintain_order=True)
        lines = [
            figures.curve((half["from"] + half["to"]) / 2, half["density"], 2 * number, half["group"][0])
            for number, half in enumerate(halves)
        ]
        densities.append(Panel(lines, f"accuracy of the {unit}", f"density of {unit}s", f"{unit}s by exposure"))
    exhibits = [
        Exhibit("Is what is met more often answered better? Units as points, their means per bin, and a straight line.",
                figures.figure(clouds, 3)),
        Exhibit("Accuracy of the units above and below the mean number of answers.", figures.figure(densities, 3)),
    ]  # fmt: skip
    return Section(
        {"correlations": table, "split_at_mean": split},
        exhibits if clouds else (),
        needs(material, "tests", "concepts"),
    )


def learning(material: Material) -> Section:
    """F12: learning curves."""
    log, settings = material.log, material.settings
    middle = curves.median_users(log, settings.curves)
    smooth = curves.cumulative(log, middle)
    recent = curves.windowed(log, curves.heaviest_users(log, settings.curves))
    position, practice = curves.by_position(log), curves.by_practice(log)
    tables = {"by_position": position, "by_practice": practice, "cumulative": smooth, "windowed": recent}
    panels = [Panel([figures.shares([f"{a}-{b}" for a, b in position.select("from", "to").iter_rows()], position, 0)],
                    "earlier rows of the user", SHARE, axes={"x": {"type": "category"}})]  # fmt: skip
    if len(practice):
        panels.append(
            Panel([figures.shares(practice["earlier"], practice, 2)], "earlier answers to the same concept", SHARE)
        )
    exhibits = [
        Exhibit(
            "Over all users: accuracy along a history, and along the practice of one concept.",
            figures.figure(panels, 2),
        )
    ]
    if len(smooth):
        exhibits.append(
            _per_user("Users of median length: right answers so far over answers so far. The first few swing.", smooth)
        )
    if len(recent):
        exhibits.append(_windowed(recent))
    if log.timed and middle:
        tables["months_of_a_user"] = curves.months_of_a_user(log, middle[0])
    return Section(
        tables,
        exhibits if len(position) else (),
        needs(material, "concepts"),
    )


def pace(material: Material) -> Section:
    """F13: seconds since the previous row against accuracy."""
    if not material.log.timed:
        return Section(missing=needs(material, "time"))
    support = material.settings.elapsed_support
    table = accuracy.by_elapsed(material.log, support)
    drawing = figures.figure(
        [Panel([figures.shares(table["elapsed"], table, 0)], "seconds since the previous row (s)", SHARE)]
    )
    caption = f"Accuracy by duration, durations with more than {support} answers: hasty answers are often wrong."
    bands = accuracy.by_elapsed_band(material.log)
    return Section({"bands": bands, "by_second": table}, [Exhibit(caption, drawing)] if len(table) else ())


def order(material: Material) -> Section:
    """F14: order inside tests, and repeated attempts."""
    log = material.log
    attempts, again = accuracy.by_attempt(log), accuracy.repeats(log)
    steps = accuracy.order_in_tests(log)
    tables = {"violations": accuracy.violations(log), "steps": steps, "repeats": again, "attempts": attempts}
    exhibits = []
    if len(steps):
        panel = Panel([figures.bars(steps["step"], steps["n"])], "tail minus the tail before (1: printed order)",
                      "transitions", axes={"y": {"type": "log"}})  # fmt: skip
        exhibits.append(
            Exhibit("Steps inside a test: most go to the next question (logarithmic axis).", figures.figure([panel]))
        )
    if len(attempts):
        panel = Panel(
            [figures.shares(attempts["attempt"], attempts, 2)],
            "attempt at the same question",
            SHARE,
            axes={"x": {"dtick": 1}},
        )
        exhibits.append(
            Exhibit(
                "Accuracy by attempt at the same question: a second pass is not a first one.", figures.figure([panel])
            )
        )
    return Section(
        tables,
        exhibits,
        needs(material, "tests", "heads"),
    )


def _per_user(caption: str, table: pl.DataFrame) -> Exhibit:
    traces = [
        figures.curve(part["answer"], part["accuracy"], number, f"user {part['user'][0]}")
        for number, part in enumerate(_thin_users(table))
    ]
    axes = {"y": {"range": [0, 1]}}
    return Exhibit(caption, figures.figure([Panel(traces, "known answers so far", SHARE, axes=axes)], height=420))


def _windowed(table: pl.DataFrame) -> Exhibit:
    traces: list[figures.Trace] = []
    members: list[range] = []
    for window in curves.WINDOWS:
        parts = _thin_users(table.filter(pl.col("window") == window))
        members.append(range(len(traces), len(traces) + len(parts)))
        traces += [
            figures.curve(part["answer"], part["accuracy"], number, f"user {part['user'][0]}")
            | {"visible": window == curves.WINDOWS[0]}
            for number, part in enumerate(parts)
        ]
    shown = [(window, chosen) for window, chosen in zip(curves.WINDOWS, members, strict=True) if len(chosen)]
    menu = figures.choice(
        [f"last {window} answers" for window, _ in shown], [chosen for _, chosen in shown], len(traces)
    )
    panel = Panel(traces, "known answers so far", SHARE, axes={"y": {"range": [0, 1]}})
    drawing = figures.figure([panel], height=420, menu=menu)
    for number, trace in enumerate(drawing["data"]):
        trace["showlegend"], trace["legendgroup"] = True, f"{trace['name']} {number}"
    return Exhibit("The heaviest users: share of right answers among their last 30, 70, 100 or 120.", drawing)


def _thin_users(table: pl.DataFrame) -> list[pl.DataFrame]:
    return [figures.thinned(part, 400) for part in table.partition_by("user", maintain_order=True)]
