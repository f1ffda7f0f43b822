"""Figures of importances and curves, and the text alternatives of all figures."""

from dataclasses import replace

import numpy as np
import optuna
import pandas as pd
import plotly.graph_objects as go
import pytest
from factories import make_study, results_of
from optuna.importance import (
    FanovaImportanceEvaluator,
    PedAnovaImportanceEvaluator,
    get_param_importances,
)

from reports.charts.chart import describe_figure
from reports.charts.optuna_plots import FANOVA_TREES, chart_importances, to_optuna_study
from reports.charts.training_plots import list_color_schemes, plot_curves
from studies.importing import ImportOptions, import_results


@pytest.fixture
def results(sqlite_url):
    make_study(sqlite_url)
    return results_of(sqlite_url)


def train(trial):
    cell = trial.suggest_categorical("cell", ["gated", "gru"])
    is_on = trial.suggest_categorical("is_on", [False, True])
    rate = trial.suggest_float("rate", 1e-4, 1e-1, log=True)
    gain = trial.suggest_float("gain", 0, 1) if cell == "gru" else 0.0
    return is_on * np.log(rate) + gain


def import_sweep(url, count):
    """Import trials that Optuna drew at random."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(train, n_trials=count)
    rows = [trial.params | {"value": trial.value} for trial in study.trials]
    import_results(url, pd.DataFrame(rows), ImportOptions(), name="sweep")
    return results_of(url, "sweep")


def test_importances_and_slices_are_optunas(sqlite_url):
    results = import_sweep(sqlite_url, 40)
    *pair, slices = chart_importances(results)
    study = to_optuna_study(results, results.complete.sort_index(), results.parameters)
    trial = study.trials[0]
    assert trial.value == results.table["value"][0]
    assert trial.params["is on"] == ("on" if results.table["is_on"][0] else "off")
    evaluators = {
        "PED-ANOVA": PedAnovaImportanceEvaluator(),
        "fANOVA": FanovaImportanceEvaluator(n_trees=FANOVA_TREES, seed=0),
    }
    assert [chart.title for chart in pair] == list(evaluators)
    for chart in pair:
        (bars,) = chart.figure.data
        expected = get_param_importances(
            study, evaluator=evaluators[chart.title], params=["cell", "is on", "rate"]
        )
        assert dict(zip(bars.y, bars.x, strict=True)) == expected
        assert "only some trials have are left out: gain." in chart.caption
    assert "The best tenth has only 4 trials" in pair[0].caption
    panels = {axis.title.text: axis for axis in slices.figure.select_xaxes()}
    assert list(panels) == ["cell", "gain", "is on", "rate"]
    assert panels["is on"].categoryarray == ("off", "on")
    assert panels["rate"].type == "log"


def test_importances_of_many_trials_are_those_of_a_sample(sqlite_url, monkeypatch):
    results = import_sweep(sqlite_url, 60)
    monkeypatch.setattr("reports.charts.optuna_plots.MAX_TRIALS", 20)
    charts, again = chart_importances(results), chart_importances(results)
    assert all(chart.caption.endswith("20 of 60 trials, drawn at random.") for chart in charts)
    assert [chart.figure for chart in charts] == [chart.figure for chart in again]
    assert len(charts[2].figure.data[0].x) == 20


def test_trials_that_are_few_or_alike_have_no_importances(results):
    table = results.table
    assert chart_importances(replace(results, table=table.tail(4))) == []
    assert chart_importances(replace(results, table=table.assign(value=1.0))) == []
    assert len(chart_importances(results)) == 3


def test_curves_have_the_best_on_top_and_color_schemes(results):
    figure = plot_curves(results)
    numbers = [int(trace.name.split(":")[0].removeprefix("trial ")) for trace in figure.data]
    assert numbers == [3, 7, 6, 5, 4, 2, 1, 0]
    assert list(figure.data[-1].y) == [2.5, 1.5]
    assert (figure.data[-1].x0, figure.data[-1].dx) == (50, 50)
    by_label = {each.label: each for each in list_color_schemes(results)}
    assert list(by_label) == ["validation loss", "residual", "layers", "state size"]
    by_loss = by_label["validation loss"]
    assert by_loss.indices == sorted(by_loss.indices, reverse=True)


# ---------------------------------------------------------------------- text alternatives


def test_alternative_of_a_small_figure_says_what_a_reader_sees_who_points_at_it():
    figure = go.Figure(
        go.Scatter(
            x=[-0.25, 0.5],
            y=["layers", "gate &lt;a&gt;"],
            customdata=["one", "two"],
            hovertemplate="%{y}, %{customdata}: %{x:.3f}<br>nats<extra></extra>",
        )
    )
    figure.add_vline(x=2, name="LSTM").add_vline(x=0)
    figure.update_layout(xaxis_title="difference (nats)")
    assert describe_figure(figure) == (
        "Horizontal axis: difference (nats). gate <a>, two: 0.500, nats; "
        "layers, one: −0.250, nats. LSTM: 2."
    )


def test_alternative_of_many_marks_has_quartiles_medians_and_extremes():
    rng = np.random.default_rng(0)
    places, values = rng.uniform(0, 4, 500), np.arange(500)
    figure = go.Figure([go.Scatter(x=places, y=values, name="run"), go.Bar(x=["a"], y=[2])])
    text = describe_figure(figure)
    assert "500 values from 0 to 499, quartiles 124.8, 249.5, 374.2" in text
    assert text.count("up to ") == 4, "medians in quarters of the places"
    assert text.endswith("a: 2.")
    names = describe_figure(go.Figure(go.Bar(x=[f"name {i}" for i in values], y=values)))
    assert "Least: name 0: 0; name 1: 1; name 2: 2. Greatest: name 497: 497" in names
    grouped = describe_figure(go.Figure(go.Scatter(x=["a", "b"] * 250, y=values, mode="markers")))
    assert "Medians: a: 249; b: 250." in grouped
    assert max(map(len, (text, names, grouped))) < 400


def test_alternative_names_each_pair_of_a_map_once_and_leaves_out_level_parts_of_lines():
    pairs = {"x": ["a", "b"], "y": ["a", "b"], "customdata": [["", "a and b"], ["a and b", ""]]}
    symmetric = go.Heatmap(z=[[None, 0.5], [0.5, None]], hovertemplate="%{customdata}", **pairs)
    plain = go.Heatmap(z=[[1, 2]], x=["a", "b"], y=["row"])
    line = go.Scatter(x0=10, dx=10, y=[3, 3, 2, 2, 2, 1], mode="lines")
    for trace, text in (
        (symmetric, "a and b."),
        (plain, "row, a: 1; row, b: 2."),
        (line, "10: 3; 30: 2; 60: 1."),
    ):
        assert describe_figure(go.Figure(trace)) == text
    many = [go.Scattergl(y=[9, end, None], name=f"trial {end}", mode="lines") for end in range(40)]
    text = describe_figure(go.Figure(many))
    assert text.startswith("40 lines, which end at 40 values from 0 to 39")
    assert "Least: trial 0, 0; trial 1, 1; trial 2, 2." in text
