"""Figures of comparisons: of changes, by their effects; of architectures; and of studies."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from reports.analysis.costs import Cost, find_front
from reports.analysis.leaderboard import LeaderboardEntry
from reports.analysis.refinement import SourceComparison
from reports.charts.chart import (
    COLUMN_WIDTH,
    DASHES,
    HOVER_TEXTS,
    IMPROVES,
    LEGEND_WIDTH,
    NEUTRAL,
    PALETTE,
    ROW_HEIGHT,
    WORSENS,
    ZERO_COLOR,
    Cells,
    Chart,
    category_colors,
    find_range,
    find_row_height,
    interval_bars,
    place_legend_below,
    plot_matrix,
    wrap_label,
)
from reports.formatting import escape_html
from reports.phrases import format_estimate
from reports.results import Results
from reports.stats.conditional_effects import ConditionalEffect
from reports.stats.design import Contrast
from reports.stats.effects import Effect, FactorialTable, PairedDifference
from reports.stats.noise import NoiseSource
from reports.stats.replicates import Comparison
from reports.stats.scale import (
    Metric,
    add_unit,
    format_count,
    format_interval,
    format_param,
    format_signed,
    format_value,
)
from reports.study_reader import select_evenly
from rnn.config import BASELINE_CELLS, BaselineConfig
from studies.measure import Measure

MAX_CONDITIONAL, MAX_CONDITIONS = 12, 2
"""Numbers of rows of the chart of conditional effects, and of these about one contrast."""

MAX_CONTRASTS, MAX_NUMBERED = 80, 20
"""Contrasts up to which their interactions are drawn, and the cells have room for numbers."""

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


# ---------------------------------------------------------------- changes


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
    """Plot each effect that is known as a marker with its interval."""
    effects = [effect for effect in effects if not math.isnan(effect.mean)]
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
    cells: Cells = {}
    for each in interactions:
        text = (
            f"{each.first.label} with {each.second.label}: {format_estimate(each)} in addition to "
            f"their separate effects, over {format_count(each.pairs, 'quadruple')}"
        )
        cell = each.mean, format_signed(each.mean, scale.spec), escape_html(text)
        i, j = place[each.first], place[each.second]
        cells |= {(i, j): cell, (j, i): cell}
    labels = [escape_html(contrast.label) for contrast in contrasts]
    figure = plot_matrix(
        labels,
        labels,
        cells,
        reversescale=scale.higher_is_better,
        colorbar_title=scale.unit,
        texttemplate="%{text}" if len(contrasts) <= MAX_NUMBERED else "",
    )
    figure.update_layout(xaxis_tickangle=-40, height=190 + 36 * len(contrasts))
    return Chart(
        "Two-way interactions",
        figure,
        caption=f"{scale.name[:1].upper()}{scale.name[1:]} of two changes together, minus the sum "
        "of their separate effects. Blue: they reinforce each other. Orange: they weaken each "
        "other. Zero: their effects add up.",
        width=200 + 52 * min(MAX_NUMBERED, len(contrasts)),
        max_width=max(620, 200 + 70 * min(MAX_NUMBERED, len(contrasts))),
    )


# ---------------------------------------------------------------- architectures


def plot_replicates(entries: Sequence[LeaderboardEntry], metric: Metric) -> go.Figure:
    """Plot each architecture's runs, and their mean with its 95% interval.

    Args:
        entries: the architectures, the best first.
        metric: metric of the losses.
    """
    labels = [wrap_label(entry.label) for entry in entries]
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
    return figure.update_layout(
        xaxis_title=metric.axis_title,
        yaxis={"type": "category", "autorange": "reversed"},
        height=150 + find_row_height(labels) * len(entries),
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
    significant: Cells = {}
    others: Cells = {}
    for i, row in enumerate(names):
        for j, column in enumerate(names):
            difference = comparison.between(row, column)
            if difference is None or not difference.runs:
                continue
            number = format_signed(difference.mean, spec)
            text = f"{row} minus {column}: {number}"
            text += format_interval(difference.low, difference.high, spec)
            if difference.is_significant:
                significant[i, j] = difference.mean, number, f"{text}, significant"
            else:
                others[i, j] = difference.mean, f"({number})", f"{text}, not significant"
    rows = [wrap_label(f"{i}: {name}") for i, name in enumerate(names, 1)]
    columns = [f"{i}" for i in range(1, len(names) + 1)]
    figure = plot_matrix(
        rows, columns, others, colorscale=[[0, ZERO_COLOR], [1, ZERO_COLOR]], name="not significant"
    )
    figure.add_traces(plot_matrix(rows, columns, significant, name="significant").data)
    figure.update_traces(showscale=False)
    figure.update_layout(xaxis_side="top", height=110 + find_row_height(rows) * len(names))
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
        width=200 + 62 * len(names),
        max_width=max(COLUMN_WIDTH, 200 + 80 * len(names)),
    )


def chart_costs(costs: pd.DataFrame, cost: Cost, measure: Measure, split: str) -> Chart | None:
    """Chart the held-out losses of architectures against one cost, with the front as a line.

    Args:
        costs: table of :func:`reports.analysis.costs.list_costs`.
        cost: the cost.
        measure: names, unit and format of the losses.
        split: held-out split of the losses.

    Returns:
        The chart; None if fewer than two costs are known.
    """
    known = costs[costs[cost].notna()]
    if known[cost].nunique() < 2:
        return None
    noun, *_ = _COSTS[cost]
    front = find_front(known[cost].to_numpy(dtype=float), known["loss"].to_numpy(dtype=float))
    count = format_count(len(front), "architecture is", "architectures are")
    caption = (
        f"Loss on the {split} split. {count} on the line: no other one of the same cost or less "
        f"has a lower {measure.loss}. Close ones may be equal: a difference may be noise."
    )
    others = known.drop(known.index[front])
    drawn = others.iloc[select_evenly(list(range(len(others))))]
    if len(drawn) < len(others):
        caption += f" {len(drawn):,} of the {len(others):,} others are drawn."
    figure = _plot_costs(known.iloc[front], drawn, cost, measure)
    return Chart(f"{measure.loss.capitalize()} against {noun}", figure, caption=caption)


def _plot_costs(
    front: pd.DataFrame, others: pd.DataFrame, cost: Cost, measure: Measure
) -> go.Figure:
    """Plot architectures as markers, and those on the front on a line of steps."""
    _, cost_title, cost_text = _COSTS[cost]
    costs = [*front[cost], *others[cost]]
    figure = go.Figure()
    figure.add_scatter(
        x=[*front[cost], max(costs)],
        y=[*front["loss"], front["loss"].min()],
        mode="lines",
        line={"shape": "hv", "color": IMPROVES, "width": 2},
        hoverinfo="skip",
        showlegend=False,
    )
    markers = {
        "others": {"color": NEUTRAL, "size": 5, "opacity": 0.55},
        "front": {"symbol": "diamond", "color": IMPROVES, "size": 11},
    }
    for name, rows in (("others", others), ("front", front)):
        texts = [
            escape_html(f"{label} (trial {trial})")
            for label, trial in zip(rows["architecture"], rows["trial"], strict=True)
        ]
        figure.add_scatter(
            x=rows[cost].tolist(),
            y=rows["loss"].tolist(),
            mode="markers",
            marker=markers[name],
            name=name,
            text=texts,
            hovertemplate=f"%{{text}}<br>{cost_text}<br>%{{y:{measure.spec}}}<extra></extra>",
            showlegend=bool(len(rows)),
        )
    losses = [*front["loss"], *others["loss"]]
    shown = [*front["loss"], float(np.quantile(losses, _SHOWN_QUANTILE))]
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
            customdata=profile.format_ranges(token),
            name=wrap_label(f"{profile.estimate()}: {entry.full_label}", LEGEND_WIDTH),
            mode="lines+markers",
            line={"color": colors[k], "dash": DASHES[k % len(DASHES)]},
            hovertemplate="%{customdata}: %{y:.4f} bits per byte<extra>%{fullData.name}</extra>",
            hoverlabel={"namelength": -1},
        )
    title = {"text": f"effective context ({token}s)", "side": "top"}
    place_legend_below(figure, 360, title=title, font={"size": 11}).update_layout(
        xaxis={"type": "log", "title": f"context ({token}s)", "dtick": math.log10(2)},
        yaxis_title="bits per byte",
        margin={"l": 55, "r": 10},
    )
    return Chart("Loss by length of the context", figure, width=340)


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
    return figure.update_layout(
        xaxis={
            "tickvals": list(ticks),
            "ticktext": list(ticks.values()),
            "range": [-0.3, max(ticks) + 0.3],  # Plotly hides a name that is cut off
            "showgrid": False,
            "zeroline": False,
        },
        yaxis_title=axis_title,
        showlegend=False,
        height=520,
    )
