"""Charts of the report: a figure with its text alternative, and the colors of all figures.

The colors are close to those of Okabe and Ito (*Color Universal Design*, 2008), which color-blind
readers can distinguish, and visible on white and on black. No figure relies on color alone.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from reports.analysis.other_studies import BaselineReference
from reports.charts.alt_text import describe_figure
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

ROW_HEIGHT = 28
"""Height in pixels of a row of a category axis."""

COLUMN_WIDTH, FULL_WIDTH = 760, 1160
"""Largest width in pixels of a figure of a few rows or lines, and of one of many."""

_DASHES = ("dash", "dot", "dashdot", "longdash", "longdashdot")


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


def add_reference_lines(
    figure: go.Figure, references: Sequence[BaselineReference], losses: Sequence[float], axis: str
) -> None:
    """Add a dashed line with a legend entry for each reference whose loss is known.

    Args:
        figure: figure that is changed.
        references: the references.
        losses: their positions; NaN if unknown.
        axis: axis of the losses, ``x`` or ``y``.
    """
    for i, (reference, loss) in enumerate(zip(references, losses, strict=True)):
        if not math.isfinite(loss):
            continue
        line = {
            "color": CELL_COLORS[reference.cell],
            "dash": _DASHES[i % len(_DASHES)],
            "width": 2,
        }
        style = {"line": line, "name": escape_html(reference.label), "showlegend": True}
        if axis == "y":
            figure.add_hline(y=loss, **style)
        else:
            figure.add_vline(x=loss, **style)
