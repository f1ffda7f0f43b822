"""Charts of the report: a figure with its title, and what all figures have in common.

The colors are close to those of Okabe and Ito (*Color Universal Design*, 2008), which color-blind
readers can distinguish. No figure relies on color alone.
"""

import itertools
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from reports.formatting import escape_html, to_plain
from rnn.errors import UserError
from studies.messages import shorten

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
"""A faint gray."""

DIVERGING_COLORS = [[0, IMPROVES], [0.5, ZERO_COLOR], [1, WORSENS]]
"""Color scale of differences in loss, centered at zero."""

MARGIN = {"l": 60, "r": 20, "t": 10, "b": 60}
"""Margins of a figure, on a page and in a notebook."""

ROW_HEIGHT = 28
"""Height in pixels of a row of a category axis."""

COLUMN_WIDTH, FULL_WIDTH = 760, 1160
"""Largest width in pixels of a figure of a few rows or lines, and of one of many."""

LEGEND_WIDTH = 50
"""Characters of a line of a legend that a phone has room for."""

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
"""Styles of lines, so that no figure relies on color alone."""

PaperWidth = Literal["column", "page"]
"""Width of a figure in a paper."""

_PAPER_WIDTHS: dict[PaperWidth, float] = {"column": 85, "page": 178}
"""Widths in millimetres of one column and of both in most journals of two columns."""

_PIXELS_PER_MM = 96 / 25.4
"""CSS pixels, by which ``write_image`` sizes a PDF."""

_PAPER_FONT = 8 * 96 / 72
"""Size in pixels of a font of 8 points."""

Cells = dict[tuple[int, int], tuple[float, str, str]]
"""Cells of a heat map by row and column: the value that the color shows, the number that is
printed, and what a reader sees who points at the cell."""

HOVER_TEXTS = "%{customdata}<extra></extra>"
"""Template of hover texts that a trace has as its custom data."""


@dataclass(frozen=True)
class Chart:
    """A figure on the page.

    Attributes:
        caption: how to read the figure.
        finding: what the figure shows, in one sentence; "" for none.
        width: width in pixels below which the figure scrolls instead of shrinking; 0 for none.
        max_width: width in pixels above which the figure does not grow.
    """

    title: str
    figure: go.Figure
    _: KW_ONLY
    caption: str = ""
    finding: str = ""
    width: int = 0
    max_width: int = COLUMN_WIDTH

    @property
    def description(self) -> str:
        """Title and finding, for readers who do not see the figure."""
        return to_plain(f"{self.title}. {self.finding}").strip()

    @property
    def height(self) -> int:
        """Height in pixels."""
        return int(self.figure.layout.height or 450)


def sequential_colors(count: int) -> list[str]:
    """Return colors of ordered values, from orange (best or least) to violet."""
    # The ends of the scale are too faint or too dark.
    places = np.linspace(0.78, 0.3, count) if count > 1 else [0.5]
    return [str(color) for color in sample_colorscale("Plasma", places)]


def category_colors(values: Sequence[Any]) -> list[str]:
    """Return a color for each of some categories; the built-in cells have their own."""
    is_cell = any(value in CELL_COLORS for value in values)
    rest = itertools.cycle(
        color for color in PALETTE if not (is_cell and color in CELL_COLORS.values())
    )
    return [CELL_COLORS[value] if value in CELL_COLORS else next(rest) for value in values]


# ---------------------------------------------------------------- figures of a paper


def fit_to_paper(figure: go.Figure, width: PaperWidth | None) -> go.Figure:
    """Give a figure the size of a column or a page, fonts of 8 points and thin lines.

    Args:
        figure: figure that is changed.
        width: width in the paper; None leaves the figure as it is.

    Raises:
        UserError: if the width is another one.
    """
    if width is None:
        return figure
    if width not in _PAPER_WIDTHS:
        raise UserError(f"width is {shorten(repr(width))}: expected 'column', 'page' or None")
    scale = _PAPER_FONT / 12  # 12 pixels is the default of a page
    figure.update_layout(
        template="simple_white",
        width=round(_PAPER_WIDTHS[width] * _PIXELS_PER_MM),
        height=round(scale * float(figure.layout.height or 450)),
        font={"family": "Arial, Helvetica, sans-serif", "size": _PAPER_FONT},
        margin={"l": 10, "r": 10, "t": 30 if figure.layout.annotations else 8, "b": 10},
    )
    figure.layout.legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
    figure.update_annotations(font_size=_PAPER_FONT)
    figure.update_xaxes(automargin=True, title_font_size=_PAPER_FONT, title_standoff=6, nticks=5)
    figure.update_yaxes(automargin=True, title_font_size=_PAPER_FONT, title_standoff=6)
    for trace in figure.select_traces({"type": "scatter"}):
        trace.marker.size = 6
        trace.error_x.update(thickness=1, width=3)
    return figure


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

    The height in pixels is that without the legend.
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

    The values of the cells are differences, unless the style is for others.
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

    It is broken at its commas, into lines of ``width`` characters unless a part is longer.
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
    return 8 + 17 * (1 + max((label.count("<br>") for label in labels), default=0))
