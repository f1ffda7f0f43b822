"""Figures that compare replicated architectures."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from reports.analysis.baseline_references import BaselineReference
from reports.analysis.leaderboard import LeaderboardEntry
from reports.charts.alt_text import describe_differences, format_difference
from reports.charts.chart import (
    COLUMN_WIDTH,
    IMPROVES,
    NEUTRAL,
    ROW_HEIGHT,
    Chart,
    add_reference_lines,
)
from reports.charts.effect_plots import DIVERGING_COLORS, interval_bars
from reports.formatting import escape_html
from reports.stats.replicates import Comparison
from reports.stats.scale import Metric, format_signed

MAX_IN_CHART = 20
"""Architectures in the chart of pairwise differences."""


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
    labels, spec = [escape_html(entry.label) for entry in entries], metric.scale.value_spec
    figure = go.Figure(
        [
            go.Scatter(
                x=[loss for entry in entries for loss in entry.losses],
                y=[escape_html(entry.label) for entry in entries for _ in entry.losses],
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
        height=150 + ROW_HEIGHT * (len(entries) + len(references)),
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
    caption = (
        "Each cell is the row minus the column, numbered as in the table. Blue: the row is better; "
        "orange: the column is better; in parentheses and gray: the difference is not significant."
    )
    if len(names) < len(comparison.names):
        caption += f" The best {MAX_IN_CHART} of {len(comparison.names)} architectures are shown."
    return Chart(
        "Pairwise differences",
        plot_differences(comparison, names, spec),
        describe_differences(comparison, names),
        caption,
        width=340 + 62 * len(names),
        max_width=max(COLUMN_WIDTH, 340 + 80 * len(names)),
    )


def plot_differences(comparison: Comparison, names: Sequence[str], spec: str = ".4f") -> go.Figure:
    """Plot pairwise differences as a heat map.

    Args:
        comparison: comparison of at least these architectures.
        names: names of the architectures, the best first.
        spec: format of a difference.
    """
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
            texts[i, j] = format_difference(row, column, difference, spec)
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
    return figure.update_layout(
        xaxis={"type": "category", "showgrid": False, "side": "top"},
        yaxis={"type": "category", "automargin": True, "autorange": "reversed", "showgrid": False},
        height=110 + 32 * len(names),
    )
