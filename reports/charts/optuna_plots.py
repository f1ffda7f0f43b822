"""Optuna's own figures of some of a study's trials, parameters and values called by their names."""

from collections.abc import Collection, Container

import optuna
import plotly.graph_objects as go
from optuna.distributions import CategoricalDistribution
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator
from optuna.importance._base import BaseImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState, create_trial
from optuna.visualization import (
    plot_contour,
    plot_edf,
    plot_optimization_history,
    plot_parallel_coordinate,
    plot_param_importances,
    plot_rank,
    plot_slice,
)

from reports.charts.colors import sequential_colors
from reports.data.results import Results
from reports.data.trial_table import to_python
from reports.formatting import escape_html, format_param, format_value

POINT_COLOUR = "#3b7dd8"
"""Of a single trial; seen on white and on black."""


class _Uncopied(optuna.Study):
    """A study whose trials nobody changes: Optuna's figures would copy them all for each bar."""

    def get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials themselves."""
        return super().get_trials(deepcopy=False, states=states)


def to_optuna_study(
    results: Results, numbers: Collection[int], parameters: list[str]
) -> optuna.Study:
    """Return complete trials as the study that Optuna's figures take.

    It has no curves, for these figures show none. The study's other trials stand in it as failed,
    so that a trial's number stays what it is.

    Args:
        results: of the study.
        numbers: of the complete trials.
        parameters: those to keep; in the study they have their names in words.
    """
    distributions = {
        name: CategoricalDistribution(
            [_shown(name, value) for value in sorted(results.table[name].unique().tolist())]
        )
        for name in parameters
    }
    wanted = set(numbers)
    rows = results.table.sort_index()
    values = rows["value"].to_dict()
    made = optuna.create_study(study_name=escape_html(results.name), direction="minimize")
    study = _Uncopied(made.study_name, made._storage)
    for number in range(int(rows.index[-1]) + 1):
        if number not in wanted:
            study.add_trial(create_trial(state=TrialState.FAIL))
            continue
        row = rows.loc[number]
        study.add_trial(
            create_trial(
                value=values[number],
                params={
                    format_param(name): _shown(name, to_python(row[name])) for name in parameters
                },
                distributions={format_param(name): distributions[name] for name in parameters},
            )
        )
    return study


def varying(results: Results, numbers: Collection[int]) -> list[str]:
    """Return the parameters that take more than one value among these trials."""
    rows = results.table.loc[list(numbers)]
    return [name for name in results.parameters if rows[name].nunique() > 1]


def has_enough_trials(results: Results, numbers: Collection[int]) -> bool:
    """Tell whether trials are enough, and different enough, for Optuna's figures."""
    rows = results.table.loc[list(numbers)]
    return len(rows) >= 4 and bool(varying(results, numbers)) and rows["value"].nunique() > 1


def evaluators() -> dict[str, BaseImportanceEvaluator]:
    """Return Optuna's two importances, which answer two questions."""
    return {"PED-ANOVA": PedAnovaImportanceEvaluator(), "fANOVA": FanovaImportanceEvaluator(seed=0)}


def importance(study: optuna.Study, evaluator: BaseImportanceEvaluator) -> go.Figure:
    """Draw how important each parameter is to one of the two."""
    figure = plot_param_importances(study, evaluator=evaluator, target_name="loss")
    bars = len(figure.data[0].y)
    # Three digits are more than such an importance is known to.
    figure.update_traces(marker_color=POINT_COLOUR, texttemplate="%{x:.3f}", cliponaxis=False)
    figure.update_layout(
        title=None,
        height=90 + 30 * bars,
        xaxis_title="importance",
        yaxis_title=None,
        margin={"r": 50},
    )
    return figure


def slices(study: optuna.Study, axis: str) -> go.Figure:
    """Draw every trial's value over each parameter."""
    figure = plot_slice(study, target_name=axis)
    for trace in figure.data:  # Optuna shows words in quotation marks
        trace.x = [x.strip("'") if isinstance(x, str) else x for x in trace.x]
    figure.for_each_xaxis(
        lambda axis: axis.update(
            categoryarray=axis.categoryarray
            and [x.strip("'") if isinstance(x, str) else x for x in axis.categoryarray]
        )
    )
    figure.update_layout(title=None, height=420, width=None)
    # The order of the runs, which Optuna shades by, says nothing in a grid that is shuffled.
    figure.update_traces(marker={"color": POINT_COLOUR, "opacity": 0.5, "showscale": False})
    return figure


def ranks(study: optuna.Study, parameters: list[str], axis: str) -> go.Figure:
    """Draw the trials' ranks over each two of these parameters, the best on top of the others."""
    figure = plot_rank(study, params=parameters, target_name=axis)
    values = [trial.values[0] for trial in study.get_trials(states=(TrialState.COMPLETE,))]
    order = sorted(range(len(values)), key=lambda i: values[i], reverse=True)
    for trace in figure.data:
        if trace.x is None or len(trace.x) != len(order):  # the bar of the colours
            continue
        trace.update(
            x=[trace.x[i] for i in order],
            y=[trace.y[i] for i in order],
            hovertext=[trace.hovertext[i] for i in order],
            marker={"color": [trace.marker.color[i] for i in order]},
        )
    figure.update_layout(title=None, height=640, width=None)
    return figure


def parallel_coordinates(study: optuna.Study) -> go.Figure:
    """Draw each trial as a line through its parameters' values."""
    figure = plot_parallel_coordinate(study, target_name="loss")
    *lines, colour_bar = figure.data
    lines.sort(key=lambda line: line.y[0], reverse=True)  # the best on top
    # Optuna's blues, its white ground and its grey words are for a white page alone.
    scale = sequential_colors(10)
    for line in lines:
        line.line.color = scale[min(9, int(10 * line.y[0]))]
    colour_bar.marker.update(colorscale=scale, reversescale=False)
    figure.data = []
    figure.add_traces([*lines, colour_bar])
    figure.update_annotations(font={"size": 11, "color": None})
    figure.update_layout(title=None, height=460, plot_bgcolor=None)
    return figure


def contour(study: optuna.Study, parameters: list[str], axis: str) -> go.Figure:
    """Draw the value over two parameters."""
    figure = plot_contour(study, params=parameters, target_name=axis)
    figure.update_layout(title=None, height=460)
    return figure


def distribution(study: optuna.Study, axis: str) -> go.Figure:
    """Draw how large a share of a study's trials lies below each value."""
    figure = plot_edf(study, target_name=axis)
    figure.update_layout(title=None, height=400, yaxis_title="share of the trials")
    return figure


def history(study: optuna.Study, axis: str) -> go.Figure:
    """Draw the values, and the best so far, by trial number."""
    figure = plot_optimization_history(study, target_name=axis)
    figure.update_layout(title=None, height=400, legend={"orientation": "h", "y": 1.1})
    return figure


def _shown(parameter: str, value: bool | int | str) -> str | int:
    """Return a value by its name; a number remains one, so that Optuna keeps its order."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return value if is_number else format_value(value)
