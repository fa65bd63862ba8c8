"""The data report in a real browser, offline: every figure is drawn, in light and dark, and nothing is loaded."""

from types import SimpleNamespace

import pytest
from playwright.sync_api import sync_playwright

from dkt_ray.pipelines import eda
from dkt_ray.pipelines.eda import EdaConfig
from scripts.screenshot import BROWSER_ARGS, CHROMIUM
from tests.unit.test_eda import SMALL, stand_in


@pytest.mark.browser
def test_the_page_opens_offline_in_light_and_dark_without_console_errors(tmp_path, monkeypatch):
    monkeypatch.setattr(eda, "Dataset", SimpleNamespace(open=lambda store, name: stand_in()))
    eda.run(EdaConfig(store=str(tmp_path), **SMALL))
    path = tmp_path / "eda/default/report.html"
    heard: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=BROWSER_ARGS)
        context = browser.new_context(offline=True, color_scheme="light")
        tab = context.new_page()
        tab.on("console", lambda message: heard.append(message.text) if message.type in ("error", "warning") else None)
        tab.on("pageerror", lambda error: heard.append(str(error)))
        tab.on("request", lambda request: heard.append(request.url) if request.url.startswith("http") else None)
        tab.goto(path.as_uri())
        tab.wait_for_selector("body[data-drawn]")
        charts = tab.locator("[data-figure]")
        assert charts.count() == int(tab.locator("body").get_attribute("data-drawn"))
        assert tab.locator("[data-figure] svg.main-svg .xtitle").count() >= charts.count()
        light = tab.locator("#accuracy .xtitle").first.evaluate("node => getComputedStyle(node).fill")
        tab.emulate_media(color_scheme="dark")
        tab.wait_for_function(
            "was => getComputedStyle(document.querySelector('#accuracy .xtitle')).fill !== was", arg=light
        )
        browser.close()
    assert heard == []
