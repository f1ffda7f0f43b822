"""Figures of effects: of changes and their interactions, of variants, and of an additive model."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from reports.analysis.other_studies import SourceComparison
from reports.charts.chart import (
    BEST_COLOR,
    HOVER_TEXTS,
    IMPROVES,
    NEUTRAL,
    PALETTE,
    ROW_HEIGHT,
    TRIAL_COLOR,
    WORSENS,
    Chart,
    interval_bars,
    plot_matrix,
)
from reports.formatting import escape_html
from reports.phrases import describe_trend, format_estimate
from reports.stats.additive_model import AdditiveModel, Trend
from reports.stats.conditional_effects import ConditionalEffect
from reports.stats.design import Contrast
from reports.stats.effects import Effect, FactorialTable, PairedDifference
from reports.stats.noise import NoiseSource
from reports.stats.scale import (
    Scale,
    add_unit,
    format_count,
    format_param,
    format_signed,
    format_value,
)

MAX_CONDITIONAL, MAX_CONDITIONS = 12, 2
"""Numbers of rows of the chart of conditional effects, and of these about one contrast."""

MAX_CONTRASTS = 80
"""Contrasts above which the chart of their interactions would be too large to read."""


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


def _describe_effect(effect: Effect) -> str:
    text = f"{effect.description}: {format_estimate(effect)}"
    if effect.source is NoiseSource.ADDITIVE:  # there are no pairs
        return text
    share = effect.improved_count / effect.pairs
    return f"{text}, better in {share:.0%} of {format_count(effect.pairs, 'pair')}"


def _add_effects(
    figure: go.Figure,
    effects: Sequence[PairedDifference],
    rows: Sequence[str],
    texts: Sequence[str],
    **style: Any,
) -> None:
    """Add effects as markers with their intervals, in some rows and with some hover texts."""
    means, lows, highs = ([getattr(e, name) for e in effects] for name in ("mean", "low", "high"))
    figure.add_scatter(
        x=means,
        y=rows,
        error_x=interval_bars(means, lows, highs),
        marker={
            "size": 11,
            "color": list(map(effect_color, effects)),
            "symbol": list(map(_effect_symbol, effects)),
        },
        customdata=list(map(escape_html, texts)),
        hovertemplate=HOVER_TEXTS,
        **{"mode": "markers"} | style,
    )


def _finish_effects(figure: go.Figure, unit: str, height: int) -> go.Figure:
    """Add the line of no effect and the axes to a figure of effects, whose first row is on top."""
    figure.add_vline(x=0, line={"color": NEUTRAL, "width": 1, "dash": "dot"})
    return figure.update_layout(
        xaxis_title=add_unit("mean difference", unit),
        yaxis={"type": "category", "automargin": True, "autorange": "reversed"},
        height=height,
        showlegend=False,
    )


def plot_effects(effects: Sequence[Effect], unit: str) -> go.Figure:
    """Plot each effect as a marker with its interval."""
    figure, rows = go.Figure(), [escape_html(effect.contrast.label) for effect in effects]
    _add_effects(figure, effects, rows, list(map(_describe_effect, effects)))
    return _finish_effects(figure, unit, 110 + ROW_HEIGHT * max(1, len(effects)))


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
    figure = go.Figure()
    for each in shown[:MAX_CONDITIONAL]:
        effects = sorted(each.levels, key=lambda level: level.mean)
        label, parameter = each.contrast.label, format_param(each.parameter)
        values = [format_value(level.value) for level in effects]
        texts = [
            f"{label} by {parameter} {value}: {format_estimate(level)}, {level.pairs:,} pairs"
            for value, level in zip(values, effects, strict=True)
        ]
        sides = ["top center", "bottom center"] * len(effects)  # since two markers may be close
        _add_effects(
            figure,
            effects,
            [f"{escape_html(label)}<br>by {escape_html(parameter)}"] * len(effects),
            texts,
            mode="lines+markers+text",
            line={"color": NEUTRAL, "width": 1},
            text=list(map(escape_html, values)),
            textposition=sides[: len(effects)],
            textfont={"size": 11},
            cliponaxis=False,
        )
    _finish_effects(figure, unit, 120 + 2 * ROW_HEIGHT * len(figure.data))
    return Chart(
        "What the effects depend on",
        figure,
        caption="Each row is the effect of one change at the values of one other parameter, "
        "written at the markers, with 95% intervals. Triangles are significant after the "
        "correction for all effects of this kind. Rows are those with the largest "
        "significant differences.",
        width=340,
    )


def chart_interactions(table: FactorialTable) -> Chart | None:
    """Chart the two-way interactions; None without a quadruple of trials, or with too many."""
    if len(table.list_contrasts()) > MAX_CONTRASTS:
        return None
    interactions = table.compute_interactions()
    if not interactions:
        return None
    contrasts = list(dict.fromkeys(c for each in interactions for c in (each.first, each.second)))
    place = {contrast: i for i, contrast in enumerate(contrasts)}
    scale = interactions[0].scale
    cells = {}
    for each in interactions:
        text = (
            f"{each.first.label} with {each.second.label}: {format_estimate(each)} in addition to "
            f"their separate effects, over {format_count(each.pairs, 'quadruple')}"
        )
        cell = each.mean, format_signed(each.mean, scale.rough_spec), escape_html(text)
        i, j = place[each.first], place[each.second]
        cells |= {(i, j): cell, (j, i): cell}
    labels = [escape_html(contrast.label) for contrast in contrasts]
    figure = plot_matrix(
        labels, labels, cells, reversescale=scale.higher_is_better, colorbar_title=scale.unit
    )
    figure.update_layout(xaxis_tickangle=-40, height=190 + 36 * len(contrasts))
    return Chart(
        "Two-way interactions",
        figure,
        caption=f"{scale.name[:1].upper()}{scale.name[1:]} of two changes together, minus the sum "
        "of their separate effects. Blue: they reinforce each other. Orange: they weaken each "
        "other. Zero: their effects add up.",
        width=620,
        max_width=900,
    )


def plot_variants(comparison: SourceComparison, axis_title: str) -> go.Figure:
    """Plot a slope for each source architecture and variant, from the source to the new loss."""
    figure = go.Figure()
    ticks: dict[float, str] = {}
    scale = comparison.scale
    for i, (variant, rows) in enumerate(comparison.group_by_variant()):
        left, right = i * 1.5, i * 1.5 + 1
        ticks[left] = escape_html(comparison.source)
        ticks[right] = f"{escape_html(comparison.study)}<br>{variant}"
        slopes = list(zip(rows["label"], rows["source_value"], rows["value"], strict=True))
        texts = [
            f"{escape_html(label)}: {scale.add_unit(' → '.join(map(scale.format_value, ends)))}"
            for label, *ends in slopes
        ]
        figure.add_scatter(
            x=[left, right, None] * len(slopes),
            y=[end for _, *ends in slopes for end in (*ends, None)],
            mode="lines+markers",
            name=variant,
            line={"width": 1.5, "color": PALETTE[i % len(PALETTE)]},
            marker={"size": 6},
            opacity=0.75,
            customdata=[text for text in texts for _ in range(3)],
            hovertemplate=HOVER_TEXTS,
        )
    names = list(ticks.values())
    return figure.update_layout(
        xaxis={"tickvals": list(ticks), "ticktext": names, "showgrid": False, "zeroline": False},
        yaxis_title=axis_title,
        showlegend=False,
        height=520,
    )


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
    best = trend.optimum
    if not best.reason:
        figure.add_scatter(
            x=[best.value],
            y=[float(np.interp(best.value, trend.places, trend.curve))],
            error_x=interval_bars([best.value], [best.low], [best.high], BEST_COLOR),
            mode="markers",
            marker={"symbol": "diamond", "size": 12, "color": BEST_COLOR},
            customdata=[escape_html(describe_trend(trend, scale))],
            hovertemplate=HOVER_TEXTS,
        )
    return figure.update_layout(
        xaxis={"title": name, "type": "log" if trend.is_log else "linear"},
        yaxis_title=escape_html(add_unit(scale.name, scale.unit)),
        showlegend=False,
    )
