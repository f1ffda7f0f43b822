"""The four outcomes of matched pairs: exact counts, and their test."""

import itertools

import numpy as np
import pandas as pd
import pytest
from factories import make_study, make_union, results_of
from scipy.stats import binom

from reports.analysis.nuisance import build_outcome_table
from reports.page.page import render_page
from reports.page.section import Section
from reports.stats.design import Contrast
from reports.stats.effects import FactorialTable
from reports.stats.hypotheses import (
    BAD,
    GOOD,
    UNKNOWN,
    OutcomeTable,
    compute_outcomes,
)
from reports.trial_table import find_traits


def test_counts_equal_a_calculation_by_hand(sqlite_url):
    """Values 1.5 to 2.2 in the order of residual, layers, size; the trial of 1.8 diverged."""
    make_study(sqlite_url)
    outcomes = compute_outcomes(build_outcome_table(results_of(sqlite_url), 2.0))
    # Off: 1.5, 1.6, 1.7, diverged; on: 1.9, 2.0, 2.1, 2.2.
    assert [each.contrast.parameter for each in outcomes] == ["residual", "layers", "state_size"]
    for each in outcomes:
        counts = each.both_good, each.rescued, each.ruined, each.both_bad, each.unknown
        assert counts == (1, 0, 2, 1, 0)


def test_architecture_at_its_best_is_good_if_one_of_its_trials_is(sqlite_url):
    threshold = 1.75
    make_union(sqlite_url, missing=[0, 7])
    results = results_of(sqlite_url, "union")
    table = build_outcome_table(results, threshold)
    others = [name for name in results.all_parameters if name != "learning_rate"]
    best = results.table.groupby(others, dropna=False)["value"].min()
    assert (table.values == GOOD).sum() == (best < threshold).sum()
    assert (table.values == BAD).sum() == (best >= threshold).sum()


def test_best_of_several_trials_is_unknown_while_it_may_become_good():
    rows = [
        {"cell": cell, "residual": residual, "size": size, "value": value}
        for (cell, residual, size), value in {
            ("gated", False, 1): BAD, ("gated", True, 1): UNKNOWN, ("gru", None, 1): BAD,
            ("gated", False, 2): BAD, ("gated", True, 2): GOOD, ("gru", None, 2): BAD,
        }.items()
    ]  # fmt: skip
    names = ["cell", "residual", "size"]
    table = FactorialTable.from_frame(pd.DataFrame(rows), names, traits=find_traits(names))
    (cells,) = (
        each
        for each in compute_outcomes(table)
        if each.contrast == Contrast("cell", "gated", "gru")
    )
    assert (cells.unknown, cells.ruined, cells.pairs) == (1, 1, 1)


def test_sign_test_and_interval_are_exact():
    table = OutcomeTable(both_good=40, rescued=9, ruined=1, both_bad=50, unknown=3)
    assert table.pairs == 100
    assert table.gain == pytest.approx(0.08)
    assert table.p == pytest.approx(2 * binom.cdf(1, 10, 0.5))
    low, high = table.compute_interval()
    # Each end is that of two one-sided intervals with an error of 1.25% each.
    rescued_low = next(p for p in np.linspace(0, 1, 2001) if binom.sf(8, 100, p) >= 0.0125)
    ruined_high = next(p for p in np.linspace(1, 0, 2001) if binom.cdf(1, 100, p) >= 0.0125)
    assert low == pytest.approx(rescued_low - ruined_high, abs=2e-3)
    assert low < table.gain < high
    assert OutcomeTable(both_good=0, rescued=0, ruined=0, both_bad=9, unknown=0).p == 1


def test_p_values_are_corrected_for_the_number_of_contrasts():
    rows = [
        {"a": a, "b": b, "c": c, "value": GOOD if a else BAD}
        for a, b, c in itertools.product((False, True), range(3), range(3))
    ]
    table = FactorialTable.from_frame(pd.DataFrame(rows), ["a", "b", "c"])
    first, *others = compute_outcomes(table)
    assert (first.rescued, first.p) == (9, pytest.approx(2 / 2**9))
    assert first.p_adjusted == pytest.approx(5 * first.p)
    assert first.is_significant
    assert [each.p_adjusted for each in others] == [1, 1, 1, 1]


@pytest.mark.usefixtures("without_optuna_figures")
def test_outcomes_have_no_table_where_all_are_on_one_side(sqlite_url, build_page):
    make_study(sqlite_url, report_threshold=0.1)
    section = Section(results_of(sqlite_url))
    assert section.findings.outcomes
    drawn = "outcomes</caption>"
    assert drawn not in "".join(render_page([section]))
    assert drawn in build_page(make_study, "made").html
