"""The importance plot of a member: an SVG that stands alone, the columns that matter most on top."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from dkt_ray.pipelines.charts import WIDTH, bars
from dkt_ray.pipelines.importance import MOST, PLOT, draw_importance
from dkt_ray.storage import open_store
from tests import bundles

SVG = "{http://www.w3.org/2000/svg}"


def test_a_booster_is_drawn_and_a_network_is_not(tmp_path: Path) -> None:
    for family, model in bundles.trained().items():
        draw_importance(model, family, open_store(str(tmp_path / family)))
    assert not open_store(str(tmp_path / "lstm_attention")).exists(PLOT)
    drawn = ElementTree.fromstring(open_store(str(tmp_path / "lightgbm")).read(PLOT))
    shares = bundles.trained()["lightgbm"].importance()
    assert shares is not None
    widths = [float(bar.attrib["width"]) for bar in drawn.iter(f"{SVG}rect")]
    assert len(widths) == MOST
    assert widths == sorted(widths, reverse=True)
    names = [text.text for text in drawn.iter(f"{SVG}text") if text.attrib["text-anchor"] == "end"]
    assert names[0] == max(shares, key=shares.__getitem__)


def test_bars_fit_the_page_and_names_are_escaped() -> None:
    drawn = ElementTree.fromstring(bars({"a<b": 2.0, "c": 0.5, "none": 0.0}, "share & more"))
    boxes = [(float(bar.attrib["x"]), float(bar.attrib["width"])) for bar in drawn.iter(f"{SVG}rect")]
    assert max(x + width for x, width in boxes) < WIDTH
    assert boxes[1][1] == pytest.approx(boxes[0][1] / 4, abs=0.1)
    assert boxes[2][1] == 0
    assert [text.text for text in drawn.iter(f"{SVG}text")] == [
        "share & more",
        "a<b",
        "2.0000",
        "c",
        "0.5000",
        "none",
        "0.0000",
    ]
    assert "rect" not in bars({}, "nothing")
