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
)
from reports.charts.effect_plots import DIVERGING_COLORS, interval_bars
from reports.formatting import escape_html
from reports.results import Results
from reports.stats.pareto import Cost, CostedArchitecture, ParetoFront
from reports.stats.replicates import Comparison, Difference
from reports.stats.scale import Metric, add_unit, format_signed
from reports.study_reader import MAX_DRAWN, select_evenly
from rnn.config import BASELINE_CELLS, BaselineConfig
from studies.measure import Measure

MAX_IN_CHART = 20
"""Architectures in the chart of pairwise differences."""

AXIS_TITLES: dict[Cost, str] = {
    "parameters": "parameters",
    "seconds": "computing time of a run (s)",
}
"""Title of the axis of each cost."""

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
    entries = entries[::-1]  # Plotly's first row is at the bottom
    # On two lines, labels leave room for the runs on a narrow screen.
    labels = [escape_html(entry.label).replace(", ", "<br>", 1) for entry in entries]
    spec = metric.scale.value_spec
    figure = go.Figure(
        [
            go.Scatter(
                x=[loss for entry in entries for loss in entry.losses],
                y=[label for label, e in zip(labels, entries, strict=True) for _ in e.losses],
                mode="markers",
                marker={"size": 6, "color": NEUTRAL, "opacity": 0.6},
                name="run",
                hovertemplate=f"%{{y}}: %{{x:{spec}}}<extra></extra>",
            ),
            go.Scatter(
                x=[entry.mean for entry in entries],
                y=labels,
                error_x=interval_bars(entries, IMPROVES),
                mode="markers",
                marker={"size": 10, "color": IMPROVES, "symbol": "diamond"},
                name="mean, 95% interval",
                hovertemplate=f"%{{y}}: mean %{{x:{spec}}}<extra></extra>",
            ),
        ]
    )
    lines = [each.metric for each in references]
    add_reference_lines(figure, references, lines, "x")
    # Plotly ignores lines across the figure when it chooses a range.
    bounds = [bound for e in entries for bound in (*e.losses, e.low, e.high)]
    lowest, highest = np.nanmin([*bounds, *lines]), np.nanmax([*bounds, *lines])
    room = 0.05 * (highest - lowest)
    return figure.update_layout(
        xaxis={
            "title": metric.axis_title,
            "range": [lowest - room, highest + room] if room else None,
        },
        yaxis={"type": "category", "automargin": True},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
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
    means = np.full((len(names), len(names)), np.nan)
    labels, texts = (np.full(means.shape, "", dtype=object) for _ in range(2))
    for i, row in enumerate(names):
        for j, column in enumerate(names):
            difference = comparison.between(row, column)
            if difference is None or not difference.runs:
                continue
            # Only significant differences are colored.
            means[i, j] = difference.mean if difference.is_significant else 0
            number = format_signed(difference.mean, spec)
            labels[i, j] = number if difference.is_significant else f"({number})"
            texts[i, j] = _describe_difference(row, column, difference, spec)
    bound = float(np.nanmax(np.abs(means), initial=0)) or 1.0
    figure = go.Figure(
        go.Heatmap(
            z=means,
            x=[f"{i}" for i in range(1, len(names) + 1)],
            y=[f"{i}: {escape_html(name)}" for i, name in enumerate(names, 1)],
            zmin=-bound,
            zmax=bound,
            colorscale=DIVERGING_COLORS,
            text=labels,
            texttemplate="%{text}",
            customdata=texts,
            hovertemplate="%{customdata}<extra></extra>",
            hoverongaps=False,
            xgap=2,
            ygap=2,
            showscale=False,
        )
    )
    figure.update_layout(
        xaxis={"type": "category", "showgrid": False, "side": "top"},
        yaxis={"type": "category", "automargin": True, "autorange": "reversed", "showgrid": False},
        height=110 + 32 * len(names),
    )
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


def _describe_difference(first: str, second: str, difference: Difference, spec: str) -> str:
    interval = ""
    if not math.isnan(difference.half_width):
        ends = (format_signed(end, spec) for end in (difference.low, difference.high))
        interval = f" [{', '.join(ends)}]"
    verdict = "significant" if difference.is_significant else "not significant"
    return f"{first} minus {second}: {format_signed(difference.mean, spec)}{interval}, {verdict}"


def chart_front(front: ParetoFront, summary: CostSummary) -> Chart:
    """Chart the losses of a study against one cost."""
    noun = "parameters" if front.cost == "parameters" else "training time"
    title = f"{summary.measure.loss.capitalize()} against {noun}"
    caption = (
        "Line and diamonds: the Pareto front; no architecture that costs as much or less has a "
        f"lower {summary.measure.loss}. Circles: {_describe_similar(summary)} Gray: worse."
    )
    others = len(front.similar) + len(front.worse)
    drawn = min(len(front.similar), MAX_DRAWN) + min(len(front.worse), MAX_DRAWN)
    if drawn < others:
        caption += f" {drawn:,} of the {others:,} off the front are drawn, spread over the costs."
    if front.references:
        caption += " Crosses: the best of each baseline cell of the other studies on this page."
    return Chart(title, plot_front(front, summary.measure), caption=caption)


def plot_front(front: ParetoFront, measure: Measure) -> go.Figure:
    """Plot each architecture's held-out loss against its cost, on a logarithmic axis."""
    axes = front.cost, measure
    members = [member.architecture for member in front.members]
    everything = [*members, *front.similar, *front.worse]
    costs = [each.cost(front.cost) for each in [*everything, *front.references]]
    losses = [each.loss for each in everything]
    figure = go.Figure(
        [
            _trace(*axes, select_evenly(front.worse), "worse", color=NEUTRAL, size=5, opacity=0.55),
            _trace(
                *axes,
                select_evenly(front.similar),
                "not distinguishable from the front",
                symbol="circle-open",
                color=IMPROVES,
                size=9,
                line={"width": 2},
            ),
            go.Scatter(
                x=[each.cost(front.cost) for each in members] + [max(costs)],
                y=[each.loss for each in members] + [members[-1].loss],
                mode="lines",
                line={"shape": "hv", "color": IMPROVES, "width": 2},
                hoverinfo="skip",
                showlegend=False,
            ),
            _trace(*axes, members, "front", symbol="diamond", color=IMPROVES, size=11),
            *(
                _trace(
                    *axes,
                    [each],
                    escape_html(each.label),
                    symbol="x",
                    color=CELL_COLORS[each.cell],
                    size=10,
                )
                for each in front.references
            ),
        ]
    )
    shown = [*(each.loss for each in [*members, *front.similar, *front.references])]
    top = max([float(np.quantile(losses, _SHOWN_QUANTILE)), *shown])
    bottom = min([*losses, *shown])
    room = 0.06 * (top - bottom)
    return figure.update_layout(
        xaxis={"title": AXIS_TITLES[front.cost]} | _scale(min(costs), max(costs)),
        yaxis={
            "title": add_unit(measure.name_loss("held-out"), measure.held_out_unit),
            "range": [bottom - room, top + room],
        },
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        height=460,
    )


def _scale(low: float, high: float) -> dict[str, Any]:
    """Return the settings of an axis of costs: linear within a factor of five, else logarithmic."""
    if low <= 0 or high < 5 * low:
        room = 0.06 * (high - low)
        return {"range": [low - room, high + room], "nticks": 5, "tickformat": ",~r"}
    first, last = math.log10(low), math.log10(high)
    room = 0.06 * (last - first)
    factors = (1, 3) if last - first > 1.5 else (1, 2, 5)
    ticks = [f * 10**e for e in range(math.floor(first), math.ceil(last) + 1) for f in factors]
    return {
        "type": "log",
        "range": [first - room, last + room],
        "tickvals": ticks,
        "ticktext": [f"{tick:,}" if tick >= 1 else f"{tick:.6g}" for tick in ticks],
    }


def _describe_similar(summary: CostSummary) -> str:
    if summary.is_replicated:
        return "not significantly worse than the front at their cost, corrected for all pairs."
    data = f"over the {summary.measure.data} of these single runs."
    return f"not distinguishable from the front at their cost, {data}"


def _trace(
    cost: Cost, measure: Measure, points: Sequence[CostedArchitecture], name: str, **marker: object
) -> go.Scatter:
    unit = " parameters" if cost == "parameters" else " s"
    spec = ",.0f" if cost == "parameters" else ",.2f"
    return go.Scatter(
        x=[each.cost(cost) for each in points],
        y=[each.loss for each in points],
        mode="markers",
        marker=marker,
        name=name,
        text=[
            escape_html(each.label + (f" (trial {each.number})" if each.number is not None else ""))
            for each in points
        ],
        hovertemplate=f"%{{text}}<br>%{{x:{spec}}}{unit}<br>%{{y:{measure.spec}}}<extra></extra>",
        showlegend=bool(points),
    )


def chart_context(results: Results, entries: Sequence[LeaderboardEntry]) -> Chart | None:
    """Chart the loss by the length of the context; the legend has the effective context.

    The loss with a context is that with the long context plus the excess, so that all points of a
    line refer to the same text.

    Args:
        results: results of the study.
        entries: its architectures, the best first.

    Returns:
        The chart of the best architectures and baseline cells; None if no trial recorded the
        losses, as in older studies.
    """
    drawn, token = _select_profiles(entries), results.config.token_name
    if not drawn:
        return None
    figure = go.Figure()
    colors = category_colors([_find_category(entry) for entry in drawn])
    for i, entry in enumerate(drawn):
        assert entry.context is not None
        profile, effective = entry.context, entry.context.estimate()
        style = {"color": colors[i], "dash": DASHES[i % len(DASHES)]}
        figure.add_trace(
            go.Scatter(
                x=profile.centers,
                y=profile.loss + profile.excess,
                error_y={"array": 1.96 * profile.stderr, "thickness": 1, "width": 2},
                customdata=_format_ranges(profile.bins),
                name=escape_html(f"{effective}: {entry.full_label}"),
                mode="lines+markers",
                line=style,
                hovertemplate=f"%{{customdata}} {token}s: %{{y:.4f}} bits per byte"
                "<extra>%{fullData.name}</extra>",
                hoverlabel={"namelength": -1},
            )
        )
    figure.update_layout(
        xaxis={"type": "log", "title": f"context ({token}s)", "dtick": math.log10(2)},
        yaxis={"title": "bits per byte"},
        # Below the plot: a legend at its side leaves no room on a narrow screen.
        legend={
            "title": {"text": f"effective context ({token}s)", "side": "top"},
            "font": {"size": 11},
            "orientation": "h",
            "y": -0.2,
            "yanchor": "top",
            "x": 0,
            "xanchor": "left",
        },
        showlegend=True,
        margin={"l": 55, "r": 10, "t": 20},
        height=360 + 24 * len(drawn),
    )
    return Chart("Loss by length of the context", figure, width=340)


def _select_profiles(entries: Sequence[LeaderboardEntry]) -> list[LeaderboardEntry]:
    """Return the best architectures that have a profile, and the best of each baseline cell."""
    known = [entry for entry in entries if entry.context is not None]
    selected = known[:BEST_PROFILES]
    for cell in BASELINE_CELLS:
        of_cell = [
            entry
            for entry in known
            if isinstance(entry.architecture, BaselineConfig) and entry.architecture.cell == cell
        ]
        selected += [entry for entry in of_cell[:1] if entry not in selected]
    return selected


def _find_category(entry: LeaderboardEntry) -> str:
    """Return what the color of an architecture stands for: its baseline cell, or itself."""
    if isinstance(entry.architecture, BaselineConfig):
        return entry.architecture.cell
    return entry.full_label


def _format_ranges(bins: Sequence[int]) -> list[str]:
    """Return the range of each bin: ``1``, ``2``, ``3–4``, ``5–8``."""
    first = [1, *(each + 1 for each in bins[:-1])]
    return [
        str(high) if low == high else f"{low}–{high}" for low, high in zip(first, bins, strict=True)
    ]
