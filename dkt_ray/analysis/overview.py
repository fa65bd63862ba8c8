"""Sections on how much there is and what it is made of: distributions (F03), structure (F10), features (F06)."""

from __future__ import annotations

from typing import Any

import polars as pl

from dkt_ray.analysis import aggregates, distributions, figures
from dkt_ray.analysis.figures import Panel
from dkt_ray.analysis.section import Exhibit, Material, Section, needs


def summary(material: Material) -> Section:
    """F03: the cells of the reference's table of distributions, derived counts, and the columns."""
    found = material.units
    spread = distributions.histograms(found)
    counted = [unit for unit in distributions.UNITS if len(found[unit])]
    sizes = [_histogram_panel(spread, f"answers per {unit}", f"answers per {unit}", f"{unit}s") for unit in counted]
    rates = [
        figures.curve((part["from"] + part["to"]) / 2, part["n"] / part["n"].sum(), number, unit)
        for number, unit in enumerate(counted)
        for part in [spread.filter(pl.col("statistic") == f"accuracy per {unit}")]
    ]
    exhibits = [
        Exhibit(
            "How many answers each user, question, test and tag has: users have a long tail.", figures.figure(sizes, 2)
        ),
        Exhibit(
            "How accuracy spreads over users, questions, tests and tags, in bins of 0.02.",
            figures.figure([Panel(rates, "accuracy (share of right answers)", "share of units")]),
        ),
    ]
    tables = {
        "counts": distributions.counts(material.log),
        "statistics": distributions.statistics(found),
        "histograms": spread,
        "columns": distributions.columns(material.log),
        **{f"per_{unit}": table for unit, table in found.items()},
    }
    return Section(
        tables,
        exhibits if counted else (),
        needs(material, "tests", "concepts"),
    )


def structure(material: Material) -> Section:
    """F10: how questions, tests, tags and heads hang together."""
    log, found = material.log, material.units
    sizes = distributions.sizes(found)
    panels = [
        Panel([figures.bars(part["size"], part["n"], number)], name, f"number of {name.rsplit(' ', 1)[-1]}s")
        for number, name in enumerate(sizes["statistic"].unique(maintain_order=True).to_list())
        for part in [sizes.filter(pl.col("statistic") == name)]
    ]
    spread = distributions.histograms(found)
    users = [
        _histogram_panel(spread, f"users per {unit}", f"distinct users per {unit}", f"number of {unit}s", 4)
        for unit in ("test", "tag")
        if len(found[unit])
    ]
    exhibits = [Exhibit("Questions and tags per test, questions and tests per tag, users per test and per tag.",
                        figures.figure([*panels, *users], 2))] if panels else []  # fmt: skip
    return Section(
        {
            "heads": distributions.heads(log),
            "tails": distributions.tails(log),
            "tags_in_several_heads": distributions.shared_tags(log),
            "sizes": sizes,
        },
        exhibits,
        needs(material, "tests", "concepts", "heads"),
    )


def correlation(material: Material) -> Section:
    """F06: the 13 aggregate features against the user's accuracy and against the last answer."""
    table = aggregates.correlations(material.features)
    names = table["feature"].to_list()
    bars = [
        figures.intervals(names, table[f"{each}_r"], table[f"{each}_low"], table[f"{each}_high"], number, label)
        for number, (each, label) in enumerate(
            (("accuracy", "with the user's accuracy"), ("last", "with the last answer"))
        )
    ]
    axes: dict[str, dict[str, Any]] = {"y": {"autorange": "reversed", "type": "category"}, "x": {"zeroline": True}}
    return Section(
        {"correlations": table, "features": material.features},
        [
            Exhibit(
                "Which features go with accuracy, and which of them still say something about the last answer.",
                figures.figure([Panel(bars, "Pearson's r (95 % interval)", "feature", axes=axes)], height=480),
            ),
            *_feature_scatter(material),
        ],
        needs(material, "time", "tests"),
    )


def _feature_scatter(material: Material) -> list[Exhibit]:
    """A feature at a time: users as points, and the share of right last answers in tenths of the feature."""
    drawn = figures.thinned(material.features, material.settings.drawn)
    known = [name for name in aggregates.FEATURES if material.features[name].drop_nulls().len()]
    traces = []
    for number, name in enumerate(known):
        cloud = figures.points(drawn[name], drawn["accuracy"], 0, "accuracy of a user")
        tenths = _tenths(material.features.select(pl.col(name).alias("x"), "last"))
        means = figures.curve(
            tenths["x"], tenths["last"], 5, "share of right last answers, per tenth of users", marks=True
        )
        traces += [each | {"visible": number == 0} for each in (cloud, means)]
    if not traces:
        return []
    menu = figures.choice(known, [(2 * n, 2 * n + 1) for n in range(len(known))], len(traces), known)
    panel = Panel(traces, known[0], "accuracy, or share of right last answers")
    drawing = figures.figure([panel], height=420, menu=menu)
    for number, trace in enumerate(drawing["data"]):
        trace["showlegend"] = True
        trace["legendgroup"] = f"{trace['name']} {number // 2}"
    return [
        Exhibit(
            "Choose a feature: users as points (evenly sampled), the last answer as a line over tenths of the users.",
            drawing,
        )
    ]


def _tenths(pairs: pl.DataFrame) -> pl.DataFrame:
    """Means of x and of the known last answers in ten groups of equal size, by x."""
    kept = pairs.drop_nulls().sort("x", "last").with_row_index("rank")
    group = (pl.col("rank") * 10 // max(len(kept), 1)).alias("tenth")
    return kept.group_by(group, maintain_order=True).agg(pl.col("x").mean(), pl.col("last").cast(pl.Float64).mean())


def _histogram_panel(spread: pl.DataFrame, statistic: str, x: str, y: str, number: int = 0) -> Panel:
    return Panel([figures.histogram_bars(spread.filter(pl.col("statistic") == statistic), number)], x, y)
