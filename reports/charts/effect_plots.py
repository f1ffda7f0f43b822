"""Figures of effects: of changes and their interactions, of variants, and of an additive model."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from reports.analysis.leaderboard import LeaderboardEntry
from reports.analysis.other_studies import SourceComparison
from reports.charts.chart import (
    BEST_COLOR,
    IMPROVES,
    NEUTRAL,
    PALETTE,
    ROW_HEIGHT,
    TRIAL_COLOR,
    WORSENS,
    Chart,
)
from reports.formatting import escape_html
from reports.phrases import describe_trend
from reports.stats.additive_model import AdditiveModel, Trend
from reports.stats.conditional_effects import ConditionalEffect
from reports.stats.design import Contrast
from reports.stats.effects import Effect, FactorialTable, Interaction, PairedDifference
from reports.stats.noise import NoiseSource
from reports.stats.scale import (
    Scale,
    add_unit,
    format_count,
    format_param,
    format_signed,
    format_value,
)

ZERO_COLOR = "rgba(138, 144, 153, 0.12)"
"""A translucent gray: white or black would stand out on one of the page's two themes."""

DIVERGING_COLORS = [[0, IMPROVES], [0.5, ZERO_COLOR], [1, WORSENS]]
"""Color scale of differences in loss, centered at zero."""

MAX_CONDITIONAL = 12
"""Maximum number of rows of the chart of conditional effects."""

MAX_CONDITIONS = 2
"""Maximum number of these rows about one contrast."""

MAX_CONTRASTS = 80
"""Contrasts above which the chart of their interactions would be too large to read."""

MAX_NUMBERED = 20
"""Contrasts up to which its cells have room for their numbers."""


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


def _describe_effect(effect: Effect) -> str:
    text = (
        f"{effect.description}: {effect.scale.format_difference(effect.mean)}"
        f"{_format_interval(effect)}"
    )
    if effect.source is NoiseSource.ADDITIVE:  # there are no pairs
        return text
    return (
        f"{text}, better in {effect.improved_count / effect.pairs:.0%} of "
        f"{format_count(effect.pairs, 'pair')}"
    )


def _format_interval(difference: PairedDifference) -> str:
    """Return the interval of a difference to follow its mean; "" if it is unknown."""
    if difference.low != difference.low:
        return ""
    spec = difference.scale.spec
    return f" [{format_signed(difference.low, spec)}, {format_signed(difference.high, spec)}]"


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
                "symbol": [_effect_symbol(effect) for effect in rows],
            },
            customdata=[escape_html(_describe_effect(effect)) for effect in rows],
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


def chart_conditional_effects(conditional: Sequence[ConditionalEffect], unit: str) -> Chart | None:
    """Chart the effects that differ most between values; None if none differs significantly."""
    differing = [each for each in conditional if each.is_significant]
    if not differing:
        return None
    # Of each contrast the largest difference first, so that no contrast fills the chart.
    differing.sort(key=lambda each: -each.difference.mean)
    seen: Counter[Contrast] = Counter()
    shown = []
    for each in differing:
        seen[each.contrast] += 1
        if seen[each.contrast] <= MAX_CONDITIONS:
            shown.append(each)
    rows = list(reversed(shown[:MAX_CONDITIONAL]))
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
                    "symbol": [_effect_symbol(level) for level in effects],
                },
                text=texts,
                textposition=[  # in turn, since two markers may be close
                    "top center" if i % 2 == 0 else "bottom center" for i in range(len(effects))
                ],
                textfont={"size": 11},
                cliponaxis=False,
                customdata=[
                    f"{name} {text}: {level.scale.format_difference(level.mean)}"
                    f"{_format_interval(level)}, {level.pairs:,} pairs"
                    for level, text in zip(effects, texts, strict=True)
                ],
                hovertemplate="%{customdata}<extra></extra>",
            )
        )
    figure.add_vline(x=0, line={"color": NEUTRAL, "width": 1, "dash": "dot"})
    figure.update_layout(
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
    return Chart(
        "What the effects depend on",
        figure,
        caption="Each row is the effect of one change at the values of one other parameter, "
        "written at the markers, with 95% intervals. Triangles are significant after the "
        "correction for all effects of this kind. Rows are those with the largest "
        "significant differences.",
        width=340,
    )


def effect_color(effect: PairedDifference) -> str:
    """Return the color of an effect, by its direction if it is significant."""
    if not effect.is_significant:
        return NEUTRAL
    return IMPROVES if effect.is_improvement else WORSENS


def _effect_symbol(effect: PairedDifference) -> str:
    """Return the marker of an effect, which points to lower or higher values."""
    if not effect.is_significant:
        return "circle-open"
    return "triangle-left" if effect.mean < 0 else "triangle-right"


def chart_interactions(table: FactorialTable) -> Chart | None:
    """Chart the two-way interactions; None without a quadruple of trials, or with too many."""
    if len(table.list_contrasts()) > MAX_CONTRASTS:
        return None
    interactions = table.compute_interactions()
    if not interactions:
        return None
    contrasts = list(dict.fromkeys(c for each in interactions for c in (each.first, each.second)))
    place = {contrast: i for i, contrast in enumerate(contrasts)}
    means = np.full((len(contrasts), len(contrasts)), np.nan)
    texts = np.full(means.shape, "", dtype=object)
    for each in interactions:
        for first, second in ((each.first, each.second), (each.second, each.first)):
            means[place[first], place[second]] = each.mean
            texts[place[first], place[second]] = escape_html(_describe_interaction(each))
    scale = interactions[0].scale
    numbers = [[format_signed(z, scale.spec) if z == z else "" for z in row] for row in means]
    labels = [escape_html(contrast.label) for contrast in contrasts]
    bound = float(np.nanmax(np.abs(means)))
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
            texttemplate="%{text}" if len(contrasts) <= MAX_NUMBERED else "",
            hovertemplate="%{customdata}<extra></extra>",
            hoverongaps=False,
            xgap=2,
            ygap=2,
            colorbar={"title": {"text": scale.unit, "side": "right"}, "thickness": 14},
        )
    )
    figure.update_layout(
        xaxis={"automargin": True, "tickangle": -40, "showgrid": False},
        yaxis={"automargin": True, "autorange": "reversed", "showgrid": False},
        height=190 + 36 * len(contrasts),
    )
    return Chart(
        "Two-way interactions",
        figure,
        caption=f"{scale.name[:1].upper()}{scale.name[1:]} of two changes together, minus the sum "
        "of their separate effects. Blue: they reinforce each other. Orange: they weaken each "
        "other. Zero: their effects add up.",
        width=200 + 52 * min(MAX_NUMBERED, len(contrasts)),
        max_width=max(620, 200 + 70 * min(MAX_NUMBERED, len(contrasts))),
    )


def _describe_interaction(interaction: Interaction) -> str:
    return (
        f"{interaction.first.label} with {interaction.second.label}: "
        f"{interaction.scale.format_difference(interaction.mean)}{_format_interval(interaction)} "
        "in addition to their separate effects, over "
        f"{format_count(interaction.pairs, 'quadruple')}"
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
            # Plotly hides a name that is cut off.
            "range": [-0.3, max(ticks) + 0.3],
            "showgrid": False,
            "zeroline": False,
        },
        yaxis_title=axis_title,
        showlegend=False,
        hovermode="closest",
        height=520,
    )


def chart_trends(model: AdditiveModel, scale: Scale) -> list[Chart]:
    """Chart each trend, the significant ones first."""
    ordered = sorted(model.trends, key=lambda trend: (not trend.is_significant, trend.p))
    return [
        Chart(
            format_param(trend.parameter),
            _plot_trend(trend, scale),
            caption="Points: runs without the fitted effects of all other parameters. Line: fitted "
            "trend. Diamond: best place with its 95% interval.",
        )
        for trend in ordered
    ]


def chart_levels(model: AdditiveModel, scale: Scale) -> Chart | None:
    """Chart the differences between the levels of all parameters; None if there are none."""
    effects = [each.effect for each in model.levels]
    if not effects:
        return None
    return Chart(
        "Effects in the additive model",
        plot_effects(effects, scale.unit),
        caption="Difference to the first value, with its 95% interval, other parameters being "
        "equal. Filled triangles: the interval excludes zero, without correction for their number.",
    )


def _plot_trend(trend: Trend, scale: Scale) -> go.Figure:
    """Plot the runs, the fitted trend, and the best place with its interval."""
    name = escape_html(format_param(trend.parameter))
    figure = go.Figure()
    figure.add_scatter(
        x=trend.points,
        y=trend.partials,
        mode="markers",
        marker={"size": 6, "color": TRIAL_COLOR, "opacity": 0.6},
        hovertemplate=f"{name} %{{x}}: %{{y:{scale.value_spec}}}<extra></extra>",
    )
    figure.add_scatter(
        x=trend.places,
        y=trend.curve,
        mode="lines",
        line={"color": PALETTE[0] if trend.is_significant else NEUTRAL, "width": 2},
        hovertemplate=f"fitted %{{y:{scale.value_spec}}} at %{{x:.3g}}<extra></extra>",
    )
    optimum = trend.optimum
    if not optimum.reason:
        figure.add_scatter(
            x=[optimum.value],
            y=[float(np.interp(optimum.value, trend.places, trend.curve))],
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [optimum.high - optimum.value],
                "arrayminus": [optimum.value - optimum.low],
                "thickness": 3,
                "width": 6,
                "color": BEST_COLOR,
            },
            mode="markers",
            marker={"symbol": "diamond", "size": 12, "color": BEST_COLOR},
            customdata=[escape_html(describe_trend(trend, scale))],
            hovertemplate="%{customdata}<extra></extra>",
        )
    return figure.update_layout(
        xaxis={
            "title": {"text": name},
            "type": "log" if trend.is_log else "linear",
            "exponentformat": "power",
        },
        yaxis_title=escape_html(add_unit(scale.name, scale.unit)),
        showlegend=False,
        hovermode="closest",
    )
