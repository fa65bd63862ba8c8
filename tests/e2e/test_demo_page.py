"""The demo page in a real browser, over a stand-in for the API that keeps the API's contract."""

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
import uvicorn
from fastapi import FastAPI
from playwright.sync_api import Page, expect, sync_playwright

from dkt_ray.serving.contract import (
    CatalogueResponse,
    KnowledgeRequest,
    KnowledgeResponse,
    PredictRequest,
    PredictResponse,
)
from dkt_ray.serving.events_contract import EventsRequest, EventsResponse, ReceiptResponse
from scripts.screenshot import BROWSER_ARGS, CHROMIUM
from serve_app.demo import DemoPageArgs, build_app

pytestmark = pytest.mark.browser
expect.set_options(timeout=30_000)

QUESTIONS = [f"A0{head}000{test}00{tail}" for head in (1, 2, 3) for test in (1, 2) for tail in (1, 2, 3)]


class Served:
    """An ASGI app on a free loopback port, in a thread."""

    def __init__(self, app: FastAPI) -> None:
        config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.02)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)


def stand_in() -> FastAPI:
    """One percentage point per right answer, on top of 30 %."""
    app = FastAPI()

    def probability(request: PredictRequest | KnowledgeRequest) -> float:
        return 0.3 + sum(event.correct for event in request.history) / 100

    @app.get("/v1/questions")
    def questions(limit: int) -> CatalogueResponse:
        rows = [
            {"question": q, "test": q[:7], "concepts": [f"70{q[2]}"], "count": 100 - i, "difficulty": i / 20}
            for i, q in enumerate(QUESTIONS)
        ]
        return CatalogueResponse(model_version="feedc0de", total=len(rows), questions=rows[:limit])

    @app.post("/v1/predict")
    def predict(request: PredictRequest) -> PredictResponse:
        p = probability(request)
        row = {"probability": p, "spread": 0.1, "members": {"lightgbm": p + 0.05, "lstm_attention": p - 0.05}}
        names = [target.question for target in request.targets]
        rows = [row | {"question": name, "unknown_question": name not in QUESTIONS} for name in names]
        weights = {"lightgbm": 0.5, "lstm_attention": 0.5}
        return PredictResponse(
            model_version="feedc0de", cold_start=not request.history, weights=weights, predictions=rows
        )

    @app.post("/v1/knowledge-state")
    def knowledge(request: KnowledgeRequest) -> KnowledgeResponse:
        rows = [{"concept": c, "mastery": probability(request), "probes": QUESTIONS[:1]} for c in ("701", "702")]
        return KnowledgeResponse(model_version="feedc0de", cold_start=not request.history, concepts=rows)

    @app.post("/v1/events")
    def keep(request: EventsRequest) -> EventsResponse:
        kept = {event.user_id for event in request.events}
        return EventsResponse(added=len(kept), waiting=0, repeated=0, received_at=datetime.now(UTC))

    @app.delete("/v1/users/{user_id}")
    def forget(user_id: str) -> ReceiptResponse:
        now = datetime.now(UTC)
        return ReceiptResponse(receipt=f"of-{user_id}", deleted_at=now, removed={}, bundles=[], remains="nothing")

    return app


@pytest.fixture(scope="module")
def api() -> Iterator[Served]:
    served = Served(stand_in())
    yield served
    served.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=BROWSER_ARGS)
        yield browser
        browser.close()


@pytest.fixture
def tab(browser, api) -> Iterator[Page]:
    """The page, opened; every request that leaves loopback fails the test."""
    served = Served(build_app(DemoPageArgs(api=api.url, keeps=True)))
    tab = browser.new_page(viewport={"width": 1400, "height": 1200})
    urls: list[str] = []
    tab.on("request", lambda request: urls.append(request.url))
    tab.goto(served.url)
    yield tab
    tab.close()
    served.stop()
    assert urls
    assert [url for url in urls if not url.startswith((served.url, "data:", "blob:"))] == []


def bars(tab: Page, figure: str) -> int:
    return tab.locator(f"#{figure} .barlayer .point").count()


def test_page_shows_an_example_without_any_input(tab, tmp_path):
    expect(tab.locator("#badge")).to_contain_text("model feedc0de")
    expect(tab.locator("#probability .barlayer .point")).to_have_count(10)
    expect(tab.locator("#what-if .barlayer .point")).to_have_count(20)
    expect(tab.locator("#mastery .barlayer .point")).to_have_count(4)
    expect(tab.locator("#probability")).to_contain_text("lstm_attention")
    expect(tab.locator("#history")).to_contain_text("A010001001")
    expect(tab.locator("#badge")).to_contain_text("10 questions")
    assert len(tab.screenshot(path=tmp_path / "page.png")) > 20_000


def test_flipping_another_answer_moves_the_number(tab):
    expect(tab.locator("#what-if-text")).to_contain_text("−1.0 points on average")
    tab.locator("#flip input").click()
    tab.get_by_role("option", name="wrong").first.click()
    expect(tab.locator("#what-if-text")).to_contain_text("right instead of wrong: +1.0 points on average")
    expect(tab.locator("#what-if")).to_contain_text("(+1.0 points)")


def test_a_tick_in_the_history_moves_the_probability(tab):
    expect(tab.locator("#probability")).to_contain_text("44%")
    tab.locator("#history [data-testid=cell-0-1] input[type=checkbox]").click()
    expect(tab.locator("#probability")).to_contain_text("45%")


def test_a_new_student_is_a_cold_start(tab):
    expect(tab.locator("#probability")).to_contain_text("44%")
    tab.get_by_label("New student").click()
    expect(tab.locator("#notice")).to_contain_text("cold start")
    expect(tab.locator("#probability")).to_contain_text("30%")
    expect(tab.locator("#what-if .barlayer .point")).to_have_count(0)


def test_answers_are_kept_only_when_the_visitor_says_so_and_deleted_when_he_does(tab):
    expect(tab.get_by_text("Nothing is kept unless you ask for it")).to_be_visible()
    expect(tab.locator("#history")).to_contain_text("A010001001")
    tab.locator("#keep").click()
    expect(tab.locator("#kept")).to_contain_text("answers are kept under the random name visitor-")
    tab.locator("#forget").click()
    expect(tab.locator("#kept")).to_contain_text("receipt of-visitor-")
    tab.locator("#forget").click()
    expect(tab.locator("#kept")).to_contain_text("Nothing of you is kept")


def test_without_the_api_the_page_says_so(browser):
    served = Served(build_app(DemoPageArgs(api="http://127.0.0.1:9")))
    tab = browser.new_page()
    tab.goto(served.url)
    expect(tab.locator("#notice")).to_contain_text("cannot be reached")
    tab.close()
    served.stop()
