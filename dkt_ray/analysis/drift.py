"""Do the users to be predicted look like the training users, and what do loaders show a model? (F15)

Groups: training users with known answers only; training users with a hidden answer; test users in the vault, whose
answers are never read here: they enter as hidden.

Legend: U users, G groups of rows, E epochs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import polars as pl

from dkt_ray.analysis.accuracy import last_rows
from dkt_ray.analysis.interactions import DAY_MS, PARTS, Interactions
from dkt_ray.analysis.measures import accuracy_by, histogram, kolmogorov, stability, with_share

TRAINING, OPEN, VAULT = "training, all answers known", "training, a hidden answer", "test vault (inputs only)"
LEVELS: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
QUANTILES: Final = tuple(step / 20 for step in range(21))
EPOCHS: Final = (1, 10)
DIFFICULTY_BINS: Final = 25

Groups = Mapping[str, pl.DataFrame]


def groups(log: Interactions, vault: Interactions | None) -> dict[str, pl.DataFrame]:
    """The rows of each group that has any; the first one is what the others are compared with."""
    hidden = log.rows.filter(pl.col("correct").is_null())["user"].unique()
    asked = pl.col("user").is_in(hidden.implode())
    found = {TRAINING: log.rows.filter(~asked), OPEN: log.rows.filter(asked)}
    if vault is not None:
        found[VAULT] = vault.rows.with_columns(pl.lit(None, pl.Int8).alias("correct"))
    return {name: rows for name, rows in found.items() if len(rows)}


def overview(log: Interactions, vault: Interactions | None) -> pl.DataFrame:
    """Per group: users, rows, known answers, accuracy, days, and the share of rows whose question training lacks."""
    lines = []
    met = set(log.questions)
    for name, rows in groups(log, vault).items():
        names = vault.questions if vault is not None and name == VAULT else log.questions
        strange = pl.Series(np.array([question not in met for question in names], bool))
        unseen = strange[rows["question"].to_numpy()].mean()
        known = rows["correct"].drop_nulls().cast(pl.Int64)
        days = [str(day) for day in _days(rows)] if "ms" in rows.columns else [None, None]
        lines.append((name, rows["user"].n_unique(), len(rows), len(known), known.mean(), unseen, *days))
    floats = {"accuracy": pl.Float64, "unseen_questions": pl.Float64}
    counts = {"users": pl.Int64, "rows": pl.Int64, "known": pl.Int64}
    days_of = {"first_day": pl.String, "last_day": pl.String}
    return pl.DataFrame(lines, {"group": pl.String, **counts, **floats, **days_of}, orient="row")


def _days(rows: pl.DataFrame) -> list[object]:
    ends = rows.select(pl.col("ms").min().alias("first"), pl.col("ms").max().alias("last"))
    return [*ends.select(pl.from_epoch(pl.all(), "ms").dt.date()).row(0)]


def per_user(rows: pl.DataFrame) -> dict[str, pl.Series]:
    """What is compared per user: rows, distinct questions and tests, tempo, days, and accuracy (known answers)."""
    columns = [
        pl.len().cast(pl.Int64).alias("rows per user"),
        pl.col("question").n_unique().cast(pl.Int64).alias("distinct questions per user"),
        pl.col("test").drop_nulls().n_unique().cast(pl.Int64).alias("distinct tests per user"),
        (pl.col("correct").cast(pl.Int64).sum() / pl.col("correct").count()).fill_nan(None).alias("accuracy per user"),
    ]
    if "ms" in rows.columns:
        columns.append(pl.col("elapsed").median().alias("median seconds between rows"))
        columns.append(((pl.col("ms").max() - pl.col("ms").min()) / DAY_MS).alias("days from first to last row"))
    table = rows.group_by("user").agg(columns).sort("user")
    return {name: table[name] for name in table.columns if name != "user"}


def distances(found: Groups) -> pl.DataFrame:
    """How far each group is from the first one.

    Columns: quantity, group, measure (Kolmogorov-Smirnov distance of users, 0 to 1, or population stability index of
    rows), value, and for users the two medians.
    """
    base, *others = found
    of_base = per_user(found[base])
    lines: list[tuple[Any, ...]] = []
    for other in others:
        of_other = per_user(found[other])
        for name, values in of_base.items():
            distance = kolmogorov(values, of_other[name])
            if distance is not None:
                lines.append((name, other, "KS distance", distance, values.median(), of_other[name].median()))
        for part, table in shares(found).items():
            index = stability(table[base].to_numpy(), table[other].to_numpy())
            lines.append((f"{part} of rows", other, "stability index", index, None, None))
    floats = dict.fromkeys(("value", "median_of_first", "median"), pl.Float64)
    texts = dict.fromkeys(("quantity", "group", "measure"), pl.String)
    return pl.DataFrame(lines, {**texts, **floats}, orient="row")


def shares(found: Groups) -> dict[str, pl.DataFrame]:
    """Rows per head, tail, hour and month: the value and the count in each group."""
    parts: dict[str, pl.Expr] = {part: pl.col(part).cast(pl.Int64) for part in PARTS if part != "mid"}
    if all("ms" in rows.columns for rows in found.values()):
        moment = pl.from_epoch("ms", "ms").dt
        parts |= {"hour": moment.hour().cast(pl.Int64), "month": moment.strftime("%Y-%m")}
    tables = {}
    for part, value in parts.items():
        counted = [
            rows.select(value.alias("value")).drop_nulls().group_by("value").agg(pl.len().cast(pl.Int64).alias(name))
            for name, rows in found.items()
        ]
        table = counted[0]
        for other in counted[1:]:
            table = table.join(other, "value", "full", coalesce=True)
        if len(table):
            tables[part] = table.fill_null(0).sort("value")
    return tables


def quantiles(found: Groups) -> pl.DataFrame:
    """Quantiles over users of what `per_user` gives: quantity, group, share of users, value."""
    lines = [
        (quantity, group, share, values.drop_nulls().cast(pl.Float64).quantile(share, "linear"))
        for group, rows in found.items()
        for quantity, values in per_user(rows).items()
        if values.drop_nulls().len()
        for share in QUANTILES
    ]
    names = {"quantity": pl.String, "group": pl.String, "share": pl.Float64, "value": pl.Float64}
    return pl.DataFrame(lines, names, orient="row")


def target_difficulty(log: Interactions) -> pl.DataFrame:
    """Densities of the accuracy of tests and questions: of all, and of those that hidden answers are asked for."""
    hidden = log.rows.filter(pl.col("correct").is_null())
    parts = []
    for unit in ("test", "question"):
        known = accuracy_by(log.rows, unit)
        asked = known.filter(pl.col(unit).is_in(hidden[unit].drop_nulls().unique().implode()))
        for name, table in (("all", known), ("asked for", asked)):
            counted = histogram(table["accuracy"], DIFFICULTY_BINS, 0.0, 1.0)
            density = (pl.col("n") / max(len(table), 1) * DIFFICULTY_BINS).alias("density")
            mean = pl.lit(table["accuracy"].mean(), pl.Float64).alias("mean")
            parts.append(
                counted.select(pl.lit(unit).alias("unit"), pl.lit(name).alias("set"), "from", "to", "n", density, mean)
            )
    return pl.concat(parts)


def label_balance(log: Interactions, context: int, seed: int) -> pl.DataFrame:
    """Share of right answers at the place that a loader asks for (E25): loader, n, right, accuracy, low, high.

    Args:
        context: rows of a context window.
        seed: of the random windows, which end at a uniformly drawn known row of the user.
    """
    rows = log.rows
    ends = rows.filter(((pl.col("position") + 1) % context == 0) | (pl.col("position") == pl.len().over("user") - 1))
    hidden = rows.filter(pl.col("correct").is_null())["user"].unique()
    visible = log.known.filter(pl.col("user").is_in(hidden.implode()))
    loaders = {
        "every row (what networks here train on)": rows,
        "last row of a user": last_rows(rows, "user"),
        "last row of a (user, head)": last_rows(rows, "user", "head"),
        "last row of a (user, test)": last_rows(rows, "user", "test"),
        f"last row of each window of {context}": ends,
        "last visible row before a hidden one": last_rows(visible, "user"),
    }
    counted = [_balance(name, chosen["correct"].drop_nulls().to_numpy()) for name, chosen in loaders.items()]
    correct, first, size = _sorted_groups(log, "user")
    for epochs in EPOCHS:
        end = first + _drawn(size, epochs, seed)
        counted.append(_balance(f"end of a random window, {epochs} epoch{'s' * (epochs > 1)}", correct[end.ravel()]))
    return with_share(pl.DataFrame(counted, {"loader": pl.String, "n": pl.Int64, "right": pl.Int64}, orient="row"))


def head_accuracy(log: Interactions, window: int, seed: int) -> pl.DataFrame:
    """Accuracy of (user, head) groups per head, as a whole and inside random windows (E24).

    Columns: head, source, n (groups or windows), mean, and the quantiles of LEVELS.

    Args:
        window: rows of a random window; it ends at a uniformly drawn known row of the group.
        seed: of the draws.
    """
    parts = []
    hidden = log.rows.filter(pl.col("correct").is_null())["user"].unique()
    known = log.known.drop_nulls("head")
    asked = pl.col("user").is_in(hidden.implode())
    for name, rows in ((TRAINING, known.filter(~asked)), (OPEN, known.filter(asked))):
        groups_of = rows.group_by("user", "head").agg(pl.col("correct").cast(pl.Int64).mean().alias("accuracy"))
        parts.append(groups_of.select("head", "accuracy", pl.lit(name).alias("source")))
    correct, first, size = _sorted_groups(log, "user", "head")
    heads = known.sort("user", "head", "position")["head"].to_numpy()[first]
    total = np.concatenate([[0], np.cumsum(correct, dtype=np.int64)])
    for epochs in EPOCHS:
        end = first + _drawn(size, epochs, seed)
        start = np.maximum(end + 1 - window, first)
        accuracy = (total[end + 1] - total[start]) / (end + 1 - start)
        columns = {"head": np.tile(heads, epochs), "accuracy": accuracy.ravel()}
        name = f"random windows of {window}, {epochs} epoch{'s' * (epochs > 1)}"
        parts.append(pl.DataFrame(columns).select("head", "accuracy", pl.lit(name).alias("source")))
    sources = [part["source"][0] for part in parts if len(part)]
    order = pl.DataFrame({"source": sources}, {"source": pl.String}).with_row_index("order")
    spread = [pl.col("accuracy").quantile(level, "linear").alias(f"{level:.0%}") for level in LEVELS]
    grouped = pl.concat(parts).group_by("head", "source")
    table = grouped.agg(pl.len().cast(pl.Int64).alias("n"), pl.col("accuracy").sort().mean().alias("mean"), *spread)
    return table.join(order, "source").sort("order", "head").drop("order")


def _balance(name: str, correct: np.ndarray) -> tuple[str, int, int]:
    return name, len(correct), int(correct.sum())


def _sorted_groups(log: Interactions, *keys: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Known answers sorted by group and position; where each group begins, and its size, [G]."""
    known = log.known.drop_nulls([*keys]).sort(*keys, "position")
    number = known.select(pl.struct(*keys).rle_id()).to_series().to_numpy()
    _, first, size = np.unique(number, return_index=True, return_counts=True)
    return known["correct"].to_numpy().astype(np.int64), first.astype(np.int64), size.astype(np.int64)


def _drawn(size: np.ndarray, epochs: int, seed: int) -> np.ndarray:
    """A uniformly drawn place in each group, [E, G]."""
    return (np.random.default_rng(seed).random((epochs, len(size))) * size).astype(np.int64)
