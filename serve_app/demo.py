"""The demo page: a Gradio app with its own Serve application that speaks only HTTP to the prediction API.

    serve.run(demo(DemoPageArgs(api="http://127.0.0.1:8000")), name="demo", route_prefix="/demo")

One replica: a Gradio session lives in one process. The page holds no model and no data, so it survives a rollout.
"""

# No `from __future__ import annotations` here: Serve reads the annotation to turn the YAML's args into `DemoPageArgs`.

import asyncio
import html
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import gradio as gr
import httpx
from fastapi import FastAPI
from gradio.components import Component
from ray import serve
from ray.serve import Application, Deployment

from dkt_ray.client import API_KEY
from dkt_ray.config import Config
from dkt_ray.errors import ConfigError, DktError, InputError
from dkt_ray.serving import page
from dkt_ray.serving.fleet import on_loopback
from dkt_ray.serving.loopback import keep_on_loopback
from dkt_ray.serving.page import Answer, Future, Question

CATALOGUE_SIZE: Final = 300
CATALOGUE_TTL_S: Final = 30.0
PUBLIC: Final = (
    "the demo page takes no API key, and Serve listens off loopback: whoever reaches the port would ask the API with "
    "the page's own key; leave the application `demo` out, listen on 127.0.0.1, or say `args: {public: true}`"
)


class DemoPageArgs(Config):
    """Arguments of the page's Serve application."""

    api: str = "http://127.0.0.1:8000"
    """Base address of the prediction API."""
    timeout_s: float = 10.0
    """How long the page waits for one answer of the API."""
    public: bool = False
    """Anybody who reaches Serve's port may use the page, which asks with its own key; False: only on loopback."""
    keeps: bool = False
    """Visitors may have answers kept, and deleted; the page's key, where the API takes one, must allow both."""


class ServiceError(DktError):
    """The prediction API does not answer, or refuses; the message is for the visitor."""


class Service:
    """The routes of the prediction API that the page uses."""

    def __init__(self, args: DemoPageArgs, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._base = args.api
        key = os.environ.get(API_KEY)
        self._client = httpx.AsyncClient(
            base_url=args.api,
            timeout=args.timeout_s,
            transport=transport,
            trust_env=False,
            headers={"authorization": f"Bearer {key}"} if key else None,
        )
        self._catalogue: tuple[Question, ...] = ()
        self._fetched = -CATALOGUE_TTL_S

    async def catalogue(self) -> tuple[Question, ...]:
        """The questions that can be asked about, fetched again when older than 30 s."""
        if time.monotonic() - self._fetched >= CATALOGUE_TTL_S:
            self._catalogue = page.read_catalogue(await self._call("GET", f"/v1/questions?limit={CATALOGUE_SIZE}"))
            self._fetched = time.monotonic()
        return self._catalogue

    async def future(self, answers: Sequence[Answer], targets: Sequence[str]) -> Future:
        """What the service says about one history."""
        student: dict[str, Any] = {"history": page.history_body(answers)}
        if (at := page.asked_at(answers)) is not None:
            student["at"] = at
        prediction, knowledge = await asyncio.gather(
            self._call("POST", "/v1/predict", student | {"targets": list(targets), "explain": True}),
            self._call("POST", "/v1/knowledge-state", student | {"limit": page.MAX_CONCEPTS, "steps": 0}),
        )
        return page.read_future(prediction, knowledge)

    async def keep(self, answers: Sequence[Answer], visitor: str) -> None:
        """Have a visitor's answers kept."""
        await self._call("POST", "/v1/events", {"events": page.events_body(answers, visitor)})

    async def forget(self, visitor: str) -> str:
        """Delete all that is kept of a visitor; the id of the receipt."""
        return str((await self._call("DELETE", f"/v1/users/{visitor}"))["receipt"])

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        try:
            answer = await self._client.request(method, path, json=body)
        except httpx.TimeoutException:
            raise ServiceError("The prediction service gave no answer in time. Change anything to ask again.") from None
        except httpx.HTTPError as error:
            raise ServiceError(
                f"The prediction service at {self._base} cannot be reached ({type(error).__name__}). "
                "Start it (`make demo`), then change anything to ask again."
            ) from None
        if answer.is_success:
            return answer.json()
        raise ServiceError(page.refusal(answer.status_code, answer.headers.get("content-type", ""), answer.text))


class Page:
    """The page's event handlers; each takes component values and returns component values."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def open(self) -> tuple[Any, ...]:
        """Fill a fresh page: the first story, its candidates, and their probabilities."""
        try:
            questions = await self._service.catalogue()
            chosen = page.candidates(questions)
            names = [(f"{q.id} · {' + '.join(q.concepts)}", q.id) for q in questions]
            targets = gr.Dropdown(choices=names, value=chosen)
            told = page.stories(questions)
        except DktError as error:
            return (gr.skip(), gr.skip(), "", gr.skip(), gr.skip(), *_only_notice(error))
        rows = page.table_rows(told[0].answers)
        stories = gr.Radio(choices=[story.title for story in told], value=told[0].title)
        return stories, targets, told[0].about, rows, *await self.refresh(rows, None, chosen)

    async def tell(self, title: str, targets: list[str]) -> tuple[Any, ...]:
        """Put a story's history on the page."""
        try:
            told = {story.title: story for story in page.stories(await self._service.catalogue())}
        except DktError as error:
            return ("", gr.skip(), gr.skip(), *_only_notice(error))
        rows = page.table_rows(told[title].answers)
        return told[title].about, rows, *await self.refresh(rows, None, targets)

    async def refresh(self, rows: Sequence[Sequence[Any]], flipped: int | None, targets: list[str]) -> tuple[Any, ...]:
        """Ask for the future of the history on the page, and of the same history with one answer flipped."""
        try:
            answers = page.read_table(rows)
            if not targets:
                raise InputError("Choose at least one question to ask about.")
            index = min(flipped if flipped is not None else len(answers) - 1, len(answers) - 1)
            histories = [answers, page.flip(answers, index)] if answers else [answers]
            started = time.perf_counter()
            futures = await asyncio.gather(*(self._service.future(history, targets) for history in histories))
            elapsed_ms = 1000 * (time.perf_counter() - started)
            topics = page.topics_of(await self._service.catalogue())
        except DktError as error:
            return gr.skip(), *_only_notice(error)
        now, other = futures[0], futures[1] if answers else None
        choices = gr.Dropdown(choices=page.flip_choices(answers), value=index if answers else None)
        compared = _what_if(now, other, answers, index, topics)
        figure = page.probability_figure(now, topics)
        badge = _badge(now, elapsed_ms)
        return choices, badge, page.notice_text(now), figure, *compared, page.mastery_figure(now, other)

    async def keep(self, rows: Sequence[Sequence[Any]], visitor: str | None) -> tuple[str | None, str]:
        """Keep the history on the page under a random name, which the session remembers."""
        visitor = visitor or f"visitor-{uuid.uuid4().hex}"
        try:
            answers = page.read_table(rows)
            if not answers:
                raise InputError("There is no answer to keep.")
            await self._service.keep(answers, visitor)
        except DktError as error:
            return visitor, f"⚠️ {error}"  # they may be kept all the same: the name is needed to delete them
        return visitor, f"{len(answers)} answers are kept under the random name `{visitor}`."

    async def forget(self, visitor: str | None) -> tuple[str | None, str]:
        """Delete what this session had kept."""
        if visitor is None:
            return None, "Nothing of you is kept."
        try:
            receipt = await self._service.forget(visitor)
        except DktError as error:
            return gr.skip(), f"⚠️ {error}"
        return None, f"All that was kept of `{visitor}` is deleted; receipt `{receipt}`."


class Student(NamedTuple):
    """The left column."""

    story: gr.Radio
    about: gr.Markdown
    flip: gr.Dropdown
    targets: gr.Dropdown
    table: gr.Dataframe


def build_page(service: Service, keeps: bool) -> gr.Blocks:
    """The Gradio page over one prediction service.

    Args:
        keeps: visitors may have answers kept, and deleted.
    """
    handlers = Page(service)
    with gr.Blocks(title="dkt-ray", analytics_enabled=False, delete_cache=(3600, 3600), fill_width=True) as blocks:
        gr.Markdown("# dkt-ray\nWhat will this student get right next? Pick a student, edit an answer, watch it move.")
        with gr.Row():
            with gr.Column(scale=4, min_width=340):
                story, about, flip, targets, table = _student()
                gr.Markdown(KEEPS if keeps else KEEPS_NOTHING)
                if keeps:
                    _keeping(handlers, table)
            with gr.Column(scale=6, min_width=420):
                results = [flip, *_results()]
        gr.Markdown(ABOUT)
        blocks.load(handlers.open, None, [story, targets, about, table, *results], api_name="open")
        story.input(handlers.tell, [story, targets], [about, table, *results], api_name="story")
        gr.on(
            [table.input, flip.input, targets.input],
            handlers.refresh,
            [table, flip, targets],
            results,
            trigger_mode="always_last",
            show_progress="hidden",
            api_name="predict",
        )
    return blocks.queue(max_size=64, default_concurrency_limit=8, api_open=False)


def _student() -> Student:
    return Student(
        story=gr.Radio(label="A student", choices=[], elem_id="story"),
        about=gr.Markdown(elem_id="about"),
        flip=gr.Dropdown(label="What if this answer were the other way round?", choices=[], elem_id="flip"),
        targets=gr.Dropdown(
            label="Questions to ask about (any id may be typed)",
            choices=[],
            multiselect=True,
            allow_custom_value=True,
            max_choices=page.MAX_TARGETS,
            elem_id="targets",
        ),
        table=gr.Dataframe(
            label="History (edit any cell; empty a question to drop its row)",
            headers=list(page.HEADERS),
            datatype=["str", "bool", "str"],
            column_count=len(page.HEADERS),
            type="array",
            interactive=True,
            max_height=680,
            elem_id="history",
        ),
    )


def _keeping(handlers: Page, table: gr.Dataframe) -> None:
    """Answers are kept only where the visitor says so, and deleted where he does."""
    visitor = gr.State(None)
    with gr.Row():
        keep = gr.Button("Keep these answers", elem_id="keep")
        forget = gr.Button("Delete my data", elem_id="forget")
    told = gr.Markdown(elem_id="kept")
    keep.click(handlers.keep, [table, visitor], [visitor, told], api_name="keep")
    forget.click(handlers.forget, [visitor], [visitor, told], api_name="forget")


def _results() -> list[Component]:
    """Badge, notice, probabilities, what-if sentence, what-if figure, mastery: the order of a refresh's outputs."""
    return [
        gr.HTML(elem_id="badge"),
        gr.Markdown(elem_id="notice"),
        gr.Plot(show_label=False, elem_id="probability"),
        gr.Markdown(elem_id="what-if-text"),
        gr.Plot(show_label=False, elem_id="what-if"),
        gr.Plot(show_label=False, elem_id="mastery"),
    ]


ABOUT: Final = """
**How to read it.** A bar is the ensemble's probability of a right answer; the marks on it are its members' own
opinions: the further apart, the less sure. Mastery is the mean probability over up to three questions that stand for
a concept. The students are invented. A probability is an estimate, not a verdict on a person.
"""
KEEPS_NOTHING: Final = "**Privacy.** Nothing of what you enter is kept."
KEEPS: Final = """
**Privacy.** Nothing is kept unless you ask for it: then the history above goes to the log of this service, from which
models learn, under a random name and with nothing else of you. *Delete my data* removes it, while this page is open.
"""


def build_app(args: DemoPageArgs, transport: httpx.AsyncBaseTransport | None = None) -> FastAPI:
    """The page as an ASGI app, with Gradio's doors closed that it does not need."""
    return gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        build_page(Service(args, transport), args.keeps),
        path="/",
        theme=gr.themes.Default(primary_hue="blue"),
        show_error=False,
        max_file_size="100kb",
        allowed_paths=[],
        blocked_paths=[str(Path.cwd())],
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        run_history=False,
        footer_links=["api", "settings"],
    )


@serve.deployment(
    name="DemoPage",
    num_replicas=1,  # a session's queue lives in one process
    max_ongoing_requests=512,  # every open page holds an event stream
    ray_actor_options={"num_cpus": 0},
    graceful_shutdown_timeout_s=3,
)
@serve.ingress()
class DemoPage:
    """The replica: builds the page when it starts, because a mounted Gradio app cannot be pickled."""

    def __init__(self, args: DemoPageArgs) -> None:
        keep_on_loopback()
        if not args.public and not on_loopback():
            raise ConfigError(PUBLIC)
        self._args = args

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_app(self._args)


def demo(args: DemoPageArgs) -> Application:
    """Builder for `serve.run` and `serve deploy`."""
    return cast(Deployment, DemoPage).bind(args)


def _what_if(
    now: Future, other: Future | None, answers: Sequence[Answer], index: int, topics: Mapping[str, str]
) -> tuple[Any, Any]:
    if other is None:
        return "", None
    return page.what_if_text(now, other, answers[index], index + 1), page.what_if_figure(now, other, topics)


def _only_notice(error: DktError) -> tuple[Any, ...]:
    """Say what is wrong, leave the figures as they are."""
    return gr.skip(), f"⚠️ {error}", gr.skip(), gr.skip(), gr.skip(), gr.skip()


def _badge(future: Future, elapsed_ms: float) -> str:
    families = sorted({family for members in future.members.values() for family in members})
    asked = f"{len(future.probability)} questions, {elapsed_ms:.0f} ms"
    parts = [f"model {future.version[:12]}", " + ".join(families), asked]
    return " ".join(f'<code style="padding:2px 8px;border-radius:8px">{html.escape(part)}</code>' for part in parts)
