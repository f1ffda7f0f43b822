"""Figures of importances, curves and the timeline."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from factories import make_study, results_of
from optuna.importance import (
    FanovaImportanceEvaluator,
    PedAnovaImportanceEvaluator,
    get_param_importances,
)
from optuna.trial import TrialState

from reports.charts.optuna_plots import compute_block_importances, compute_importances
from reports.charts.optuna_plots import to_optuna_study
from reports.charts.training_plots import chart_timeline, list_color_schemes, plot_curves


@pytest.fixture
def results(sqlite_url):
    make_study(sqlite_url)
    return results_of(sqlite_url)


def test_optuna_study_has_the_selected_trials_with_readable_parameters(results):
    study = to_optuna_study(results, [0, 2, 5], results.parameters)
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    assert [(trial.number, trial.value) for trial in complete] == [(0, 1.5), (2, 1.7), (5, 2.0)]
    assert complete[0].params == {"residual": "off", "layers": 1, "state size": 4}
    assert complete[2].params["residual"] == "on"


def test_importances_equal_optunas(results):
    complete = list(results.complete.index)
    study = to_optuna_study(results, complete, results.parameters)
    (found,) = compute_importances(results, complete, "all complete trials")
    assert found.label == "all complete trials (7 trials)"
    for name, evaluator in (
        ("PED-ANOVA", PedAnovaImportanceEvaluator()),
        ("fANOVA", FanovaImportanceEvaluator(seed=0)),
    ):
        (chart,) = [chart for chart in found.charts if chart.title == name]
        bars = chart.figure.data[0]
        expected = get_param_importances(study, evaluator=evaluator)
        assert dict(zip(bars.y, bars.x, strict=True)) == pytest.approx(expected)


def test_fanova_of_many_trials_is_that_of_a_sample(results):
    numbers = list(results.complete.index)

    def compute():
        (found,) = compute_importances(results, numbers, "all", max_trials=5)
        ped, fanova = found.charts
        assert "sample" not in ped.caption
        assert "sample of 5 of the 7 trials" in fanova.caption
        return list(fanova.figure.data[0].x)

    assert compute() == compute(), "always the same sample"


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


def test_timeline_has_a_row_per_worker_and_a_bar_per_trial(results):
    chart = chart_timeline(results)
    bars = chart.figure.data
    assert [(bar.name, len(bar.x), set(bar.y)) for bar in bars] == [("complete", 7, {"w"})]
    assert all(length >= 0 for length in bars[0].x)
    assert "stands for" not in chart.caption


def test_bars_of_a_timeline_with_many_trials_stand_for_several(results, monkeypatch):
    begin = pd.Timestamp("2026-11-01")
    starts = begin + pd.to_timedelta(np.arange(8) * 60, unit="s")
    ends = starts + pd.Timedelta(seconds=30)
    table = results.table.sort_index().assign(started=starts, completed=ends)
    table["worker"] = ["a", "b"] * 4
    monkeypatch.setattr("reports.charts.training_plots.MAX_BARS", 4)
    chart = chart_timeline(replace(results, table=table[table["state"] == "COMPLETE"]))
    (bars,) = chart.figure.data
    assert sorted(bars.y) == ["a", "a", "b", "b"], "the first and the second half of each worker"
    assert max(bars.x) == 150_000
