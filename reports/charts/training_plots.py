"""Every training curve, and the ways to colour them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from reports.charts.colors import NEUTRAL, PALETTE, sequential_colors
from reports.data.results import Results
from reports.formatting import curve_axis_title, format_param, format_value
from reports.stats.baseline_references import BaselineReference, add_reference_lines
from studies.space import BPTT_STEPS

SHADES = 10
"""Of what has an order."""

MOST_CURVES = 1000
"""Drawn at once; of more, the best half of that number, and as many spread over the others."""

HIGHLIGHTED = 10
"""How many of the best curves are drawn thick."""


def draw(results: Results, references: Sequence[BaselineReference] = ()) -> go.Figure:
    """Draw every training curve, the best on top and thick, and what known cells come to."""
    figure = go.Figure()
    by_number = dict(iter(results.curves.groupby("number")))
    for number in reversed(select_drawn_curves(results)):
        curve, row = by_number[number], results.table.loc[number]
        is_best = number in results.complete.index[:HIGHLIGHTED]
        figure.add_trace(
            go.Scattergl(
                **_steps(curve["step"].to_numpy()),
                y=curve["loss"].to_numpy(dtype=np.float32),
                name=f"trial {number}: {row['label']}",
                mode="lines",
                line={"width": 2.5 if is_best else 1, "color": NEUTRAL},
                opacity=1 if is_best else 0.6,
                hovertemplate="step %{x:,}: %{y:.4f} nats<extra>%{fullData.name}</extra>",
                hoverlabel={"namelength": -1},
                showlegend=False,
            )
        )
    # The first steps, where all fall alike, are left to who zooms out.
    lowest, highest = results.curves["loss"].quantile([0, 0.98])
    lines = [each.training_loss for each in references if math.isfinite(each.training_loss)]
    lowest, highest = min([lowest, *lines]), max([highest, *lines])
    add_reference_lines(figure, references, [each.training_loss for each in references], "y")
    room = 0.05 * (highest - lowest)
    return figure.update_layout(
        xaxis_title="step",
        yaxis={
            "title": curve_axis_title(results.config),
            "range": [lowest - room, highest + room] if room else None,
        },
        hovermode="closest",
        showlegend=bool(lines),
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        height=620,
    )


def select_drawn_curves(results: Results) -> list[int]:
    """Return the numbers of the trials whose curves are drawn, the best first."""
    there = set(results.curves["number"])
    numbers = [number for number in results.table.index if number in there]
    if len(numbers) <= MOST_CURVES:
        return numbers
    best, others = numbers[: MOST_CURVES // 2], numbers[MOST_CURVES // 2 :]
    kept = np.linspace(0, len(others) - 1, MOST_CURVES - len(best)).round().astype(int)
    return best + [others[i] for i in kept]


@dataclass(frozen=True)
class ColorScheme:
    """How curves may be coloured.

    Attributes:
        label: by what.
        legend: (meaning, colour) of each colour; a meaning may be empty between two that are not.
        of: for each curve, in the order of the figure's traces, the place in the legend.
    """

    label: str
    legend: list[tuple[str, str]]
    of: list[int]


def color_schemes(results: Results) -> list[ColorScheme]:
    """Return the ways to colour :func:`draw`: by the value's rank, and by each parameter."""
    numbers = list(reversed(select_drawn_curves(results)))
    count = max(1, len(numbers))
    shades = sequential_colors(SHADES)
    ends = {0: "best tenth", SHADES - 1: "worst tenth, or without a value"}
    ends_with = "final loss"
    if results.config.objective == "validation":
        ends_with = "validation loss"
    found = [
        ColorScheme(
            ends_with,
            [(ends.get(i, ""), shade) for i, shade in enumerate(shades)],
            [(count - 1 - i) * SHADES // count for i in range(len(numbers))],
        )
    ]
    for name in results.parameters:
        values = sorted(results.table[name].unique().tolist())
        has_order = name in ("layers", "state_size", BPTT_STEPS) and len(values) > 1
        colours = sequential_colors(len(values)) if has_order else PALETTE
        legend = [
            (format_value(value), colours[i % len(colours)]) for i, value in enumerate(values)
        ]
        rows = results.table.loc[numbers, name].tolist()
        found.append(ColorScheme(format_param(name), legend, [values.index(v) for v in rows]))
    return found


def _steps(steps: np.ndarray) -> dict[str, object]:
    """Return a curve's steps as a beginning and a distance, where they are evenly spaced."""
    distances = np.unique(np.diff(steps))
    if len(distances) == 1:
        return {"x0": int(steps[0]), "dx": int(distances[0])}
    return {"x": steps.astype(np.int32)}
