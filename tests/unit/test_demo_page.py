"""The demo page's logic: stories, the edited table, two futures, figures; and its handlers over a fake API."""

import asyncio
import contextlib
import json
from datetime import datetime

import httpx
import pytest
from pydantic import BaseModel
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary

from dkt_ray.config import build
from dkt_ray.errors import ConfigError, InputError
from dkt_ray.pipelines.demo import DemoConfig
from dkt_ray.serving import page
from dkt_ray.serving.contract import (
    CatalogueResponse,
    KnowledgeRequest,
    KnowledgeResponse,
    PredictRequest,
    PredictResponse,
    StudentRequest,
)
from dkt_ray.serving.page import Answer, Future, Question
from serve_app.demo import DemoPage, DemoPageArgs, Page, Service, build_page, demo
from tests.requests import forwarded

QUESTIONS = tuple(
    Question(f"A0{head}000100{tail}", (f"70{head}",), difficulty=tail / 10, answers=100 - 10 * head - tail)
    for head in (1, 2, 3)
    for tail in (1, 2, 3, 4)
)
MEMBERS = {"q1": {"a": 0.9, "b": 0.7}, "q2": {"a": 0.2, "b": 0.4}}
NOW = Future("v1", {"q1": 0.8, "q2": 0.3}, MEMBERS, {"c": 0.5}, (), False)
FLIPPED = Future("v1", {"q1": 0.7, "q2": 0.35}, {}, {"c": 0.45}, (), False)
ANSWERS = (Answer("q1", True, datetime(2026, 3, 2, 10)), Answer("q2", False, datetime(2026, 3, 2, 11)))


@pytest.mark.parametrize("questions", [QUESTIONS, QUESTIONS[:1]])
def test_stories_use_only_questions_of_the_catalogue(questions):
    known = {question.id for question in questions}
    told = page.stories(questions)
    assert [story.title for story in told][:2] == ["Steady learner", "New student"]
    assert told[1].answers == ()
    assert len({story.title for story in told}) == len(told) == 6
    assert all(answer.question in known for story in told for answer in story.answers)
    for story in told:
        times = [answer.time for answer in story.answers]
        assert times == sorted(times), story.title


def test_stories_tell_what_they_say():
    told = {story.title: story.answers for story in page.stories(QUESTIONS)}
    steady = [answer.right for answer in told["Steady learner"]]
    assert sum(steady[:12]) <= 4
    assert sum(steady[12:]) >= 9
    assert sum(answer.right for answer in told["Guesser"]) * 4 <= len(told["Guesser"]) * 1.2
    gap = told["Forgetting"][10].time - told["Forgetting"][9].time
    assert gap.days >= 50
    last = {answer.question: answer.right for answer in told["Never gives up"]}
    assert all(last.values())


def test_no_story_without_questions():
    with pytest.raises(InputError, match="holds no question"):
        page.stories(())


def test_candidates_are_distinct_known_and_spread_over_topics():
    chosen = page.candidates(QUESTIONS, 6)
    assert len(chosen) == len(set(chosen)) == 6
    assert {question[:3] for question in chosen} == {"A01", "A02", "A03"}
    assert page.candidates(QUESTIONS[:1], 6) == [QUESTIONS[0].id]


def test_table_round_trip():
    assert page.read_table(page.table_rows(ANSWERS)) == ANSWERS


def test_table_reads_what_people_type():
    rows = [["q1", "yes", "2026-03-02"], ["", None, ""], [" q2 ", 0, "2026-03-02T11:00:00+01:00"]]
    assert page.read_table(rows) == (
        Answer("q1", True, datetime(2026, 3, 2)),
        Answer("q2", False, datetime(2026, 3, 2, 10)),
    )
    assert page.read_table([["", "", ""]]) == ()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["q", True, "yesterday"]], "Row 1, time: found 'yesterday'; expected YYYY-MM-DD HH:MM:SS"),
        ([["q", True, ""], ["q", "perhaps", ""]], "Row 2, right: found 'perhaps'; expected a tick"),
        ([["q", True, "2026-03-02"], ["", 0, ""], ["q", True, ""]], "Row 3, time: empty while other rows have one"),
        ([["q", True, ""]] * 501, "holds 501 answers; the page takes 500"),
    ],
)
def test_table_errors_name_row_column_and_remedy(rows, message):
    with pytest.raises(InputError, match=message):
        page.read_table(rows)


def test_flip_changes_one_answer_and_twice_is_nothing():
    flipped = page.flip(ANSWERS, 1)
    assert flipped == (ANSWERS[0], ANSWERS[1]._replace(right=True))
    assert page.flip(flipped, 1) == ANSWERS
    assert page.flip_choices(ANSWERS) == [("2. q2: wrong", 1), ("1. q1: right", 0)]


def test_request_is_in_order_of_time_and_omits_missing_times():
    assert page.history_body(ANSWERS[::-1]) == [
        {"question": "q1", "correct": 1, "timestamp": "2026-03-02 10:00:00"},
        {"question": "q2", "correct": 0, "timestamp": "2026-03-02 11:00:00"},
    ]
    assert page.history_body([Answer("q2", False, None), Answer("q1", True, None)]) == [
        {"question": "q2", "correct": 0},
        {"question": "q1", "correct": 1},
    ]
    assert page.asked_at(ANSWERS) == "2026-03-02 11:01:00"
    assert page.asked_at(()) is None


def test_deltas_and_the_sentence_about_them():
    assert page.deltas(NOW.probability, FLIPPED.probability) == pytest.approx({"q1": -0.1, "q2": 0.05})
    text = page.what_if_text(NOW, FLIPPED, ANSWERS[0], 1)
    assert "answer 1 (`q1`) were **wrong** instead of right: **−2.5 points** on average over 2 questions" in text
    assert "−10.0 points on `q1` (80% → 70%)" in text


def test_notices():
    assert page.notice_text(NOW) == ""
    cold = Future("v", {"x": 0.5}, {}, {}, ("x",), True)
    assert "cold start" in page.notice_text(cold)
    assert "`x`" in page.notice_text(cold)


def test_refusals_are_in_the_services_own_words():
    problem = json.dumps({"title": "Unprocessable", "detail": "targets: expected at least 1"})
    assert page.refusal(422, "application/problem+json", problem) == (
        "The prediction service refused the request (422): targets: expected at least 1"
    )
    assert "(503): no reason given" in page.refusal(503, "text/plain", "<html>")
    assert "(500): no reason given" in page.refusal(500, "application/json", "[broken")


def test_probability_figure_is_sorted_with_one_marker_per_member():
    figure = page.probability_figure(NOW, {"q1": "fractions"})
    assert list(figure.data[0].y) == ["q1 · fractions", "q2"]
    assert list(figure.data[0].x) == [0.8, 0.3]
    assert {trace.name: list(trace.x) for trace in figure.data[1:]} == {"a": [0.9, 0.2], "b": [0.7, 0.4]}
    assert figure.layout.yaxis.autorange == "reversed"


def test_what_if_figure_shows_both_futures_and_the_difference():
    figure = page.what_if_figure(NOW, FLIPPED, {})
    assert [trace.name for trace in figure.data] == ["as it is", "flipped"]
    assert list(figure.data[1].x) == [0.7, 0.35]
    assert list(figure.data[1].text) == ["70% (−10.0 points)", "35% (+5.0 points)"]


def test_mastery_figure_is_sorted_and_shows_the_other_future_where_there_is_one():
    many = Future("v", {}, {}, {f"c{i}": i / 100 for i in (3, 9, 1)}, (), False)
    alone = page.mastery_figure(many, None)
    assert list(alone.data[0].y) == ["c9", "c3", "c1"]
    assert len(alone.data) == 1
    assert list(page.mastery_figure(NOW, FLIPPED).data[1].text) == ["45% (−5.0 points)"]


def service(answer) -> Service:
    return Service(DemoPageArgs(api="http://api.test"), httpx.MockTransport(answer))


def fake_api(request: httpx.Request) -> httpx.Response:
    """Answers like the real API, and refuses what its contract refuses."""
    if request.url.path == "/v1/questions":
        entry = {"test": "t", "difficulty": 0.5, "count": 9}
        rows = [entry | {"question": q.id, "concepts": list(q.concepts)} for q in QUESTIONS]
        answer: BaseModel = CatalogueResponse(model_version="abc", total=len(rows), questions=rows)
        return httpx.Response(200, json=answer.model_dump())
    if request.url.path == "/v1/knowledge-state":
        asked = KnowledgeRequest.model_validate_json(request.content)
        state = {"concept": "701", "mastery": 0.1 + rights(asked) / 100, "probes": ["q1"]}
        answer = KnowledgeResponse(model_version="abc", cold_start=not asked.history, concepts=[state])
        return httpx.Response(200, json=answer.model_dump())
    wanted = PredictRequest.model_validate_json(request.content)
    questions = [target.question for target in wanted.targets]
    assert wanted.explain
    row = {"probability": 0.2 + rights(wanted) / 100, "spread": 0.0, "members": {"m": 0.5}}
    rows = [row | {"question": question, "unknown_question": question == "new"} for question in questions]
    answer = PredictResponse(model_version="abc", cold_start=not wanted.history, weights={"m": 1.0}, predictions=rows)
    return httpx.Response(200, json=answer.model_dump())


def rights(request: StudentRequest) -> int:
    return sum(event.correct for event in request.history)


def test_the_builder_takes_the_arguments_of_a_yaml_file():
    app = call_user_app_builder_with_args_if_necessary(demo, {"api": "http://127.0.0.1:1"})
    assert app._bound_deployment.init_args == (DemoPageArgs(api="http://127.0.0.1:1"),)


@pytest.mark.parametrize(("public", "loopback", "starts"), [(0, 1, True), (1, 0, True), (1, 1, True), (0, 0, False)])
def test_off_loopback_the_page_starts_only_where_it_is_meant_to_be_public(monkeypatch, public, loopback, starts):
    monkeypatch.setattr("serve_app.demo.keep_on_loopback", lambda: None)
    monkeypatch.setattr("serve_app.demo.on_loopback", lambda: bool(loopback))
    replica = DemoPage.func_or_class.__mro__[1]  # what Serve has wrapped
    with contextlib.nullcontext() if starts else pytest.raises(ConfigError, match="public: true"):
        replica(DemoPageArgs(public=bool(public)))


def test_the_demo_is_for_this_machine():
    with pytest.raises(ConfigError, match="others reach it"):
        build(DemoConfig, {"host": "0.0.0.0"})


@pytest.mark.parametrize("keeps", [False, True])
def test_nothing_can_be_kept_or_deleted_unless_a_setting_says_so(keeps):
    named = {each.api_name for each in build_page(service(fake_api), keeps).fns.values()}
    assert {"open", "story", "predict"} <= named
    assert {"keep", "forget"} & named == ({"keep", "forget"} if keeps else set())
    assert not DemoPageArgs().keeps


def test_answers_are_kept_once_under_a_random_name_and_deleted_on_request(api):
    handlers, rows = Page(service(lambda request: forwarded(api).handle_request(request))), page.table_rows(ANSWERS)
    visitor, told = asyncio.run(handlers.keep(rows, None))
    assert f"2 answers are kept under the random name `{visitor}`" in told
    assert asyncio.run(handlers.keep(rows, visitor))[0] == visitor
    assert api.get(f"/v1/users/{visitor}").json()["answers"] == len(ANSWERS)
    assert asyncio.run(handlers.keep(rows, None))[0] != visitor
    nobody, told = asyncio.run(handlers.forget(visitor))
    assert nobody is None
    assert "receipt" in told
    assert api.get(f"/v1/users/{visitor}").status_code == 410
    assert "deleted" in asyncio.run(handlers.keep(rows, visitor))[1]


def test_what_a_service_kept_without_saying_so_can_be_deleted(api):
    def lost(request):
        forwarded(api).handle_request(request)
        raise httpx.ReadTimeout("no answer")

    rows = page.table_rows(ANSWERS)
    visitor, told = asyncio.run(Page(service(lost)).keep(rows, None))
    assert "no answer in time" in told
    handlers = Page(service(lambda request: forwarded(api).handle_request(request)))
    assert api.get(f"/v1/users/{visitor}").json()["answers"] == len(ANSWERS)
    assert "receipt" in asyncio.run(handlers.forget(visitor))[1]
    assert api.get(f"/v1/users/{visitor}").status_code == 410


def test_nothing_to_keep_and_a_service_that_keeps_nothing_are_said(client):
    handlers = Page(service(lambda request: forwarded(client).handle_request(request)))
    assert asyncio.run(handlers.keep([], None))[1] == "⚠️ There is no answer to keep."
    assert "keeps no events" in asyncio.run(handlers.keep(page.table_rows(ANSWERS), None))[1]
    assert asyncio.run(handlers.forget(None)) == (None, "Nothing of you is kept.")


def test_a_refresh_asks_for_both_futures():
    rows = page.table_rows(ANSWERS)
    choices, badge, notice, figure, text, compared, mastery = asyncio.run(
        Page(service(fake_api)).refresh(rows, 0, ["q9", "new"])
    )
    assert choices.value == 0
    assert "model abc" in badge
    assert "`new`" in notice
    assert list(figure.data[0].x) == pytest.approx([0.21, 0.21])
    assert list(compared.data[1].x) == [0.2, 0.2]
    assert "−1.0 points" in text
    assert len(mastery.data) == 2


def test_a_student_without_history_has_no_other_future():
    choices, _, notice, figure, text, compared, mastery = asyncio.run(Page(service(fake_api)).refresh([], 5, ["q9"]))
    assert choices.value is None
    assert "cold start" in notice
    assert (text, compared) == ("", None)
    assert list(figure.data[0].x) == [0.2]
    assert len(mastery.data) == 1


def test_an_index_past_the_end_of_a_shortened_history_means_its_last_answer():
    choices, *_ = asyncio.run(Page(service(fake_api)).refresh(page.table_rows(ANSWERS), 99, ["q9"]))
    assert choices.value == 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda _: httpx.Response(422, json={"detail": "history.0.question: unknown"}), "history.0.question: unknown"),
        (lambda _: (_ for _ in ()).throw(httpx.ConnectError("refused")), "cannot be reached (ConnectError)"),
        (lambda _: (_ for _ in ()).throw(httpx.ReadTimeout("slow")), "no answer in time"),
    ],
)
def test_failures_become_one_friendly_line_and_leave_the_figures(answer, message):
    for outputs in (
        asyncio.run(Page(service(answer)).refresh(page.table_rows(ANSWERS), None, ["q9"])),
        asyncio.run(Page(service(answer)).open()),
        asyncio.run(Page(service(answer)).tell("Guesser", ["q9"])),
    ):
        notices = [value for value in outputs if isinstance(value, str) and value.startswith("⚠️")]
        assert len(notices) == 1
        assert message in notices[0]
