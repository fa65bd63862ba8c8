"""Sections on how things relate: concepts (F08), training and test users (F15), and the map of histories (F16)."""

from __future__ import annotations

from typing import Final

import polars as pl

from dkt_ray.analysis import drift, embedding, figures, prerequisites
from dkt_ray.analysis.figures import Panel
from dkt_ray.analysis.section import NO_USERS, Exhibit, Figure, Material, Section, needs

STRONGEST: Final = 200  # pairs in a table
SQUARE: Final = {"x": {"type": "category"}, "y": {"type": "category", "autorange": "reversed"}}


def concepts(material: Material) -> Section:
    """F08: the directed prerequisite matrix, global and per head."""
    log, settings = material.log, material.settings
    if not len(log.concepts):
        return Section(missing=needs(material, "concepts"))
    tags = prerequisites.most_tried(log, settings.tags)
    tagged = log.tagged("user").filter(pl.col("tag").is_in(tags))
    found = prerequisites.pairs(tagged, len(log.users), len(log.concepts))
    of_heads = prerequisites.per_head(log)
    strongest = prerequisites.asymmetric(found, settings.support, STRONGEST)
    lifted = prerequisites.lifted(found, settings.support, STRONGEST)
    tables = {
        "per_head": _head_summary(of_heads, settings.support),
        "most_asymmetric": prerequisites.named(strongest, log),
        "most_lifted": prerequisites.named(lifted, log),
        "pairs": prerequisites.named(found, log),
        "pairs_per_head": prerequisites.named(of_heads, log),
    }
    exhibits = [
        *_matrices(material, found, tags),
        *_head_matrices(material, of_heads),
    ]
    return Section(tables, exhibits, needs(material, "heads"))


def _matrices(material: Material, found: pl.DataFrame, tags: list[int]) -> list[Exhibit]:
    log, support = material.log, material.settings.support
    names = [str(name) for name in log.concepts[tags]]
    order = f"{'by head and name' if log.headed else 'by name'}; grey: fewer than {support} users"
    exhibits = []
    for column, caption in (
        (
            "r",
            f"R(A, B) of {len(tags)} concepts, from row to column: dark columns are hard concepts ({order}).",
        ),
        (
            "joint_share",
            "Share of the users who were both right and wrong on both concepts: where neither is settled yet.",
        ),
    ):
        matrix = prerequisites.dense(found, column, tags, support)
        panel = Panel([figures.heat(matrix, names)], "concept B", "concept A", axes=SQUARE)
        exhibits.append(Exhibit(caption, figures.figure([panel], height=720)))
    return exhibits


def _head_matrices(material: Material, of_heads: pl.DataFrame) -> list[Exhibit]:
    """One matrix per head, chosen from a list, its concepts in the order of a clustering."""
    heads = sorted(of_heads["head"].unique().to_list())
    support, traces = material.settings.support, []
    for head in heads:
        part = of_heads.filter(pl.col("head") == head)
        tags = sorted({*part["a"].to_list(), *part["b"].to_list()})
        ordered = prerequisites.clustered(part, tags, support)
        matrix = prerequisites.dense(part, "r", ordered, support)
        traces.append(
            figures.heat(matrix, [str(name) for name in material.log.concepts[ordered]], visible=head == heads[0])
        )
    if not traces:
        return []
    menu = figures.choice([f"head {head}" for head in heads], [[number] for number in range(len(heads))], len(heads))
    drawing = figures.figure([Panel(traces, "concept B", "concept A", axes=SQUARE)], height=640, menu=menu)
    caption = (
        "R(A, B) inside one head, from that head's answers only; concepts that go together stand together (clustered)."
    )
    return [Exhibit(caption, drawing)]


def _head_summary(of_heads: pl.DataFrame, support: int) -> pl.DataFrame:
    kept = pl.col("support") >= support
    return of_heads.group_by("head").agg(
        pl.col("a").n_unique().alias("concepts"),
        pl.len().cast(pl.Int64).alias("directed pairs"),
        kept.sum().cast(pl.Int64).alias(f"pairs with {support} users"),
        pl.col("r").filter(kept).median().alias("median R"),
        pl.col("lift").filter(kept).median().alias("median lift"),
    ).sort("head")  # fmt: skip


def shift(material: Material) -> Section:
    """F15: training users against users to be predicted and test users; label balance of loaders."""
    log, settings = material.log, material.settings
    if not len(log.rows):
        return Section(missing=NO_USERS)
    found = drift.groups(log, material.vault)
    shares, quantiles = drift.shares(found), drift.quantiles(found)
    balance = drift.label_balance(log, settings.context, settings.seed)
    heads = drift.head_accuracy(log, settings.window, settings.seed) if log.headed else None
    difficulty = drift.target_difficulty(log)
    tables = {
        "groups": drift.overview(log, material.vault),
        "distances": drift.distances(found),
        "label_balance": balance,
    }
    tables |= {"difficulty_of_targets": difficulty, "quantiles": quantiles} | {
        f"rows_by_{part}": t for part, t in shares.items()
    }
    exhibits = [
        Exhibit("Each group's distribution over users: curves on top of each other are alike.", _quantiles(quantiles))
    ]
    if shares:
        exhibits.append(Exhibit("Where each group's rows lie, as shares of the group.", _shares(shares)))
    if len(found) > 1 and log.rows["correct"].null_count():
        exhibits.append(
            Exhibit(
                "The tests and questions of hidden answers beside all: how hard the task is.", _difficulty(difficulty)
            )
        )
    panel = Panel(
        [figures.shares(balance["loader"], balance, 2, line=False)],
        "what the loader asks for",
        "share of right answers",
        axes={"x": {"automargin": True}},
    )
    exhibits.append(Exhibit("What a loader asks for decides its label balance: a last row is not an average row.",
                            figures.figure([panel], height=400)))  # fmt: skip
    if heads is not None:
        tables["head_accuracy"] = heads
        exhibits.append(
            Exhibit(
                "Accuracy of (user, head) groups, whole and in random windows: windows spread wider.", _boxes(heads)
            )
        )
    return Section(
        tables,
        exhibits,
        needs(material, "time", "heads"),
    )


def _quantiles(table: pl.DataFrame) -> Figure:
    panels = []
    groups = table["group"].unique(maintain_order=True).to_list()
    for part in table.partition_by("quantity", maintain_order=True):
        traces = [
            figures.curve(each["value"], each["share"], groups.index(each["group"][0]), each["group"][0])
            for each in part.partition_by("group", maintain_order=True)
        ]
        units = {"median seconds between rows": " (s)", "days from first to last row": " (days)"}
        name = part["quantity"][0]
        panels.append(Panel(traces, name + units.get(name, ""), "share of users up to"))
    return figures.figure(panels, 2, 300)


def _shares(shares: dict[str, pl.DataFrame]) -> Figure:
    panels = []
    for part, table in shares.items():
        groups = [name for name in table.columns if name != "value"]
        traces = [
            figures.bars(table["value"], table[group] / max(int(table[group].sum()), 1), number, group)
            for number, group in enumerate(groups)
        ]
        units = {"hour": "hour of the day (UTC)", "month": "month (UTC)"}
        axes = {"x": {"type": "category"}}
        panels.append(Panel(traces, units.get(part, part), "share of the group's rows", axes=axes))
    return figures.figure(panels, 2, 300)


def _difficulty(table: pl.DataFrame) -> Figure:
    panels = []
    for part in table.partition_by("unit", maintain_order=True):
        traces = [
            figures.curve((each["from"] + each["to"]) / 2, each["density"], 5 * number, f"{each['set'][0]}")
            for number, each in enumerate(part.partition_by("set", maintain_order=True))
        ]
        unit = part["unit"][0]
        panels.append(Panel(traces, f"accuracy of the {unit}", f"density of {unit}s"))
    return figures.figure(panels, 2, 300)


def _boxes(table: pl.DataFrame) -> Figure:
    traces = [
        figures.boxes([f"head {head}" for head in part["head"]], part, number, part["source"][0])
        for number, part in enumerate(table.partition_by("source", maintain_order=True))
    ]
    drawing = figures.figure([Panel(traces, "head (box: quartiles; whiskers: 5 % and 95 %)", "accuracy")], height=420)
    drawing["layout"]["boxmode"] = "group"
    return drawing


def map_of_histories(material: Material) -> Section:
    """F16: users in two dimensions."""
    settings = material.settings
    table, axes = embedding.project(material.log, material.features, settings.map_users, settings.seed)
    shown = figures.thinned(table, settings.drawn)
    clouds = [
        ("Principal components of all users", shown, "pc"),
        ("t-SNE of a sample", table.drop_nulls("tsne1"), "tsne"),
    ]
    clouds = [cloud for cloud in clouds if len(cloud[1])]
    exhibits = [
        Exhibit(f"{title}: users with similar habits lie close; colour by the list.", _map(part, name))
        for title, part, name in clouds
    ]
    return Section({"axes": axes, "users": table}, exhibits, needs(material, "time", "heads"))


def _map(table: pl.DataFrame, axis: str) -> Figure:
    rated = table.drop_nulls("accuracy")
    ends = table.filter(pl.col("last").is_not_null())
    by_last = [
        figures.points(part[f"{axis}1"], part[f"{axis}2"], number, name, size=5, opacity=0.7)
        for number, (name, part) in enumerate(
            (
                ("last answer wrong", ends.filter(pl.col("last") == 0)),
                ("last answer right", ends.filter(pl.col("last") == 1)),
            )
        )
    ]
    by_accuracy = figures.coloured(rated[f"{axis}1"], rated[f"{axis}2"], rated["accuracy"], "accuracy")
    by_accuracy |= {"visible": False}
    heads = table.drop_nulls("head").sort("head").partition_by("head", maintain_order=True)
    by_head = [
        figures.points(part[f"{axis}1"], part[f"{axis}2"], number, f"head {part['head'][0]}", size=5, opacity=0.7)
        | {"visible": False}
        for number, part in enumerate(heads)
    ]
    traces = [*by_last, by_accuracy, *by_head]
    labels = ["last answer", "accuracy before it", *(["most frequent head"] if heads else [])]
    members = [(0, 1), (2,), *([range(3, 3 + len(heads))] if heads else [])]
    menu = figures.choice(labels, members, len(traces))
    word = "principal component" if axis == "pc" else "t-SNE axis"
    return figures.figure([Panel(traces, f"{word} 1", f"{word} 2")], height=560, menu=menu)
