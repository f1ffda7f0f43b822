"""Optuna's figures of a study, with readable names and the colors of the report."""

from collections.abc import Collection, Container, Mapping, Sequence
from typing import Any

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
from optuna.importance._base import BaseImportanceEvaluator
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from reports.charts.chart import BEST_COLOR, TRIAL_COLOR, sequential_colors
from reports.data.results import Results
from reports.data.trial_table import is_continuous, list_params
from reports.formatting import escape_html
from reports.stats.scale import Scale, format_param, format_value, order_values
from rnn.config import ParamValue

_WIDE = 100
"""Ratio of the ends of a range from which its axis is logarithmic."""


# Translucent, so that numbers are readable on light and on dark paper; the best is the darkest.
BEST_COLORS = [[0, "rgba(230, 159, 0, 0.75)"], [1, "rgba(230, 159, 0, 0.04)"]]
"""Color scale of losses, from the least to the greatest."""


class _DrawnStudy(optuna.Study):
    """Study of given trials, which are not in its storage and are never copied.

    An in-memory storage would take a second for a few thousand trials, and Optuna's figures would
    copy them for each bar.
    """

    drawn: Sequence[FrozenTrial] = ()

    def get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials without copying them."""
        return [trial for trial in self.drawn if states is None or trial.state in states]


def to_optuna_study(
    results: Results,
    numbers: Collection[int],
    parameters: list[str],
    ordinal_above: int | None = None,
) -> optuna.Study:
    """Convert some trials to an in-memory study for Optuna's figures.

    The study has no curves, which these figures do not show.

    Args:
        results: results of the study.
        numbers: numbers of complete trials.
        parameters: parameters to keep, under readable names; a trial may lack some.
        ordinal_above: number of values above which a number is replaced by its place among them.
    """
    choices = {
        name: [
            _format_choice(value)
            for value in order_values(results.table[name].dropna().unique().tolist())
        ]
        for name in parameters
    }
    ranges = {name for name in parameters if is_continuous(results.table[name])}
    ordinal = {
        name
        for name, values in choices.items()
        if ordinal_above is not None
        and len(values) > ordinal_above
        and not isinstance(values[-1], str)
    }
    distributions: dict[str, BaseDistribution] = {
        name: IntDistribution(0, len(values) - 1)
        if name in ordinal
        else _create_range(values)
        if name in ranges
        else CategoricalDistribution(values)
        for name, values in choices.items()
    }
    rows = results.table.loc[sorted(numbers)]
    # By "records", some versions of pandas give no row for a table without columns.
    records = rows[parameters].astype(object).to_dict("index")
    is_maximized = results.scale.higher_is_better
    direction = StudyDirection.MAXIMIZE if is_maximized else StudyDirection.MINIMIZE
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # the study is no news for a user
    try:
        created = optuna.create_study(study_name=escape_html(results.name), direction=direction)
    finally:
        optuna.logging.set_verbosity(verbosity)
    study = _DrawnStudy(created.study_name, created._storage)
    trials = []
    for number, value, record in zip(rows.index, rows["value"], records.values(), strict=True):
        params = {k: _format_choice(v) for k, v in list_params(record, parameters).items()}
        params |= {k: choices[k].index(v) for k, v in params.items() if k in ordinal}
        trials.append(_create_trial(int(number), value, params, distributions))
    study.drawn = trials
    return study


def format_label(name: str) -> str:
    """Return the name of a parameter in Optuna's figures."""
    return escape_html(format_param(name))


def _create_range(values: Sequence[Any]) -> BaseDistribution:
    """Return the range of a continuous parameter, on a logarithmic axis if it is wide."""
    low, high = values[0], values[-1]
    is_wide = low > 0 and high / low >= _WIDE
    if all(isinstance(value, int) for value in (low, high)):
        return IntDistribution(low, high, log=is_wide)
    return FloatDistribution(float(low), float(high), log=is_wide)


def _create_trial(
    number: int,
    value: float,
    params: Mapping[str, ParamValue],
    distributions: Mapping[str, BaseDistribution],
) -> FrozenTrial:
    trial = create_trial(
        value=value,
        params={format_label(name): params[name] for name in params},
        distributions={format_label(name): distributions[name] for name in params},
    )
    trial.number = trial._trial_id = number  # PED-ANOVA distinguishes trials by their id
    return trial


def list_varying_parameters(results: Results, numbers: Collection[int]) -> list[str]:
    """List the parameters that all of some trials have, with several values among them."""
    rows = results.table.loc[list(numbers)]
    names = results.parameters
    return [name for name in names if rows[name].nunique() > 1 and rows[name].notna().all()]


def list_partial_parameters(results: Results, numbers: Collection[int]) -> list[str]:
    """List the parameters that only a part of some trials have, with several values among them."""
    rows = results.table.loc[list(numbers)]
    names = results.parameters
    return [name for name in names if rows[name].nunique() > 1 and rows[name].isna().any()]


def has_enough_trials(results: Results, numbers: Collection[int]) -> bool:
    """Return whether trials are enough, and differ enough, for Optuna's figures."""
    rows = results.table.loc[list(numbers)]
    return (
        len(rows) >= 4
        and bool(list_varying_parameters(results, numbers))
        and rows["value"].nunique() > 1
    )


def create_importance_evaluators() -> dict[str, BaseImportanceEvaluator]:
    """Create the evaluators of both importances by name."""
    return {"PED-ANOVA": PedAnovaImportanceEvaluator(), "fANOVA": FanovaImportanceEvaluator(seed=0)}


def plot_importances(study: optuna.Study, evaluator: BaseImportanceEvaluator) -> go.Figure:
    """Plot the importance of each parameter."""
    figure = visualization.plot_param_importances(study, evaluator=evaluator, target_name="value")
    bars = len(figure.data[0].y)
    # Importances are not more precise than three digits.
    figure.update_traces(marker_color=TRIAL_COLOR, texttemplate="%{x:.3f}", cliponaxis=False)
    figure.update_layout(
        title=None,
        height=90 + 30 * bars,
        xaxis_title="importance",
        yaxis_title=None,
        margin={"r": 50},
    )
    return figure


def plot_slices(study: optuna.Study, axis: str) -> go.Figure:
    """Plot every trial's value over each parameter."""
    figure = visualization.plot_slice(study, target_name=axis)
    for trace in figure.data:  # Optuna quotes strings
        trace.x = [x.strip("'") if isinstance(x, str) else x for x in trace.x]
    figure.for_each_xaxis(
        lambda axis: axis.update(
            categoryarray=axis.categoryarray
            and [x.strip("'") if isinstance(x, str) else x for x in axis.categoryarray]
        )
    )
    figure.update_layout(title=None, height=420, width=None)
    # Optuna shades by trial number, which means nothing in a shuffled grid.
    figure.update_traces(marker={"color": TRIAL_COLOR, "opacity": 0.5, "showscale": False})
    return figure


def plot_ranks(study: optuna.Study, parameters: list[str], axis: str) -> go.Figure:
    """Plot the trials' ranks over each two of some parameters, the best trials on top."""
    figure = visualization.plot_rank(study, params=parameters, target_name=axis)
    values = [trial.values[0] for trial in study.get_trials(states=(TrialState.COMPLETE,))]
    is_maximized = study.direction == StudyDirection.MAXIMIZE
    order = sorted(range(len(values)), key=lambda i: values[i], reverse=not is_maximized)
    for trace in figure.data:
        if trace.x is None or len(trace.x) != len(order):  # color bar
            continue
        trace.update(
            x=[trace.x[i] for i in order],
            y=[trace.y[i] for i in order],
            hovertext=[trace.hovertext[i] for i in order],
            marker={"color": [trace.marker.color[i] for i in order]},
        )
    figure.update_layout(title=None, height=640, width=None)
    return figure


def plot_parallel_coordinates(study: optuna.Study, name: str) -> go.Figure:
    """Plot each trial as a line through its parameters' values and its value, of this name."""
    figure = visualization.plot_parallel_coordinate(study, target_name=name)
    *lines, color_bar = figure.data
    is_maximized = study.direction == StudyDirection.MAXIMIZE
    lines.sort(key=lambda line: line.y[0], reverse=not is_maximized)  # the best on top
    # Optuna's blue lines, white background and gray text suit a white page only.
    scale = sequential_colors(10)
    scale = scale[::-1] if is_maximized else scale
    for line in lines:
        line.line.color = scale[min(9, int(10 * line.y[0]))]
    color_bar.marker.update(colorscale=scale, reversescale=False)
    figure.data = []
    figure.add_traces([*lines, color_bar])
    figure.update_annotations(font={"size": 11, "color": None})
    figure.update_layout(title=None, height=460, plot_bgcolor=None)
    return figure


def plot_best(rows: pd.DataFrame, parameters: Sequence[str], scale: Scale) -> go.Figure:
    """Plot the best value of the trials with each two values of two parameters as a heat map."""
    groups = rows.groupby(list(parameters))["value"]
    best = (groups.max() if scale.higher_is_better else groups.min()).unstack()
    names = [[escape_html(format_value(value)) for value in axis] for axis in best.axes]
    losses = scale.to_loss(best.to_numpy(dtype=float))
    figure = go.Figure(
        go.Heatmap(
            z=losses,
            x=names[1],
            y=names[0],
            text=[[f"{v:{scale.spec}}" if v == v else "" for v in row] for row in best.values],
            texttemplate="%{text}",
            colorscale=BEST_COLORS,
            hovertemplate="%{y}, %{x}: %{text}<extra></extra>",
            hoverongaps=False,
            showscale=False,
            xgap=2,
            ygap=2,
        )
    )
    titles = [escape_html(format_param(name)) for name in parameters]
    return figure.update_layout(
        xaxis={"type": "category", "title": titles[1], "showgrid": False},
        yaxis={"type": "category", "title": titles[0], "automargin": True, "showgrid": False},
        height=130 + 44 * len(best),
    )


def plot_contour(study: optuna.Study, parameters: list[str], axis: str) -> go.Figure:
    """Plot the value over two parameters."""
    figure = visualization.plot_contour(study, params=parameters, target_name=axis)
    figure.update_layout(title=None, height=460)
    return figure


def plot_distribution(study: optuna.Study, axis: str) -> go.Figure:
    """Plot the cumulative distribution of the values."""
    figure = visualization.plot_edf(study, target_name=axis)
    figure.update_traces(line={"color": TRIAL_COLOR})
    figure.update_layout(title=None, height=400, yaxis_title="share of trials")
    # The zeros of both axes meet in the corner otherwise.
    figure.update_yaxes(range=[-0.03, 1.03])
    return figure


def plot_history(study: optuna.Study, axis: str) -> go.Figure:
    """Plot the values, and the best so far, by trial number."""
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    # Optuna takes the numbers of the trials for their places in the list.
    placed = _DrawnStudy(study.study_name, study._storage)
    placed.drawn = [create_trial(value=trial.value) for trial in complete]
    for place, trial in enumerate(placed.drawn):
        trial.number = place
    figure = visualization.plot_optimization_history(placed, target_name=axis)
    for trace in figure.data:
        trace.x = [complete[place].number for place in trace.x]
    figure.update_traces({"name": "trial", "marker.color": TRIAL_COLOR}, {"mode": "markers"})
    best = {"name": "best so far", "line.color": BEST_COLOR, "line.shape": "hv"}
    figure.update_traces(best, {"name": "Best Value"})
    figure.update_layout(
        title=None, height=400, xaxis_title="trial", legend={"orientation": "h", "y": 1.1}
    )
    return figure


def _format_choice(value: ParamValue) -> ParamValue:
    """Return the readable form of a value; numbers stay numbers, which Optuna keeps in order."""
    return escape_html(format_value(value)) if isinstance(value, bool | str) else value
