"""Rows, curves and effects → figures of our own, where Optuna has none.

Colours are near those of Okabe and Ito (*Color Universal Design*, 2008), told apart by those who do
not see every colour; what they say is said by position or shape too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from reports.effects import Effect, Interaction
from reports.lineage import Lineage
from reports.trials import Results
from reports.words import LOSS, duration_word, parameter_word, plain, signed, value_word

HELPS, HURTS, UNCLEAR = "#2f7fd1", "#d55e00", "#8a9099"
"""Of an effect: the loss falls, it rises, the interval has zero in it."""

PALETTE = ("#2f7fd1", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a9099")
"""Of values that have no order."""

SHADES = 10
"""Of what has an order."""

MOST_CURVES = 1000
"""Drawn at once; of more, the best half of that number, and as many spread over the others."""

HIGHLIGHTED = 10
"""How many of the best curves are drawn thick."""

_ROW = 28  # pixels


def curves(results: Results) -> go.Figure:
    """Draw every training curve, the best on top and thick."""
    figure = go.Figure()
    by_number = dict(iter(results.curves.groupby("number")))
    for number in reversed(drawn_curves(results)):
        curve, row = by_number[number], results.table.loc[number]
        is_best = number in results.complete.index[:HIGHLIGHTED]
        figure.add_trace(
            go.Scattergl(
                **_steps(curve["step"].to_numpy()),
                y=curve["loss"].to_numpy(dtype=np.float32),
                name=f"trial {number}: {row['label']}",
                mode="lines",
                line={"width": 2.5 if is_best else 1, "color": UNCLEAR},
                opacity=1 if is_best else 0.6,
                hovertemplate="step %{x:,}: %{y:.4f} nats<extra>%{fullData.name}</extra>",
                hoverlabel={"namelength": -1},
            )
        )
    # The first steps, where all fall alike, are left to who zooms out.
    lowest, highest = results.curves["loss"].quantile([0, 0.98])
    room = 0.05 * (highest - lowest)
    return figure.update_layout(
        xaxis_title="step",
        yaxis={"title": LOSS, "range": [lowest - room, highest + room] if room else None},
        hovermode="closest",
        showlegend=False,
        height=620,
    )


def drawn_curves(results: Results) -> list[int]:
    """Return the numbers of the trials whose curves are drawn, the best first."""
    there = set(results.curves["number"])
    numbers = [number for number in results.table.index if number in there]
    if len(numbers) <= MOST_CURVES:
        return numbers
    best, others = numbers[: MOST_CURVES // 2], numbers[MOST_CURVES // 2 :]
    kept = np.linspace(0, len(others) - 1, MOST_CURVES - len(best)).round().astype(int)
    return best + [others[i] for i in kept]


@dataclass(frozen=True)
class Colouring:
    """How curves may be coloured.

    Attributes:
        label: by what.
        legend: (meaning, colour) of each colour; a meaning may be empty between two that are not.
        of: for each curve, in the order of the figure's traces, the place in the legend.
    """

    label: str
    legend: list[tuple[str, str]]
    of: list[int]


def colourings(results: Results) -> list[Colouring]:
    """Return the ways to colour :func:`curves`: by the value's rank, and by each parameter."""
    numbers = list(reversed(drawn_curves(results)))
    count = max(1, len(numbers))
    shades = _shades(SHADES)
    ends = {0: "best tenth", SHADES - 1: "worst tenth, or without a value"}
    found = [
        Colouring(
            "the loss they end with",
            [(ends.get(i, ""), shade) for i, shade in enumerate(shades)],
            [(count - 1 - i) * SHADES // count for i in range(len(numbers))],
        )
    ]
    for name in results.parameters:
        values = sorted(results.table[name].unique().tolist())
        has_order = name in ("layers", "state_size") and len(values) > 1
        colours = _shades(len(values)) if has_order else PALETTE
        legend = [(value_word(value), colours[i % len(colours)]) for i, value in enumerate(values)]
        rows = results.table.loc[numbers, name].tolist()
        found.append(Colouring(parameter_word(name), legend, [values.index(v) for v in rows]))
    return found


def effects(found: Sequence[Effect]) -> go.Figure:
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
                "color": UNCLEAR,
            },
            mode="markers",
            marker={
                "size": 11,
                "color": [effect_colour(effect) for effect in rows],
                "symbol": [effect_symbol(effect) for effect in rows],
            },
            customdata=[effect_words(effect) for effect in rows],
            hovertemplate="%{customdata}<extra></extra>",
        )
    )
    figure.add_vline(x=0, line={"color": UNCLEAR, "width": 1, "dash": "dot"})
    return figure.update_layout(
        xaxis_title="mean difference (nats a byte)",
        yaxis={"type": "category", "automargin": True},
        height=110 + _ROW * max(1, len(rows)),
        showlegend=False,
    )


def effect_colour(effect: Effect) -> str:
    """Return the colour that says whether a change helps."""
    if not effect.is_clear:
        return UNCLEAR
    return HELPS if effect.mean < 0 else HURTS


def effect_symbol(effect: Effect) -> str:
    """Return the shape that says the same as the colour."""
    if not effect.is_clear:
        return "circle-open"
    return "triangle-left" if effect.mean < 0 else "triangle-right"


def effect_words(effect: Effect) -> str:
    """Return an effect in one line."""
    bounds = "" if effect.low != effect.low else f" [{signed(effect.low)}, {signed(effect.high)}]"
    return (
        f"{effect.contrast.meaning}: {signed(effect.mean)} nats{bounds}, better in "
        f"{effect.helped / effect.pairs:.0%} of {effect.pairs:,} pairs"
    )


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
    # Nothing is worse for reading a heat map than a plain white or black where nothing happens.
    scale = [[0, HELPS], [0.5, "rgba(138, 144, 153, 0.12)"], [1, HURTS]]
    figure = go.Figure(
        go.Heatmap(
            z=means,
            x=labels,
            y=labels,
            zmin=-bound,
            zmax=bound,
            colorscale=scale,
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


def interaction_words(each: Interaction) -> str:
    """Return an interaction in one line."""
    bounds = "" if each.low != each.low else f" [{signed(each.low)}, {signed(each.high)}]"
    return (
        f"{each.first.label} with {each.second.label}: {signed(each.mean)} nats{bounds} beside "
        f"what each does alone, over {each.foursomes:,} foursomes"
    )


def timeline(results: Results) -> go.Figure:
    """Draw when each worker trained what: a row a worker, a bar a trial."""
    rows = results.table.dropna(subset=["started", "completed", "worker"])
    figure = go.Figure()
    colours = {"COMPLETE": HELPS, "PRUNED": "#e69f00", "DIVERGED": HURTS, "FAIL": "#cc79a7"}
    for state, colour in colours.items():
        own = rows[rows["state"] == state]
        if own.empty:
            continue
        lengths = (own["completed"] - own["started"]).dt.total_seconds()
        figure.add_trace(
            go.Bar(
                base=own["started"].dt.strftime("%Y-%m-%dT%H:%M:%S.%f").tolist(),
                x=(1000 * lengths).round().tolist(),  # milliseconds, as plotly's dates count
                y=[plain(worker) for worker in own["worker"]],
                orientation="h",
                name=state.lower() if state != "FAIL" else "failed",
                marker={"color": colour, "line": {"width": 1, "color": "rgba(255,255,255,0.6)"}},
                customdata=[
                    f"trial {number}: {label}, {duration_word(seconds)}"
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


def slopes(lineage: Lineage) -> go.Figure:
    """Draw where each architecture came from and went to: a slope for each source and variant."""
    figure = go.Figure()
    ticks: dict[float, str] = {}
    for i, (variant, rows) in enumerate(lineage.by_variant()):
        left, right = i * 1.5, i * 1.5 + 1
        ticks |= {left: plain(lineage.source), right: f"{plain(lineage.study)}<br>{variant}"}
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
        xaxis={"tickvals": list(ticks), "ticktext": list(ticks.values()), "showgrid": False},
        yaxis_title=LOSS,
        showlegend=False,
        hovermode="closest",
        height=520,
    )


def replicates(rows: pd.DataFrame) -> go.Figure:
    """Draw each architecture's mean over its replicates, with the 95% interval, and each run.

    Args:
        rows: of :func:`reports.lineage.replicates`.
    """
    rows = rows.iloc[::-1]
    figure = go.Figure(
        [
            go.Scatter(
                x=[value for values in rows["values"] for value in values],
                y=[label for label, values in rows["values"].items() for _ in values],
                mode="markers",
                marker={"size": 6, "color": UNCLEAR, "opacity": 0.6},
                name="a run",
                hovertemplate="%{y}: %{x:.4f} nats<extra></extra>",
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
                    "color": HELPS,
                },
                mode="markers",
                marker={"size": 10, "color": HELPS, "symbol": "diamond"},
                name="mean, 95% interval",
                hovertemplate="%{y}: %{x:.4f} nats on average<extra></extra>",
            ),
        ]
    )
    return figure.update_layout(
        xaxis_title=LOSS,
        yaxis={"type": "category", "automargin": True},
        legend={"orientation": "h", "y": 1.12},
        height=150 + _ROW * len(rows),
    )


def _steps(steps: np.ndarray) -> dict[str, object]:
    """Return a curve's steps as a beginning and a distance, where they are evenly spaced."""
    distances = np.unique(np.diff(steps))
    if len(distances) == 1:
        return {"x0": int(steps[0]), "dx": int(distances[0])}
    return {"x": steps.astype(np.int32)}


def _shades(count: int) -> list[str]:
    """Return colours with an order, from orange, the best or least, to violet."""
    # The ends of the scale are left out: one is too faint on white, the other on black.
    places = np.linspace(0.78, 0.3, count) if count > 1 else [0.5]
    return [str(colour) for colour in sample_colorscale("Plasma", places)]
