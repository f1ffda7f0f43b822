"""Additive models of sweeps: what they find, what they leave open, and how it is said."""

import math
import random

import numpy as np
import pandas as pd
import pytest

from reports.charts.chart import IMPROVES, WORSENS
from reports.charts.comparison_plots import chart_levels, chart_trends
from reports.narrative import write_answer, write_headline
from reports.page.page import render_page
from reports.page.section import Section
from reports.phrases import describe_additive, write_additive_clause
from reports.stats.additive_model import fit_additive_model
from reports.stats.scale import Scale
from reports.study_reader import read_results
from rnn_search import load
from studies.importing import ImportOptions, import_results
from studies.storage.open import read_storage
from tests.simulations.sweeps import BEST_RATE, Sweep, simulate_sweeps

LOSS = Scale(name="loss")
ACCURACY = Scale("", True, name="accuracy")


@pytest.fixture(scope="module")
def sweep() -> Sweep:
    """Return a sweep of 60 runs that a random sampler drew."""
    return next(simulate_sweeps("random", 60, 1))


def find_term(model, parameter):
    (found,) = (each for each in (*model.levels, *model.trends) if each.parameter == parameter)
    return found


def draw(count: int, slope: float = 1.0) -> tuple[dict, np.ndarray]:
    """Draw two numbers and a switch, and values that depend on the first number alone."""
    generator = np.random.default_rng(3)
    columns = {name: generator.uniform(1, 2, count) for name in ("x", "y")}
    columns["on"] = np.arange(count) % 2 == 0
    values = slope * columns["x"] + 0.05 * generator.normal(size=count)
    return columns, values


def test_planted_effects_are_found_and_null_parameters_are_not(sweep):
    model = sweep.model
    for parameter, truth in sweep.differences.items():
        each = find_term(model, parameter)
        assert each.effect.low <= truth <= each.effect.high
        assert each.is_significant == (parameter != "null")
    rate, null = find_term(model, "learning_rate"), find_term(model, "null_rate")
    assert (rate.is_log, null.is_log) == (True, False)
    assert rate.optimum.low < BEST_RATE < rate.optimum.high
    assert not rate.optimum.is_open_below
    assert not null.is_significant
    assert null.optimum.reason == "its trend is not significant"
    momentum = find_term(model, "momentum")
    assert len(momentum.points) == sum(row["optimizer"] == "sgd" for row in sweep.rows)
    assert 0.5 < model.predicted_share < 1


def test_runs_that_lack_a_parameter_have_an_effect_of_their_own():
    columns, values = draw(40)
    lacks = np.arange(40) % 4 < 2
    columns["y"] = np.where(lacks, np.nan, columns["y"])
    apart = fit_additive_model(columns, values + 5 * lacks)
    model = fit_additive_model(columns, values)
    assert apart.predicted_share > 0.9
    errors = (find_term(each, "on").effect.error for each in (apart, model))
    assert next(errors) == pytest.approx(next(errors))


def test_trend_without_a_turn_is_best_at_an_end_or_beyond():
    """Also where the values have no noise."""
    columns, values = draw(60)
    for scale, name, end in ((LOSS, "lowest", min), (ACCURACY, "highest", max)):
        for given in (values, columns["x"]):
            model = fit_additive_model(columns, given, scale=scale)
            optimum = find_term(model, "x").optimum
            assert optimum.low == optimum.high == optimum.value
            assert optimum.value == pytest.approx(end(columns["x"]))
            assert not find_term(model, "on").is_significant
            line = write_additive_clause(model, scale)
            assert f"x: best at the {name} value tried" in line


def test_interval_has_the_best_value_at_a_kink():
    columns, _ = draw(200)
    values = np.abs(columns["x"] - 1.6) + 0.1 * np.random.default_rng(4).normal(size=200)
    optimum = find_term(fit_additive_model(columns, values), "x").optimum
    assert 1.4 < optimum.low < 1.6 < optimum.high < 1.9


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ([1] * 40, "it has one value"),
        ([None] * 40, "it has no values"),
        ([f"run {i}" for i in range(40)], "fewer than two of its values"),
        ([float("inf"), *range(39)], "it has infinite values"),
        (["a", "b"] * 20, "it cannot be separated from on"),
    ],
)
def test_parameter_without_a_term_has_a_reason(change, reason):
    columns, values = draw(40)
    model = fit_additive_model(columns | {"c": change}, values)
    assert reason in model.reasons["c"]
    assert "c (" in " ".join(describe_additive(model, LOSS))
    assert find_term(model, "x").is_significant


@pytest.mark.parametrize("count", [0, 2, 10])
def test_few_runs_give_a_reason_and_no_estimate(count):
    columns, values = draw(count)
    model = fit_additive_model(columns, values)
    assert model.reason
    assert not model.levels + model.trends
    assert model.reason in describe_additive(model, LOSS)[1]


def test_runs_without_a_value_are_left_out_and_counted():
    columns, values = draw(43)
    values[:3] = np.nan, np.inf, -np.inf
    model = fit_additive_model(columns, values)
    rest = fit_additive_model({name: each[3:] for name, each in columns.items()}, values[3:])
    assert model.configurations == 40
    assert find_term(model, "x").p == find_term(rest, "x").p


def test_replicates_of_a_configuration_are_no_new_configurations():
    columns, values = draw(40, slope=0)
    repeated = {name: np.repeat(each, 5) for name, each in columns.items()}
    together = np.repeat(values, 5)
    single = find_term(fit_additive_model(columns, values), "on").effect
    model = fit_additive_model(repeated, together, clusters=np.repeat(np.arange(40), 5))
    assert model.configurations == 40
    assert find_term(model, "on").effect.error == pytest.approx(single.error, rel=0.02)
    naive = find_term(fit_additive_model(repeated, together), "on").effect
    assert naive.error < 0.6 * single.error


def test_figures_show_axis_best_place_and_direction(sweep):
    charts = {chart.title: chart for chart in chart_trends(sweep.model, LOSS)}
    rate = charts["learning rate"]
    assert next(iter(charts)) == "learning rate"
    assert rate.figure.layout.xaxis.type == "log"
    *_, best = rate.figure.data
    assert best.x[0] - best.error_x.arrayminus[0] < BEST_RATE < best.x[0] + best.error_x.array[0]
    levels = chart_levels(sweep.model, LOSS)
    colors = dict(zip(levels.figure.data[0].y, levels.figure.data[0].marker.color, strict=True))
    assert (colors["optimizer adam → sgd"], colors["norm"]) == (WORSENS, IMPROVES)


@pytest.mark.usefixtures("without_optuna_figures")
def test_sweep_without_pairs_says_so_first_and_shows_trends_and_effects(sqlite_url):
    generator = random.Random(1)
    rows = [{"rate": 10 ** generator.uniform(-4, 0), "flag": i % 2 == 0} for i in range(60)]
    for row in rows:
        row["value"] = 1 - 0.2 * (math.log10(row["rate"]) + 2) ** 2 - 0.1 * row["flag"]
        row["value"] += generator.gauss(0, 0.02)
    options = ImportOptions(maximize=True)
    import_results(sqlite_url, pd.DataFrame(rows), options, name="sweep")
    section = Section(read_results(read_storage(sqlite_url), "sweep"))
    assert section.main_effects.effects == []
    first, *_ = write_answer(section.findings)
    assert first.startswith("There are no matched pairs")
    assert "act additively" in first
    assert "; no matched pairs; if parameters act additively: rate: best" in write_headline(
        [section.findings]
    )
    page = "".join(render_page([section]))
    assert 'id="s1-additive"' in page
    assert 'id="s1-effects"' not in page
    effects = load("sweep", storage=sqlite_url).effects()
    assert effects.warnings[0].startswith("There are no matched pairs")
    (trend,) = effects.trends.itertuples()
    assert trend.best_low < 0.01 < trend.best_high
    (flag,) = effects.table.itertuples()
    assert (flag.parameter, flag.pairs) == ("flag", 0)
    assert flag.low < -0.1 < flag.high < 0
