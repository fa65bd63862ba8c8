"""Who answered how much, and how well: the statistics, cell by cell (F03), and the structure (F10, E9, E30)."""

from __future__ import annotations

from typing import Any, Final

import polars as pl

from dkt_ray.analysis.interactions import Interactions
from dkt_ray.analysis.measures import histogram, moments, with_share

UNITS: Final = ("user", "question", "test", "tag")
BINS: Final = 50

Tables = dict[str, pl.DataFrame]


def units(log: Interactions) -> Tables:
    """One line per user, question, test and tag: known answers, right ones, accuracy, distinct users and parts."""
    known = log.known
    inside = {
        "question": known.group_by("test").agg(pl.col("question").n_unique().alias("questions")),
        "tag": log.tagged("test").group_by("test").agg(pl.col("tag").n_unique().alias("tags")),
    }
    tests = _answered(known, "test").join(inside["question"], "test", "left").join(inside["tag"], "test", "left")
    of_tag = log.tagged("user", "question", "test")
    tag_parts = of_tag.group_by("tag").agg(
        pl.col("question").n_unique().alias("questions"), pl.col("test").drop_nulls().n_unique().alias("tests")
    )
    return {
        "user": _named(_answered(known, "user"), "user", log),
        "question": _named(_answered(known, "question"), "question", log),
        "test": _named(tests.with_columns(pl.col("tags").fill_null(0)), "test", log),
        "tag": _named(_answered(of_tag, "tag").join(tag_parts, "tag", "left"), "tag", log),
    }


def statistics(found: Tables) -> pl.DataFrame:
    """All cells of the reference's table of distributions, from `units`."""
    cells: dict[str, pl.Series] = {}
    for unit in UNITS:
        table = found[unit]
        cells[f"answers per {unit}"] = table["n"]
        if unit != "user":
            cells[f"distinct users per {unit}"] = table["users"]
        cells[f"accuracy per {unit}"] = table["accuracy"]
    cells |= {
        "questions per test": found["test"]["questions"],
        "distinct tags per test": found["test"]["tags"],
        "questions per tag": found["tag"]["questions"],
        "tests per tag": found["tag"]["tests"],
    }
    return moments({name: values for name, values in cells.items() if len(values)})


def counts(log: Interactions) -> pl.DataFrame:
    """The derived counts of the reference: rows, answers, pairs, cycles, repeats."""
    rows, known = log.rows, log.known
    pairs = known.select("user", "question").n_unique()
    of_tests = known.drop_nulls("test")
    size = of_tests.group_by("test").agg(pl.col("question").n_unique().alias("size"))
    passes = of_tests.group_by("user", "test").agg(pl.len().alias("n")).join(size, "test")
    cycles = passes.select((pl.col("n") / pl.col("size")).ceil().sum()).item()
    found: dict[str, Any] = {
        "users": len(log.users),
        "rows": len(rows),
        "known answers": len(known),
        "hidden answers": len(rows) - len(known),
        "right answers": int(known["correct"].cast(pl.Int64).sum()),
        "questions": known["question"].n_unique(),
        "tests": of_tests["test"].n_unique(),
        "tags": log.tagged()["tag"].n_unique(),
        "(user, question) pairs": pairs,
        "repeated answers": len(known) - pairs,
        "(user, test) pairs": len(passes),
        "cycles: passes of a user through a test": int(cycles),
        "(user, head) pairs": known.drop_nulls("head").select("user", "head").n_unique(),
    }
    if log.timed:
        second = known.select((pl.col("ms") // 1000).alias("s")).group_by("s").agg(pl.len().alias("n"))
        found |= {"distinct seconds": len(second), "rows in the busiest second": second["n"].max() or 0}
    return pl.DataFrame({"count": list(found), "value": list(found.values())}, {"count": pl.String, "value": pl.Int64})


def histograms(found: Tables) -> pl.DataFrame:
    """Histograms of answers, accuracy, users and parts per unit: statistic, from, to, n."""
    parts = []
    for unit in UNITS:
        for column in ("n", "accuracy", "users", "questions", "tests", "tags"):
            if column in found[unit].columns and (unit, column) != ("question", "tests"):
                ends = (0.0, 1.0) if column == "accuracy" else (None, None)
                each = histogram(found[unit][column], BINS, *ends)
                label = "answers" if column == "n" else column
                parts.append(each.select(pl.lit(f"{label} per {unit}").alias("statistic"), "from", "to", "n"))
    return pl.concat(parts)


def sizes(found: Tables) -> pl.DataFrame:
    """How many tests have 1, 2, ... questions or tags, and how many tags have 1, 2, ... questions or tests."""
    parts = []
    for unit, column in (("test", "questions"), ("test", "tags"), ("tag", "questions"), ("tag", "tests")):
        counted = (
            found[unit].group_by(pl.col(column).cast(pl.Int64).alias("size")).agg(pl.len().cast(pl.Int64).alias("n"))
        )
        parts.append(counted.select(pl.lit(f"{column} per {unit}").alias("statistic"), "size", "n").sort("size"))
    return pl.concat(parts)


def heads(log: Interactions) -> pl.DataFrame:
    """Per head: answers, users, questions, tests and distinct tags."""
    known = log.known.drop_nulls("head")
    rows = known.group_by("head").agg(
        pl.len().cast(pl.Int64).alias("answers"),
        *(pl.col(name).drop_nulls().n_unique().alias(f"{name}s") for name in ("user", "question", "test")),
    )
    tags = log.tagged("head").group_by("head").agg(pl.col("tag").n_unique().alias("tags"))
    return rows.join(tags, "head", "left").with_columns(pl.col("tags").fill_null(0)).sort("head")


def tails(log: Interactions) -> pl.DataFrame:
    """Distinct questions per tail (the number of a question in its test)."""
    return (
        log.known.drop_nulls("tail").group_by("tail").agg(pl.col("question").n_unique().alias("questions")).sort("tail")
    )


def shared_tags(log: Interactions) -> pl.DataFrame:
    """Tags that occur in more than one head, with their heads."""
    of_head = log.tagged("head").drop_nulls("head").select("tag", "head").unique()
    several = of_head.group_by("tag").agg(pl.col("head").sort().cast(pl.String)).filter(pl.col("head").list.len() > 1)
    listed = several.sort("tag").select("tag", pl.col("head").list.join(", ").alias("heads"))
    return _decode(listed, "tag", log)


def columns(log: Interactions) -> pl.DataFrame:
    """Per column of the rows: type, missing values, distinct values, memory (E30)."""
    rows = log.rows
    return pl.DataFrame(
        {
            "column": rows.columns,
            "type": [str(kind) for kind in rows.dtypes],
            "missing": [rows[name].null_count() for name in rows.columns],
            "distinct": [rows[name].drop_nulls().n_unique() for name in rows.columns],
            "memory_mb": [rows[name].estimated_size("mb") for name in rows.columns],
        }
    )


def _answered(rows: pl.DataFrame, unit: str) -> pl.DataFrame:
    grouped = rows.drop_nulls(unit).group_by(unit)
    users = () if unit == "user" else (pl.col("user").n_unique().cast(pl.Int64).alias("users"),)
    right = pl.col("correct").cast(pl.Int64).sum().alias("right")
    return with_share(grouped.agg(pl.len().cast(pl.Int64).alias("n"), right, *users).sort(unit))


def _named(table: pl.DataFrame, unit: str, log: Interactions) -> pl.DataFrame:
    return _decode(table.sort(unit), unit, log)


def _decode(table: pl.DataFrame, unit: str, log: Interactions) -> pl.DataFrame:
    """The table with names in place of codes."""
    names = {"user": log.users, "question": log.questions, "test": log.tests, "tag": log.concepts}[unit]
    return table.with_columns(pl.Series(unit, names[table[unit].to_numpy()].astype(str), pl.String))
