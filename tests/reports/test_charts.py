"""Figures of importances, curves and the timeline, and the text alternatives of all figures."""

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
from reports.charts.optuna_plots import (
    FANOVA_TREES,
    FanovaEvaluator,
    chart_study,
    compute_block_importances,
    compute_importances,
    to_optuna_study,
)
from reports.charts.training_plots import chart_timeline, list_color_schemes, plot_curves


@pytest.fixture
def results(sqlite_url):
    make_study(sqlite_url)
    return results_of(sqlite_url)


def test_importances_equal_optunas(results):
    complete = list(results.complete.index)
    study = to_optuna_study(results, complete, results.parameters)
    assert study.get_trials()[0].params == {"residual": "off", "layers": 1, "state size": 4}
    (found,) = compute_importances(results, complete, "all complete trials")
    assert found.label == "all complete trials (7 trials)"
    for name, evaluator in (
        ("PED-ANOVA", PedAnovaImportanceEvaluator()),
        ("fANOVA", FanovaImportanceEvaluator(n_trees=FANOVA_TREES, seed=0)),
    ):
        (chart,) = [chart for chart in found.charts if chart.title == name]
        bars = chart.figure.data[0]
        expected = get_param_importances(study, evaluator=evaluator)
        assert dict(zip(bars.y, bars.x, strict=True)) == pytest.approx(expected, rel=1e-9)


def train(trial):
    cell = trial.suggest_categorical("cell", ["gated", "gru", "lstm"])
    switch = trial.suggest_categorical("switch", ["on", "off"])
    layers = trial.suggest_int("layers", 1, 9)
    rate = trial.suggest_float("rate", 1e-4, 1e-1, log=True)
    return (cell == "gru") * layers + (switch == "on") * np.log(rate)


def train_one_parameter(trial):
    return trial.suggest_float("rate", 1e-4, 1e-1, log=True) ** 2


@pytest.mark.parametrize("objective", [train, train_one_parameter])
def test_fanova_equals_optunas(objective):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=30)
    expected = FanovaImportanceEvaluator(n_trees=FANOVA_TREES, seed=0).evaluate(study)
    assert FanovaEvaluator().evaluate(study) == pytest.approx(expected, rel=1e-9)


def test_fanova_of_equal_values_is_zero():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(lambda trial: train(trial) * 1e-12, n_trials=5)
    assert set(FanovaEvaluator().evaluate(study).values()) == {0.0}


def test_importances_are_computed_for_blocks_of_a_design_with_exclusions(sqlite_url):
    make_study(sqlite_url, exclude=[{"state_size": 4, "residual": False}], diverged=None)
    found = compute_block_importances(results_of(sqlite_url))
    assert [each.label for each in found] == [
        "where residual is on (4 trials)",
        "where state size is 8 (4 trials)",
    ]


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


def test_bars_of_a_timeline_are_trials_or_stand_for_several_of_many(results, monkeypatch):
    chart = chart_timeline(results)
    (bars,) = chart.figure.data
    assert (bars.name, len(bars.x), set(bars.y)) == ("complete", 7, {"w"})
    assert "stands for" not in chart.caption
    begin = pd.Timestamp("2026-11-01")
    starts = begin + pd.to_timedelta(np.arange(8) * 60, unit="s")
    ends = starts + pd.Timedelta(seconds=30)
    table = results.table.sort_index().assign(started=starts, completed=ends)
    names = [f"a-node-with-a-long-name-{i}.example.org/1234" for i in (1, 2)]
    table["worker"] = names * 4
    monkeypatch.setattr("reports.charts.training_plots.MAX_BARS", 4)
    chart = chart_timeline(replace(results, table=table[table["state"] == "COMPLETE"]))
    (bars,) = chart.figure.data
    assert sorted(bars.y) == sorted(names * 2), "the first and the second half of each worker"
    assert max(bars.x) == 150_000


def test_history_of_some_trials_has_their_numbers_and_the_best_so_far(results, monkeypatch):
    monkeypatch.setattr("reports.study_reader.MAX_DRAWN", 3)
    history = chart_study(results)[1]
    values, best, *_ = history.figure.data
    drawn = list(values.x)
    assert 3 <= len(drawn) < 7
    assert list(values.y) == results.table.loc[drawn, "value"].tolist()
    assert min(best.y) == results.complete["value"].min()
    assert f"{len(drawn)} of 7 trials are drawn" in history.caption


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
