"""Figures of architectures: their losses by cost and context, their memory by numbers of state."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from reports.analysis.leaderboard import (
    COSTS,
    Cost,
    LeaderboardEntry,
    StudySummary,
    find_front,
    list_costs,
)
from reports.analysis.solved import count_solved
from reports.charts.chart import (
    DASHES,
    IMPROVES,
    LEGEND_WIDTH,
    NEUTRAL,
    PALETTE,
    Chart,
    category_colors,
    find_range,
    interval_bars,
    place_legend_below,
    wrap_label,
)
from reports.formatting import escape_html, shorten_labels
from reports.results import Results
from reports.stats.estimate import mean_half_width
from reports.study_reader import select_evenly
from rnn.config import BASELINE_CELLS
from studies.measure import Measure
from studies.messages import add_unit, format_count, format_param, format_value

_COSTS: dict[Cost, tuple[str, str, str]] = {
    "parameters": ("parameters", "parameters", "%{x:,.0f} parameters"),
    "seconds": ("training time", "computing time of a run (s)", "%{x:,.2f} s"),
}
"""Name of each cost, title of its axis, and its text in a template of hover texts."""

_SHOWN_QUANTILE = 0.75
"""Share of the architectures within the range of the losses at first: bad ones hide the front."""

BEST_PROFILES = 3
"""Number of best architectures that are drawn; the best of each baseline cell is drawn as well."""


def chart_costs(results: Results, summary: StudySummary) -> list[Chart]:
    """Chart the held-out losses of architectures against each cost of which two are known."""
    costs = list_costs(results, summary.entries)
    return [
        _chart_cost(costs[costs[cost].notna()], cost, results)
        for cost in COSTS
        if costs[cost].nunique() > 1
    ]


def _chart_cost(known: pd.DataFrame, cost: Cost, results: Results) -> Chart:
    """Chart losses against one cost, with what nothing of the same cost or less beats as a line."""
    measure = results.measure
    noun, *_ = _COSTS[cost]
    losses = measure.to_loss(known["loss"].to_numpy(dtype=float))
    front = find_front(known[cost].to_numpy(dtype=float), losses)
    others = known.drop(known.index[front])
    drawn = others.iloc[select_evenly(list(range(len(others))))]
    better = "higher" if measure.higher_is_better else "lower"
    caption = f"On the line: no other of the same cost or less has a {better} {measure.loss}."
    if len(drawn) < len(others):
        caption += f" {len(drawn):,} of the {len(others):,} others are drawn."
    if cost == "parameters" and results.has_any("trained_parameter_count"):
        caption += " Parameters are those that a gradient reaches."
    if cost == "seconds" and results.cells:
        caption += " In lockstep, networks share the time."
    figure = _plot_costs(known.iloc[front], drawn, cost, measure)
    return Chart(f"{measure.loss.capitalize()} against {noun}", figure, caption=caption)


def _plot_costs(
    front: pd.DataFrame, others: pd.DataFrame, cost: Cost, measure: Measure
) -> go.Figure:
    _, cost_title, cost_text = _COSTS[cost]
    costs = [*front[cost], *others[cost]]
    figure = go.Figure()
    figure.add_scatter(
        x=[*front[cost], max(costs)],
        y=[*front["loss"], front["loss"].iloc[-1]],
        mode="lines",
        line={"shape": "hv", "color": IMPROVES, "width": 2},
        hoverinfo="skip",
    )
    dots = {"color": NEUTRAL, "size": 5, "opacity": 0.55}
    diamonds = {"symbol": "diamond", "color": IMPROVES, "size": 11}
    for rows, marker in ((others, dots), (front, diamonds)):
        texts = [
            escape_html(f"{label} (trial {trial})")
            for label, trial in zip(rows["architecture"], rows["trial"], strict=True)
        ]
        figure.add_scatter(
            x=rows[cost].tolist(),
            y=rows["loss"].tolist(),
            mode="markers",
            marker=marker,
            text=texts,
            hovertemplate=f"%{{text}}<br>{cost_text}<br>%{{y:{measure.spec}}}<extra></extra>",
        )
    losses = [*front["loss"], *others["loss"]]
    share = 1 - _SHOWN_QUANTILE if measure.higher_is_better else _SHOWN_QUANTILE
    shown = [*front["loss"], float(np.quantile(losses, share))]
    title = add_unit(measure.name_loss("held-out"), measure.held_out_unit)
    return figure.update_layout(
        xaxis={"title": cost_title} | _scale_costs(min(costs), max(costs)),
        yaxis={"title": title, "range": find_range(shown)},
        showlegend=False,
        height=290,
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

    Returns:
        The chart of the best architectures and of the best of each baseline cell; None if no trial
        recorded the losses.
    """
    token = results.config.token_name
    drawn = _select_profiles(entries)
    if not drawn:
        return None
    figure = go.Figure()
    names = [_name_baseline(entry) or entry.full_label for entry in drawn]
    labels = shorten_labels([entry.label for entry in entries])
    for place, (entry, color) in enumerate(zip(drawn, category_colors(names), strict=True)):
        profile = entry.context
        assert profile is not None
        figure.add_scatter(
            x=profile.centers,
            y=profile.loss + profile.excess,
            error_y={"array": 1.96 * profile.stderr, "thickness": 1, "width": 2},
            customdata=profile.format_ranges(token),
            name=wrap_label(f"{profile.estimate()}: {labels[entry.label]}", LEGEND_WIDTH),
            mode="lines+markers",
            line={"color": color, "dash": DASHES[place % len(DASHES)]},
            hovertemplate="%{customdata}: %{y:.4f} bits per byte<extra>%{fullData.name}</extra>",
            hoverlabel={"namelength": -1},
        )
    title = {"text": f"effective context ({token}s)", "side": "top"}
    place_legend_below(figure, 260, title=title, font={"size": 11}).update_layout(
        xaxis={"type": "log", "title": f"context ({token}s)", "dtick": math.log10(2)},
        yaxis_title="bits per byte",
        margin={"l": 55, "r": 10},
    )
    caption = (
        f"Effective context: number of {token}s from which on more context lowers the loss by less "
        "than 1% of perplexity (Khandelwal et al. 2018), with its 95% interval over the windows."
    )
    best = drawn[0]
    used = best.context.estimate() if best.context else ""
    return Chart(
        "Loss by length of the context",
        figure,
        finding=f"{labels[best.label]} uses {used} {token}s.",
        caption=caption,
        width=340,
    )


def _name_baseline(entry: LeaderboardEntry) -> str:
    architecture = entry.architecture
    if architecture is None or architecture.cell not in BASELINE_CELLS:
        return ""
    return architecture.cell


def _select_profiles(entries: Sequence[LeaderboardEntry]) -> list[LeaderboardEntry]:
    known = [entry for entry in entries if entry.context is not None]
    cells = [_name_baseline(entry) for entry in known]
    best = {cells.index(cell) for cell in BASELINE_CELLS if cell in cells}
    return [entry for place, entry in enumerate(known) if place < BEST_PROFILES or place in best]


# ---------------------------------------------------------------- numbers of state, nuisance values


def chart_states(results: Results, entries: Sequence[LeaderboardEntry]) -> Chart | None:
    """Chart the first metric of the task, or the loss, by the numbers of the states.

    Returns:
        The chart, with a line for each form of a network; None if states are alike, or forms too
        many.
    """
    measure = results.measure
    name = measure.loss
    column = measure.held_out_column("validation")
    title = add_unit(measure.name_loss("held-out"), measure.held_out_unit)
    least = measure.least
    if results.metric_columns:
        name, column = next(iter(results.metric_columns.items()))
        title = name
        least = -math.inf
    rows = results.judge(results.complete).dropna(subset=[column])
    forms = _list_forms(entries)
    if not forms or rows["state_count"].nunique() < 2:
        return None
    figure = go.Figure()
    for (form, labels), style in zip(forms.items(), _line_styles(forms), strict=True):
        groups = rows[rows["architecture"].isin(labels)].groupby("state_count")[column]
        means = groups.mean()
        widths = [mean_half_width(values.tolist()) for _, values in groups]
        below = [min(width, mean - least) for width, mean in zip(widths, means, strict=True)]
        figure.add_scatter(
            x=means.index.tolist(),
            y=means.tolist(),
            error_y={"array": widths, "arrayminus": below, "thickness": 1, "width": 3},
            name=wrap_label(form, LEGEND_WIDTH),
            hovertemplate="%{x:,} numbers: %{y:.4g}<extra>%{fullData.name}</extra>",
            **style,
        )
    counts = rows["state_count"].to_numpy(dtype=float)
    axis = {"title": "numbers of state"} | _scale_costs(counts.min(), counts.max())
    place_legend_below(figure, 290).update_layout(
        xaxis=axis, yaxis={"title": title, "range": find_range(rows[column].tolist())}
    )
    caption = (
        "Numbers in the states of all layers, for one sequence. A point is the mean over the runs "
        "of all networks of a form with as many, with Student’s 95% interval."
    )
    return Chart(f"{name.capitalize()} against numbers of state", figure, caption=caption)


def chart_windows(results: Results, entries: Sequence[LeaderboardEntry]) -> Chart | None:
    """Chart the share of solved runs by the values of the first numeric nuisance parameter.

    Returns:
        The chart, with a line for each form of a network; None if the task does not say when it is
        solved, without such a parameter of three values or more, or with too many forms.
    """
    table = results.table
    names = [name for name in results.nuisance if pd.api.types.is_numeric_dtype(table[name])]
    names = [name for name in names if table[name].nunique() > 2]
    if not names or results.outcomes is None:
        return None
    rows = table.assign(outcome=results.outcomes).dropna(subset=["outcome", names[0]])
    forms = _list_forms([entry for entry in entries if entry.label in set(rows["architecture"])])
    if not forms:
        return None
    figure = go.Figure()
    for (form, labels), style in zip(forms.items(), _line_styles(forms), strict=True):
        groups = rows[rows["architecture"].isin(labels)].groupby(names[0])["outcome"]
        counts = [count_solved(outcomes) for _, outcomes in groups]
        shares = [count.solved / count.runs for count in counts]
        lows, highs = zip(*(count.interval for count in counts), strict=True)
        bars = interval_bars(shares, lows, highs, style["line"]["color"])
        figure.add_scatter(
            x=[value for value, _ in groups],
            y=shares,
            error_y=bars | {"thickness": 1, "width": 3},
            customdata=[f"{count.solved} of {count.runs} runs" for count in counts],
            name=wrap_label(form, LEGEND_WIDTH),
            hovertemplate="%{x:.4g}: %{customdata}<extra>%{fullData.name}</extra>",
            **style,
        )
    values = rows[names[0]].to_numpy(dtype=float)
    axis = {"title": format_param(names[0])} | _scale_costs(values.min(), values.max())
    place_legend_below(figure, 290).update_layout(
        xaxis=axis, yaxis={"title": "share of runs solved", "tickformat": ".0%"}
    )
    caption = "All runs of all networks of a form, with Wilson’s 95% intervals."
    return Chart(f"Runs solved by {format_param(names[0])}", figure, caption=caption)


def _list_forms(entries: Sequence[LeaderboardEntry]) -> dict[str, list[str]]:
    """Group the names of architectures by their cell, and its options if colors suffice.

    Empty if there are fewer than two groups, or more than colors.
    """
    networks = {entry.label: entry.architecture for entry in entries if entry.architecture}
    several_layers = len({network.layers for network in networks.values()}) > 1
    forms: dict[str, list[str]] = {}
    cells: dict[str, list[str]] = {}
    for label, network in networks.items():
        depth = f", {format_count(network.layers, 'layer')}" if several_layers else ""
        forms.setdefault(network.label.partition(" ")[2] + depth, []).append(label)
        cells.setdefault(format_value(network.cell), []).append(label)
    for groups in (forms, cells):
        if 1 < len(groups) <= len(PALETTE):
            return dict(sorted(groups.items()))
    return {}


def _line_styles(forms: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    """Return the style of the line of each form."""
    colors = category_colors([form.lower().partition(",")[0] for form in forms])
    return [
        {"mode": "lines+markers", "line": {"color": color, "dash": DASHES[place % len(DASHES)]}}
        for place, color in enumerate(colors)
    ]
