"""`dkt eda`: what it writes to the store, and a page that stands alone."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest

from dkt_ray.analysis.contents import SECTIONS
from dkt_ray.errors import ConfigError
from dkt_ray.pipelines import eda
from dkt_ray.pipelines.eda import EdaConfig
from dkt_ray.storage import open_store
from tests.builders import random_histories

HISTORIES = random_histories(np.random.default_rng(5), 40)
TEST_USERS = random_histories(np.random.default_rng(6), 12)
SMALL = {"support": 2, "elapsed_support": 3, "curves": 3, "window": 3, "context": 7, "map_users": 30}


def stand_in(histories=HISTORIES):
    """A dataset as far as the report looks at it."""
    return SimpleNamespace(
        manifest=SimpleNamespace(fingerprint="feedc0de"),
        load_histories=lambda: (histories, np.zeros(len(histories.users), np.int8)),
        test_inputs=lambda: replace(TEST_USERS, correct=np.full(TEST_USERS.rows, -1, np.int8)),
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eda, "Dataset", SimpleNamespace(open=lambda store, name: stand_in()))
        result = eda.run(EdaConfig(store=str(folder), dataset="<d>", **SMALL))
    return result, open_store(folder).child("eda/<d>"), folder / "eda/<d>/report.html"


class Page(HTMLParser):
    """Collects what a page would load."""

    def __init__(self):
        super().__init__()
        self.loads, self.tables = [], 0

    def handle_starttag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in ("src", "srcset", "data", "action", "poster")]
        self.loads += [value for name, value in attrs if name == "href" and not value.startswith("#")]
        self.tables += tag == "table"


def test_every_table_is_stored_and_indexed(report):
    result, folder, _ = report
    index = folder.read_json("report.json")
    assert list(result["sections"]) == list(SECTIONS)
    assert set(index["sections"]) == set(SECTIONS)
    assert result["tables"] == len(index["tables"])
    assert sorted(index["tables"].values()) == folder.list("tables")
    counts = dict(folder.read_table("tables/distributions.counts.parquet").to_pandas().itertuples(index=False))
    assert counts["rows"] == HISTORIES.rows == result["rows"]
    assert index["fingerprint"] == "feedc0de"
    assert result["bytes"] == len(folder.read("report.html"))


def test_the_page_loads_nothing_and_shows_every_section_and_table(report):
    _, folder, _ = report
    text = folder.read("report.html").decode()
    page = Page()
    page.feed(text)
    assert page.loads == ["data:,"]  # an empty icon, so that no browser asks for one
    own = text.replace(re.search(r"<script>.*?</script>", text, re.DOTALL)[0], "")  # without plotly
    assert len(own) < 0.5 * len(text)
    assert not re.search(r"https?:|@import|url\(", own)
    for name, entry in SECTIONS.items():
        assert f'<section id="{name}">' in own
        assert entry.title in own
    assert page.tables == len(folder.read_json("report.json")["tables"])
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', own, re.DOTALL)[1])
    assert len(figures) == own.count("data-figure=")
    assert "&lt;d&gt;" in own
    assert "<d>" not in own
    assert all(f"tables/{key}.parquet" in own for key in folder.read_json("report.json")["tables"])


def test_a_report_with_fewer_sections_replaces_the_tables_of_a_longer_one(tmp_path, monkeypatch):
    monkeypatch.setattr(eda, "Dataset", SimpleNamespace(open=lambda store, name: stand_in()))
    config = EdaConfig(store=str(tmp_path), sections=("order", "months"), **SMALL)
    result = eda.run(config)
    assert list(result["sections"]) == ["months", "order"]  # in the order of the page
    eda.run(config.model_copy(update={"sections": ("months",)}))
    assert open_store(tmp_path).child("eda/default").list("tables") == ["tables/months.per_month.parquet"]


def test_an_unknown_section_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ConfigError, match=r"no section 'hours'; sections: distributions, "):
        eda.run(EdaConfig(store=str(tmp_path), sections=("hours",)))


def test_cells():
    values = [None, "x", 1234567, 0.123456, -0.00000001, 12345.67, True]
    assert [eda.cell(value) for value in values] == ["–", "x", "1,234,567", "0.1235", "0.0000", "12,345.7", "True"]
