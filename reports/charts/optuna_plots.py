"""Optuna's figures of a study, with readable names and the colors of the report."""

from collections.abc import Collection, Container, Mapping, Sequence

import optuna
import plotly.graph_objects as go
from optuna import visualization
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator
from optuna.importance._base import BaseImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState, create_trial

from reports.charts.chart import sequential_colors
from reports.data.results import Results
from reports.data.trial_table import list_params
from reports.formatting import escape_html, format_param, format_value
from rnn.config import ParamValue

TRIAL_COLOR = "#3b7dd8"
"""Color of a single trial, visible on white and on black."""


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
            for value in sorted(results.table[name].dropna().unique().tolist())
        ]
        for name in parameters
    }
    ordinal = {
        name
        for name, values in choices.items()
        if ordinal_above is not None
        and len(values) > ordinal_above
        and not isinstance(values[0], str)
    }
    distributions: dict[str, BaseDistribution] = {
        name: IntDistribution(0, len(values) - 1)
        if name in ordinal
        else CategoricalDistribution(values)
        for name, values in choices.items()
    }
    rows = results.table.loc[sorted(numbers)]
    records = rows[parameters].astype(object).to_dict("records")
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # the study is no news for a user
    try:
        created = optuna.create_study(study_name=escape_html(results.name), direction="minimize")
    finally:
        optuna.logging.set_verbosity(verbosity)
    study = _DrawnStudy(created.study_name, created._storage)
    trials = []
    for number, value, record in zip(rows.index, rows["value"], records, strict=True):
        params = {k: _format_choice(v) for k, v in list_params(record, parameters).items()}
        params |= {k: choices[k].index(v) for k, v in params.items() if k in ordinal}
        trials.append(_create_trial(int(number), value, params, distributions))
    study.drawn = trials
    return study


def _create_trial(
    number: int,
    value: float,
    params: Mapping[str, ParamValue],
    distributions: Mapping[str, BaseDistribution],
) -> FrozenTrial:
    trial = create_trial(
        value=value,
        params={format_param(name): params[name] for name in params},
        distributions={format_param(name): distributions[name] for name in params},
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
    figure = visualization.plot_param_importances(study, evaluator=evaluator, target_name="loss")
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
    order = sorted(range(len(values)), key=lambda i: values[i], reverse=True)
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


def plot_parallel_coordinates(study: optuna.Study) -> go.Figure:
    """Plot each trial as a line through its parameters' values."""
    figure = visualization.plot_parallel_coordinate(study, target_name="loss")
    *lines, color_bar = figure.data
    lines.sort(key=lambda line: line.y[0], reverse=True)  # the best on top
    # Optuna's blue lines, white background and gray text suit a white page only.
    scale = sequential_colors(10)
    for line in lines:
        line.line.color = scale[min(9, int(10 * line.y[0]))]
    color_bar.marker.update(colorscale=scale, reversescale=False)
    figure.data = []
    figure.add_traces([*lines, color_bar])
    figure.update_annotations(font={"size": 11, "color": None})
    figure.update_layout(title=None, height=460, plot_bgcolor=None)
    return figure


def plot_contour(study: optuna.Study, parameters: list[str], axis: str) -> go.Figure:
    """Plot the value over two parameters."""
    figure = visualization.plot_contour(study, params=parameters, target_name=axis)
    figure.update_layout(title=None, height=460)
    return figure


def plot_distribution(study: optuna.Study, axis: str) -> go.Figure:
    """Plot the cumulative distribution of the values."""
    figure = visualization.plot_edf(study, target_name=axis)
    figure.update_layout(title=None, height=400, yaxis_title="share of trials")
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
    figure.update_layout(title=None, height=400, legend={"orientation": "h", "y": 1.1})
    return figure


def _format_choice(value: ParamValue) -> ParamValue:
    """Return the readable form of a value; numbers stay numbers, which Optuna keeps in order."""
    return format_value(value) if isinstance(value, bool | str) else value
