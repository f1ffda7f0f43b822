"""Figure of which worker trained which trial when."""

import math

import pandas as pd
import plotly.graph_objects as go

from reports.charts.alt_text import describe_timeline
from reports.charts.chart import FULL_WIDTH, ROW_HEIGHT, TRIAL_COLOR, WORSENS, Chart
from reports.data.results import Results
from reports.formatting import escape_html, format_count
from studies.text import format_duration

MAX_BARS = 2000
"""Bars of the timeline. Where there are more trials, a bar stands for those of a span of time."""

_COLORS = {"COMPLETE": TRIAL_COLOR, "PRUNED": "#56b4e9", "DIVERGED": WORSENS, "FAIL": "#cc79a7"}


def chart_timeline(results: Results) -> Chart | None:
    """Chart the timeline; None if no trial has recorded its worker and its times."""
    bars, trials = group_trials(results.table)
    if bars.empty:
        return None
    caption = "A trial that was resumed is drawn where it ended."
    if len(bars) < trials:
        caption += (
            f" There are {trials:,} trials: a bar stands for all of the same end that a worker "
            "began within a short time, from the first start to the last end."
        )
    figure, text = plot_timeline(bars), describe_timeline(results.table)
    return Chart("Timeline of the workers", figure, text, caption, width=520, max_width=FULL_WIDTH)


def plot_timeline(bars: pd.DataFrame) -> go.Figure:
    """Plot the bars of :func:`group_trials`, one row per worker."""
    figure = go.Figure()
    for state, color in _COLORS.items():
        trials = bars[bars["state"] == state]
        if trials.empty:
            continue
        lengths = (trials["completed"] - trials["started"]).dt.total_seconds()
        figure.add_trace(
            go.Bar(
                base=trials["started"].dt.strftime("%Y-%m-%dT%H:%M:%S.%f").tolist(),
                x=(1000 * lengths).round().tolist(),  # milliseconds, the unit of a date axis
                y=[escape_html(worker) for worker in trials["worker"]],
                orientation="h",
                name=state.lower() if state != "FAIL" else "failed",
                marker={"color": color, "line": {"width": 0.5, "color": "rgba(255,255,255,0.6)"}},
                customdata=[
                    f"{text}, {format_duration(seconds)}"
                    for text, seconds in zip(trials["text"], lengths, strict=True)
                ],
                hovertemplate="%{customdata}<extra></extra>",
            )
        )
    return figure.update_layout(
        barmode="overlay",
        xaxis={"type": "date", "title": "time (UTC)"},
        yaxis={"type": "category", "automargin": True, "autorange": "reversed"},
        legend={"orientation": "h", "y": 1.15},
        height=130 + ROW_HEIGHT * max(1, bars["worker"].nunique()),
    )


def group_trials(table: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Group the trials of a table into the bars of a timeline.

    There is a bar for each trial, or, if these are too many, for the trials of one state that a
    worker began within the same of equal spans of time.

    Returns:
        The bars, with ``worker``, ``state``, ``started``, ``completed`` and ``text``, and the
        number of their trials.
    """
    rows = table.dropna(subset=["started", "completed", "worker"])
    rows = rows[rows["state"].isin(list(_COLORS))]
    names = [f"trial {number}: {label}" for number, label in rows["label"].items()]
    bars = rows[["worker", "state", "started", "completed"]].assign(text=names)
    if len(bars) <= MAX_BARS:
        return bars, len(rows)
    spans = max(1, MAX_BARS // (rows["worker"].nunique() * rows["state"].nunique()))
    begin, end = rows["started"].min(), rows["started"].max()
    width = max((end - begin).total_seconds(), 1.0) / spans
    place = ((rows["started"] - begin).dt.total_seconds() / width).map(math.floor)
    groups = bars.groupby(["worker", "state", place.clip(upper=spans - 1)], sort=False)
    found = groups.agg(started=("started", "min"), completed=("completed", "max"))
    found["text"] = [format_count(int(size), "trial") for size in groups.size()]
    return found.reset_index(["worker", "state"]), len(rows)
