"""Figures of trials: importances by Optuna's evaluators, and training curves by rank.

Importances are of the parameters that all trials have: Optuna's fANOVA knows no others.
"""

import math
from ast import literal_eval
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import pandas as pd
import plotly.graph_objects as go
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection

from reports.charts.chart import FULL_WIDTH, NEUTRAL, Chart, find_range, sequential_colors
from reports.formatting import escape_html
from reports.results import POINT, Results
from reports.stats import Floats, Integers
from reports.stats.additive_effects import is_logarithmic
from reports.stats.design import order_values
from reports.study_reader import describe_selection, list_with_curve, select_drawn_curves
from reports.trial_table import is_continuous, list_params
from rnn.config import ParamValue
from studies.measure import Measure
from studies.messages import add_unit, format_count, format_param, format_value

FANOVA_TREES = 32
"""Trees of fANOVA's forest. Optuna's 64 take twice the time, and vary as much between seeds."""

MAX_TRIALS = 2000
"""Trials that are used; of more, a random sample."""

MIN_TRIALS = 4
"""Trials that importances need."""

SMALL_SAMPLE = 100
"""Trials below which the best tenth is too small for a reliable PED-ANOVA importance."""


def chart_importances(results: Results, with_slices: bool = True) -> list[Chart]:
    """Chart PED-ANOVA and fANOVA importances, and the value over each parameter if ``with_slices``.

    Returns:
        The charts in this order. None of them if there are too few complete trials, or these are
        alike; none of a pruned study, where they would say what distinguishes the survivors.
    """
    rows = results.complete
    sample = ""
    if len(rows) > MAX_TRIALS:
        sample = f" {MAX_TRIALS:,} of {len(rows):,} trials, drawn at random."
        rows = rows.sample(MAX_TRIALS, random_state=0)
    rows = rows.sort_index()
    varying = [name for name in results.parameters if rows[name].nunique() > 1]
    common = [name for name in varying if rows[name].notna().all()]
    is_alike = not common or rows["value"].nunique() < 2
    if results.is_pruned or len(rows) < MIN_TRIALS or is_alike:
        return []
    study = to_optuna_study(results, rows, varying)
    partial = ", ".join(format_param(name) for name in varying if name not in common)
    left_out = f" Parameters that only some trials have are left out: {partial}." if partial else ""
    charts = _chart_evaluators(study, common, results.measure.loss, left_out + sample)
    if with_slices:
        slices = Chart(
            "Slice: value of every trial over each parameter",
            _plot_slices(study, escape_html(results.measure.axis_title)),
            caption=sample.strip(),
            width=120 * len(varying),
            max_width=FULL_WIDTH,
        )
        charts.append(slices)
    return charts


def _chart_evaluators(
    study: optuna.Study, parameters: Sequence[str], value_name: str, remark: str
) -> list[Chart]:
    from optuna import visualization  # slow: it imports scikit-learn, which few trials do not need
    from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator

    count = len(study.get_trials(deepcopy=False))
    tenths = "Which parameters separate the best tenth of the trials from the rest?"
    if count < SMALL_SAMPLE:
        tenth = format_count(max(1, count // 10), "trial")
        tenths += f" The best tenth has only {tenth}: PED-ANOVA is unreliable for so few."
    variance = f"Which parameters explain the variance of the {value_name}?"
    fanova = FanovaImportanceEvaluator(n_trees=FANOVA_TREES, seed=0)
    charts = []
    for title, evaluator, question in (
        ("PED-ANOVA", PedAnovaImportanceEvaluator(), tenths),
        ("fANOVA", fanova, variance),
    ):
        labels = [format_label(name) for name in parameters]
        figure = visualization.plot_param_importances(study, evaluator, labels)
        # Room for the number of the longest bar; no title that few bars have no room for.
        figure.update_layout(margin={"r": 45}, yaxis_title=None)
        _fit(figure, 90 + 26 * len(parameters))
        most = figure.data[0].y[-1]  # the longest bar is at the top
        charts.append(Chart(title, figure, finding=f"Most: {most}.", caption=question + remark))
    return charts


def _plot_slices(study: optuna.Study, axis: str) -> go.Figure:
    """Plot the value over each parameter, without the quotes that Optuna writes around texts."""

    def strip(values: Sequence[Any]) -> list[Any]:
        return [str(literal_eval(value)) if isinstance(value, str) else value for value in values]

    from optuna import visualization  # as above

    figure = visualization.plot_slice(study, target_name=axis)
    figure.update_xaxes(title={"font": {"size": 11}}, nticks=4)  # else labels overlap
    figure.update_layout(margin={"r": 110})  # room for its color bar
    figure.for_each_trace(lambda trace: trace.update(x=strip(trace.x)))
    for x_axis in figure.select_xaxes(lambda x_axis: x_axis.categoryarray):
        x_axis.update(categoryarray=strip(x_axis.categoryarray))
    return _fit(figure, 420)


class _DrawnStudy(optuna.Study):
    """Study of which Optuna's figures read all trials for each bar, so they are not copied."""

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        return self.get_trials(deepcopy=False)


def to_optuna_study(
    results: Results, rows: pd.DataFrame, parameters: Sequence[str]
) -> optuna.Study:
    """Convert complete trials, rows of the table, to an in-memory study for Optuna's figures.

    Parameters have readable names; a trial may lack some.
    """
    distributions: dict[str, BaseDistribution] = {}
    for name in parameters:
        values = order_values(rows[name].dropna().unique().tolist())
        if is_continuous(rows[name]):
            distributions[name] = _create_range(values)
        else:
            distributions[name] = CategoricalDistribution([_format_choice(v) for v in values])
    trials = []
    records = rows[list(parameters)].astype(object).to_dict("records")
    for value, record in zip(rows["value"], records, strict=True):
        params = list_params(record, parameters)
        trial = optuna.create_trial(
            value=value,
            params={format_label(name): _format_choice(params[name]) for name in params},
            distributions={format_label(name): distributions[name] for name in params},
        )
        trials.append(trial)
    is_maximized = results.measure.higher_is_better
    direction = StudyDirection.MAXIMIZE if is_maximized else StudyDirection.MINIMIZE
    name = escape_html(results.name)
    storage = InMemoryStorage()
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # the study is no news for a user
    try:
        storage.create_new_study([direction], name)
    finally:
        optuna.logging.set_verbosity(verbosity)
    study = _DrawnStudy(name, storage)
    study.add_trials(trials)
    return study


def _create_range(values: Sequence[Any]) -> BaseDistribution:
    low = values[0]
    high = values[-1]
    is_log = is_logarithmic(np.array(values, dtype=np.float64))
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=is_log)
    return FloatDistribution(float(low), float(high), log=is_log)


def _format_choice(value: ParamValue) -> ParamValue:
    """Return the readable form of a value; numbers stay numbers, which Optuna keeps in order."""
    return escape_html(format_value(value)) if isinstance(value, bool | str) else value


def format_label(name: str) -> str:
    """Return the name of a parameter in Optuna's figures."""
    return escape_html(format_param(name))


def _fit(figure: go.Figure, height: int) -> go.Figure:
    """Give a figure of Optuna the height of its place on a page, which has its title."""
    # Between powers of ten, and with prefixes of units, labels overlap.
    figure.update_xaxes(dtick=1, exponentformat="power", selector={"type": "log"})
    return figure.update_layout(title=None, width=None, height=height)


# ------------------------------------------------------------------ training curves

MAX_POINTS = 100_000
"""Log points drawn at once. Of more, those of each curve are thinned; its least loss is kept."""

_RANKS = {
    "best tenth": 0.1,
    "to a quarter": 0.25,
    "to a half": 0.5,
    "to three quarters": 0.75,
    "worst quarter": 1.0,
}
"""Groups of curves: the share of the trials with a value that are as good or better."""

_UNRANKED = "without a value"
"""Group of the curves of pruned, diverged and running trials."""


def chart_curves(results: Results) -> Chart | None:
    """Chart the training curves by rank; None without any."""
    listed = _list_curves(results)
    if not listed:
        return None
    drawn = select_drawn_curves(results)
    selection = describe_selection(len(drawn), len(list_with_curve(results)))
    name = listed[0][0].curve
    choice = ""
    if results.cells and not results.metrics.empty:
        choice = " Held-out curves are of a few sequences, with averaged weights where there are."
    return Chart(
        "Training curves" if results.cells else "Curves",
        _plot_curves(results, listed, drawn),
        caption=f"{name[:1].upper()}{name[1:]}, by the rank of the trial.{choice}{selection}",
        max_width=FULL_WIDTH,
    )


def _list_curves(results: Results) -> list[tuple[Measure, pd.DataFrame]]:
    """List what there are curves of, with the points (``number``, ``step``, ``loss``)."""
    measure = results.measure
    found = [] if results.curves.empty else [(measure, results.curves)]
    task = results.config.task_record
    directions = task.metrics if task is not None else {}
    for column in results.metrics.columns.difference(POINT, sort=False):
        metric = column.removeprefix("validation_" if results.cells else "")
        shown = replace(measure, curve=measure.name_loss("validation"))
        if metric != "loss" or not results.cells:
            is_higher = directions.get(metric) == "maximize"
            shown = Measure(metric, "", difference_unit="", higher_is_better=is_higher, spec=".4g")
            shown = replace(shown, curve=f"validation {metric}" if results.cells else metric)
        points = results.metrics[[*POINT, column]].dropna().rename(columns={column: "loss"})
        if len(points):
            found.append((shown, points))
    return found


def _plot_curves(
    results: Results, listed: Sequence[tuple[Measure, pd.DataFrame]], drawn: list[int]
) -> go.Figure:
    traces: list[dict[str, Any]] = []
    owners: list[int] = []  # which number each trace is of
    for place, (measure, points) in enumerate(listed):
        bundle = _trace_curves(results, measure, points, drawn)
        traces += [trace | {"visible": place == 0} for trace in bundle]
        owners += [place] * len(bundle)
    axes = [_describe_axis(results, *found) for found in listed]
    title, shown = axes[0].values()
    figure = go.Figure(traces).update_layout(
        xaxis_title="step",
        yaxis={"title": title, "range": shown},
        legend_traceorder="reversed",
        showlegend=True,
        height=320,
    )
    if len(listed) > 1:
        buttons = [
            {
                "label": escape_html(measure.curve),
                "method": "update",
                "args": [{"visible": [owner == place for owner in owners]}, axes[place]],
            }
            for place, (measure, _) in enumerate(listed)
        ]
        menu = {"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}
        menu["pad"] = {"b": 26}  # above the legend
        figure.update_layout(updatemenus=[menu], margin={"t": 71}, height=346)
    return figure


def _describe_axis(results: Results, measure: Measure, points: pd.DataFrame) -> dict[str, Any]:
    quantiles = [0.0, 1.0]
    if results.cells:  # the steep descent of the first steps of training, common to all networks
        quantiles = [0.02, 1] if measure.higher_is_better else [0, 0.98]
    ranked = points[points["number"].isin(results.complete.index)]
    losses = points["loss"] if ranked.empty else ranked["loss"]  # others may have diverged
    ends = find_range(losses.quantile(quantiles).tolist())
    title = escape_html(add_unit(measure.curve, measure.unit))
    return {"yaxis.title.text": title, "yaxis.range": ends}


def _trace_curves(
    results: Results, measure: Measure, points: pd.DataFrame, drawn: list[int]
) -> list[dict[str, Any]]:
    """Return the traces of the curves of one number by rank, the best on top."""
    curves = dict(iter(points.groupby("number")))
    known = [number for number in drawn if number in curves]
    stride = math.ceil(sum(len(curves[number]) for number in known) / MAX_POINTS)
    colors = [*sequential_colors(len(_RANKS)), NEUTRAL]
    traces: list[dict[str, Any]] = []
    for (name, numbers), color in zip(_group_by_rank(results, known).items(), colors, strict=True):
        if numbers:
            is_best = not traces
            style = {
                "name": name,
                "line": {"width": 2 if is_best else 1, "color": color},
                "opacity": 1 if is_best else 0.6,
            }
            traces.append(_bundle_curves(results, measure, curves, numbers, stride) | style)
    # A line for each group: browsers redraw hundreds of lines for seconds, by WebGL as well.
    return traces[::-1]


def _group_by_rank(results: Results, drawn: Sequence[int]) -> dict[str, list[int]]:
    ranked = results.complete.index
    groups: dict[str, list[int]] = {name: [] for name in [*_RANKS, _UNRANKED]}
    shares = {number: place / len(ranked) for place, number in enumerate(ranked)}
    for number in drawn:
        share = shares.get(number, math.inf)
        name = next((name for name, end in _RANKS.items() if share < end), _UNRANKED)
        groups[name].append(number)
    return groups


def _bundle_curves(
    results: Results,
    measure: Measure,
    curves: Mapping[Any, pd.DataFrame],
    numbers: Sequence[int],
    stride: int,
) -> dict[str, Any]:
    """Return one trace of some curves, separated by gaps: Plotly's cost is that of each trace."""
    labels = results.table["label"]
    steps: list[np.ndarray] = []
    losses: list[np.ndarray] = []
    names: list[str] = []
    has_single_points = False
    for number in reversed(numbers):
        values = curves[number]["loss"].to_numpy()
        places = _thin_curve(measure.to_loss(values), stride)
        chosen = values[places]
        shown_steps = curves[number]["step"].to_numpy()[places]
        steps.append(np.append(shown_steps, shown_steps[-1]))
        losses.append(np.append(chosen, np.nan))
        names += [f"trial {number}: {escape_html(labels[number])}"] * (len(places) + 1)
        has_single_points |= np.isfinite(chosen).sum() == 1
    value = f"%{{y:{measure.spec}}} {measure.difference_unit}".rstrip()
    return {
        "type": "scatter",
        "mode": "lines+markers" if has_single_points else "lines",
        "marker": {"size": 4},
        "x": np.concatenate(steps).astype(np.int32),
        "y": np.concatenate(losses).astype(np.float32),
        "text": names,
        "hovertemplate": f"step %{{x:,}}: {escape_html(value)}<extra>%{{text}}</extra>",
        "hoverlabel": {"namelength": -1},
    }


def _thin_curve(losses: Floats, stride: int) -> Integers:
    """Choose the places of the log points to draw: evenly spaced, the least loss, and the last."""
    places = np.arange(0, len(losses), stride)
    if stride == 1 or np.isnan(losses).all():
        return places
    return np.union1d(places, [int(np.nanargmin(losses)), len(losses) - 1])
