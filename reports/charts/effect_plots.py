"""Rows, curves and effects → figures of our own, where Optuna has none."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from reports.charts.alt_text import difference_words, effect_words, interaction_words
from reports.charts.colors import IMPROVES, NEUTRAL, PALETTE, WORSENS
from reports.data.results import Results
from reports.formatting import escape_html, format_signed
from reports.stats.baseline_references import BaselineReference, add_reference_lines
from reports.stats.comparison import Comparison
from reports.stats.effects import Effect, Interaction
from reports.stats.metric import Metric
from reports.stats.variant_effects import SourceComparison
from studies.text import format_duration

_ROW = 28  # pixels

# Nothing is worse for reading a heat map than a plain white or black where nothing happens.
_BELOW_AND_ABOVE = [[0, IMPROVES], [0.5, "rgba(138, 144, 153, 0.12)"], [1, WORSENS]]


def effects(found: Sequence[Effect], unit: str) -> go.Figure:
    """Draw each effect as a point with its interval."""
    rows = list(reversed(found))  # plotly's first row is the lowest
    figure = go.Figure(
        go.Scatter(
            x=[effect.mean for effect in rows],
            y=[effect.contrast.label for effect in rows],
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [effect.high - effect.mean for effect in rows],
                "arrayminus": [effect.mean - effect.low for effect in rows],
                "thickness": 2,
                "width": 5,
                "color": NEUTRAL,
            },
            mode="markers",
            marker={
                "size": 11,
                "color": [effect_color(effect) for effect in rows],
                "symbol": [effect_symbol(effect) for effect in rows],
            },
            customdata=[effect_words(effect) for effect in rows],
            hovertemplate="%{customdata}<extra></extra>",
        )
    )
    figure.add_vline(x=0, line={"color": NEUTRAL, "width": 1, "dash": "dot"})
    return figure.update_layout(
        xaxis_title=f"mean difference ({unit})",
        yaxis={"type": "category", "automargin": True},
        height=110 + _ROW * max(1, len(rows)),
        showlegend=False,
    )


def effect_color(effect: Effect) -> str:
    """Return the colour that says whether a change helps."""
    if not effect.is_significant:
        return NEUTRAL
    return IMPROVES if effect.mean < 0 else WORSENS


def effect_symbol(effect: Effect) -> str:
    """Return the shape that says the same as the colour."""
    if not effect.is_significant:
        return "circle-open"
    return "triangle-left" if effect.mean < 0 else "triangle-right"


def interactions(found: Sequence[Interaction]) -> go.Figure:
    """Draw two-way interactions as a heat map."""
    contrasts = list(dict.fromkeys(c for each in found for c in (each.first, each.second)))
    place = {contrast: i for i, contrast in enumerate(contrasts)}
    means = np.full((len(contrasts), len(contrasts)), np.nan)
    words = np.full(means.shape, "", dtype=object)
    for each in found:
        for first, second in ((each.first, each.second), (each.second, each.first)):
            means[place[first], place[second]] = each.mean
            words[place[first], place[second]] = interaction_words(each)
    labels = [contrast.label for contrast in contrasts]
    bound = float(np.nanmax(np.abs(means))) if len(found) else 1.0
    figure = go.Figure(
        go.Heatmap(
            z=means,
            x=labels,
            y=labels,
            zmin=-bound,
            zmax=bound,
            colorscale=_BELOW_AND_ABOVE,
            customdata=words,
            texttemplate="%{z:+.2f}",
            hovertemplate="%{customdata}<extra></extra>",
            hoverongaps=False,
            xgap=2,
            ygap=2,
            colorbar={"title": {"text": "nats", "side": "right"}, "thickness": 14},
        )
    )
    return figure.update_layout(
        xaxis={"automargin": True, "tickangle": -40, "showgrid": False},
        yaxis={"automargin": True, "autorange": "reversed", "showgrid": False},
        height=190 + 36 * len(contrasts),
    )


def timeline(results: Results) -> go.Figure:
    """Draw when each worker trained what: a row a worker, a bar a trial."""
    rows = results.table.dropna(subset=["started", "completed", "worker"])
    figure = go.Figure()
    colours = {"COMPLETE": IMPROVES, "PRUNED": "#e69f00", "DIVERGED": WORSENS, "FAIL": "#cc79a7"}
    for state, colour in colours.items():
        own = rows[rows["state"] == state]
        if own.empty:
            continue
        lengths = (own["completed"] - own["started"]).dt.total_seconds()
        figure.add_trace(
            go.Bar(
                base=own["started"].dt.strftime("%Y-%m-%dT%H:%M:%S.%f").tolist(),
                x=(1000 * lengths).round().tolist(),  # milliseconds, as plotly's dates count
                y=[escape_html(worker) for worker in own["worker"]],
                orientation="h",
                name=state.lower() if state != "FAIL" else "failed",
                marker={"color": colour, "line": {"width": 1, "color": "rgba(255,255,255,0.6)"}},
                customdata=[
                    f"trial {number}: {label}, {format_duration(seconds)}"
                    for number, label, seconds in zip(own.index, own["label"], lengths, strict=True)
                ],
                hovertemplate="%{customdata}<extra></extra>",
            )
        )
    return figure.update_layout(
        barmode="overlay",
        xaxis={"type": "date", "title": "time (UTC)"},
        yaxis={"type": "category", "automargin": True, "autorange": "reversed"},
        legend={"orientation": "h", "y": 1.15},
        height=130 + _ROW * max(1, rows["worker"].nunique()),
    )


def slopes(lineage: SourceComparison, axis: str) -> go.Figure:
    """Draw where each architecture came from and went to: a slope for each source and variant."""
    figure = go.Figure()
    ticks: dict[float, str] = {}
    for i, (variant, rows) in enumerate(lineage.by_variant()):
        left, right = i * 1.5, i * 1.5 + 1
        ticks |= {
            left: escape_html(lineage.source),
            right: f"{escape_html(lineage.study)}<br>{variant}",
        }
        xs: list[Any] = []
        ys: list[Any] = []
        words: list[str] = []
        for row in rows.itertuples():
            xs += [left, right, None]
            ys += [row.source_value, row.value, None]
            change = f"{row.label}: {row.source_value:.4f} → {row.value:.4f} nats"
            words += [change, change, ""]
        figure.add_trace(
            go.Scatter(
                x=xs,
                y=ys,
                mode="lines+markers",
                name=variant,
                line={"width": 1.5, "color": PALETTE[i % len(PALETTE)]},
                marker={"size": 6},
                opacity=0.75,
                customdata=words,
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
        yaxis_title=axis,
        showlegend=False,
        hovermode="closest",
        height=520,
    )


def replicates(
    rows: pd.DataFrame, measure: Metric, references: Sequence[BaselineReference] = ()
) -> go.Figure:
    """Draw each architecture's mean over its replicates, with the 95% interval, and each run.

    Args:
        rows: of :func:`reports.stats.variant_effects.replicates`.
        measure: that they are of.
        references: drawn as lines across.
    """
    rows = rows.iloc[::-1]
    figure = go.Figure(
        [
            go.Scatter(
                x=[value for values in rows["values"] for value in values],
                y=[label for label, values in rows["values"].items() for _ in values],
                mode="markers",
                marker={"size": 6, "color": NEUTRAL, "opacity": 0.6},
                name="a run",
                hovertemplate="%{y}: %{x:.4f}<extra></extra>",
            ),
            go.Scatter(
                x=rows["mean"],
                y=rows.index,
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": rows["high"] - rows["mean"],
                    "arrayminus": rows["mean"] - rows["low"],
                    "thickness": 2,
                    "width": 5,
                    "color": IMPROVES,
                },
                mode="markers",
                marker={"size": 10, "color": IMPROVES, "symbol": "diamond"},
                name="mean, 95% interval",
                hovertemplate="%{y}: %{x:.4f} on average<extra></extra>",
            ),
        ]
    )
    add_reference_lines(figure, references, [each.measured for each in references], "x")
    # Lines that are drawn across do not count when plotly chooses what to show.
    lines = [each.measured for each in references]
    seen = np.array([*rows["min"], *rows["low"], *rows["max"], *rows["high"], *lines])
    lowest, highest = np.nanmin(seen), np.nanmax(seen)
    room = 0.05 * (highest - lowest)
    return figure.update_layout(
        xaxis={
            "title": measure.axis,
            "range": [lowest - room, highest + room] if room else None,
        },
        yaxis={"type": "category", "automargin": True},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        height=150 + _ROW * (len(rows) + len(references)),
    )


def differences(comparison: Comparison, names: Sequence[str]) -> go.Figure:
    """Draw what each architecture has more than each other as a heat map.

    Args:
        comparison: of at least these.
        names: of the architectures, the best first.
    """
    means = np.full((len(names), len(names)), np.nan)
    redact, words = (np.full(means.shape, "", dtype=object) for _ in range(2))
    for i, row in enumerate(names):
        for j, column in enumerate(names):
            found = comparison.between(row, column)
            if found is None or not found.runs:
                continue
            # Only what is told apart has a colour.
            means[i, j] = found.mean if found.is_significant else 0
            number = format_signed(found.mean, 4)
            redact[i, j] = number if found.is_significant else f"({number})"
            words[i, j] = difference_words(row, column, found)
    bound = float(np.nanmax(np.abs(means), initial=0)) or 1.0
    figure = go.Figure(
        go.Heatmap(
            z=means,
            x=[f"{i}" for i in range(1, len(names) + 1)],
            y=[f"{i}: {escape_html(name)}" for i, name in enumerate(names, 1)],
            zmin=-bound,
            zmax=bound,
            colorscale=_BELOW_AND_ABOVE,
            text=redact,
            texttemplate="%{text}",
            customdata=words,
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
