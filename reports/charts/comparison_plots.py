"""Figures that compare architectures: their runs, differences, costs and memory."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from reports.analysis.leaderboard import CostSummary, LeaderboardEntry
from reports.analysis.other_studies import BaselineReference
from reports.charts.chart import (
    CELL_COLORS,
    COLUMN_WIDTH,
    DASHES,
    IMPROVES,
    NEUTRAL,
    ROW_HEIGHT,
    Chart,
    add_reference_lines,
    category_colors,
    find_range,
    interval_bars,
    place_legend_below,
    plot_matrix,
)
from reports.formatting import escape_html
from reports.phrases import describe_similar
from reports.results import Results
from reports.stats.pareto import Cost, ParetoFront
from reports.stats.replicates import Comparison
from reports.stats.scale import Metric, add_unit, format_interval, format_signed
from reports.study_reader import MAX_DRAWN, select_evenly
from rnn.config import BASELINE_CELLS, BaselineConfig
from studies.measure import Measure

MAX_IN_CHART = 20
"""Architectures in the chart of pairwise differences."""

_COSTS: dict[Cost, tuple[str, str, str]] = {
    "parameters": ("parameters", "parameters", "%{x:,.0f} parameters"),
    "seconds": ("training time", "computing time of a run (s)", "%{x:,.2f} s"),
}
"""Name of each cost, title of its axis, and its text in a template of hover texts."""

_SHOWN_QUANTILE = 0.75
"""Share of the architectures within the range of the losses at first: bad ones hide the front."""

BEST_PROFILES = 5
"""Number of best architectures that are drawn; the best of each baseline cell is drawn as well."""


def plot_replicates(
    entries: Sequence[LeaderboardEntry],
    metric: Metric,
    references: Sequence[BaselineReference] = (),
) -> go.Figure:
    """Plot each architecture's runs, and their mean with its 95% interval.

    Args:
        entries: the architectures, the best first.
        metric: metric of the losses.
        references: baseline cells, drawn as vertical lines.
    """
    # On two lines, labels leave room for the runs on a narrow screen.
    labels = [escape_html(entry.label).replace(", ", "<br>", 1) for entry in entries]
    means, lows, highs = ([getattr(e, name) for e in entries] for name in ("mean", "low", "high"))
    losses = [loss for entry in entries for loss in entry.losses]
    spec = metric.scale.value_spec
    figure = go.Figure(
        [
            go.Scatter(
                x=losses,
                y=np.repeat(labels, [entry.runs for entry in entries]).tolist(),
                mode="markers",
                marker={"size": 6, "color": NEUTRAL, "opacity": 0.6},
                name="run",
                hovertemplate=f"%{{y}}: %{{x:{spec}}}<extra></extra>",
            ),
            go.Scatter(
                x=means,
                y=labels,
                error_x=interval_bars(means, lows, highs, IMPROVES),
                mode="markers",
                marker={"size": 10, "color": IMPROVES, "symbol": "diamond"},
                name="mean, 95% interval",
                hovertemplate=f"%{{y}}: mean %{{x:{spec}}}<extra></extra>",
            ),
        ]
    )
    lines = [each.metric for each in references]
    add_reference_lines(figure, references, lines, "x", [*losses, *lows, *highs])
    return figure.update_layout(
        xaxis_title=metric.axis_title,
        yaxis={"type": "category", "autorange": "reversed"},
        height=150 + 40 * len(entries) + ROW_HEIGHT * len(references),
    )


def chart_differences(comparison: Comparison, spec: str) -> Chart | None:
    """Chart the pairwise differences of the best architectures; None for fewer than two.

    Args:
        comparison: comparison of the architectures.
        spec: format of a difference.
    """
    names = comparison.names[:MAX_IN_CHART]
    if len(names) < 2:
        return None
    cells = {}
    for i, row in enumerate(names):
        for j, column in enumerate(names):
            difference = comparison.between(row, column)
            if difference is None or not difference.runs:
                continue
            number = format_signed(difference.mean, spec)
            text = f"{row} minus {column}: {number}"
            text += format_interval(difference.low, difference.high, spec)
            # Only significant differences are colored.
            if difference.is_significant:
                cells[i, j] = difference.mean, number, f"{text}, significant"
            else:
                cells[i, j] = 0.0, f"({number})", f"{text}, not significant"
    rows = [f"{i}: {escape_html(name)}" for i, name in enumerate(names, 1)]
    columns = [f"{i}" for i in range(1, len(names) + 1)]
    figure = plot_matrix(rows, columns, cells, showscale=False)
    figure.update_layout(xaxis_side="top", height=110 + 32 * len(names))
    caption = (
        "Each cell is the row minus the column, numbered as in the table. Blue: the row is better; "
        "orange: the column is better; in parentheses and gray: the difference is not significant."
    )
    if len(names) < len(comparison.names):
        caption += f" The best {MAX_IN_CHART} of {len(comparison.names)} architectures are shown."
    return Chart(
        "Pairwise differences",
        figure,
        caption=caption,
        width=340 + 62 * len(names),
        max_width=max(COLUMN_WIDTH, 340 + 80 * len(names)),
    )


def chart_front(front: ParetoFront, summary: CostSummary) -> Chart:
    """Chart the losses of a study against one cost."""
    loss, (noun, *_) = summary.measure.loss, _COSTS[front.cost]
    caption = (
        "Line and diamonds: the Pareto front; no architecture that costs as much or less has a "
        f"lower {loss}. Circles: {describe_similar(summary)}. Gray: worse."
    )
    others = len(front.similar) + len(front.worse)
    drawn = min(len(front.similar), MAX_DRAWN) + min(len(front.worse), MAX_DRAWN)
    if drawn < others:
        caption += f" {drawn:,} of the {others:,} off the front are drawn, spread over the costs."
    if front.references:
        caption += " Crosses: the best of each baseline cell of the other studies on this page."
    figure = plot_front(front, summary.measure)
    return Chart(f"{loss.capitalize()} against {noun}", figure, caption=caption)


def plot_front(front: ParetoFront, measure: Measure) -> go.Figure:
    """Plot each architecture's held-out loss against its cost, on a logarithmic axis."""
    _, cost_title, cost_text = _COSTS[front.cost]
    members = [member.architecture for member in front.members]
    everything = [*members, *front.similar, *front.worse]
    costs = [each.cost(front.cost) for each in [*everything, *front.references]]
    figure = go.Figure()
    figure.add_scatter(
        x=[each.cost(front.cost) for each in members] + [max(costs)],
        y=[each.loss for each in members] + [members[-1].loss],
        mode="lines",
        line={"shape": "hv", "color": IMPROVES, "width": 2},
        hoverinfo="skip",
        showlegend=False,
    )
    similar = {"symbol": "circle-open", "color": IMPROVES, "size": 9, "line": {"width": 2}}
    groups = [
        ("worse", select_evenly(front.worse), {"color": NEUTRAL, "size": 5, "opacity": 0.55}),
        ("not distinguishable from the front", select_evenly(front.similar), similar),
        ("front", members, {"symbol": "diamond", "color": IMPROVES, "size": 11}),
    ]
    for each in front.references:
        marker = {"symbol": "x", "color": CELL_COLORS[each.cell], "size": 10}
        groups.append((escape_html(each.label), [each], marker))
    for name, points, marker in groups:
        trials = ["" if each.number is None else f" (trial {each.number})" for each in points]
        figure.add_scatter(
            x=[each.cost(front.cost) for each in points],
            y=[each.loss for each in points],
            mode="markers",
            marker=marker,
            name=name,
            text=[escape_html(e.label + trial) for e, trial in zip(points, trials, strict=True)],
            hovertemplate=f"%{{text}}<br>{cost_text}<br>%{{y:{measure.spec}}}<extra></extra>",
            showlegend=bool(points),
        )
    losses = [each.loss for each in everything]
    shown = [each.loss for each in [*members, *front.similar, *front.references]]
    shown += [min(losses), float(np.quantile(losses, _SHOWN_QUANTILE))]
    title = add_unit(measure.name_loss("held-out"), measure.held_out_unit)
    return figure.update_layout(
        xaxis={"title": cost_title} | _scale_costs(min(costs), max(costs)),
        yaxis={"title": title, "range": find_range(shown)},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        height=460,
    )


def _scale_costs(low: float, high: float) -> dict[str, Any]:
    """Return the settings of an axis of costs: linear within a factor of five, else logarithmic."""
    if low <= 0 or high < 5 * low:
        return {"range": find_range([low, high]), "nticks": 5, "tickformat": ",~r"}
    first, last = math.log10(low), math.log10(high)
    factors = (1, 3) if last - first > 1.5 else (1, 2, 5)
    ticks = [f * 10**e for e in range(math.floor(first), math.ceil(last) + 1) for f in factors]
    return {
        "type": "log",
        "range": find_range([first, last]),
        "tickvals": ticks,
        "ticktext": [f"{tick:,}" if tick >= 1 else f"{tick:.6g}" for tick in ticks],
    }


def chart_context(results: Results, entries: Sequence[LeaderboardEntry]) -> Chart | None:
    """Chart the loss by the length of the context; the legend has the effective context.

    The loss with a context is that with the long context plus the excess, so that all points of a
    line refer to the same text.

    Args:
        results: results of the study.
        entries: its architectures, the best first.

    Returns:
        The chart of the best architectures and of the best of each baseline cell; None if no trial
        recorded the losses, as in older studies.
    """
    token = results.config.token_name
    known = [(entry, entry.context) for entry in entries if entry.context is not None]
    cells = [
        entry.architecture.cell if isinstance(entry.architecture, BaselineConfig) else ""
        for entry, _ in known
    ]
    best = {cells.index(cell) for cell in BASELINE_CELLS if cell in cells}
    drawn = [i for i in range(len(known)) if i < BEST_PROFILES or i in best]
    if not drawn:
        return None
    figure = go.Figure()
    colors = category_colors([cells[i] or known[i][0].full_label for i in drawn])
    for k, i in enumerate(drawn):
        entry, profile = known[i]
        figure.add_scatter(
            x=profile.centers,
            y=profile.loss + profile.excess,
            error_y={"array": 1.96 * profile.stderr, "thickness": 1, "width": 2},
            customdata=profile.ranges,
            name=escape_html(f"{profile.estimate()}: {entry.full_label}"),
            mode="lines+markers",
            line={"color": colors[k], "dash": DASHES[k % len(DASHES)]},
            hovertemplate=f"%{{customdata}} {token}s: %{{y:.4f}} bits per byte"
            "<extra>%{fullData.name}</extra>",
            hoverlabel={"namelength": -1},
        )
    title = {"text": f"effective context ({token}s)", "side": "top"}
    place_legend_below(figure, 360, title=title, font={"size": 11}).update_layout(
        xaxis={"type": "log", "title": f"context ({token}s)", "dtick": math.log10(2)},
        yaxis_title="bits per byte",
        margin={"l": 55, "r": 10},
    )
    return Chart("Loss by length of the context", figure, width=340)
