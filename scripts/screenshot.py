"""Picture of the demo page for the README: `python scripts/screenshot.py http://127.0.0.1:8000/demo docs/demo.png`."""

import sys

from playwright.sync_api import sync_playwright

CHROMIUM = "/usr/bin/chromium"
BROWSER_ARGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
BROWSER_ARGS += ["--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"]


def screenshot(url: str, path: str) -> None:
    """Open the page, wait until its figures are drawn and faded in, and write a PNG."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=BROWSER_ARGS)
        tab = browser.new_page(viewport={"width": 1400, "height": 1550})
        tab.goto(url)
        tab.wait_for_selector("#mastery .barlayer .point", timeout=60_000)
        tab.wait_for_timeout(1500)
        tab.screenshot(path=path)
        browser.close()


if __name__ == "__main__":
    screenshot(sys.argv[1], sys.argv[2])
