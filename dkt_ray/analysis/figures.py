"""Interactive figures as plotly's JSON: panels side by side, named axes, colours that the colour-blind can tell apart.

Text and grid colours are left to the page, which knows whether it is light or dark.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

# Okabe and Ito (2008), without yellow, which a light page swallows, and with a blue that a dark page does not swallow
COLOURS: Final = ("#2F86C5", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C8C")
DASHES: Final = ("solid", "dash", "dot", "dashdot")
SYMBOLS: Final = ("circle", "square", "diamond", "cross")
SCALE: Final = "Cividis"
MISSING: Final = "rgba(128,128,128,0.15)"
HEAT: Final = ("#00224e", "#404c6b", "#7d7c78", "#bcaf6f", "#fee838")  # Cividis (Nunez et al., 2018) at every quarter
DIGITS: Final = 5

Trace = dict[str, Any]
Values = Sequence[Any] | pl.Series | npt.NDArray[Any]


class Panel(NamedTuple):
    """Traces on one pair of axes; `axes` are further settings of both axes, e.g. {"x": {"type": "log"}}."""

    traces: Sequence[Trace]
    x: str  # name of the axis, with its unit
    y: str
    title: str = ""
    axes: Mapping[str, Mapping[str, Any]] = {}


def figure(
    panels: Sequence[Panel], columns: int = 1, height: int = 340, menu: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A figure of panels in rows of `columns`; a legend where traces have names.

    Args:
        height: of one row of panels, in pixels.
        menu: a drop-down list, from `choice`.
    """
    rows = -(-len(panels) // columns)
    data: list[Trace] = []
    legend = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"}
    layout: dict[str, Any] = {"height": height * rows + 80, "annotations": [], "legend": legend}
    seen: set[str] = set()
    for number, panel in enumerate(panels):
        suffix = "" if number == 0 else str(number + 1)
        left, right = _span(number % columns, columns, 0.09)
        top, bottom = _span(number // columns, rows, 0.16)
        layout[f"xaxis{suffix}"] = _axis(panel.x, [left, right], f"y{suffix}") | dict(panel.axes.get("x", {}))
        layout[f"yaxis{suffix}"] = _axis(panel.y, [1 - bottom, 1 - top], f"x{suffix}") | dict(panel.axes.get("y", {}))
        if panel.title:
            layout["annotations"].append(_heading(panel.title, (left + right) / 2, 1 - top))
        for trace in panel.traces:
            name = trace.get("name", "")
            data.append(
                {**trace, "xaxis": f"x{suffix}", "yaxis": f"y{suffix}", "showlegend": bool(name) and name not in seen}
            )
            data[-1] |= {"legendgroup": name} if name else {}
            seen.add(name)
    layout["margin"] = {"l": 60, "r": 20, "t": 50, "b": 100 if seen != {""} else 60}
    if menu:
        layout["updatemenus"] = [dict(menu)]
    return {"data": data, "layout": layout}


def curve(
    x: Values, y: Values, number: int = 0, name: str = "", *, marks: bool = False, hover: str | None = None
) -> Trace:
    """A line; its number picks colour, dash and mark."""
    colour, dash = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]
    trace: Trace = {"type": "scatter", "mode": "lines+markers" if marks else "lines", "x": plain(x), "y": plain(y)}
    trace |= {"line": {"color": colour, "dash": dash, "width": 2}, "name": name}
    if marks:
        trace["marker"] = {"symbol": SYMBOLS[number % len(SYMBOLS)], "size": 6}
    return trace | ({"hovertemplate": hover} if hover else {})


def shares(x: Values, table: pl.DataFrame, number: int = 0, name: str = "", *, line: bool = True) -> Trace:
    """Accuracy with its interval as whiskers, and the number of answers on hover; from `measures.accuracy_by`."""
    trace = curve(x, table["accuracy"], number, name, marks=True)
    above, below = table["high"] - table["accuracy"], table["accuracy"] - table["low"]
    trace["error_y"] = {
        "type": "data",
        "symmetric": False,
        "array": plain(above),
        "arrayminus": plain(below),
        "thickness": 1,
    }
    trace["error_y"]["width"] = 2
    trace["customdata"] = plain(table["n"])
    trace["hovertemplate"] = "%{x}: %{y:.4f} of %{customdata:,} answers"
    return trace if line else trace | {"mode": "markers"}


def points(x: Values, y: Values, number: int = 0, name: str = "", *, size: float = 4, opacity: float = 0.5) -> Trace:
    """A cloud of points."""
    marker = {"color": COLOURS[number % len(COLOURS)], "size": size, "opacity": opacity}
    marker["symbol"] = SYMBOLS[number % len(SYMBOLS)]
    return {"type": "scatter", "mode": "markers", "x": plain(x), "y": plain(y), "marker": marker, "name": name}


def coloured(x: Values, y: Values, values: Values, title: str) -> Trace:
    """A cloud of points whose colour is a share from 0 to 1."""
    marker = {"color": plain(values), "colorscale": SCALE, "cmin": 0, "cmax": 1, "size": 5, "opacity": 0.75}
    marker["colorbar"] = {"title": {"text": title, "side": "right"}, "thickness": 12}
    return {"type": "scatter", "mode": "markers", "x": plain(x), "y": plain(y), "marker": marker}


def bars(x: Values, y: Values, number: int = 0, name: str = "", *, width: Values | None = None) -> Trace:
    """Bars; `width` makes a histogram of them."""
    trace: Trace = {
        "type": "bar",
        "x": plain(x),
        "y": plain(y),
        "marker": {"color": COLOURS[number % len(COLOURS)]},
        "name": name,
    }
    return trace | ({"width": plain(width)} if width is not None else {})


def histogram_bars(table: pl.DataFrame, number: int = 0, column: str = "n") -> Trace:
    """Bars of a table with from, to, and a height."""
    return bars((table["from"] + table["to"]) / 2, table[column], number, width=table["to"] - table["from"])


def intervals(names: Sequence[str], r: Values, low: Values, high: Values, number: int, name: str) -> Trace:
    """Estimates with their intervals, one line each, read from top to bottom."""
    values, below, above = (np.array(pl.Series(each, dtype=pl.Float64).to_list(), float) for each in (r, low, high))
    error = {"type": "data", "symmetric": False, "array": plain(above - values), "arrayminus": plain(values - below)}
    trace = points(plain(values), list(names), number, name, size=8, opacity=1.0)
    return trace | {"error_x": error | {"thickness": 1.5}}


def boxes(names: Values, table: pl.DataFrame, number: int, name: str) -> Trace:
    """Boxes from quantiles: 5, 25, 50, 75 and 95 %."""
    levels = {"lowerfence": "5%", "q1": "25%", "median": "50%", "q3": "75%", "upperfence": "95%"}
    trace = {"type": "box", "x": plain(names), "name": name, "marker": {"color": COLOURS[number % len(COLOURS)]}}
    return trace | {key: plain(table[column]) for key, column in levels.items()}


def heat(percent: npt.NDArray[np.int8], names: Sequence[str], visible: bool = True) -> Trace:
    """A square matrix in percent, from row to column; negative cells are grey, colours span the others."""
    known = percent[percent >= 0]
    low = int(known.min()) - 1 if len(known) else 0  # everything up to it is grey
    first = 0.5 / max(int(known.max()) - low, 1) if len(known) else 0.5
    places = np.linspace(first + 1e-6, 1.0, len(HEAT)).tolist()  # plotly wants the last one to be 1 exactly
    stops = [[0.0, MISSING], [first, MISSING], *map(list, zip(places, HEAT, strict=True))]
    encoded = base64.b64encode(np.ascontiguousarray(percent).tobytes()).decode()
    return {
        "type": "heatmap",
        "z": {"dtype": "i1", "bdata": encoded, "shape": f"{percent.shape[0]}, {percent.shape[1]}"},
        "x": list(names),
        "y": list(names),
        "zmin": low,
        "zmax": int(known.max()) if len(known) else 1,
        "colorscale": stops,
        "colorbar": {"title": {"text": "percent", "side": "right"}, "thickness": 12},
        "hovertemplate": "A %{y}, B %{x}: %{z} %<extra></extra>",
        "visible": visible,
    }


def choice(
    labels: Sequence[str], members: Sequence[Sequence[int]], traces: int, titles: Sequence[str] = ()
) -> dict[str, Any]:
    """A drop-down list that shows some of the traces at a time.

    Args:
        members: per label the traces to show.
        titles: per label the name of the x axis, where it changes.
    """
    buttons = []
    for number, (label, shown) in enumerate(zip(labels, members, strict=True)):
        visible = {"visible": [trace in shown for trace in range(traces)]}
        named = {"xaxis.title.text": titles[number]} if titles else {}
        buttons.append({"label": label, "method": "update", "args": [visible, named]})
    return {"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "direction": "down"}


def thinned(table: pl.DataFrame, most: int) -> pl.DataFrame:
    """At most `most` rows, evenly spread, the first and the last among them."""
    if len(table) <= most:
        return table
    return table[np.unique(np.linspace(0, len(table) - 1, most).astype(np.int64))]


def plain(values: Values) -> list[Any]:
    """Values as JSON has them: floats with a few digits, None for what does not exist."""
    listed = values.to_list() if isinstance(values, pl.Series) else np.asarray(values).tolist()
    return [_rounded(value) if isinstance(value, float) else value for value in listed]


def _rounded(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None


def _span(place: int, of: int, gap: float) -> tuple[float, float]:
    """Where the panel at a place begins and ends, as shares of the figure."""
    size = (1 - gap * (of - 1)) / of
    return round(place * (size + gap), 4), round(min(1.0, place * (size + gap) + size), 4)


def _axis(title: str, domain: list[float], anchor: str) -> dict[str, Any]:
    return {"title": {"text": title}, "domain": domain, "anchor": anchor, "automargin": True}


def _heading(text: str, x: float, y: float) -> dict[str, Any]:
    place = {"x": x, "y": y, "xref": "paper", "yref": "paper", "xanchor": "center", "yanchor": "bottom"}
    return {"text": f"<b>{text}</b>", "showarrow": False, **place}
