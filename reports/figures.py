"""Rows and curves → figures: Optuna's own where it has them, plotly's where it has not."""

from collections.abc import Sequence

import optuna
import pandas as pd
import plotly.graph_objects as go
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator
from optuna.trial import create_trial
from optuna.visualization import plot_param_importances, plot_slice
from plotly.colors import sample_colorscale

from reports.trials import Results

VALUE_NAME = "smoothed loss (nats a byte)"
COLOURS = "Viridis"
"""Told apart by those who do not see every colour, and in print."""

POINT_COLOUR = "#31688e"
"""Of a single trial, from the middle of those colours."""

HIGHLIGHTED = 10
"""How many of the best curves are drawn thick."""


def substudy(results: Results, numbers: Sequence[int]) -> optuna.Study:
    """Return the complete trials of these numbers as a study in memory, without their curves.

    Optuna's figures take a study; of a subset, or of one whose every curve would be read again,
    they are to see no more than they show.
    """
    wanted = set(numbers)
    study = optuna.create_study(direction="minimize")
    study.add_trials(
        [
            create_trial(value=trial.value, params=trial.params, distributions=trial.distributions)
            for trial in results.study.get_trials(deepcopy=False)
            if trial.number in wanted
        ]
    )
    return study


def curves(results: Results) -> go.Figure:
    """Draw every training curve: the better, the darker; the best ten thick and in the legend."""
    figure = go.Figure()
    order = list(results.table.index)
    by_number = dict(iter(results.curves.groupby("number")))
    shades = sample_colorscale(COLOURS, [i / max(1, len(order) - 1) for i in range(len(order))])
    # The worst first, so that the best lie on top.
    for rank in reversed(range(len(order))):
        number = order[rank]
        if number not in by_number:
            continue
        curve, row = by_number[number], results.table.loc[number]
        best = rank < HIGHLIGHTED
        figure.add_trace(
            go.Scattergl(
                x=curve["step"],
                y=curve["loss"],
                name=f"{number}: {row['label']}",
                mode="lines",
                line={"width": 2.5 if best else 1, "color": shades[rank]},
                opacity=1 if best else 0.5,
                showlegend=best,
                legendrank=rank + 1,
                hovertemplate="step %{x:,}: %{y:.4f} nats<extra>%{fullData.name}</extra>",
                hoverlabel={"namelength": -1},
            )
        )
    figure.update_layout(
        xaxis_title="step",
        yaxis_title=VALUE_NAME,
        hovermode="closest",
        legend={"orientation": "h", "y": -0.2},
        height=640,
    )
    return _styled(figure)


def importances(study: optuna.Study, parameters: list[str]) -> dict[str, go.Figure]:
    """Draw Optuna's two importances, each under the question that it answers."""
    evaluators = {
        "What brings a trial among the best tenth? (PED-ANOVA)": PedAnovaImportanceEvaluator(),
        "What moves the loss overall? (fANOVA)": FanovaImportanceEvaluator(seed=0),
    }
    figures = {}
    for question, evaluator in evaluators.items():
        figure = plot_param_importances(
            study, evaluator=evaluator, params=parameters, target_name=VALUE_NAME
        )
        figure.update_layout(title=None, height=90 + 32 * len(parameters))
        figures[question] = _styled(figure)
    return figures


def slices(study: optuna.Study, parameters: list[str]) -> go.Figure:
    """Draw every trial's value over each parameter: Optuna's slice plot."""
    figure = plot_slice(study, params=parameters, target_name=VALUE_NAME)
    figure.update_layout(title=None, height=420, width=None)
    # The order of the runs, which Optuna shades by, says nothing in a grid that is shuffled.
    figure.update_traces(marker={"color": POINT_COLOUR, "opacity": 0.5, "showscale": False})
    return _styled(figure)


def can_explain(study: optuna.Study, parameters: list[str]) -> bool:
    """Tell whether a study has what an importance needs: trials enough, and different ones."""
    trials = study.get_trials(deepcopy=False)
    values = pd.Series([trial.value for trial in trials], dtype=float)
    return len(trials) >= 4 and bool(varying(study, parameters)) and values.nunique() > 1


def varying(study: optuna.Study, parameters: list[str]) -> list[str]:
    """Return those parameters that take more than one value in a study."""
    trials = study.get_trials(deepcopy=False)
    return [p for p in parameters if len({trial.params[p] for trial in trials}) > 1]


def _styled(figure: go.Figure) -> go.Figure:
    return figure.update_layout(
        template="plotly_white",
        margin={"l": 60, "r": 20, "t": 20, "b": 60},
        font={"family": "system-ui, sans-serif"},
        paper_bgcolor="rgba(0,0,0,0)",
    )
