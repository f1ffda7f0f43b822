"""What pages are made of: figures, tables as HTML, emphasis, names of changes and architectures."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import optuna
import pandas as pd
import pytest
from factories import make_study, results_of
from optuna.importance import (
    FanovaImportanceEvaluator,
    PedAnovaImportanceEvaluator,
    get_param_importances,
)

from reports.blocks import Column, Table
from reports.charts.trial_plots import (
    FANOVA_TREES,
    chart_curves,
    chart_importances,
    to_optuna_study,
)
from reports.formatting import shorten_labels, strong, to_html, to_plain, to_sentence
from studies.importing import ImportOptions, import_results
from studies.messages import join


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
    options = ImportOptions(parameters=["cell", "is_on", "rate", "gain"])
    import_results(url, pd.DataFrame(rows), options, name="sweep")
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
    monkeypatch.setattr("reports.charts.trial_plots.MAX_TRIALS", 20)
    charts = chart_importances(results)
    again = chart_importances(results)
    assert all(chart.caption.endswith("20 of 60 trials, drawn at random.") for chart in charts)
    assert [chart.figure for chart in charts] == [chart.figure for chart in again]
    assert len(charts[2].figure.data[0].x) == 20


def test_trials_that_are_few_or_alike_have_no_importances(results):
    table = results.table
    assert chart_importances(replace(results, table=table.tail(4))) == []
    assert chart_importances(replace(results, table=table.assign(value=1.0))) == []
    assert len(chart_importances(results)) == 3


def split_curves(figure):
    """Return the name, the steps and the losses of each curve of a figure, in order."""
    curves = []
    for trace in figure.data:
        ends = [i for i, (a, b) in enumerate(pairwise(trace.text), 1) if a != b]
        for begin, end in pairwise([0, *ends, len(trace.text)]):
            assert np.isnan(trace.y[end - 1]), "a gap separates it from the next"
            points = slice(begin, end - 1)
            curves.append((trace.text[begin], [*trace.x[points]], [*trace.y[points]]))
    return curves


def test_curves_are_grouped_by_rank_with_the_best_on_top(results):
    figure = chart_curves(results).figure
    assert [trace.name for trace in figure.data] == [
        "without a value", "worst quarter", "to three quarters", "to a half", "to a quarter",
        "best tenth",
    ]  # fmt: skip
    curves = split_curves(figure)
    numbers = [int(name.split(":")[0].removeprefix("trial ")) for name, _, _ in curves]
    assert numbers == [3, 7, 6, 5, 4, 2, 1, 0]
    name, steps, losses = curves[-1]
    assert name == f"trial 0: {results.table['label'][0]}"
    assert (steps, losses) == ([50, 100], [2.5, 1.5])


def test_curves_without_a_value_do_not_set_the_axis(results):
    low, high = chart_curves(results).figure.layout.yaxis.range
    exploded = results.curves["number"] == 3
    curves = results.curves.assign(loss=results.curves["loss"].mask(exploded, 1e30))
    figure = chart_curves(replace(results, curves=curves)).figure
    assert max(np.nanmax(trace.y) for trace in figure.data) == np.float32(1e30)
    ends = figure.layout.yaxis.range
    assert ends[1] <= high
    assert ends[0] == pytest.approx(low, abs=high - low)


def test_reader_chooses_the_curve_of_training_or_held_out_data(results):
    assert not chart_curves(results).figure.layout.updatemenus, "there is nothing to choose"
    metrics = results.curves[results.curves["number"] < 3].drop(columns="loss")
    metrics = metrics.assign(validation_loss=[2.0, np.nan] * 3, validation_accuracy=0.5)
    figure = chart_curves(replace(results, metrics=metrics)).figure
    (menu,) = figure.layout.updatemenus
    labels = ["smoothed training loss", "validation loss", "validation accuracy"]
    assert [button.label for button in menu.buttons] == labels
    shown = []
    for button in menu.buttons:
        visible, axis = button.args
        assert axis["yaxis.title.text"].startswith(button.label)
        traces = [t for t, on in zip(figure.data, visible["visible"], strict=True) if on]
        shown.append([y for trace in traces for y in trace.y if np.isfinite(y)])
    assert [len(found) for found in shown] == [16, 3, 6]
    assert set(shown[1] + shown[2]) == {2.0, 0.5}
    assert [trace.visible for trace in figure.data] == list(menu.buttons[0].args[0]["visible"])


def test_curve_of_one_point_is_drawn_as_a_marker(results):
    single = results.curves.groupby("number").head(1)
    figure = chart_curves(replace(results, curves=single)).figure
    assert {trace.mode for trace in figure.data} == {"lines+markers"}
    assert {trace.mode for trace in chart_curves(results).figure.data} == {"lines"}


# ------------------------------------------------------------------ tables and names


ROWS = [("a|b <i>", 1.25, (1.0, 1.5)), ("c", math.nan, (math.nan, math.nan))]

TABLE = Table(
    "one & two",
    ROWS,
    [
        Column("what", lambda row: row[0]),
        Column("size", lambda row: -row[1], "+.2f", unit="nats",
               ends=lambda row: (-row[2][1], -row[2][0]), note=lambda row: " *"),
        Column("absent", lambda row: 1 / 0, condition=False),
    ],
)  # fmt: skip


def test_table_escapes_names_and_leaves_missing_numbers_empty():
    html = TABLE.__html__()
    first, second = html.partition("<tbody>")[2].strip().splitlines()[:2]
    assert first == (
        '<tr><th scope="row">a|b &lt;i&gt;</th><td class="number" data-sort="-1.25" '
        'data-more="-1.5,-1,*">−1.25 * <small>[−1.50, −1.00]</small></td></tr>'
    )
    assert second.endswith('<td class="number" data-sort="" data-more=",,"></td></tr>')
    assert "<caption>one &amp; two</caption>" in html
    assert "absent" not in html


def test_emphasised_names_are_text_in_each_form():
    marked = f"{strong('<b>*a*</b>')} & more"
    assert to_plain(marked) == "<b>*a*</b> & more"
    assert to_html(marked) == "<strong>&lt;b&gt;*a*&lt;/b&gt;</strong> &amp; more"
    assert to_plain(to_sentence(strong("one"))) == "One."


@pytest.mark.parametrize(
    ("parts", "joined"), [((), ""), ("a", "a"), ("ab", "a and b"), ("abc", "a, b and c")]
)
def test_names_are_joined_as_in_a_sentence(parts, joined):
    assert join(parts) == joined


@pytest.mark.parametrize(
    ("labels", "short"),
    [
        (
            ["2×8 residual, new state", "1×8 new state"],
            ["2×8 residual, new state", "1×8 new state"],
        ),
        (["2×8 GRU, 16 BPTT steps", "1×4 GRU, 16 BPTT steps"], ["2×8 GRU", "1×4 GRU"]),
        (["1×8, a, b", "1×8, a, c", "2×8, a, b"], ["1×8, b", "1×8, c", "2×8, b"]),
        (["1×8, a, b"], ["1×8"]),
        ([], []),
    ],
)
def test_label_leaves_out_what_all_architectures_have_in_common(labels, short):
    assert shorten_labels(labels) == dict(zip(labels, short, strict=True))
