"""Charts of the report: a figure with its text alternative, and what all figures have in common.

Text alternatives, for screen readers and for print, are from the data of the figures alone.

The colors are close to those of Okabe and Ito (*Color Universal Design*, 2008), which color-blind
readers can distinguish, and visible on white and on black. No figure relies on color alone.
"""

import html
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from reports.formatting import escape_html

IMPROVES, WORSENS, NEUTRAL = "#2f7fd1", "#d55e00", "#8a9099"
"""Colors of an effect that lowers the loss, raises it, or is not significant."""

TRIAL_COLOR, BEST_COLOR = "#6f8396", "#e69f00"
"""Colors of a trial, or of anything without a direction, and of the best one."""

PALETTE = (
    "#2f7fd1", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bd6", "#8a9099"
)  # fmt: skip
"""Colors of categories without an order."""

CELL_COLORS = {"gated": "#2f7fd1", "gru": "#009e73", "lstm": "#cc79a7", "elman": "#56b4e9"}
"""Colors of the built-in cells, the same in all figures."""

ZERO_COLOR = "rgba(138, 144, 153, 0.12)"
"""A translucent gray: white or black would stand out on one of the page's two themes."""

DIVERGING_COLORS = [[0, IMPROVES], [0.5, ZERO_COLOR], [1, WORSENS]]
"""Color scale of differences in loss, centered at zero."""

ROW_HEIGHT = 28
"""Height in pixels of a row of a category axis."""

COLUMN_WIDTH, FULL_WIDTH = 760, 1160
"""Largest width in pixels of a figure of a few rows or lines, and of one of many."""

LEGEND_WIDTH = 40
"""Characters of a line of a legend that a phone has room for."""

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
"""Styles of lines, so that no figure relies on color alone."""

Cells = dict[tuple[int, int], tuple[float, str, str]]
"""Cells of a heat map by row and column: the value that the color shows, the number that is
printed, and what a reader sees who points at the cell."""

HOVER_TEXTS = "%{customdata}<extra></extra>"
"""Template of hover texts that a trace has as its custom data."""


@dataclass(frozen=True)
class ColorScheme:
    """Colors of the curves by one of their properties.

    Attributes:
        label: name of the property.
        legend: (meaning, color) of each color; inner meanings of a scale may be empty.
        indices: index into the legend for each curve, in the order of the figure's traces.
    """

    label: str
    legend: list[tuple[str, str]]
    indices: list[int]


@dataclass(frozen=True)
class Chart:
    """A figure on the page.

    Attributes:
        title: title of the figure.
        figure: the Plotly figure.
        caption: how to read the figure.
        width: width in pixels below which the figure scrolls instead of shrinking; 0 for none.
        max_width: width in pixels above which the figure does not grow.
        color_schemes: color schemes that a reader may choose from, for training curves.
    """

    title: str
    figure: go.Figure
    _: KW_ONLY
    caption: str = ""
    width: int = 0
    max_width: int = COLUMN_WIDTH
    color_schemes: list[ColorScheme] = field(default_factory=list)

    @cached_property
    def alt_text(self) -> str:
        """Text alternative, with the numbers of the figure."""
        return describe_figure(self.figure)

    @property
    def height(self) -> int:
        """Height in pixels."""
        return int(self.figure.layout.height or 450)

    @property
    def uses_webgl(self) -> bool:
        """Whether the figure needs a WebGL context, of which a browser grants only a few."""
        return any(trace.type == "scattergl" for trace in self.figure.data)


def sequential_colors(count: int) -> list[str]:
    """Return colors of ordered values, from orange (best or least) to violet."""
    # The ends of the scale are too faint on white or on black.
    places = np.linspace(0.78, 0.3, count) if count > 1 else [0.5]
    return [str(color) for color in sample_colorscale("Plasma", places)]


def category_colors(values: Sequence[Any]) -> list[str]:
    """Return a color for each of some categories; the built-in cells have their own."""
    is_cell = any(value in CELL_COLORS for value in values)
    rest = itertools.cycle(
        color for color in PALETTE if not (is_cell and color in CELL_COLORS.values())
    )
    return [CELL_COLORS[value] if value in CELL_COLORS else next(rest) for value in values]


# ---------------------------------------------------------------- parts of figures


def find_range(values: Sequence[float]) -> list[float] | None:
    """Return the range of an axis that shows some values with room; None if all are the same."""
    low, high = np.nanmin(values), np.nanmax(values)
    room = 0.05 * (high - low)
    return [low - room, high + room] if room else None


def interval_bars(
    means: Sequence[float], lows: Sequence[float], highs: Sequence[float], color: str = NEUTRAL
) -> dict[str, Any]:
    """Return Plotly's ``error_x`` of the intervals of some means."""
    return {
        "array": np.subtract(highs, means).tolist(),
        "arrayminus": np.subtract(means, lows).tolist(),
        "thickness": 2,
        "width": 5,
        "color": color,
    }


def place_legend_below(figure: go.Figure, height: int, **legend: Any) -> go.Figure:
    """Place the legend below a figure: at its side it leaves no room on a narrow screen.

    Args:
        figure: figure that is changed.
        height: height without the legend, in pixels.
        legend: other settings of the legend.
    """
    place = {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"}
    entries = {trace.name for trace in figure.data if trace.showlegend is not False}
    height += sum(find_row_height([name]) for name in entries)
    return figure.update_layout(
        legend=place | legend, showlegend=True, margin={"t": 20}, height=height
    )


def plot_matrix(
    rows: Sequence[str], columns: Sequence[str], cells: Cells, **style: Any
) -> go.Figure:
    """Plot a heat map with its first row at the top.

    Args:
        rows: names of the rows.
        columns: names of the columns.
        cells: the cells; their values are differences, unless the style is for others.
        style: other attributes of the heat map.
    """
    values = np.full((len(rows), len(columns)), np.nan)
    numbers, texts = np.full((2, *values.shape), "", dtype=object)
    for place, cell in cells.items():
        values[place], numbers[place], texts[place] = cell
    bound = float(np.nanmax(np.abs(values), initial=0)) or 1.0
    colors = {"colorscale": DIVERGING_COLORS, "zmin": -bound, "zmax": bound, "hoverongaps": False}
    printed = {"text": numbers, "texttemplate": "%{text}", "xgap": 2, "ygap": 2}
    hover = {"customdata": texts, "hovertemplate": HOVER_TEXTS}
    axis = {"type": "category", "showgrid": False}
    return go.Figure(
        go.Heatmap(x=columns, y=rows, z=values, **colors | printed | hover | style),
        {"xaxis": axis, "yaxis": axis | {"autorange": "reversed"}},
    )


def wrap_label(label: str, width: int = 26) -> str:
    """Return a label as HTML for Plotly, in lines that leave room for a figure on a phone.

    Args:
        label: the label, which is broken at its commas.
        width: characters of a line, unless one of its parts is longer.
    """
    lines: list[str] = []
    for part in label.split(", "):
        if lines and len(lines[-1]) + len(part) < width:
            lines[-1] += f", {part}"
        else:
            lines.append(part)
    return "<br>".join(map(escape_html, lines))


def find_row_height(labels: Sequence[str]) -> int:
    """Return the height in pixels of a row of a category axis with such labels."""
    return 8 + 16 * (1 + max((label.count("<br>") for label in labels), default=0))


# ---------------------------------------------------------------- text alternatives

_ROOM = 3000
"""Characters in which the marks of a figure are listed; of more there are quartiles."""

_MAX_LISTED = 24
"""Lines that are described one by one, and points of a line; of more points, five."""

_MAX_GROUPS = 12
"""Places on an axis up to which each has its median."""

_EXTREMES = 3
"""Marks that are named at each end."""

_VARIABLE = re.compile(r"%\{(\w+)(?::([^}]*))?\}")
"""Variable in a template of hover texts, with its format."""

_TAG = re.compile(r"<[^>]*>")


@dataclass(frozen=True)
class _Mark:
    """A point, a bar or a cell.

    Attributes:
        place: place on the other axis, of a cell its row and column.
        value: number that it shows; None where both axes have names.
        text: what a reader sees who points at it.
    """

    place: Any
    value: float | None
    text: str


def describe_figure(figure: go.Figure) -> str:
    """Describe a figure for a reader who does not see it: its axes, and what its marks say.

    All marks are listed where that is short; of more there are quartiles, medians and extremes.
    """
    layout = figure.layout.to_plotly_json()
    traces = [trace for trace in figure.data if trace.hoverinfo not in ("skip", "none")]
    parts = [_describe_axes(layout)]
    if len(traces) > _MAX_LISTED or _has_many_scales(layout):
        parts.append(_describe_bundle(traces, layout))
    else:
        # The panels of a figure may show the same points.
        distinct = {getattr(trace, "hovertext", None) or i: trace for i, trace in enumerate(traces)}
        room = _ROOM // max(1, len(distinct))
        texts = [
            (_name_trace(trace, layout), _describe_trace(trace, layout, room))
            for trace in distinct.values()
        ]
        known = [(name, text) for name, text in texts if text]
        parts += [f"{name}: {text}" if name and len(known) > 1 else text for name, text in known]
    for shape in layout.get("shapes", ()):
        if "name" in shape:
            place = shape["x0"] if shape["x0"] == shape["x1"] else shape["y0"]
            parts.append(f"{shape['name']}: {_format(place)}")
    return " ".join(f"{_clean(part)}." for part in parts if part)


def _describe_axes(layout: Mapping[str, Any]) -> str:
    """Name the axes that have a title, and what the names of the traces are."""
    legend = layout.get("legend", {}).get("title", {}).get("text")
    texts = [f"legend: {legend}"] if legend else []
    for letter, direction in (("x", "horizontal"), ("y", "vertical")):
        titles = [
            axis["title"]["text"] + (", logarithmic" if axis.get("type") == "log" else "")
            for name, axis in layout.items()
            if name.startswith(f"{letter}axis") and axis.get("title", {}).get("text")
        ]
        if titles:
            texts.append(f"{direction} axis: {', '.join(dict.fromkeys(titles))}")
    text = "; ".join(texts)
    return text[:1].upper() + text[1:]


def _has_many_scales(layout: Mapping[str, Any]) -> bool:
    """Return whether each place on the horizontal axis has a scale of its own."""
    return layout.get("yaxis", {}).get("visible") is False


def _describe_bundle(traces: Sequence[Any], layout: Mapping[str, Any]) -> str:
    """Describe many lines by where they end."""
    count = f"{len(traces):,} lines"
    if _has_many_scales(layout):
        return f"{count} through {', '.join(layout['xaxis'].get('ticktext', ()))}"
    ends = []
    for trace in traces:
        values = np.asarray(trace.y, dtype=float)
        known = values[np.isfinite(values)].tolist()
        if known:
            ends.append(_Mark(trace.name, known[-1], f"{trace.name}, {_format(known[-1])}"))
    return f"{count}, which end at {_summarize(ends)}"


def _name_trace(trace: Any, layout: Mapping[str, Any]) -> str:
    """Return the name of a trace, or of its panel if there are several."""
    if "xaxis2" not in layout:
        return trace.name or ""
    axis = layout.get(f"xaxis{(trace.xaxis or 'x')[1:]}", {})
    panel = str(axis.get("title", {}).get("text", ""))
    # A panel has one trace, or one of each of several groups.
    return f"{panel}, {trace.name}" if getattr(trace, "legendgroup", None) else panel


def _describe_trace(trace: Any, layout: Mapping[str, Any], room: int) -> str:
    """Describe a trace: by its marks if these need no more than some characters."""
    shown = marks = _list_marks(trace)
    if getattr(trace, "mode", "") == "lines":
        # Where a line is level, its next point says nothing new.
        shown = [each for i, each in enumerate(marks) if not i or each.value != marks[i - 1].value]
        if len(shown) > _MAX_LISTED:
            shown = [shown[round(i * (len(shown) - 1) / 4)] for i in range(5)]
    elif _is_upwards(trace, layout):
        marks.reverse()
    text = "; ".join(dict.fromkeys(mark.text for mark in shown))
    return text if len(text) <= room else _count_spans(trace) or _summarize(marks)


def _is_upwards(trace: Any, layout: Mapping[str, Any]) -> bool:
    """Whether the first of the names on a vertical axis is at its bottom, as Plotly draws it."""
    is_reversed = layout.get("yaxis", {}).get("autorange") == "reversed"
    return trace.type != "heatmap" and not is_reversed and _has_names(trace.y)


def _count_spans(trace: Any) -> str:
    """Count the bars of a timeline in each row; "" for other traces."""
    if trace.type != "bar" or trace.base is None:
        return ""
    rows = Counter(trace.y).most_common()
    counts = ", ".join(f"{row} {count:,}" for row, count in rows[:_MAX_GROUPS])
    more = f" and {len(rows) - _MAX_GROUPS} more rows" if len(rows) > _MAX_GROUPS else ""
    return f"{counts}{more}; the first begins at {min(trace.base)}, the last at {max(trace.base)}"


def _list_marks(trace: Any) -> list[_Mark]:
    """List the marks of a trace that have a value, or a name on both axes."""
    xs, ys = _to_list(trace.x), _to_list(trace.y)
    if trace.type in ("heatmap", "contour"):
        cells = [((i, j), x, y, trace.z[i][j]) for i, y in enumerate(ys) for j, x in enumerate(xs)]
        found = [
            _Mark(f"{_format(y)}, {_format(x)}", float(z), _hover(trace, index, x, y, z))
            for index, x, y, z in cells
            if _is_number(z)
        ]
        return list({mark.text: mark for mark in found}.values())  # a symmetric map has each twice
    count = max(len(xs), len(ys))
    if trace.type in ("scatter", "scattergl"):  # evenly spaced places are a start and a distance
        xs = xs or [(trace.x0 or 0) + i * (trace.dx or 1) for i in range(count)]
    xs, ys = xs or [trace.name] * count, ys or [trace.name] * count
    places, values = (ys, xs) if _has_names(ys) else (xs, ys)
    is_named = _has_names(values)
    return [
        _Mark(place, None if is_named else float(value), _hover(trace, (i,), xs[i], ys[i]))
        for i, (place, value) in enumerate(zip(places, values, strict=True))
        if is_named or _is_number(value)
    ]


def _hover(trace: Any, index: tuple[int, ...], x: Any, y: Any, z: Any = None) -> str:
    """Return what a reader sees who points at a mark."""
    template = trace.hovertemplate
    if not isinstance(template, str) or getattr(trace, "mode", "") == "lines":
        shown = (y, x, z) if z is not None else (y, x) if isinstance(y, str) else (x, y)
        return f"{', '.join(map(_format, shown[:-1]))}: {_format(shown[-1])}"

    def insert(match: re.Match[str]) -> str:
        name, spec = match.groups()
        found: Any = {"x": x, "y": y, "z": z}.get(name)
        if found is None:
            found = getattr(trace, name)
            for each in index:
                found = found[each]
        return _format(found, spec) if spec else str(found)

    return _VARIABLE.sub(insert, template.partition("<extra>")[0])


def _summarize(marks: Sequence[_Mark]) -> str:
    """Summarize marks by quartiles and extremes; without values, by those drawn first and last."""
    values = [mark.value for mark in marks if mark.value is not None]
    if not values:
        return (
            f"{len(marks):,} points. The first drawn: {_join(marks[:_EXTREMES])}. The last, over "
            f"the others: {_join(marks[-_EXTREMES:])}"
        )
    least, *quartiles, greatest = map(_format, np.quantile(values, [0, 0.25, 0.5, 0.75, 1]))
    text = f"{len(values):,} values from {least} to {greatest}, quartiles {', '.join(quartiles)}"
    if groups := _group(marks):
        medians = (f"{place}: {_format(np.median(group))}" for place, group in groups.items())
        return f"{text}. Medians: {'; '.join(medians)}"
    ranked = sorted(marks, key=lambda mark: mark.value or 0.0)
    return f"{text}. Least: {_join(ranked[:_EXTREMES])}. Greatest: {_join(ranked[-_EXTREMES:])}"


def _group(marks: Sequence[_Mark]) -> dict[str, list[float]]:
    """Group values by their places, of many numbers by quarters; {} if there are many names."""
    is_numeric = all(_is_number(mark.place) for mark in marks)
    if is_numeric:
        marks = sorted(marks, key=lambda mark: mark.place)
    places = [mark.place for mark in marks]
    names = list(map(_format, places))
    if len(set(places)) > _MAX_GROUPS:
        if not is_numeric:
            return {}
        edges = np.unique(np.quantile(places, [0.25, 0.5, 0.75, 1]))
        names = [f"up to {_format(edge)}" for edge in edges[np.searchsorted(edges, places)]]
    groups: dict[str, list[float]] = {}
    for name, mark in zip(names, marks, strict=True):
        groups.setdefault(name, []).append(mark.value or 0.0)
    return groups


def _join(marks: Sequence[_Mark]) -> str:
    return "; ".join(mark.text for mark in marks)


def _has_names(values: Any) -> bool:
    return any(isinstance(value, str) for value in _to_list(values))


def _to_list(values: Any) -> list[Any]:
    return [] if values is None else np.asarray(values, dtype=object).tolist()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and bool(np.isfinite(value))


def _format(value: Any, spec: str = "") -> str:
    """Format a place or a value: numbers with four digits, of large ones all."""
    if not _is_number(value):
        return str(value)
    spec = spec or (",.4g" if abs(value) < 1000 else ",.0f")
    return f"{value:{spec}}".replace("-", "−")


def _clean(text: str) -> str:
    """Return a text of a figure without markup and repeated spaces."""
    return " ".join(html.unescape(_TAG.sub(" ", text.replace("<br>", ", "))).split())
