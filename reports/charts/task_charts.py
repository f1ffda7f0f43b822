"""Figures of what networks predict: forecasts, confused classes, results by distance or length."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from reports.analysis.leaderboard import LeaderboardEntry
from reports.charts.chart import NEUTRAL, PALETTE, Chart
from reports.formatting import escape_html
from reports.results import Results
from reports.stats.scale import add_unit, format_param
from studies.attributes import ConfusionCounts, PredictionSample

BEST_FORECASTS, BEST_LINES = 3, 5
"""Numbers of best architectures of which forecasts, and results by a number, are drawn."""

MIN_VALUES = 3
"""Number of distances or lengths from which results by these are a line rather than a table."""

_MAX_PANELS = 4
"""Number of panels of a figure of forecasts, one for each output and sequence."""

_MAX_SEQUENCES = 3

_MAX_PRINTED = 12
"""Number of classes up to which counts are printed in the cells."""

_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_SYMBOLS = ("circle", "square", "diamond", "cross", "x")
_LEGEND = {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"}
"""Below the plot: at its side it leaves no room on a narrow screen."""

_COUNT_COLORS = ((0.0, "rgba(47,127,209,0)"), (1.0, "#2f7fd1"))
"""Colors of no prediction, the background, and of all."""


def chart_task(results: Results, entries: Sequence[LeaderboardEntry]) -> list[Chart]:
    """Chart what the best architectures of a study predict; nothing for a text.

    Args:
        results: results of the study, with the predictions of some trials.
        entries: its architectures, the best first.
    """
    if results.config.task_record is None:
        return []
    charts = [_chart_forecasts(results, entries), _chart_confusion(results, entries)]
    charts += [_chart_lengths(results, entries), *_chart_slices(results, entries)]
    return [chart for chart in charts if chart is not None]


def _chart_forecasts(results: Results, entries: Sequence[LeaderboardEntry]) -> Chart | None:
    """Chart the outputs of the best architectures next to the targets; None without any."""
    samples = {}
    for entry in entries[:BEST_FORECASTS]:
        sample = results.predictions.get(entry.number)
        if isinstance(sample, PredictionSample) and sample.steps:
            samples[entry.full_label] = sample
    if not samples:
        return None
    first = next(iter(samples.values()))
    is_series = np.bincount(first.sequences).max() >= MIN_VALUES
    caption = (
        "Validation sequences, step by step: the target in gray, and what the best networks "
        "predict. "
        if is_series
        else "Each marker is a validation target and what a network predicts for it; on the line "
        "both are equal. "
    )
    figure = _plot_series(samples) if is_series else _plot_scatter(samples)
    caption += "In the units of the data."
    return Chart("Predictions and targets", figure, caption=caption, width=340)


def _plot_series(samples: Mapping[str, PredictionSample]) -> go.Figure:
    """Plot outputs and targets by step, with a panel for each output of the first sequences."""
    first = next(iter(samples.values()))
    numbers = sorted(set(first.sequences))
    shown = numbers[: min(_MAX_SEQUENCES, max(1, _MAX_PANELS // len(first.names)))]
    panels = [(i, number) for i in range(len(first.names)) for number in shown][:_MAX_PANELS]
    figure = make_subplots(len(panels), 1, vertical_spacing=0.35 / len(panels))
    steps, sequences = np.array(first.steps) + 1, np.array(first.sequences)
    for row, (i, number) in enumerate(panels, 1):
        place = sequences == number
        lines = [("target", first.targets[i], {"color": NEUTRAL, "width": 4})]
        for k, (label, sample) in enumerate(samples.items()):
            lines.append((label, sample.outputs[i], _style_line(k)))
        for label, values, line in lines:
            trace = go.Scatter(
                x=steps[place],
                y=np.array(values)[place],
                name=escape_html(label),
                legendgroup=escape_html(label),
                showlegend=row == 1,
                mode="lines",
                line=line,
            )
            figure.add_trace(trace, row, 1)
        title = f"{first.names[i]}: steps of sequence {number + 1}"
        figure.update_xaxes(title=escape_html(title), row=row, col=1)
    return figure.update_layout(
        legend=_LEGEND,
        hovermode="x unified",
        margin={"t": 20},
        height=110 + 190 * len(panels) + 24 * len(samples),
    )


def _plot_scatter(samples: Mapping[str, PredictionSample]) -> go.Figure:
    """Plot outputs against targets, with a panel for each output."""
    first = next(iter(samples.values()))
    figure = make_subplots(len(first.names), 1)
    for row, (name, targets) in enumerate(zip(first.names, first.targets, strict=True), 1):
        ends = [min(targets), max(targets)]
        line = {"color": NEUTRAL, "width": 2}
        figure.add_scatter(
            x=ends, y=ends, mode="lines", line=line, hoverinfo="skip", showlegend=False,
            row=row, col=1,
        )  # fmt: skip
        for k, (label, sample) in enumerate(samples.items()):
            trace = go.Scatter(
                x=targets,
                y=sample.outputs[row - 1],
                name=escape_html(label),
                legendgroup=escape_html(label),
                showlegend=row == 1,
                mode="markers",
                marker=_style_marker(k) | {"opacity": 0.7},
                hovertemplate="target %{x}, predicted %{y}",
            )
            figure.add_trace(trace, row, 1)
        title = escape_html(f"target of {name}")
        figure.update_xaxes(title=title, row=row, col=1).update_yaxes(title="predicted")
    height = 90 + 300 * len(first.names) + 24 * len(samples)
    return figure.update_layout(legend=_LEGEND, margin={"t": 20}, height=height)


def _style_line(place: int) -> dict[str, Any]:
    """Return the line of one of the best architectures, by its place."""
    return {"color": PALETTE[place], "dash": _DASHES[place], "width": 1.5}


def _style_marker(place: int) -> dict[str, Any]:
    return {"color": PALETTE[place], "symbol": _SYMBOLS[place], "size": 6}


def _chart_confusion(results: Results, entries: Sequence[LeaderboardEntry]) -> Chart | None:
    """Chart which classes the best architecture confuses; None if that is not stored."""
    best = entries[0]
    confusion = results.predictions.get(best.number)
    if not isinstance(confusion, ConfusionCounts):
        return None
    counts = np.array(confusion.counts)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.where(totals > 0, counts / np.maximum(totals, 1), np.nan)
    rows = list(map(str, confusion.classes))
    columns = rows + ["other"] * (counts.shape[1] - len(rows))
    figure = go.Figure(
        go.Heatmap(
            z=shares,
            x=columns,
            y=rows,
            zmin=0,
            zmax=1,
            colorscale=_COUNT_COLORS,
            text=[[f"{n:,}" if n else "" for n in row] for row in counts.tolist()],
            texttemplate="%{text}" if len(rows) <= _MAX_PRINTED else None,
            customdata=np.broadcast_to(totals, counts.shape),
            hovertemplate="class %{y} predicted as %{x}: %{text} of %{customdata:,}"
            "<extra></extra>",
            hoverongaps=False,
            xgap=1,
            ygap=1,
            colorbar={"title": {"text": "share of the class", "side": "right"}, "thickness": 14,
                      "tickformat": ".0%"},
        )
    )  # fmt: skip
    figure.update_layout(
        xaxis={"type": "category", "title": "predicted class", "showgrid": False},
        yaxis={"type": "category", "title": "class", "autorange": "reversed", "showgrid": False},
        margin={"t": 20},
        height=120 + 26 * max(6, len(rows)),
    )
    return Chart(
        "Confused classes",
        figure,
        caption=f"Validation targets of {best.full_label} by their class and the predicted one.",
        width=340,
        max_width=240 + 40 * max(8, len(columns)),
    )


def _chart_lengths(results: Results, entries: Sequence[LeaderboardEntry]) -> Chart | None:
    """Chart the loss by the length of a sequence; None for too few lengths."""
    task, measure = results.config.task_record, results.measure
    assert task is not None
    lines = {
        entry.full_label: {task.steps: entry.validation_loss} | entry.length_losses
        for entry in entries
        if entry.length_losses
    }
    name = measure.name_loss("validation")
    return _chart_lines(lines, "length of a sequence (steps)", name, measure.held_out_unit)


def _chart_slices(results: Results, entries: Sequence[LeaderboardEntry]) -> list[Chart | None]:
    """Chart the first metric, or the loss, by each number that the task divides its targets by.

    Classes are no amounts: figures of confusions show them.
    """
    task, measure = results.config.task_record, results.measure
    assert task is not None
    metric = next(iter(task.metrics), "loss")
    name, unit = (metric, "") if task.metrics else (measure.loss, measure.held_out_unit)
    charts = []
    for each in dict.fromkeys(name for entry in entries for name in entry.slices):
        lines = {
            entry.full_label: {
                value: found[metric]
                for value, found in entry.slices.get(each, {}).items()
                if metric in found
            }
            for entry in entries
        }
        if each != "class":
            charts.append(_chart_lines(lines, format_param(each), name, unit))
    return charts


def _chart_lines(
    lines: Mapping[str, Mapping[int, float]], axis: str, name: str, unit: str
) -> Chart | None:
    """Chart results of the best architectures by a number; None for too few numbers.

    Args:
        lines: result of each architecture by the number, the best architecture first.
        axis: what the number is.
        name: what the result is.
        unit: its unit; "" for none.
    """
    drawn = [(each, line) for each, line in lines.items() if len(line) >= MIN_VALUES][:BEST_LINES]
    if not drawn:
        return None
    figure = go.Figure()
    for k, (label, line) in enumerate(drawn):
        places = sorted(line)
        figure.add_scatter(
            x=places,
            y=[line[place] for place in places],
            name=escape_html(label),
            mode="lines+markers",
            line=_style_line(k),
            marker=_style_marker(k),
        )
    figure.update_layout(
        xaxis={"title": axis},
        yaxis={"title": add_unit(name, unit)},
        legend=_LEGEND,
        showlegend=True,
        margin={"t": 20},
        height=330 + 24 * len(drawn),
    )
    title = f"{name[:1].upper()}{name[1:]} by {axis.partition(' (')[0]}"
    caption = "On validation sequences, of the best architectures."
    return Chart(title, figure, caption=caption, width=340)
