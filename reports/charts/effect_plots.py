"""Figures of main effects, interactions and variants."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from reports.analysis.leaderboard import LeaderboardEntry
from reports.analysis.refinement_effects import SourceComparison
from reports.charts.alt_text import format_effect, format_interaction, format_interval
from reports.charts.chart import IMPROVES, NEUTRAL, PALETTE, ROW_HEIGHT, WORSENS
from reports.formatting import escape_html
from reports.stats.conditional_effects import ConditionalEffect
from reports.stats.effects import Effect, Interaction
from reports.stats.paired_difference import PairedDifference
from reports.stats.scale import NATS, add_unit, format_param, format_signed, format_value

# Zero is a translucent gray: white or black would stand out on one of the page's two themes.
DIVERGING_COLORS = [[0, IMPROVES], [0.5, "rgba(138, 144, 153, 0.12)"], [1, WORSENS]]
"""Color scale of differences in loss, centered at zero."""


def interval_bars(
    estimates: Sequence[PairedDifference] | Sequence[LeaderboardEntry], color: str = NEUTRAL
) -> dict[str, Any]:
    """Return Plotly's ``error_x`` of the intervals of some means."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [each.high - each.mean for each in estimates],
        "arrayminus": [each.mean - each.low for each in estimates],
        "thickness": 2,
        "width": 5,
        "color": color,
    }


def plot_effects(effects: Sequence[Effect], unit: str) -> go.Figure:
    """Plot each effect as a marker with its interval."""
    rows = list(reversed(effects))  # Plotly's first row is at the bottom
    figure = go.Figure(
        go.Scatter(
            x=[effect.mean for effect in rows],
            y=[escape_html(effect.contrast.label) for effect in rows],
            error_x=interval_bars(rows),
            mode="markers",
            marker={
                "size": 11,
                "color": [effect_color(effect) for effect in rows],
                "symbol": [effect_symbol(effect) for effect in rows],
            },
            customdata=[escape_html(format_effect(effect)) for effect in rows],
            hovertemplate="%{customdata}<extra></extra>",
        )
    )
    figure.add_vline(x=0, line={"color": NEUTRAL, "width": 1, "dash": "dot"})
    return figure.update_layout(
        xaxis_title=add_unit("mean difference", unit),
        yaxis={"type": "category", "automargin": True},
        height=110 + ROW_HEIGHT * max(1, len(rows)),
        showlegend=False,
    )


def plot_conditional_effects(conditional: Sequence[ConditionalEffect], unit: str) -> go.Figure:
    """Plot the effects within each value of another parameter, one row per change and parameter.

    The value is written at the marker, above and below in turn, since two may be close.
    """
    rows = list(reversed(conditional))
    figure = go.Figure()
    names = [
        (escape_html(each.contrast.label), escape_html(format_param(each.parameter)))
        for each in rows
    ]
    for y, each in enumerate(rows):
        effects = sorted(each.levels, key=lambda level: level.mean)
        name = " by ".join(names[y])
        texts = [escape_html(format_value(level.value)) for level in effects]
        figure.add_trace(
            go.Scatter(
                x=[level.mean for level in effects],
                y=[y] * len(effects),
                error_x=interval_bars(effects),
                mode="lines+markers+text",
                line={"color": NEUTRAL, "width": 1},
                marker={
                    "size": 11,
                    "color": [effect_color(level) for level in effects],
                    "symbol": [effect_symbol(level) for level in effects],
                },
                text=texts,
                textposition=[
                    "top center" if i % 2 == 0 else "bottom center" for i in range(len(effects))
                ],
                textfont={"size": 11},
                cliponaxis=False,
                customdata=[
                    f"{name} {text}: {level.scale.format_difference(level.mean)}"
                    f"{format_interval(level)}, {level.pairs:,} pairs"
                    for level, text in zip(effects, texts, strict=True)
                ],
                hovertemplate="%{customdata}<extra></extra>",
            )
        )
    figure.add_vline(x=0, line={"color": NEUTRAL, "width": 1, "dash": "dot"})
    return figure.update_layout(
        xaxis_title=add_unit("mean difference", unit),
        yaxis={
            "tickvals": list(range(len(rows))),
            "ticktext": ["<br>by ".join(name) for name in names],
            "range": [-0.7, len(rows) - 0.3],
            "automargin": True,
        },
        height=120 + 2 * ROW_HEIGHT * len(rows),
        showlegend=False,
    )


def effect_color(effect: PairedDifference) -> str:
    """Return the color of an effect, by its direction if it is significant."""
    if not effect.is_significant:
        return NEUTRAL
    return IMPROVES if effect.is_improvement else WORSENS


def effect_symbol(effect: PairedDifference) -> str:
    """Return the marker of an effect, which points to lower or higher values."""
    if not effect.is_significant:
        return "circle-open"
    return "triangle-left" if effect.mean < 0 else "triangle-right"


def plot_interactions(interactions: Sequence[Interaction]) -> go.Figure:
    """Plot two-way interactions as a heat map."""
    contrasts = list(dict.fromkeys(c for each in interactions for c in (each.first, each.second)))
    place = {contrast: i for i, contrast in enumerate(contrasts)}
    means = np.full((len(contrasts), len(contrasts)), np.nan)
    texts = np.full(means.shape, "", dtype=object)
    for each in interactions:
        for first, second in ((each.first, each.second), (each.second, each.first)):
            means[place[first], place[second]] = each.mean
            texts[place[first], place[second]] = escape_html(format_interaction(each))
    scale = interactions[0].scale if interactions else NATS
    numbers = [[format_signed(z, scale.rough_spec) if z == z else "" for z in row] for row in means]
    labels = [escape_html(contrast.label) for contrast in contrasts]
    bound = float(np.nanmax(np.abs(means))) if len(interactions) else 1.0
    figure = go.Figure(
        go.Heatmap(
            z=means,
            x=labels,
            y=labels,
            zmin=-bound,
            zmax=bound,
            colorscale=DIVERGING_COLORS,
            reversescale=scale.higher_is_better,
            customdata=texts,
            text=numbers,
            texttemplate="%{text}",
            hovertemplate="%{customdata}<extra></extra>",
            hoverongaps=False,
            xgap=2,
            ygap=2,
            colorbar={"title": {"text": scale.unit, "side": "right"}, "thickness": 14},
        )
    )
    return figure.update_layout(
        xaxis={"automargin": True, "tickangle": -40, "showgrid": False},
        yaxis={"automargin": True, "autorange": "reversed", "showgrid": False},
        height=190 + 36 * len(contrasts),
    )


def plot_variants(comparison: SourceComparison, axis_title: str) -> go.Figure:
    """Plot a slope for each source architecture and variant, from the source to the new loss."""
    figure = go.Figure()
    ticks: dict[float, str] = {}
    scale = comparison.scale
    for i, (variant, rows) in enumerate(comparison.group_by_variant()):
        left, right = i * 1.5, i * 1.5 + 1
        ticks |= {
            left: escape_html(comparison.source),
            right: f"{escape_html(comparison.study)}<br>{variant}",
        }
        xs: list[Any] = []
        ys: list[Any] = []
        texts: list[str] = []
        for row in rows.itertuples():
            xs += [left, right, None]
            ys += [row.source_value, row.value, None]
            change = f"{row.source_value:{scale.value_spec}} → {row.value:{scale.value_spec}}"
            text = f"{row.label}: {scale.add_unit(change)}"
            texts += [text, text, ""]
        figure.add_trace(
            go.Scatter(
                x=xs,
                y=ys,
                mode="lines+markers",
                name=variant,
                line={"width": 1.5, "color": PALETTE[i % len(PALETTE)]},
                marker={"size": 6},
                opacity=0.75,
                customdata=texts,
                hovertemplate="%{customdata}<extra></extra>",
            )
        )
    return figure.update_layout(
        xaxis={
            "tickvals": list(ticks),
            "ticktext": list(ticks.values()),
            "showgrid": False,
            "zeroline": False,
        },
        yaxis_title=axis_title,
        showlegend=False,
        hovermode="closest",
        height=520,
    )
