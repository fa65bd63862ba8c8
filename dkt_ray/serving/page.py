"""What the demo page shows, as data: student stories, the edited history, two futures and their figures.

Pure: no HTTP, no Gradio. `serve_app/demo.py` fetches the futures from the API and puts these figures on the page.
"""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import plotly.graph_objects as go

from dkt_ray.errors import InputError

TIME_FORMAT = "%Y-%m-%d %H:%M:%S"
HEADERS = ("question", "right", "time")
MAX_ROWS = 500
MAX_TARGETS = 20
MAX_CONCEPTS = 12

# Okabe and Ito (2008): told apart by readers with any kind of colour vision
BLUE, ORANGE = "#0072B2", "#E69F00"
INK = "#767676"  # 4.5:1 against white and against the dark theme
MARKERS = ("circle", "diamond", "square", "cross", "triangle-up", "x")

_START = datetime(2026, 3, 2, 16, 0, 0)
_RIGHT = {"1", "true", "right", "yes", "✓"}
_WRONG = {"0", "false", "wrong", "no", "✗"}


class Question(NamedTuple):
    """One row of the API's catalogue."""

    id: str
    concepts: tuple[str, ...]
    difficulty: float
    answers: int  # in the training data


class Answer(NamedTuple):
    """One answered question of the student on the page."""

    question: str
    right: bool
    time: datetime | None


class Story(NamedTuple):
    """A pre-filled student."""

    title: str
    about: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Future:
    """What the service says about one history."""

    version: str
    probability: Mapping[str, float]  # question -> probability of a right answer
    members: Mapping[str, Mapping[str, float]]  # question -> family -> probability
    mastery: Mapping[str, float]  # concept -> mean probability over questions that stand for it
    unknown: tuple[str, ...]  # candidate questions that the model has never seen
    cold_start: bool


def read_catalogue(answer: Mapping[str, Any]) -> tuple[Question, ...]:
    """The questions of `GET /v1/questions`, the most answered first."""
    questions = [
        Question(str(row["question"]), tuple(map(str, row["concepts"])), float(row["difficulty"]), int(row["count"]))
        for row in answer["questions"]
    ]
    return tuple(sorted(questions, key=lambda question: (-question.answers, question.id)))


def read_future(prediction: Mapping[str, Any], knowledge: Mapping[str, Any]) -> Future:
    """Join the answers of `POST /v1/predict` and `POST /v1/knowledge-state` for one history."""
    rows = prediction["predictions"]
    return Future(
        version=str(prediction["model_version"]),
        probability={row["question"]: float(row["probability"]) for row in rows},
        members={row["question"]: dict(row["members"]) for row in rows},
        mastery={str(row["concept"]): float(row["mastery"]) for row in knowledge["concepts"]},
        unknown=tuple(row["question"] for row in rows if row["unknown_question"]),
        cold_start=bool(prediction["cold_start"]),
    )


def refusal(status: int, content_type: str, text: str) -> str:
    """What to tell the visitor when the API refuses: the problem's own words (RFC 9457) where it has them."""
    detail: Any = None
    if "json" in content_type:
        try:
            detail = json.loads(text).get("detail")
        except (ValueError, AttributeError):
            detail = None
    return f"The prediction service refused the request ({status}): {detail or 'no reason given'}"


def stories(questions: Sequence[Question]) -> tuple[Story, ...]:
    """Six students told with the questions of the catalogue (any number of questions, also one)."""
    by_concept = _by_concept(questions)
    first, second = by_concept[0], by_concept[min(1, len(by_concept) - 1)]
    mixed = [group[turn % len(group)] for turn in range(6) for group in by_concept[:4]]
    session = _play(first, "1111011111", _START, 40)
    return (
        Story(
            "Steady learner",
            "Four topics, mostly wrong at first, mostly right after two days of practice.",
            _play(mixed, "001000100101", _START, 45) + _play(mixed, "110111011111", _START + timedelta(days=2), 30),
        ),
        Story("New student", "Nothing is known yet: the answer is the cold start.", ()),
        Story(
            "Guesser",
            "Four seconds an answer, right one time in four, whatever the question.",
            _play(mixed, "010000100100010001000010", _START, 4),
        ),
        Story(
            "Forgetting",
            "One topic went well; after a break of 60 days the same questions go wrong.",
            session + _play(first, "010010", _START + timedelta(days=60), 50),
        ),
        Story(
            "One strong topic, one weak",
            "Nearly everything right in one topic, nearly everything wrong in another.",
            _play(first, "1101111111", _START, 35) + _play(second, "0010000100", _START + timedelta(hours=1), 60),
        ),
        Story(
            "Never gives up",
            "Repeats each question until it is right.",
            _play([mixed[i] for i in (0, 0, 0, 0, 1, 1, 1, 2, 2, 3)], "0001001011", _START, 25),
        ),
    )


def candidates(questions: Sequence[Question], count: int = 10) -> list[str]:
    """Up to `count` questions to ask about: topics in turn, and within a topic from the easiest to the hardest."""
    groups = [
        sorted(group[:count], key=lambda question: (question.difficulty, question.id))
        for group in _by_concept(questions)[: max(1, count // 2)]
    ]
    spread = [group[round(step * (len(group) - 1))] for step in (0.0, 1.0, 0.5, 0.25, 0.75) for group in groups]
    return list(dict.fromkeys(question.id for question in spread))[:count]


def table_rows(answers: Iterable[Answer]) -> list[list[Any]]:
    """The history as rows of the editable table."""
    return [[a.question, a.right, a.time.strftime(TIME_FORMAT) if a.time else ""] for a in answers]


def read_table(rows: Sequence[Sequence[Any]]) -> tuple[Answer, ...]:
    """The edited table as a history; rows without a question are left out.

    Raises:
        InputError: names the row (from 1), the column, the value found and what was expected.
    """
    filled = [(number, row) for number, row in enumerate(rows, 1) if str(row[0] or "").strip()]
    if len(filled) > MAX_ROWS:
        raise InputError(f"The table holds {len(filled)} answers; the page takes {MAX_ROWS}. Remove some rows.")
    answers = [Answer(str(row[0]).strip(), _right(row[1], number), _time(row[2], number)) for number, row in filled]
    timed = [answer.time is not None for answer in answers]
    if any(timed) and not all(timed):
        number = filled[timed.index(False)][0]
        raise InputError(f"Row {number}, time: empty while other rows have one. Fill it in, or clear the whole column.")
    return tuple(answers)


def flip(answers: Sequence[Answer], index: int) -> tuple[Answer, ...]:
    """The same history with answer `index` turned from right to wrong or back."""
    changed = answers[index]._replace(right=not answers[index].right)
    return (*answers[:index], changed, *answers[index + 1 :])


def flip_choices(answers: Sequence[Answer]) -> list[tuple[str, int]]:
    """(label, index) of every answer, the newest first."""
    choices = [
        (f"{number + 1}. {a.question}: {'right' if a.right else 'wrong'}", number) for number, a in enumerate(answers)
    ]
    return choices[::-1]


def history_body(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """The `history` of a request: answers in order of time, times only where there are any."""
    ordered = sorted(answers, key=lambda answer: answer.time or datetime.min)
    return [{"question": a.question, "correct": int(a.right)} | _timestamp(a) for a in ordered]


def events_body(answers: Sequence[Answer], user: str) -> list[dict[str, Any]]:
    """The `events` of a request that keeps answers: the same answer of the same visitor has the same id."""
    bodies = history_body(answers)
    ids = [
        uuid.uuid5(uuid.NAMESPACE_OID, f"{user} {place} {json.dumps(body)}").hex for place, body in enumerate(bodies)
    ]
    times = [{"answered_at": body.pop("timestamp")} if "timestamp" in body else {} for body in bodies]
    return [
        {"event_id": id_, "user_id": user} | body | time for id_, body, time in zip(ids, bodies, times, strict=True)
    ]


def asked_at(answers: Sequence[Answer]) -> str | None:
    """When the candidates are asked: one minute after the last answer, None without times."""
    times = [answer.time for answer in answers if answer.time]
    return (max(times) + timedelta(minutes=1)).strftime(TIME_FORMAT) if times else None


def deltas(now: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """other - now for every key of both."""
    return {key: other[key] - value for key, value in now.items() if key in other}


def what_if_text(now: Future, other: Future, answer: Answer, number: int) -> str:
    """One sentence of Markdown on what flipping an answer does."""
    moves = deltas(now.probability, other.probability)
    before, after = ("right", "wrong") if answer.right else ("wrong", "right")
    question, most = max(moves.items(), key=lambda item: abs(item[1]))
    mean = sum(moves.values()) / len(moves)
    return (
        f"If answer {number} (`{answer.question}`) were **{after}** instead of {before}: "
        f"**{_points(mean)}** on average over {len(moves)} questions; "
        f"the largest move is {_points(most)} on `{question}` "
        f"({now.probability[question]:.0%} → {other.probability[question]:.0%})."
    )


def notice_text(future: Future) -> str:
    """What the reader should know about this answer, as Markdown; empty when there is nothing."""
    parts = []
    if future.cold_start:
        parts.append("No history yet: these are the probabilities for an unknown student (cold start).")
    if future.unknown:
        names = ", ".join(f"`{question}`" for question in future.unknown)
        parts.append(f"Never seen in training, so judged by what is known of similar questions: {names}.")
    return " ".join(parts)


def probability_figure(future: Future, topics: Mapping[str, str]) -> go.Figure:
    """Bars of the probability per candidate question, sorted, with every member's own opinion as a marker."""
    order = _descending(future.probability)
    names = [_label(question, topics) for question in order]
    values = [future.probability[question] for question in order]
    figure = go.Figure(
        go.Bar(x=values, y=names, orientation="h", name="ensemble", marker_color=BLUE, text=_percents(values))
    )
    figure.update_traces(textposition="inside", insidetextanchor="start", textfont_color="white")
    families = sorted({family for members in future.members.values() for family in members})
    for family, symbol in zip(families, itertools.cycle(MARKERS)):
        opinions = [future.members[question].get(family) for question in order]
        marker = {"symbol": symbol, "size": 10, "color": ORANGE, "line": {"color": "#333333", "width": 1}}
        figure.add_scatter(x=opinions, y=names, mode="markers", name=family, marker=marker, cliponaxis=False)
    return _laid_out(figure, "Probability of a right answer", 24 * len(order))


def what_if_figure(now: Future, other: Future, topics: Mapping[str, str]) -> go.Figure:
    """Both futures side by side per candidate question, with the difference in percentage points."""
    order = _descending(now.probability)
    return _two_futures("Both futures", order, [_label(q, topics) for q in order], now.probability, other.probability)


def mastery_figure(now: Future, other: Future | None) -> go.Figure:
    """Bars of mastery per concept, the strongest on top; the flipped future as a second bar."""
    order = _descending(now.mastery)
    return _two_futures("Mastery per concept", order, order, now.mastery, None if other is None else other.mastery)


def topics_of(questions: Iterable[Question]) -> dict[str, str]:
    """Question -> its concepts in words, for labels."""
    return {question.id: " + ".join(question.concepts) for question in questions}


def _descending(values: Mapping[str, float]) -> list[str]:
    return sorted(values, key=lambda key: (-values[key], key))


def _two_futures(
    title: str,
    order: Sequence[str],
    names: Sequence[str],
    now: Mapping[str, float],
    other: Mapping[str, float] | None,
) -> go.Figure:
    values = [now[key] for key in order]
    figure = go.Figure(go.Bar(x=values, y=names, orientation="h", name="as it is", marker_color=BLUE))
    figure.update_traces(text=_percents(values), insidetextfont_color="white")
    if other is not None:
        moved = [other.get(key, now[key]) for key in order]
        change = [f"{value:.0%} ({_points(value - before)})" for value, before in zip(moved, values, strict=True)]
        figure.add_bar(x=moved, y=names, orientation="h", name="flipped", marker_color=ORANGE, text=change)
        figure.data[1].insidetextfont.color = "black"
    figure.update_traces(textposition="auto", textangle=0)
    return _laid_out(figure, title, (24 if other is None else 40) * len(order))


def _laid_out(figure: go.Figure, title: str, height: int) -> go.Figure:
    figure.update_layout(
        title={"text": title, "font": {"size": 15}, "x": 0.01},
        barmode="group",
        bargap=0.25,
        template="none",
        font={"color": INK},
        paper_bgcolor="rgba(0,0,0,0)",  # on the light and on the dark page
        plot_bgcolor="rgba(0,0,0,0)",
        height=130 + max(height, 80),
        margin={"l": 10, "r": 20, "t": 70, "b": 30},
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        xaxis={"range": [0, 1], "tickformat": ".0%", "fixedrange": True, "gridcolor": "rgba(118,118,118,0.25)"},
        yaxis={"automargin": True, "type": "category", "autorange": "reversed", "fixedrange": True},
    )
    return figure


def _label(question: str, topics: Mapping[str, str]) -> str:
    topic = topics.get(question, "")
    return f"{question} · {topic}" if topic else question


def _percents(values: Iterable[float]) -> list[str]:
    return [f"{value:.0%}" for value in values]


def _points(change: float) -> str:
    return f"{100 * change:+.1f} points".replace("-", "−")


def _by_concept(questions: Sequence[Question]) -> list[list[Question]]:
    """Questions grouped by their first concept; the topic with the most answers first."""
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.concepts[0] if question.concepts else "", []).append(question)
    if not groups:
        raise InputError("The service's catalogue holds no question; publish a bundle with questions first.")
    return sorted(groups.values(), key=lambda group: (-sum(q.answers for q in group), group[0].id))


def _play(questions: Sequence[Question], pattern: str, start: datetime, gap_s: float) -> tuple[Answer, ...]:
    return tuple(
        Answer(questions[turn % len(questions)].id, mark == "1", start + timedelta(seconds=gap_s * turn))
        for turn, mark in enumerate(pattern)
    )


def _timestamp(answer: Answer) -> dict[str, str]:
    return {"timestamp": answer.time.strftime(TIME_FORMAT)} if answer.time else {}


def _right(value: Any, row: int) -> bool:
    word = str(value).strip().lower()
    if word in _RIGHT or word == "1.0":
        return True
    if word in _WRONG or word in ("0.0", "", "none"):
        return False
    raise InputError(f"Row {row}, right: found {value!r}; expected a tick, or 1 (right) or 0 (wrong).")


def _time(value: Any, row: int) -> datetime | None:
    text = str(value or "").strip()
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"Row {row}, time: found {text!r}; expected YYYY-MM-DD HH:MM:SS, or empty.") from None
    return time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time
