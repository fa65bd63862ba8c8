"""The page of a run in a real browser, offline: charts are drawn, nothing is loaded, and it fits a telephone."""

from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from dkt_ray.pipelines import experiment
from dkt_ray.pipelines.experiment import ReportConfig
from dkt_ray.storage import open_store
from scripts.screenshot import BROWSER_ARGS, CHROMIUM
from tests.unit.test_experiment import FAMILIES, make_ensemble, make_sweep

WIDTHS = {"telephone": 360, "screen": 1400}


@pytest.mark.browser
def test_the_page_opens_offline_and_fits_a_telephone(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    make_sweep(store, "all", trials=10, reports=12)
    make_ensemble(store, "all")
    experiment.run(ReportConfig(store=store.url, run="all"))
    heard: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=BROWSER_ARGS)
        tab = browser.new_context(offline=True).new_page()
        tab.on("console", lambda message: heard.append(message.text))
        tab.on("request", lambda request: heard.append(request.url) if request.url.startswith("http") else None)
        tab.goto((tmp_path / "runs/all/experiment.html").as_uri())
        for name, width in WIDTHS.items():
            tab.set_viewport_size({"width": width, "height": 800})
            assert tab.evaluate("document.documentElement.scrollWidth") <= width, name
        assert tab.locator("polyline.best").count() == 2 * len(FAMILIES)
        colours = {
            kind: tab.locator(f"polyline.{kind}").first.evaluate("node => getComputedStyle(node).stroke")
            for kind in ("q0", "q4.best", "failed")
        }
        assert len(set(colours.values())) == len(colours)
        browser.close()
    assert heard == []
