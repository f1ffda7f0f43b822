"""Parameter importances by Optuna's evaluators, and Optuna's figures of them.

Importances are of the parameters that all trials have: Optuna's fANOVA knows no others.
"""

from ast import literal_eval
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
import pandas as pd
import plotly.graph_objects as go
from optuna import visualization
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator
from optuna.study import StudyDirection

from reports.charts.chart import FULL_WIDTH, Chart
from reports.formatting import escape_html
from reports.results import Results
from reports.stats.additive_effects import is_logarithmic
from reports.stats.design import order_values
from reports.trial_table import is_continuous, list_params
from rnn.config import ParamValue
from studies.text import format_count, format_param, format_value

FANOVA_TREES = 32
"""Trees of fANOVA's forest. Optuna's 64 take twice the time, and vary as much between seeds."""

MAX_TRIALS = 2000
"""Trials that are used; of more, a random sample."""

MIN_TRIALS = 4
"""Trials that importances need."""

SMALL_SAMPLE = 100
"""Trials below which the best tenth is too small for a reliable PED-ANOVA importance."""


def chart_importances(results: Results) -> list[Chart]:
    """Chart PED-ANOVA and fANOVA importances, and the value over each parameter.

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
    slices = _plot_slices(study, escape_html(results.measure.axis_title))
    slice_chart = Chart(
        "Slice: value of every trial over each parameter",
        slices,
        caption=sample.strip(),
        width=120 * len(varying),
        max_width=FULL_WIDTH,
    )
    return [*charts, slice_chart]


def _chart_evaluators(
    study: optuna.Study, parameters: Sequence[str], value_name: str, remark: str
) -> list[Chart]:
    """Chart the importances by PED-ANOVA and by fANOVA."""
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
        figure.update_layout(margin={"r": 45})  # room for the number of the longest bar
        _fit(figure, 90 + 26 * len(parameters))
        most = figure.data[0].y[-1]  # the longest bar is at the top
        charts.append(Chart(title, figure, finding=f"Most: {most}.", caption=question + remark))
    return charts


def _plot_slices(study: optuna.Study, axis: str) -> go.Figure:
    """Plot the value over each parameter, without the quotes that Optuna writes around texts."""

    def strip(values: Sequence[Any]) -> list[Any]:
        return [str(literal_eval(value)) if isinstance(value, str) else value for value in values]

    figure = visualization.plot_slice(study, target_name=axis)
    figure.update_xaxes(title={"font": {"size": 11}}, nticks=4)  # else labels overlap
    figure.update_layout(margin={"r": 110})  # room for its color bar
    figure.for_each_trace(lambda trace: trace.update(x=strip(trace.x)))
    for x_axis in figure.select_xaxes(lambda x_axis: x_axis.categoryarray):
        x_axis.update(categoryarray=strip(x_axis.categoryarray))
    return _fit(figure, 420)


def to_optuna_study(
    results: Results, rows: pd.DataFrame, parameters: Sequence[str]
) -> optuna.Study:
    """Convert complete trials to an in-memory study for Optuna's figures.

    Args:
        results: results of the study.
        rows: the trials, rows of its table.
        parameters: parameters to keep, under readable names; a trial may lack some.
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
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # the study is no news for a user
    try:
        study = optuna.create_study(study_name=escape_html(results.name), direction=direction)
    finally:
        optuna.logging.set_verbosity(verbosity)
    study.add_trials(trials)
    return study


def _create_range(values: Sequence[Any]) -> BaseDistribution:
    """Return the range of a continuous parameter, on a logarithmic axis where that fits it."""
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
