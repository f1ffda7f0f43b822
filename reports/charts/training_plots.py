"""Figures of training curves."""

import math

import numpy as np
import plotly.graph_objects as go

from reports.charts.chart import (
    NEUTRAL,
    ColorScheme,
    category_colors,
    find_range,
    sequential_colors,
)
from reports.formatting import escape_html, objective_name
from reports.results import Results
from reports.stats import Floats, Integers
from reports.stats.scale import (
    add_unit,
    format_param,
    format_value,
    is_missing,
    order_values,
)
from reports.study_reader import select_drawn_curves
from reports.trial_table import is_continuous

MAX_POINTS = 200_000
"""Log points drawn at once. Of more, those of each curve are thinned; its least loss is kept."""

HIGHLIGHTED_CURVES = 10
"""Number of best curves that are drawn thick."""

_RANK_COLORS = 10

_ABSENT_COLOR = "#b9bec6"
"""Color of the trials that lack a parameter."""


def plot_curves(results: Results) -> go.Figure:
    """Plot every training curve, the best on top."""
    drawn, curves = select_drawn_curves(results), []
    by_number = dict(iter(results.curves.groupby("number")))
    best = set(results.complete.index[:HIGHLIGHTED_CURVES])
    labels, points = results.table["label"].to_dict(), results.curve_ends["points"]
    stride = math.ceil(points.reindex(drawn).sum() / MAX_POINTS)
    scale = results.scale
    value = scale.add_unit(f"%{{y:{scale.value_spec}}}")
    hover = f"step %{{x:,}}: {escape_html(value)}<extra>%{{fullData.name}}</extra>"
    for number in reversed(drawn):
        steps, losses = (by_number[number][name].to_numpy() for name in ("step", "loss"))
        places = _thin_curve(scale.to_loss(losses), stride)
        is_best = number in best
        # As dicts, hundreds of curves take half of the time.
        curves.append(
            {
                "type": "scattergl",
                **_encode_steps(steps[places]),
                "y": losses[places].astype(np.float32),
                "name": f"trial {number}: {labels[number]}",
                "mode": "lines",
                "line": {"width": 2.5 if is_best else 1, "color": NEUTRAL},
                "opacity": 1 if is_best else 0.6,
                "hovertemplate": hover,
                "hoverlabel": {"namelength": -1},
                "showlegend": False,
            }
        )
    figure = go.Figure(curves)
    # The steep descent of the first steps, common to all, is outside of the initial range.
    ends = results.curves["loss"].quantile([0.02, 1] if scale.higher_is_better else [0, 0.98])
    title = add_unit(results.measure.curve, results.measure.unit)
    return figure.update_layout(
        xaxis_title="step",
        yaxis={"title": title, "range": find_range(ends.tolist())},
        showlegend=False,
        height=620,
    )


def _thin_curve(losses: Floats, stride: int) -> Integers:
    """Choose the places of the log points to draw: evenly spaced, the least loss, and the last."""
    places = np.arange(0, len(losses), stride)
    if stride == 1 or np.isnan(losses).all():
        return places
    return np.union1d(places, [int(np.nanargmin(losses)), len(losses) - 1])


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
        column = results.table[name]
        values = order_values(column.dropna().unique().tolist())
        is_ordered = not isinstance(values[-1], bool | str) and len(values) > 1
        colors = sequential_colors(len(values)) if is_ordered else category_colors(values)
        named = (values[0], values[-1]) if is_continuous(column) else values
        legend = [
            (format_value(value) if value in named else "", color)
            for value, color in zip(values, colors, strict=True)
        ]
        rows = column[numbers].tolist()
        if any(map(is_missing, rows)):
            legend.append((f"without {format_param(name)}", _ABSENT_COLOR))
        indices = [len(values) if is_missing(v) else values.index(v) for v in rows]
        schemes.append(ColorScheme(format_param(name), legend, indices))
    return schemes


def _encode_steps(steps: np.ndarray) -> dict[str, object]:
    """Encode evenly spaced steps as a start and a distance, which is shorter than a list."""
    distances = np.unique(np.diff(steps))
    if len(distances) == 1:
        return {"x0": int(steps[0]), "dx": int(distances[0])}
    return {"x": steps.astype(np.int32)}
