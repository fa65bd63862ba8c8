"""Sections of the data report: any data, any order of users and names, valid figures; and the map of histories."""

import json
from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
import polars as pl
import pytest

from dkt_ray.analysis import aggregates, embedding, figures, measures
from dkt_ray.analysis.contents import SECTIONS
from dkt_ray.analysis.interactions import interactions
from dkt_ray.analysis.section import NO_CONCEPTS, NO_HEADS, NO_TESTS, NO_TIME, Material, Settings
from dkt_ray.data.history import Coded, Histories
from tests.builders import random_histories

SETTINGS = Settings(support=2, elapsed_support=3, curves=3, window=3, context=7, map_users=30, drawn=50)
HISTORIES = random_histories(np.random.default_rng(5), 40)
VAULT = random_histories(np.random.default_rng(6), 12)


def material(histories: Histories, vault: Histories | None = VAULT) -> Material:
    return Material(interactions(histories), None if vault is None else interactions(vault), SETTINGS)


def without(histories: Histories, **columns) -> Histories:
    return replace(histories, **columns)


ROWS = HISTORIES.rows
CASES = {
    "full": (HISTORIES, ""),
    "no test users": (HISTORIES, ""),
    "no time": (random_histories(np.random.default_rng(5), 40, timed=False), NO_TIME),
    "no tests": (without(HISTORIES, test=Coded.constant("", ROWS)), NO_TESTS),
    "no concepts": (without(HISTORIES, concepts=Coded.constant("", ROWS)), NO_CONCEPTS),
    "other ids": (without(HISTORIES, question=Coded.of([f"q{n % 9}" for n in range(ROWS)])), NO_HEADS),
    "one user": (HISTORIES.select(np.array([3])), ""),
    "one row": (HISTORIES.select(np.array([3])).head(np.array([1])), ""),
    "all hidden": (without(HISTORIES, correct=np.full(ROWS, -1, np.int8)), ""),
    "nobody": (HISTORIES.select(np.empty(0, np.int64)), ""),
    "all right": (without(HISTORIES, correct=np.ones(ROWS, np.int8)), ""),
}
NEEDED = {
    NO_TIME: {"months", "elapsed", "accuracy", "features", "drift", "map"},
    NO_TESTS: {"distributions", "structure", "features", "exposure", "order"},
    NO_CONCEPTS: {"concepts", "distributions", "structure", "exposure", "learning"},
    NO_HEADS: {"accuracy", "months", "concepts", "structure", "order", "drift", "map"},
}


@pytest.mark.parametrize("case", CASES)
def test_every_section_is_made_of_any_data_and_says_what_is_missing(case):
    histories, missing = CASES[case]
    made = material(histories, None if case in ("nobody", "no test users") else VAULT)
    for name, entry in SECTIONS.items():
        section = entry.make(made)
        if missing:
            assert (missing in section.missing) == (name in NEEDED[missing]), name
        for table, frame in section.tables.items():
            assert not any(frame[c].is_nan().any() for c in frame.columns if frame.schema[c].is_float()), (name, table)
        for exhibit in section.exhibits:
            json.dumps(exhibit.figure, allow_nan=False)
            go.Figure(exhibit.figure)  # plotly knows every property and value
            assert exhibit.caption.endswith(".")


def test_every_figure_has_named_axes_and_a_table_beside_it():
    for name, entry in SECTIONS.items():
        section = entry.make(material(HISTORIES))
        assert section.exhibits, name
        assert section.tables, name
        for exhibit in section.exhibits:
            axes = [axis for key, axis in exhibit.figure["layout"].items() if key[1:5] == "axis"]
            assert all(axis["title"]["text"] for axis in axes), name
            assert all(trace["type"] != "scattergl" for trace in exhibit.figure["data"])  # few WebGL contexts exist


def relabelled(histories: Histories) -> Histories:
    """The same students in another order, their names coded in another order."""
    order = np.random.default_rng(0).permutation(len(histories.users))
    shuffled = histories.select(order)

    def other(column: Coded) -> Coded:
        place = np.random.default_rng(1).permutation(len(column.values))
        return Coded(np.argsort(place)[column.codes].astype(np.int32), column.values[place])

    columns = {name: other(getattr(shuffled, name)) for name in ("question", "test", "concepts")}
    return replace(shuffled, **columns)


def test_tables_do_not_depend_on_the_order_of_users_or_of_names():
    first, second = material(HISTORIES), material(relabelled(HISTORIES), relabelled(VAULT))
    for name, entry in SECTIONS.items():
        one, other = entry.make(first).tables, entry.make(second).tables
        assert one.keys() == other.keys()
        for table in one:
            assert one[table].equals(other[table]), f"{name}.{table}"


def test_hidden_answers_enter_no_mean():
    """A hidden answer more at the end of every history changes no mean over known answers."""
    table = SECTIONS["accuracy"].make(material(HISTORIES)).tables["ends"]
    hidden = np.concatenate([[0], np.cumsum(HISTORIES.lengths + 1)]).astype(np.int64)
    place = np.insert(np.arange(ROWS), HISTORIES.offsets[1:], HISTORIES.offsets[1:] - 1)
    longer = Histories(
        HISTORIES.users, hidden, HISTORIES.question.take(place), HISTORIES.test.take(place),
        HISTORIES.concepts.take(place), HISTORIES.correct[place].copy(), HISTORIES.timestamp[place],
    )  # fmt: skip
    longer.correct[hidden[1:] - 1] = -1
    found = SECTIONS["accuracy"].make(material(longer)).tables["ends"]
    assert found.row(0) == table.row(0)
    assert found.filter(pl.col("answers") == "last of a user")["n"].to_list() == []  # no last answer is known


def test_the_map_is_deterministic_centred_and_blind_to_the_last_answer():
    log = interactions(HISTORIES)
    found = aggregates.features(log)
    table, axes = embedding.project(log, found, 30, 0)
    again, _ = embedding.project(log, found, 30, 0)
    assert table.equals(again)
    assert len(table) == (HISTORIES.lengths > 1).sum()
    assert table["tsne1"].drop_nulls().len() == 30
    values, names = embedding.vectors(log, found)
    assert np.abs(values.mean(0)).max() < 1e-9
    assert axes["column"].to_list() == [*names, "explained"]
    points, loadings = table.select("pc1", "pc2").to_numpy(), axes.select("pc1", "pc2").to_numpy()
    np.testing.assert_allclose(points, values @ loadings[:-1], atol=1e-9)
    _, singular, right = np.linalg.svd(values)
    np.testing.assert_allclose(np.abs(loadings[:-1].T), np.abs(right[:2]), atol=1e-6)
    np.testing.assert_allclose(loadings[-1], singular[:2] ** 2 / (singular**2).sum())
    correct = HISTORIES.correct.copy()
    correct[HISTORIES.offsets[1:] - 1] = 1
    other = interactions(replace(HISTORIES, correct=correct))
    moved, _ = embedding.project(other, aggregates.features(other), 30, 0)
    assert moved.drop("last").equals(table.drop("last"))


def test_a_sample_smaller_than_a_t_sne_needs_is_left_out():
    log = interactions(HISTORIES.select(np.arange(5)))
    table, _ = embedding.project(log, aggregates.features(log), 30, 0)
    assert table["tsne1"].null_count() == len(table)


def test_heat_maps_keep_missing_cells_apart():
    trace = figures.heat(np.array([[-1, 80], [100, -1]], np.int8), ["a", "b"])
    assert (trace["zmin"], trace["zmax"]) == (79, 100)
    for high in range(101):  # a colour scale that does not end at 1 is ignored
        scale = figures.heat(np.array([[-1, 0], [high, -1]], np.int8), ["a", "b"])["colorscale"]
        assert (scale[0][0], scale[-1][0]) == (0, 1)
        assert [place for place, _ in scale] == sorted({place for place, _ in scale})
    assert go.Figure([trace]).to_dict()["data"][0]["z"]["shape"] == "2, 2"
    empty = figures.heat(np.full((1, 1), -1, np.int8), ["a"])
    assert empty["zmin"] < empty["zmax"]


def test_figures_hold_short_numbers_and_no_nan():
    assert figures.plain(np.array([1 / 3, np.nan, 1e-9])) == [0.33333, None, 1e-9]
    assert figures.plain(pl.Series([1, None])) == [1, None]
    thin = figures.thinned(pl.DataFrame({"x": range(100)}), 5)["x"].to_list()
    assert thin == [0, 24, 49, 74, 99]


def test_panels_do_not_overlap():
    panel = figures.Panel([figures.curve([1], [2], name="a")], "x", "y")
    layout = figures.figure([panel] * 5, 2)["layout"]
    boxes = [(layout[f"xaxis{n}"]["domain"], layout[f"yaxis{n}"]["domain"]) for n in ("", "2", "3", "4", "5")]
    assert all(0 <= low < high <= 1 for box in boxes for low, high in box)
    for k, (x, y) in enumerate(boxes):
        for a, b in boxes[:k]:
            assert x[0] >= a[1] or a[0] >= x[1] or y[0] >= b[1] or b[0] >= y[1]


def test_moments_of_nothing_and_of_one_value():
    table = measures.moments({"none": pl.Series([], dtype=pl.Float64), "one": pl.Series([2.0])})
    assert table.row(0)[1:] == (0, None, None, None, None, None, None, None)
    assert table.row(1)[1:] == (1, 2.0, None, 2.0, 2.0, 2.0, 2.0, 2.0)
    assert measures.histogram(pl.Series([3, 3]), 2)["n"].to_list() == [0, 2]
