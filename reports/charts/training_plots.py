"""Figures of training curves, of the workers' timeline, and of what networks predict."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from reports.analysis.leaderboard import LeaderboardEntry
from reports.analysis.other_studies import BaselineReference
from reports.charts.chart import (
    DASHES,
    FULL_WIDTH,
    HOVER_TEXTS,
    IMPROVES,
    LEGEND_WIDTH,
    NEUTRAL,
    PALETTE,
    ROW_HEIGHT,
    TRIAL_COLOR,
    WORSENS,
    Chart,
    ColorScheme,
    add_reference_lines,
    category_colors,
    place_legend_below,
    plot_matrix,
    sequential_colors,
    wrap_label,
)
from reports.formatting import escape_html, objective_name
from reports.results import Results
from reports.stats import Floats, Integers
from reports.stats.scale import (
    add_unit,
    format_count,
    format_param,
    format_value,
    is_missing,
    order_values,
)
from reports.study_reader import select_drawn_curves
from reports.trial_table import is_continuous
from studies.attributes import ConfusionCounts, PredictionSample
from studies.text import format_duration

MAX_POINTS = 200_000
"""Log points drawn at once. Of more, those of each curve are thinned; its least loss is kept."""

HIGHLIGHTED_CURVES = 10
"""Number of best curves that are drawn thick."""

_RANK_COLORS = 10

_ABSENT_COLOR = "#b9bec6"
"""Color of the trials that lack a parameter."""

MAX_LABEL = 28
"""Characters of the name of a worker on the axis of a timeline."""

MAX_BARS = 2000
"""Bars of the timeline. Where there are more trials, a bar stands for those of a span of time."""

_COLORS = {"COMPLETE": TRIAL_COLOR, "PRUNED": "#56b4e9", "DIVERGED": WORSENS, "FAIL": "#cc79a7"}


def plot_curves(results: Results, references: Sequence[BaselineReference] = ()) -> go.Figure:
    """Plot every training curve, the best on top, with the baseline cells as lines."""
    drawn, curves = select_drawn_curves(results), []
    by_number = dict(iter(results.curves.groupby("number")))
    best = set(results.complete.index[:HIGHLIGHTED_CURVES])
    labels, points = results.table["label"].to_dict(), results.curve_ends["points"]
    stride = math.ceil(points.reindex(drawn).sum() / MAX_POINTS)
    scale = results.scale
    value = scale.add_unit(f"%{{y:{scale.value_spec}}}")
    hover = f"step %{{x:,}}: {escape_html(value)}<extra>%{{fullData.name}}</extra>"
    for number in reversed(drawn):
        steps, losses = (by_number[number][name].to_numpy() for name in ("step", "loss"))
        places = _thin_curve(scale.to_loss(losses), stride)
        is_best = number in best
        # As dicts, hundreds of curves take half of the time.
        curves.append(
            {
                "type": "scattergl",
                **_encode_steps(steps[places]),
                "y": losses[places].astype(np.float32),
                "name": f"trial {number}: {labels[number]}",
                "mode": "lines",
                "line": {"width": 2.5 if is_best else 1, "color": NEUTRAL},
                "opacity": 1 if is_best else 0.6,
                "hovertemplate": hover,
                "hoverlabel": {"namelength": -1},
                "showlegend": False,
            }
        )
    figure = go.Figure(curves)
    # The steep descent of the first steps, common to all, is outside of the initial range.
    ends = results.curves["loss"].quantile([0.02, 1] if scale.higher_is_better else [0, 0.98])
    lines = [each.training_loss for each in references]
    add_reference_lines(figure, references, lines, "y", ends.tolist())
    return figure.update_layout(
        xaxis_title="step",
        yaxis_title=add_unit(results.measure.curve, results.measure.unit),
        showlegend=any(map(math.isfinite, lines)),
        height=620,
    )


def _thin_curve(losses: Floats, stride: int) -> Integers:
    """Choose the places of the log points to draw: evenly spaced, the least loss, and the last."""
    places = np.arange(0, len(losses), stride)
    if stride == 1 or np.isnan(losses).all():
        return places
    return np.union1d(places, [int(np.nanargmin(losses)), len(losses) - 1])


def list_color_schemes(results: Results) -> list[ColorScheme]:
    """List the color schemes of :func:`plot_curves`: by rank and by each parameter."""
    numbers = list(reversed(select_drawn_curves(results)))
    count = max(1, len(numbers))
    meanings = {0: "best tenth", _RANK_COLORS - 1: "worst tenth, or without a value"}
    schemes = [
        ColorScheme(
            objective_name(results.config),
            [(meanings.get(i, ""), c) for i, c in enumerate(sequential_colors(_RANK_COLORS))],
            [(count - 1 - i) * _RANK_COLORS // count for i in range(len(numbers))],
        )
    ]
    for name in results.parameters:
        column = results.table[name]
        values = order_values(column.dropna().unique().tolist())
        is_ordered = not isinstance(values[-1], bool | str) and len(values) > 1
        colors = sequential_colors(len(values)) if is_ordered else category_colors(values)
        named = (values[0], values[-1]) if is_continuous(column) else values
        legend = [
            (format_value(value) if value in named else "", color)
            for value, color in zip(values, colors, strict=True)
        ]
        rows = column[numbers].tolist()
        if any(map(is_missing, rows)):
            legend.append((f"without {format_param(name)}", _ABSENT_COLOR))
        indices = [len(values) if is_missing(v) else values.index(v) for v in rows]
        schemes.append(ColorScheme(format_param(name), legend, indices))
    return schemes


def _encode_steps(steps: np.ndarray) -> dict[str, object]:
    """Encode evenly spaced steps as a start and a distance, which is shorter than a list."""
    distances = np.unique(np.diff(steps))
    if len(distances) == 1:
        return {"x0": int(steps[0]), "dx": int(distances[0])}
    return {"x": steps.astype(np.int32)}


def chart_timeline(results: Results) -> Chart | None:
    """Chart the timeline, one row per worker; None if no trial has recorded it and its times."""
    bars, count = _group_trials(results.table)
    if bars.empty:
        return None
    figure, workers = go.Figure(), bars["worker"].unique().tolist()
    for state, color in _COLORS.items():
        trials = bars[bars["state"] == state]
        lengths = (trials["completed"] - trials["started"]).dt.total_seconds()
        if not trials.empty:
            figure.add_bar(
                base=trials["started"].dt.strftime("%Y-%m-%dT%H:%M:%S.%f").tolist(),
                x=(1000 * lengths).round().tolist(),  # milliseconds, the unit of a date axis
                y=list(map(escape_html, trials["worker"])),
                orientation="h",
                name=state.lower() if state != "FAIL" else "failed",
                marker={"color": color, "line": {"width": 0.5, "color": "rgba(255,255,255,0.6)"}},
                customdata=[
                    f"{text}, {format_duration(seconds)}"
                    for text, seconds in zip(trials["text"], lengths, strict=True)
                ],
                hovertemplate=HOVER_TEXTS,
            )
    figure.update_layout(
        barmode="overlay",
        # Turned labels would be cut off below.
        xaxis={"type": "date", "title": "time (UTC)", "tickangle": 0, "nticks": 4},
        yaxis={
            "type": "category",
            "autorange": "reversed",
            "tickvals": list(map(escape_html, workers)),
            "ticktext": [escape_html(_shorten(worker)) for worker in workers],
        },
        legend_y=1.15,
        height=130 + ROW_HEIGHT * len(workers),
    )
    caption = "A trial that was resumed is drawn where it ended."
    if len(bars) < count:
        caption += (
            f" There are {count:,} trials: a bar stands for all of the same end that a worker "
            "began within a short time, from the first start to the last end."
        )
    return Chart(
        "Timeline of the workers",
        figure,
        caption=caption,
        width=340,
        max_width=FULL_WIDTH,
    )


def _shorten(worker: str) -> str:
    """Return the name of a worker without its middle if an axis has no room for all of it."""
    return worker if len(worker) <= MAX_LABEL else f"{worker[:12]}…{worker[13 - MAX_LABEL :]}"


def _group_trials(table: pd.DataFrame) -> tuple[pd.DataFrame, int]:
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
    place = pd.cut(rows["started"], spans, labels=False)
    groups = bars.groupby(["worker", "state", place], sort=False)
    found = groups.agg(started=("started", "min"), completed=("completed", "max"))
    found["text"] = [format_count(int(size), "trial") for size in groups.size()]
    return found.reset_index(["worker", "state"]), len(rows)


# ---------------------------------------------------------------- predictions

BEST_FORECASTS, BEST_LINES = 3, 5
"""Numbers of best architectures of which forecasts, and results by a number, are drawn."""

MIN_VALUES = 3
"""Number of distances or lengths from which results by these are a line rather than a table."""

_MAX_PANELS, _MAX_SEQUENCES = 4, 3
"""Numbers of panels of a figure of forecasts, one for each output and sequence, and of these."""

_MAX_PRINTED = 12
"""Number of classes up to which counts are printed in the cells."""

_SYMBOLS = ("circle", "square", "diamond", "cross", "x")


def chart_task(results: Results, entries: Sequence[LeaderboardEntry]) -> list[Chart]:
    """Chart what the best architectures of a study predict; nothing for a text.

    Args:
        results: results of the study, with the predictions of some trials.
        entries: its architectures, the best first.
    """
    if results.config.task_record is None:
        return []
    charts = [_chart_forecasts(results, entries), _chart_confusion(results, entries)]
    charts += _chart_numbers(results, entries)
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
    if np.bincount(first.sequences).max() >= MIN_VALUES:
        caption = (
            "Validation sequences, step by step: the target in gray, and what the best networks "
            "predict."
        )
        figure = _plot_series(first, samples)
    else:
        caption = (
            "Each marker is a validation target and what a network predicts for it; on the line "
            "both are equal."
        )
        figure = _plot_pairs(first, samples)
    caption += " In the units of the data."
    return Chart("Predictions and targets", figure, caption=caption, width=340)


def _plot_series(first: PredictionSample, samples: Mapping[str, PredictionSample]) -> go.Figure:
    """Plot outputs and targets by step, with a panel for each output of the first sequences."""
    numbers = sorted(set(first.sequences))
    shown = numbers[: min(_MAX_SEQUENCES, max(1, _MAX_PANELS // len(first.names)))]
    steps, sequences = np.array(first.steps) + 1, np.array(first.sequences)
    panels = {}
    for i, number in list(itertools.product(range(len(first.names)), shown))[:_MAX_PANELS]:
        place = sequences == number
        lines = [("target", first.targets[i], {"color": NEUTRAL, "width": 4})]
        lines += [
            (label, sample.outputs[i], _style_line(k))
            for k, (label, sample) in enumerate(samples.items())
        ]
        panels[f"{first.names[i]}: steps of sequence {number + 1}"] = [
            go.Scatter(
                x=steps[place], y=np.array(values)[place], name=label, mode="lines", line=line
            )
            for label, values, line in lines
        ]
    return _plot_panels(panels, 190).update_layout(hovermode="x unified")


def _plot_pairs(first: PredictionSample, samples: Mapping[str, PredictionSample]) -> go.Figure:
    """Plot outputs against targets, with a panel for each output."""
    panels = {}
    for i, (name, targets) in enumerate(zip(first.names, first.targets, strict=True)):
        ends = [min(targets), max(targets)]
        line = {"color": NEUTRAL, "width": 2}
        panels[f"target of {name}"] = [
            go.Scatter(x=ends, y=ends, mode="lines", line=line, hoverinfo="skip"),
            *(
                go.Scatter(
                    x=targets,
                    y=sample.outputs[i],
                    name=label,
                    mode="markers",
                    marker=_style_marker(k) | {"opacity": 0.7},
                    hovertemplate="target %{x}, predicted %{y}",
                )
                for k, (label, sample) in enumerate(samples.items())
            ),
        ]
    return _plot_panels(panels, 300).update_yaxes(title="predicted")


def _plot_panels(panels: Mapping[str, Sequence[go.Scatter]], height: int) -> go.Figure:
    """Plot panels of some height below each other; the legend has the traces of the first."""
    figure = make_subplots(len(panels), 1, vertical_spacing=0.35 / len(panels))
    for row, (title, traces) in enumerate(panels.items(), 1):
        for trace in traces:
            name = trace.name and wrap_label(trace.name, LEGEND_WIDTH)
            trace.update(name=name, legendgroup=name, showlegend=row == 1 and bool(name))
            figure.add_trace(trace, row, 1)
        figure.update_xaxes(title=escape_html(title), row=row, col=1)
    return place_legend_below(figure, 90 + height * len(panels))


def _style_line(place: int) -> dict[str, Any]:
    """Return the line of one of the best architectures, by its place."""
    return {"color": PALETTE[place], "dash": DASHES[place], "width": 1.5}


def _style_marker(place: int) -> dict[str, Any]:
    return {"color": PALETTE[place], "symbol": _SYMBOLS[place], "size": 6}


def _chart_confusion(results: Results, entries: Sequence[LeaderboardEntry]) -> Chart | None:
    """Chart which classes the best architecture confuses; None if that is not stored."""
    best = entries[0]
    confusion = results.predictions.get(best.number)
    if not isinstance(confusion, ConfusionCounts):
        return None
    rows = list(map(str, confusion.classes))
    columns = rows + ["other"] * (len(confusion.counts[0]) - len(rows))
    cells = {}
    for i, counts in enumerate(confusion.counts):
        total = sum(counts)
        for j, count in enumerate(counts):
            text = f"class {rows[i]} predicted as {columns[j]}: {count:,} of {total:,}"
            share = count / total if total else math.nan
            cells[i, j] = share, f"{count:,}" if count else "", text
    figure = plot_matrix(
        rows,
        columns,
        cells,
        texttemplate="%{text}" if len(rows) <= _MAX_PRINTED else None,
        zmin=0,
        zmax=1,
        colorscale=[[0, "rgba(47, 127, 209, 0)"], [1, IMPROVES]],  # none is the background
        colorbar={"title": {"text": "share of the class"}, "tickformat": ".0%"},
    )
    figure.update_layout(
        xaxis_title="predicted class",
        yaxis_title="class",
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


def _chart_numbers(results: Results, entries: Sequence[LeaderboardEntry]) -> list[Chart | None]:
    """Chart the loss by the length of a sequence, and results by the values of each slice.

    These are of the first metric, or the loss. Classes are no amounts: figures of confusions show
    them.
    """
    task, measure = results.config.task_record, results.measure
    assert task is not None
    lines = {
        entry.full_label: {task.steps: entry.validation_loss} | entry.length_losses
        for entry in entries
        if entry.length_losses
    }
    name, unit = measure.name_loss("validation"), measure.held_out_unit
    charts = [_chart_lines(lines, "length of a sequence (steps)", name, unit)]
    metric = next(iter(task.metrics), "loss")
    name, unit = (metric, "") if task.metrics else (measure.loss, unit)
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
    traces = []
    for k, (label, line) in enumerate(drawn):
        places = sorted(line)
        values = [line[place] for place in places]
        style = {"line": _style_line(k), "marker": _style_marker(k)}
        traces.append(go.Scatter(x=places, y=values, name=label, mode="lines+markers", **style))
    figure = _plot_panels({axis: traces}, 240).update_yaxes(title=add_unit(name, unit))
    title = f"{name[:1].upper()}{name[1:]} by {axis.partition(' (')[0]}"
    caption = "On validation sequences, of the best architectures."
    return Chart(title, figure, caption=caption, width=340)
