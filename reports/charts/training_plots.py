"""Figures of training curves."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from reports.charts.chart import FULL_WIDTH, NEUTRAL, Chart, find_range, sequential_colors
from reports.formatting import escape_html
from reports.results import Results
from reports.stats import Floats, Integers
from reports.study_reader import describe_selection, select_drawn_curves
from studies.text import add_unit

MAX_POINTS = 100_000
"""Log points drawn at once. Of more, those of each curve are thinned; its least loss is kept."""

_RANKS = {
    "best tenth": 0.1,
    "to a quarter": 0.25,
    "to a half": 0.5,
    "to three quarters": 0.75,
    "worst quarter": 1.0,
}
"""Groups of curves: the share of the trials with a value that are as good or better."""

_UNRANKED = "without a value"
"""Group of the curves of pruned, diverged and running trials."""


def chart_curves(results: Results) -> Chart | None:
    """Chart the training curves by rank; None without any."""
    if results.curves.empty:
        return None
    drawn = select_drawn_curves(results)
    selection = describe_selection(len(drawn), len(results.curve_ends))
    name = results.measure.curve
    return Chart(
        "Training curves" if results.cells else "Curves",
        _plot_curves(results, drawn),
        caption=f"{name[:1].upper()}{name[1:]}, by the rank of the trial.{selection}",
        max_width=FULL_WIDTH,
    )


def _plot_curves(results: Results, drawn: list[int]) -> go.Figure:
    """Plot training curves by rank, the best on top."""
    points = results.curve_ends["points"].reindex(drawn).sum()
    stride = math.ceil(points / MAX_POINTS)
    curves = dict(iter(results.curves.groupby("number")))
    colors = [*sequential_colors(len(_RANKS)), NEUTRAL]
    traces: list[dict[str, Any]] = []
    for (name, numbers), color in zip(_group_by_rank(results, drawn).items(), colors, strict=True):
        if numbers:
            is_best = not traces
            style = {
                "name": name,
                "line": {"width": 2 if is_best else 1, "color": color},
                "opacity": 1 if is_best else 0.6,
            }
            traces.append(_bundle_curves(results, curves, numbers, stride) | style)
    figure = go.Figure(traces[::-1])
    # The steep descent of the first steps, common to all, is outside of the initial range.
    quantiles = [0.02, 1] if results.measure.higher_is_better else [0, 0.98]
    ends = results.curves["loss"].quantile(quantiles)
    title = add_unit(results.measure.curve, results.measure.unit)
    return figure.update_layout(
        xaxis_title="step",
        yaxis={"title": title, "range": find_range(ends.tolist())},
        legend_traceorder="reversed",
        showlegend=True,
        height=320,
    )


def _group_by_rank(results: Results, drawn: Sequence[int]) -> dict[str, list[int]]:
    """Group the drawn trials by their rank among all with a value, the best first."""
    ranked = results.complete.index
    groups: dict[str, list[int]] = {name: [] for name in [*_RANKS, _UNRANKED]}
    shares = {number: place / len(ranked) for place, number in enumerate(ranked)}
    for number in drawn:
        share = shares.get(number, math.inf)
        name = next((name for name, end in _RANKS.items() if share < end), _UNRANKED)
        groups[name].append(number)
    return groups


def _bundle_curves(
    results: Results, curves: Mapping[Any, pd.DataFrame], numbers: Sequence[int], stride: int
) -> dict[str, Any]:
    """Return one trace of some curves, separated by gaps: Plotly's cost is that of each trace."""
    labels = results.table["label"]
    steps: list[np.ndarray] = []
    losses: list[np.ndarray] = []
    names: list[str] = []
    has_single_points = False
    for number in reversed(numbers):
        values = curves[number]["loss"].to_numpy()
        places = _thin_curve(results.measure.to_loss(values), stride)
        chosen = values[places]
        shown_steps = curves[number]["step"].to_numpy()[places]
        steps.append(np.append(shown_steps, shown_steps[-1]))
        losses.append(np.append(chosen, np.nan))
        names += [f"trial {number}: {escape_html(labels[number])}"] * (len(places) + 1)
        has_single_points |= np.isfinite(chosen).sum() == 1
    measure = results.measure
    value = f"%{{y:{measure.spec}}} {measure.difference_unit}".rstrip()
    return {
        "type": "scatter",
        "mode": "lines+markers" if has_single_points else "lines",
        "marker": {"size": 4},
        "x": np.concatenate(steps).astype(np.int32),
        "y": np.concatenate(losses).astype(np.float32),
        "text": names,
        "hovertemplate": f"step %{{x:,}}: {escape_html(value)}<extra>%{{text}}</extra>",
        "hoverlabel": {"namelength": -1},
    }


def _thin_curve(losses: Floats, stride: int) -> Integers:
    """Choose the places of the log points to draw: evenly spaced, the least loss, and the last."""
    places = np.arange(0, len(losses), stride)
    if stride == 1 or np.isnan(losses).all():
        return places
    return np.union1d(places, [int(np.nanargmin(losses)), len(losses) - 1])
