"""Small charts as SVG text, so that a report is one file that needs no network and no script."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Final, NamedTuple

WIDTH: Final = 460
HEIGHT: Final = 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 44


class Point(NamedTuple):
    """A mark, with the ends of its interval where it has one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    note: str = ""


class Axis(NamedTuple):
    """What an axis shows: its name, its range, and its ticks with their labels."""

    name: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]


def share_axis(name: str) -> Axis:
    """An axis from 0 to 1."""
    return Axis(name, 0.0, 1.0, [(tick / 5, f"{tick / 5:.1f}") for tick in range(6)])


def range_axis(name: str, values: Sequence[float], ticks: int = 5) -> Axis:
    """An axis that holds all values, with a little room."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = 0.08 * (high - low) or 0.05
    low, high = low - room, high + room
    steps = [low + (high - low) * tick / (ticks - 1) for tick in range(ticks)]
    return Axis(name, low, high, [(step, f"{step:.3f}") for step in steps])


def label_axis(name: str, labels: Sequence[str]) -> Axis:
    """An axis of names at 0, 1, 2, ..."""
    return Axis(name, -0.5, len(labels) - 0.5, list(enumerate(labels)))


def lines(series: Mapping[str, Sequence[Point]], x: Axis, y: Axis, diagonal: bool = False) -> str:
    """A line with marks and interval whiskers for each series; classes `s0`, `s1`, ... carry the colours."""
    parts = [*_frame(x, y)]
    if diagonal:
        parts.append(_line("diagonal", _x(x, x.low), _y(y, y.low), _x(x, x.high), _y(y, y.high)))
    for index, (name, points) in enumerate(series.items()):
        path = " ".join(f"{_x(x, point.x):.1f},{_y(y, point.y):.1f}" for point in points)
        marks = "".join(_mark(point, x, y, name) for point in points)
        parts.append(f'<g class="s{index}"><polyline points="{path}"/>{marks}</g>')
    return _svg(parts)


class Trace(NamedTuple):
    """A line without marks; its kind is its class, its note shows on hover."""

    points: Sequence[tuple[float, float]]
    note: str
    kind: str


class Scale(NamedTuple):
    """A vertical axis of parallel coordinates: its name, and ticks between 0 (bottom) and 1 (top)."""

    name: str
    ticks: Sequence[tuple[float, str]]


def traces(drawn: Sequence[Trace], x: Axis, y: Axis) -> str:
    """Many lines in one chart, the last on top; what lies below or above the axis is drawn at its end."""
    parts = [*_frame(x, y)]
    for trace in drawn:
        places = ((_x(x, left), _y(y, min(max(height, y.low), y.high))) for left, height in trace.points)
        parts.append(_path(places, trace.kind, trace.note))
    return _svg(parts)


def parallel(scales: Sequence[Scale], drawn: Sequence[Trace]) -> str:
    """Parallel coordinates (Inselberg 1985): an axis for each scale, a line for each trace, the last on top.

    Args:
        scales: from left to right.
        drawn: lines of points (index of the scale, place on it between 0 and 1).
    """
    step, bottom = 118, HEIGHT - _BOTTOM
    parts, tops = [], 30

    def left(index: float) -> float:
        return 66 + step * index

    def top(place: float) -> float:
        return bottom - place * (bottom - tops)

    for index, scale in enumerate(scales):
        parts.append(_line("axis", left(index), tops, left(index), bottom))
        parts.append(_text(left(index), 14 if index % 2 else bottom + 24, scale.name, "middle", "name"))
    for trace in drawn:
        parts.append(_path(((left(index), top(place)) for index, place in trace.points), trace.kind, trace.note))
    for index, scale in enumerate(scales):
        parts += [_text(left(index) - 5, top(place) + 4, label, "end") for place, label in scale.ticks]
    width = left(len(scales) - 1) + 60
    return f'<svg viewBox="0 0 {width} {HEIGHT}" style="min-width: {width}px" role="img">{"".join(parts)}</svg>'


def bars(values: Mapping[str, float], title: str) -> str:
    """A bar for each value, from top to bottom, as an SVG that can also stand alone as a file."""
    longest, labels, right = max([*values.values(), 1e-300]), 190, 60
    parts = [_text(labels, 18, title, "start", "name")]
    for number, (name, value) in enumerate(values.items()):
        top, width = 30 + 16 * number, max(value, 0.0) / longest * (WIDTH - labels - right)
        box = f'x="{labels}" y="{top}" width="{width:.1f}" height="11"'
        parts.append(f'<rect class="s0" fill="#2f86c5" {box}/>{_text(labels - 6, top + 9, name, "end")}')
        parts.append(_text(labels + width + 5, top + 9, f"{value:.4f}", "start"))
    shape = f'viewBox="0 0 {WIDTH} {40 + 16 * len(values)}" font-family="sans-serif" font-size="11" fill="#5b6675"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {shape}>{"".join(parts)}</svg>'


def standalone(svg: str) -> str:
    """A chart of `lines` as a file of its own."""
    style = (
        "svg{font:11px sans-serif}text{fill:#5b6675}.grid{stroke:#e3e7ec}polyline{fill:none}"
        "polyline,.whisker{stroke:#2f86c5;stroke-width:1.5}circle{fill:#2f86c5}"
    )
    named = svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return named.replace(">", f"><style>{style}</style>", 1)


def legend(names: Sequence[str]) -> str:
    """The names with their colours, as HTML."""
    items = "".join(f'<span class="key s{index}">{escape(name)}</span>' for index, name in enumerate(names))
    return f'<p class="legend">{items}</p>'


def _mark(point: Point, x: Axis, y: Axis, name: str) -> str:
    left, top = _x(x, point.x), _y(y, point.y)
    whisker = (
        ""
        if point.low is None or point.high is None
        else _line("whisker", left, _y(y, point.low), left, _y(y, point.high))
    )
    title = escape(f"{name}: {point.note or f'{point.y:.4f}'}")
    return f'{whisker}<circle cx="{left:.1f}" cy="{top:.1f}" r="3.5"><title>{title}</title></circle>'


def _path(places: Iterable[tuple[float, float]], kind: str, note: str) -> str:
    points = " ".join(f"{left:.1f},{top:.1f}" for left, top in places)
    return f'<polyline class="{escape(kind)}" points="{points}"><title>{escape(note)}</title></polyline>'


def _frame(x: Axis, y: Axis) -> list[str]:
    bottom = HEIGHT - _BOTTOM
    parts = []
    for value, label in y.ticks:
        height = _y(y, value)
        parts.append(_line("grid", _LEFT, height, WIDTH - _RIGHT, height))
        parts.append(_text(_LEFT - 6, height + 4, label, "end"))
    parts += [_text(_x(x, value), bottom + 16, label, "middle") for value, label in x.ticks]
    parts.append(_text((WIDTH + _LEFT) / 2, HEIGHT - 8, x.name, "middle", "name"))
    turned = f'transform="translate(12 {(bottom + _TOP) / 2:.1f}) rotate(-90)"'
    parts.append(f'<text class="name" text-anchor="middle" {turned}>{escape(y.name)}</text>')
    return parts


def _svg(parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _x(axis: Axis, value: float) -> float:
    return _LEFT + (value - axis.low) / (axis.high - axis.low) * (WIDTH - _LEFT - _RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - _BOTTOM - (value - axis.low) / (axis.high - axis.low) * (HEIGHT - _TOP - _BOTTOM)
