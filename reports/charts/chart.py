"""A figure as the page shows it: with its title, its words, and the room that it needs."""

from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go

from reports.charts.training_plots import ColorScheme


@dataclass(frozen=True)
class Chart:
    """A figure on the page.

    Attributes:
        title: what it shows.
        figure: as plotly draws it.
        words: the same for those who do not see it.
        note: how to read it.
        width: in pixels, below which it is not squeezed but scrolled; 0 if it may be.
        color_schemes: the ways to colour the curves, if it shows them.
    """

    title: str
    figure: go.Figure
    words: str
    note: str = ""
    width: int = 0
    color_schemes: list[ColorScheme] = field(default_factory=list)

    @property
    def height(self) -> int:
        """Of the figure, in pixels."""
        return int(self.figure.layout.height or 450)

    @property
    def colouring_data(self) -> list[dict[str, Any]]:
        """Return the ways to colour the curves as the page's script takes them."""
        return [{"legend": each.legend, "of": each.of} for each in self.color_schemes]

    @property
    def uses_webgl(self) -> bool:
        """Whether it needs one of the few WebGL contexts that a browser grants a page."""
        return any(trace.type == "scattergl" for trace in self.figure.data)
