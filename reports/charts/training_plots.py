"""Figures of a study's training: every curve with its color schemes, and the timeline."""

import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from reports.charts.chart import (
    IMPROVES,
    NEUTRAL,
    PALETTE,
    ROW_HEIGHT,
    WORSENS,
    ColorScheme,
    add_reference_lines,
    sequential_colors,
)
from reports.data.results import Results
from reports.formatting import (
    curve_axis_title,
    escape_html,
    format_param,
    format_value,
    is_missing,
    objective_name,
)
from reports.stats.baseline_references import BaselineReference
from studies.text import format_duration

MAX_CURVES = 1000
"""Curves drawn at once. Of more, the best 500 are drawn, and 500 spread evenly over the others."""

HIGHLIGHTED_CURVES = 10
"""Number of best curves that are drawn thick."""

_RANK_COLORS = 10

_ABSENT_COLOR = "#b9bec6"
"""Color of the trials that lack a parameter."""


def plot_curves(results: Results, references: Sequence[BaselineReference] = ()) -> go.Figure:
    """Plot every training curve, the best on top, with the baseline cells as lines."""
    figure = go.Figure()
    by_number = dict(iter(results.curves.groupby("number")))
    best = set(results.complete.index[:HIGHLIGHTED_CURVES])
    for number in reversed(select_drawn_curves(results)):
        curve, row = by_number[number], results.table.loc[number]
        is_best = number in best
        figure.add_trace(
            go.Scattergl(
                **_encode_steps(curve["step"].to_numpy()),
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
    # The steep descent of the first steps, common to all, is outside of the initial range.
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
    with_curve = set(results.curves["number"])
    numbers = [number for number in results.table.index if number in with_curve]
    if len(numbers) <= MAX_CURVES:
        return numbers
    best, others = numbers[: MAX_CURVES // 2], numbers[MAX_CURVES // 2 :]
    selected = np.linspace(0, len(others) - 1, MAX_CURVES - len(best)).round().astype(int)
    return best + [others[i] for i in selected]


def list_color_schemes(results: Results) -> list[ColorScheme]:
    """List the color schemes of :func:`plot_curves`: by rank and by each parameter."""
    numbers = list(reversed(select_drawn_curves(results)))
    count = max(1, len(numbers))
    meanings = {0: "best tenth", _RANK_COLORS - 1: "worst tenth, or without a value"}
    schemes = [
        ColorScheme(
            objective_name(results.config),
            [(meanings.get(i, ""), c) for i, c in enumerate(sequential_colors(_RANK_COLORS))],
            [(count - 1 - i) * _RANK_COLORS // count for i in range(len(numbers))],
        )
    ]
    for name in results.parameters:
        values = sorted(results.table[name].dropna().unique().tolist())
        is_ordered = not isinstance(values[0], bool | str) and len(values) > 1
        colors = sequential_colors(len(values)) if is_ordered else PALETTE
        legend = [(format_value(value), colors[i % len(colors)]) for i, value in enumerate(values)]
        rows = results.table.loc[numbers, name].tolist()
        if any(map(is_missing, rows)):
            legend.append((f"without {format_param(name)}", _ABSENT_COLOR))
        indices = [len(values) if is_missing(v) else values.index(v) for v in rows]
        schemes.append(ColorScheme(format_param(name), legend, indices))
    return schemes


def plot_timeline(results: Results) -> go.Figure:
    """Plot when each worker trained which trial, one row per worker."""
    rows = results.table.dropna(subset=["started", "completed", "worker"])
    figure = go.Figure()
    colors = {"COMPLETE": IMPROVES, "PRUNED": "#e69f00", "DIVERGED": WORSENS, "FAIL": "#cc79a7"}
    for state, color in colors.items():
        trials = rows[rows["state"] == state]
        if trials.empty:
            continue
        lengths = (trials["completed"] - trials["started"]).dt.total_seconds()
        figure.add_trace(
            go.Bar(
                base=trials["started"].dt.strftime("%Y-%m-%dT%H:%M:%S.%f").tolist(),
                x=(1000 * lengths).round().tolist(),  # milliseconds, the unit of a date axis
                y=[escape_html(worker) for worker in trials["worker"]],
                orientation="h",
                name=state.lower() if state != "FAIL" else "failed",
                marker={"color": color, "line": {"width": 1, "color": "rgba(255,255,255,0.6)"}},
                customdata=[
                    f"trial {number}: {label}, {format_duration(seconds)}"
                    for number, label, seconds in zip(
                        trials.index, trials["label"], lengths, strict=True
                    )
                ],
                hovertemplate="%{customdata}<extra></extra>",
            )
        )
    return figure.update_layout(
        barmode="overlay",
        xaxis={"type": "date", "title": "time (UTC)"},
        yaxis={"type": "category", "automargin": True, "autorange": "reversed"},
        legend={"orientation": "h", "y": 1.15},
        height=130 + ROW_HEIGHT * max(1, rows["worker"].nunique()),
    )


def _encode_steps(steps: np.ndarray) -> dict[str, object]:
    """Encode evenly spaced steps as a start and a distance, which is shorter than a list."""
    distances = np.unique(np.diff(steps))
    if len(distances) == 1:
        return {"x0": int(steps[0]), "dx": int(distances[0])}
    return {"x": steps.astype(np.int32)}
