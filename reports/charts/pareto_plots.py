"""Figures of loss against cost, with the Pareto front."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from reports.analysis.pareto_front import (
    Cost,
    CostedArchitecture,
    CostSummary,
    FrontMember,
    ParetoFront,
)
from reports.charts.chart import CELL_COLORS, IMPROVES, NEUTRAL, Chart
from reports.data.results import MAX_DRAWN, select_evenly
from reports.formatting import escape_html
from reports.stats.scale import add_unit, format_signed

AXIS_TITLES: dict[Cost, str] = {
    "parameters": "parameters",
    "seconds": "computing time of a run (s)",
}
"""Title of the axis of each cost."""

_SHOWN_QUANTILE = 0.75
"""Share of the architectures within the range of the losses at first: bad ones hide the front."""

MAX_LISTED = 6
"""Front members that the text alternative lists."""


def chart_front(front: ParetoFront, summary: CostSummary) -> Chart:
    """Chart the losses of a study against one cost."""
    noun = "parameters" if front.cost == "parameters" else "training time"
    title = f"{front.measure.loss.capitalize()} against {noun}"
    caption = (
        "Line and diamonds: the Pareto front; no architecture that costs as much or less has a "
        f"lower {front.measure.loss}. Circles: {_describe_similar(summary)} Gray: worse."
    )
    others = len(front.similar) + len(front.worse)
    drawn = min(len(front.similar), MAX_DRAWN) + min(len(front.worse), MAX_DRAWN)
    if drawn < others:
        caption += f" {drawn:,} of the {others:,} off the front are drawn, spread over the costs."
    if front.references:
        caption += " Crosses: the best of each baseline cell of the other studies on this page."
    return Chart(title, plot_front(front), describe_front(front), caption)


def plot_front(front: ParetoFront) -> go.Figure:
    """Plot each architecture's held-out loss against its cost, on a logarithmic axis."""
    members = [member.architecture for member in front.members]
    everything = [*members, *front.similar, *front.worse]
    costs = [each.cost(front.cost) for each in [*everything, *front.references]]
    losses = [each.loss for each in everything]
    figure = go.Figure(
        [
            _trace(front, select_evenly(front.worse), "worse", color=NEUTRAL, size=5, opacity=0.55),
            _trace(
                front,
                select_evenly(front.similar),
                "not distinguishable from the front",
                symbol="circle-open",
                color=IMPROVES,
                size=9,
                line={"width": 2},
            ),
            go.Scatter(
                x=[each.cost(front.cost) for each in members] + [max(costs)],
                y=[each.loss for each in members] + [members[-1].loss],
                mode="lines",
                line={"shape": "hv", "color": IMPROVES, "width": 2},
                hoverinfo="skip",
                showlegend=False,
            ),
            _trace(front, members, "front", symbol="diamond", color=IMPROVES, size=11),
            *(
                _trace(
                    front,
                    [each],
                    escape_html(each.label),
                    symbol="x",
                    color=CELL_COLORS[each.cell],
                    size=10,
                )
                for each in front.references
            ),
        ]
    )
    shown = [*(each.loss for each in [*members, *front.similar, *front.references])]
    top = max([float(np.quantile(losses, _SHOWN_QUANTILE)), *shown])
    bottom = min([*losses, *shown])
    room = 0.06 * (top - bottom)
    return figure.update_layout(
        xaxis={"title": AXIS_TITLES[front.cost]} | _scale(min(costs), max(costs)),
        yaxis={
            "title": add_unit(front.measure.name_loss("held-out"), front.measure.held_out_unit),
            "range": [bottom - room, top + room],
        },
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        height=460,
    )


def _scale(low: float, high: float) -> dict[str, Any]:
    """Return the settings of an axis of costs: linear within a factor of five, else logarithmic."""
    if low <= 0 or high < 5 * low:
        room = 0.06 * (high - low)
        return {"range": [low - room, high + room], "nticks": 5, "tickformat": ",~r"}
    first, last = math.log10(low), math.log10(high)
    room = 0.06 * (last - first)
    factors = (1, 3) if last - first > 1.5 else (1, 2, 5)
    ticks = [f * 10**e for e in range(math.floor(first), math.ceil(last) + 1) for f in factors]
    return {
        "type": "log",
        "range": [first - room, last + room],
        "tickvals": ticks,
        "ticktext": [f"{tick:,}" if tick >= 1 else f"{tick:.6g}" for tick in ticks],
    }


def describe_front(front: ParetoFront) -> str:
    """List the members of a front, for a reader without the figure."""
    listed = "; ".join(_describe_member(front, each) for each in front.members[:MAX_LISTED])
    more = len(front.members) - MAX_LISTED
    text = f"The front, from the cheapest: {listed}" + (f"; and {more} more." if more > 0 else ".")
    text += (
        f" Off the front, {len(front.similar)} are not distinguishable from it and "
        f"{len(front.worse)} are worse."
    )
    if front.references:
        cells = "; ".join(_describe(front, each) for each in front.references)
        text += f" Baseline cells: {cells}."
    return text


def _describe(front: ParetoFront, each: CostedArchitecture) -> str:
    cost, measure = front.cost, front.measure
    unit = "parameters" if cost == "parameters" else "s"
    amount = f"{each.cost(cost):,.0f}" if cost == "parameters" else f"{each.cost(cost):,.2f}"
    loss = f"{each.loss:{measure.spec}} {measure.held_out_unit}".rstrip()
    return f"{each.label}: {loss} at {amount} {unit}"


def _describe_member(front: ParetoFront, member: FrontMember) -> str:
    gap = member.gap
    behind = f", {format_signed(gap.mean, front.measure.spec)} to the best" if gap else ""
    return _describe(front, member.architecture) + behind


def _describe_similar(summary: CostSummary) -> str:
    if summary.is_replicated:
        return "not significantly worse than the front at their cost, corrected for all pairs."
    data = f"over the {summary.fronts[0].measure.data} of these single runs."
    return f"not distinguishable from the front at their cost, {data}"


def _trace(
    front: ParetoFront, points: Sequence[CostedArchitecture], name: str, **marker: object
) -> go.Scatter:
    cost = front.cost
    unit = " parameters" if cost == "parameters" else " s"
    spec = ",.0f" if cost == "parameters" else ",.2f"
    return go.Scatter(
        x=[each.cost(cost) for each in points],
        y=[each.loss for each in points],
        mode="markers",
        marker=marker,
        name=name,
        text=[
            escape_html(each.label + (f" (trial {each.number})" if each.number is not None else ""))
            for each in points
        ],
        hovertemplate=f"%{{text}}<br>%{{x:{spec}}}{unit}<br>%{{y:{front.measure.spec}}}<extra></extra>",
        showlegend=bool(points),
    )
