"""Figures of comparisons: of changes, by their effects; of replicates; and of studies."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from reports.analysis.refinement import SourceComparison
from reports.charts.chart import (
    COLUMN_WIDTH,
    HOVER_TEXTS,
    IMPROVES,
    MARGIN,
    NEUTRAL,
    PALETTE,
    ROW_HEIGHT,
    WORSENS,
    ZERO_COLOR,
    Cells,
    Chart,
    find_row_height,
    interval_bars,
    plot_matrix,
    wrap_label,
)
from reports.findings import StudyFindings
from reports.formatting import (
    describe_change,
    escape_html,
    format_estimate,
    label_change,
    shorten_labels,
)
from reports.results import Results
from reports.stats.conditional_effects import ConditionalEffect, RankedEffect
from reports.stats.design import Contrast
from reports.stats.differences import Method, PairedDifference
from reports.stats.effects import Effect
from reports.stats.replicates import Comparison
from studies.measure import Measure
from studies.messages import (
    add_unit,
    format_pairs,
    format_param,
    format_signed,
    format_value,
)

MAX_CONDITIONAL = 8
"""Rows of the chart of conditional effects."""

MAX_CONDITIONS = 2
"""Rows of these about one contrast, so that none fills the chart."""

MAX_IN_CHART = 20
"""Architectures in the charts of replicates."""


# ---------------------------------------------------------------- changes


def _effect_color(effect: PairedDifference) -> str:
    """Return the color of an effect, by its direction if it is significant."""
    if not effect.is_significant:
        return NEUTRAL
    return IMPROVES if effect.is_improvement else WORSENS


def _effect_symbol(effect: PairedDifference) -> str:
    """Return the marker of an effect, which points to lower or higher values."""
    if not effect.is_significant:
        return "circle-open"
    return "triangle-left" if effect.mean < 0 else "triangle-right"


def _describe_effect(effect: Effect, measure: Measure) -> str:
    text = f"{describe_change(effect)}: {format_estimate(effect, measure)}"
    if effect.method is Method.ADDITIVE:  # there are no pairs
        return text
    share = effect.improved_count / effect.pairs
    return f"{text}, better in {share:.0%} of {format_pairs(effect.pairs, effect.seeds)}"


def _trace_effects(
    effects: Sequence[PairedDifference], rows: Sequence[str], texts: Sequence[str], **style: Any
) -> go.Scatter:
    means = [effect.mean for effect in effects]
    lows = [effect.low for effect in effects]
    highs = [effect.high for effect in effects]
    return go.Scatter(
        x=means,
        y=rows,
        error_x=interval_bars(means, lows, highs),
        marker={
            "size": 11,
            "color": list(map(_effect_color, effects)),
            "symbol": list(map(_effect_symbol, effects)),
        },
        customdata=list(map(escape_html, texts)),
        hovertemplate=HOVER_TEXTS,
        **{"mode": "markers"} | style,
    )


def _finish_effects(figure: go.Figure, measure: Measure, height: int) -> go.Figure:
    """Add the line of no effect and the axes to a figure of effects, whose first row is on top."""
    figure.add_vline(x=0, line={"color": NEUTRAL, "width": 1, "dash": "dot"})
    return figure.update_layout(
        xaxis_title=add_unit("mean difference", measure.difference_unit),
        yaxis={"type": "category", "automargin": True, "autorange": "reversed"},
        height=height,
        margin=MARGIN,
        showlegend=False,
        xaxis_tickformat=measure.difference_spec if "%" in measure.difference_spec else None,
    )


def _label_ranked(ranked: RankedEffect) -> str:
    """Name a change in a row; if its sign depends on another parameter, with that."""
    label = escape_html(label_change(ranked.main.contrast))
    if ranked.condition is None or not ranked.condition.has_opposite_signs:
        return label
    return f"{label}<br><i>depends on {escape_html(format_param(ranked.condition.parameter))}</i>"


def chart_effects(findings: StudyFindings) -> Chart:
    """Chart the effects in the order of the answer, each as a marker with its interval."""
    measure = findings.measure
    rows = [_label_ranked(ranked) for ranked in findings.ranked]
    effects = [ranked.main for ranked in findings.ranked]
    texts = [_describe_effect(effect, measure) for effect in effects]
    figure = go.Figure(_trace_effects(effects, rows, texts))
    height = 110 + sum(find_row_height([row]) + 4 for row in rows)
    better = "rises" if measure.higher_is_better else "falls"
    worse = "falls" if measure.higher_is_better else "rises"
    return Chart(
        findings.results.effects_title,
        _finish_effects(figure, measure, height),
        caption="Mean difference with its 95% interval. Triangles: significant; blue: the "
        f"{measure.loss} {better}, orange: it {worse}.",
    )


def plot_tasks(tasks: Mapping[str, StudyFindings]) -> go.Figure:
    """Plot the effects in each of several tasks, a panel for each task."""
    figure = make_subplots(1, len(tasks), shared_yaxes=True, subplot_titles=list(tasks))
    count = 0
    for column, findings in enumerate(tasks.values(), 1):
        measure = findings.measure
        rows = [escape_html(label_change(effect.contrast)) for effect in findings.effects]
        texts = [_describe_effect(effect, measure) for effect in findings.effects]
        figure.add_trace(_trace_effects(findings.effects, rows, texts), 1, column)
        title = add_unit("mean difference", measure.difference_unit)
        figure.update_xaxes(title=title, row=1, col=column)
        count = max(count, len(rows))
    figure.add_vline(x=0, line={"color": NEUTRAL, "width": 1, "dash": "dot"})
    figure.update_yaxes(autorange="reversed", automargin=True)
    margin = MARGIN | {"t": 40}  # room for the names of the tasks
    return figure.update_layout(height=130 + ROW_HEIGHT * count, margin=margin, showlegend=False)


def chart_conditional_effects(
    conditional: Sequence[ConditionalEffect], measure: Measure
) -> Chart | None:
    """Chart the effects that differ most between values; None if none differs significantly."""
    differing = [found for found in conditional if found.is_significant]
    if not differing:
        return None
    differing.sort(key=lambda found: -found.difference.mean)
    seen: Counter[Contrast] = Counter()
    shown = []
    for found in differing:
        seen[found.contrast] += 1
        if seen[found.contrast] <= MAX_CONDITIONS:
            shown.append(found)
    traces = [_trace_conditional(found, measure) for found in shown[:MAX_CONDITIONAL]]
    height = 100 + 42 * len(traces)
    return Chart(
        "What the effects depend on",
        _finish_effects(go.Figure(traces), measure, height),
        finding=f"{label_change(shown[0].contrast)} depends most on "
        f"{format_param(shown[0].parameter)}.",
        caption="A row is a change at the values of another parameter, with 95% intervals. "
        "Triangles: significant, corrected for all effects of this kind.",
        width=340,
    )


def _trace_conditional(found: ConditionalEffect, measure: Measure) -> go.Scatter:
    effects = sorted(found.levels, key=lambda level: level.mean)
    label = label_change(found.contrast)
    parameter = format_param(found.parameter)
    values = [format_value(level.value) for level in effects]
    texts = [
        f"{label} by {parameter} {value}: {format_estimate(level, measure)}, {level.pairs:,} pairs"
        for value, level in zip(values, effects, strict=True)
    ]
    sides = ["top center", "bottom center"] * len(effects)  # since two markers may be close
    return _trace_effects(
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


# ---------------------------------------------------------------- architectures


def chart_replicates(findings: StudyFindings) -> Chart:
    """Chart each architecture's runs, and their mean with its 95% interval, of many the best."""
    results = findings.results
    metric = results.metric
    entries = findings.summary.entries[:MAX_IN_CHART]
    short = shorten_labels([entry.label for entry in findings.summary.entries])
    labels = [wrap_label(short[entry.label]) for entry in entries]
    is_solved = bool(findings.summary.solved_runs)
    means = [entry.loss for entry in entries]
    lows = [entry.low for entry in entries]
    highs = [entry.high for entry in entries]
    runs = go.Scatter(
        x=[loss for entry in entries for loss in entry.losses],
        y=np.repeat(labels, [entry.runs for entry in entries]).tolist(),
        mode="markers",
        marker={"size": 6, "color": NEUTRAL, "opacity": 0.6},
        name="run",
        hovertemplate=f"%{{y}}: %{{x:{metric.spec}}}<extra></extra>",
    )
    averages = go.Scatter(
        x=means,
        y=labels,
        error_x=interval_bars(means, lows, highs, IMPROVES),
        mode="markers",
        marker={"size": 10, "color": IMPROVES, "symbol": "diamond"},
        name="median, least and largest" if is_solved else "mean, 95% interval",
        hovertemplate=f"%{{y}}: %{{x:{metric.spec}}}<extra></extra>",
    )
    figure = go.Figure([runs, averages])
    figure.update_layout(
        xaxis_title=metric.axis_title,
        yaxis={"type": "category", "autorange": "reversed", "automargin": True},
        height=120 + find_row_height(labels) * len(entries),
        margin=MARGIN,
    )
    caption = ""
    if findings.summary.has_verdicts:
        caption = (
            f"Verdicts are of runs in pairs: two {results.noun}s may differ significantly although "
            "their intervals overlap."
        )
    if is_solved:
        caption = "Solved runs and others differ by more than runs of either kind."
        figure.update_xaxes(type="log" if min(lows) > 0 else "linear")
    if len(entries) < len(findings.summary.entries):
        caption += f" The best {len(entries)} of {len(findings.summary.entries)} are drawn."
    return Chart(f"Runs of each {results.noun}", figure, caption=caption, width=360)


def chart_differences(comparison: Comparison, metric: Measure) -> Chart | None:
    """Chart the pairwise differences of the best architectures; None for fewer than two."""
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
            number = format_signed(metric.to_loss(difference.mean), metric.spec)
            text = f"{row} minus {column}: {number}"
            if difference.is_significant:
                significant[i, j] = (difference.mean, number, f"{text}, significant")
            else:
                others[i, j] = (difference.mean, f"({number})", f"{text}, not significant")
    short = shorten_labels(comparison.names)
    rows = [wrap_label(f"{i}: {short[name]}") for i, name in enumerate(names, 1)]
    columns = [f"{i}" for i in range(1, len(names) + 1)]
    neutral = [[0, ZERO_COLOR], [1, ZERO_COLOR]]
    figure = plot_matrix(rows, columns, others, colorscale=neutral, name="not significant")
    figure.add_traces(plot_matrix(rows, columns, significant, name="significant").data)
    figure.update_traces(showscale=False)
    height = 60 + find_row_height(rows) * len(names)
    figure.update_layout(xaxis_side="top", height=height, margin={"t": 30, "b": 10})
    caption = (
        "The row minus the column. Blue: the row is better; orange: the column is; in parentheses "
        "and gray: not significant."
    )
    if len(names) < len(comparison.names):
        caption += f" The best {MAX_IN_CHART} of {len(comparison.names)} are drawn."
    return Chart(
        "Pairwise differences",
        figure,
        caption=caption,
        width=200 + 62 * len(names),
        max_width=max(COLUMN_WIDTH, 200 + 80 * len(names)),
    )


def chart_variants(comparison: SourceComparison, results: Results) -> Chart:
    """Chart a slope for each source architecture and variant, from the source to the new loss."""
    measure = results.measure
    figure = go.Figure()
    ticks: dict[float, str] = {}
    for place, (variant, rows) in enumerate(comparison.group_by_variant()):
        left = place * 1.5
        right = left + 1
        ticks[left + 0.5] = escape_html(variant)
        places: list[float | None] = []
        values: list[float | None] = []
        texts: list[str] = []
        for row in rows.to_dict("records"):
            places += [left, right, None]
            values += [row["source_value"], row["value"], None]
            ends = f"{measure.format_number(row['source_value'])} → {measure.format(row['value'])}"
            texts += [f"{escape_html(row['label'])}: {ends}"] * 3
        figure.add_scatter(
            x=places,
            y=values,
            mode="lines+markers",
            name=variant,
            line={"width": 1.5, "color": PALETTE[place % len(PALETTE)]},
            marker={"size": 6},
            opacity=0.75,
            customdata=texts,
            hovertemplate=HOVER_TEXTS,
        )
    figure.update_layout(
        xaxis={
            "tickvals": list(ticks),
            "ticktext": list(ticks.values()),
            "range": [-0.3, max(ticks) + 0.8],
            "showgrid": False,
            "zeroline": False,
        },
        yaxis_title=measure.axis_title,
        showlegend=False,
        height=320,
    )
    return Chart(
        "From the source to each variant",
        figure,
        caption=f"A line: one {results.noun}, on the left its {measure.loss} in "
        f"{comparison.source}, on the right that of the variant. The training budgets may differ.",
        width=120 * len(ticks),
    )
