"""Effects at each architecture's best learning rate, and reports of unions of grids."""

import re

import numpy as np
import pandas as pd
import pytest
from factories import (
    MIN_GRU,
    NO_GATES,
    RATES,
    UNION,
    gated_params,
    make_runs,
    make_union,
    results_of,
    union_value,
)

from reports.analysis.judged_effects import build_judged_table
from reports.analysis.leaderboard import rank_architectures
from reports.analysis.refinement import compare_with_source
from reports.formatting import describe_change, label_change
from reports.page.page import write_report
from reports.stats.effects import FactorialTable
from reports.stats.judged import estimate_selected
from rnn_search.study import load
from studies.config import StudyConfig
from studies.traits import find_traits

pytestmark = pytest.mark.usefixtures("without_optuna_figures")


@pytest.mark.parametrize("gap", [0.0, 10.0], ids=["equal values", "one clearly the best"])
def test_expected_loss_of_the_best_of_several_runs_is_unbiased(gap):
    """Of groups of one, two and three runs, with different noise."""
    draw = np.random.default_rng(0)
    means = np.tile([2.0, 2.0, 2.0 + gap, 2.0, 2.0 + gap, 2.0 + gap], 600)
    groups = np.tile([0, 1, 1, 2, 2, 2], 600) + 3 * np.repeat(np.arange(600), 6)
    deviations = np.tile([1.0, 0.5, 0.5, 1.0, 1.5, 1.0], 600)
    values = means + draw.normal(size=len(means)) * deviations
    found = estimate_selected(values, deviations, groups)[0].reshape(-1, 3)
    assert found.mean(axis=0) == pytest.approx(2, abs=0.15)
    assert found[:, 0] == pytest.approx(values[::6])
    least = np.minimum.reduceat(values, np.flatnonzero(np.diff(groups, prepend=-1)))
    unknown = np.where(groups % 3 == 2, np.nan, deviations)
    assert estimate_selected(values, unknown, groups)[0][2::3] == pytest.approx(least[2::3])
    if not gap:
        assert least.reshape(-1, 3)[:, 2].mean() < 1.2


@pytest.mark.parametrize("gap", [0.0029, -0.0229])
def test_much_noisier_run_among_several_needs_no_finer_integral(gap):
    """At one of two rates, runs hardly vary; the level of the loss does not matter."""
    values, deviations, groups = np.array([5.0, 5.0 + gap]), np.array([0.1, 0.001]), np.zeros(2)
    draw = np.random.default_rng(0).normal(size=(100_000, 2)) * deviations
    chosen = (values + draw).argmin(axis=1)
    expected = (values - draw)[np.arange(len(draw)), chosen].mean()
    found, slopes = estimate_selected(values, deviations, groups.astype(int))
    assert found == pytest.approx([expected], abs=0.001)
    assert slopes == pytest.approx([0.04], abs=0.005)


def test_trials_of_a_union_lack_the_parameters_of_other_cells(sqlite_url):
    make_union(sqlite_url)
    results = results_of(sqlite_url, "union")
    assert results.parameters[:4] == ["cell", "residual", "norm", "expansion"]
    assert results.parameters[4:] == ["layers", "state_size", "learning_rate"]
    assert results.cells == ["MinGRU", "gated", "gru"]
    assert results.effects_title == "Effect of each parameter"
    own = results.table[results.table["cell"] == "MinGRU"]
    others = results.table.drop(own.index)
    assert own["input_gate"].isna().all()
    assert set(own["norm"]) == {False, True}
    assert others["norm"].isna().all()
    row = results.complete.iloc[0]
    assert row["architecture"] == "2×8 MinGRU, norm, expansion 1.0"
    assert row["label"] == "2×8 MinGRU, norm, expansion 1.0, learning rate 0.001"
    plain = own["architecture"][own["norm"].eq(False)]
    assert "2×8 MinGRU, expansion 1.0" in set(plain)
    assert not plain.str.contains("norm").any()


def test_effects_of_a_union_compare_like_with_like(sqlite_url):
    make_union(sqlite_url)
    table = build_judged_table(results_of(sqlite_url, "union"))
    effects = {label_change(effect.contrast): effect for effect in table.compute_effects()}
    assert list(effects) == [
        "cell gated → GRU", "cell gated → MinGRU", "cell GRU → MinGRU", "residual", "norm",
        "expansion 0.5 → 1.0", "layers 1 → 2", "state size 4 → 8"]  # fmt: skip
    # Switches among the gated trials, options among the trials of the cell that has them.
    assert (effects["residual"].pairs, effects["norm"].pairs) == (4, 4)
    assert effects["residual"].mean == pytest.approx(-0.2)
    assert effects["expansion 0.5 → 1.0"].pairs == 1
    assert effects["state size 4 → 8"].pairs == 2 * 2 + 2 + 2 * 2
    # Each cell at its best switches, options and learning rate, for equal layers and sizes.
    to_gru = effects["cell gated → GRU"]
    to_own = effects["cell gated → MinGRU"]
    assert (to_gru.pairs, to_gru.variants) == (4, (2, 1))
    assert to_gru.mean == pytest.approx(1.9 - (2.0 - 0.2))
    assert to_own.mean == pytest.approx((1.8 - 0.03) - (2.0 - 0.2))
    assert describe_change(to_gru) == "cell: GRU against gated (best of 2)"


def test_cells_without_own_parameters_are_compared_setting_by_setting():
    rows = [
        {"cell": cell, "optimizer": optimizer, "momentum": momentum, "value": value}
        for cell, shift in (("gru", 0.0), ("lstm", 0.5))
        for optimizer, momentum, value in (
            ("adam", None, 1.0 + shift),
            ("sgd", 0.0, 3.0 + shift),
            ("sgd", 0.9, 2.0 + 2 * shift),
        )
    ]
    names = ["cell", "optimizer", "momentum"]
    table = FactorialTable.from_frame(pd.DataFrame(rows), names, traits=find_traits(names))
    effects = {label_change(effect.contrast): effect for effect in table.compute_effects()}
    assert effects["cell GRU → LSTM"].variants == (1, 1)
    assert effects["cell GRU → LSTM"].pairs == 3
    assert effects["cell GRU → LSTM"].mean == pytest.approx((0.5 + 0.5 + 1.0) / 3)
    # SGD at its best momentum.
    assert effects["optimizer adam → sgd"].variants == (1, 2)
    assert effects["optimizer adam → sgd"].mean == pytest.approx((1.0 + 1.5) / 2)
    assert effects["momentum 0.0 → 0.9"].pairs == 2


def test_leaderboard_judges_each_architecture_at_its_best(sqlite_url):
    make_union(sqlite_url, missing=[7])
    results = results_of(sqlite_url, "union")
    entries = rank_architectures(results)
    assert len(entries) == 21
    assert {entry.runs for entry in entries} == {1}
    assert entries[0].best_values == {"learning_rate": 0.001}
    assert entries[0].loss == pytest.approx(
        min(union_value(params) for params in StudyConfig.model_validate(UNION).grid.combinations())
    )


def test_derived_study_carries_on_the_best_values(sqlite_url):
    """Two architectures of different learning rates, twice each: one row per architecture."""
    make_union(sqlite_url)
    gated = gated_params(2, 8, cell="gated", residual=True, learning_rate=0.003)
    gru = {"cell": "gru", "layers": 2, "state_size": 8, "learning_rate": 0.01}
    raw = {"nuisance": ["learning_rate"], "cells": {"MinGRU": MIN_GRU}}
    raw |= {"refinement": {"source": "union", "replicates": 2}}
    runs = [
        (params | {"replicate": replicate}, value + replicate / 100, {})
        for params, value in ((gated, 1.6), (gru, 1.7))
        for replicate in (1, 2)
    ]
    source = results_of(sqlite_url, "union").complete.query("cell == 'gru' and layers == 2")
    numbers = source[source["state_size"] == 8].index.tolist()
    make_runs(sqlite_url, "derived", raw, runs, sources=numbers)
    results = results_of(sqlite_url, "derived")
    assert (results.nuisance, results.carried) == ([], ["learning_rate"])
    assert "learning_rate" not in results.parameters
    entries = rank_architectures(results)
    found = [(entry.runs, entry.best_values["learning_rate"]) for entry in entries]
    assert found == [(2, 0.003), (2, 0.01)]
    # The source's three learning rates count as one architecture, at its best.
    comparison = compare_with_source(results)
    (row,) = comparison.rows[comparison.rows["variant"] == "unchanged"].to_dict("records")
    assert row["source_value"] == pytest.approx(1.9 - 0.1 - 0.08)


def make_edges(url, at_highest, name="edges", without=0):
    """Create 12 architectures, the best first, of which one is best at the highest rate.

    Some have no value at the other rates yet.
    """
    space = NO_GATES | {"layers": [1, 2, 3], "state_size": [4, 8]}
    space |= {"training": {"learning_rate": RATES}}
    raw = {"nuisance": ["learning_rate"], "space": space}
    places = {}
    trials = []
    for params in StudyConfig.model_validate(raw).grid.combinations():
        key = (params["layers"], params["state_size"], params["residual"])
        place = places.setdefault(key, len(places))
        best = RATES[-1] if place == at_highest else RATES[1]
        value = 2 + 0.01 * place + 0.2 * (params["learning_rate"] != best)
        is_waiting = place < without and params["learning_rate"] != RATES[0]
        trials.append((params, None if is_waiting else value, {}))
    make_runs(url, name, raw, sorted(trials, key=lambda trial: trial[1] is None))


def test_best_architecture_at_the_highest_value_tried_is_warned_of(sqlite_url, tmp_path):
    make_edges(sqlite_url, at_highest=0)
    (warning,) = load("edges", storage=sqlite_url).effects().warnings
    assert re.search("1 of 12 .* learning rate 0.01, the highest", warning)
    report = write_report(sqlite_url, ["edges"], tmp_path / "page.html")
    assert report.headline[-1] == f"warning: {warning}"
    assert warning in report.path.read_text("utf-8")
    make_edges(sqlite_url, at_highest=None, name="one rate", without=3)
    make_edges(sqlite_url, at_highest=7, name="few")
    for name in ("one rate", "few"):
        assert load(name, storage=sqlite_url).effects().warnings == [], name
