"""Figure of the loss by the length of the context."""

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from reports.analysis.leaderboard import LeaderboardEntry
from reports.charts.chart import Chart, category_colors
from reports.data.results import Results
from reports.formatting import escape_html
from rnn.config import BASELINE_CELLS, BaselineConfig

BEST_PROFILES = 5
"""Number of best architectures that are drawn; the best of each baseline cell is drawn as well."""

_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


def chart_context(results: Results, entries: Sequence[LeaderboardEntry]) -> Chart | None:
    """Chart the loss by the length of the context of the best architectures and baseline cells.

    Args:
        results: results of the study.
        entries: its architectures, the best first.

    Returns:
        The chart; None if no trial recorded the losses, as in older studies.
    """
    drawn = select_profiles(entries)
    if not drawn:
        return None
    token = results.config.token_name
    return Chart(
        "Loss by length of the context",
        plot_context(drawn, token),
        describe_context(drawn, token),
        "",
        width=340,
    )


def select_profiles(entries: Sequence[LeaderboardEntry]) -> list[LeaderboardEntry]:
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


def plot_context(entries: Sequence[LeaderboardEntry], token: str) -> go.Figure:
    """Plot the loss by the length of the context; the legend has the effective context.

    The loss with a context is that with the long context plus the excess, so that all points of a
    line refer to the same text.

    Args:
        entries: architectures that have a profile.
        token: name of one token.
    """
    figure = go.Figure()
    colors = category_colors([_find_category(entry) for entry in entries])
    for i, entry in enumerate(entries):
        assert entry.context is not None
        profile, effective = entry.context, entry.context.estimate()
        ranges = _format_ranges(profile.bins)
        style = {"color": colors[i], "dash": _DASHES[i % len(_DASHES)]}
        figure.add_trace(
            go.Scatter(
                x=profile.centers,
                y=profile.loss + profile.excess,
                error_y={"array": 1.96 * profile.stderr, "thickness": 1, "width": 2},
                customdata=ranges,
                name=escape_html(f"{effective}: {entry.full_label}"),
                mode="lines+markers",
                line=style,
                hovertemplate=f"%{{customdata}} {token}s: %{{y:.4f}} bits per byte"
                "<extra>%{fullData.name}</extra>",
                hoverlabel={"namelength": -1},
            )
        )
    return figure.update_layout(
        xaxis={"type": "log", "title": f"context ({token}s)", "dtick": math.log10(2)},
        yaxis={"title": "bits per byte"},
        # Below the plot: a legend at its side leaves no room on a narrow screen.
        legend={"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0, "xanchor": "left"},
        showlegend=True,
        margin={"l": 55, "r": 10, "t": 20},
        height=360 + 24 * len(entries),
    )


def describe_context(entries: Sequence[LeaderboardEntry], token: str) -> str:
    """List the effective context of each architecture and its loss by the length of the context."""
    parts = []
    for entry in entries:
        assert entry.context is not None
        profile = entry.context
        losses = ", ".join(
            f"{range_} {loss:.3f}"
            for range_, loss in zip(
                _format_ranges(profile.bins), profile.loss + profile.excess, strict=True
            )
        )
        parts.append(
            f"{entry.full_label}: effective context {profile.estimate()} {token}s; bits per byte "
            f"by {token}s of context: {losses}; with half a window more {profile.loss:.3f}"
        )
    return ". ".join(parts) + "."


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
