"""Shares of runs that solve a task: pairs and architectures."""

import math

import numpy as np
import pytest
from scipy.stats import binom, norm

from reports.stats.shares import (
    ShareChange,
    SolvedRuns,
    compare_architectures,
    count_needed_pairs,
    count_needed_runs,
    rank_pairs,
)


def change(rescued, ruined, same=0, limit=1.0):
    differences = np.repeat([1.0, -1.0, 0.0], [rescued, ruined, same])
    return ShareChange.from_differences(differences, limit)


def test_option_that_helps_in_all_of_eight_pairs_is_significant():
    found = change(8, 0)
    assert found.p == 2**-8
    assert found.interval == (pytest.approx(0.428, abs=5e-4), 1.0)


def test_mid_p_value_counts_half_of_the_chance_of_what_was_found():
    expected = 2 * binom.cdf(1, 9, 0.5) - binom.pmf(1, 9, 0.5)
    assert change(8, 1, 3).p == change(1, 8, 3).p == pytest.approx(expected)
    assert [change(4, 4).p, change(0, 0, 5).p, change(0, 0).p] == [1, 1, 1]
    assert change(900, 1100).p == pytest.approx(2 * norm.cdf(-200 / 2000**0.5), rel=0.02)


def test_interval_is_that_of_bonett_and_price():
    # Their formula, with p₁ = (f + 1) / (N + 2) and p₂ = (g + 1) / (N + 2).
    first, second, size = 8 / 26, 3 / 26, 26
    half = norm.ppf(0.975) * math.sqrt((first + second - (first - second) ** 2) / size)
    center = first - second
    assert change(7, 2, 15).interval == pytest.approx((center - half, center + half))
    assert change(2, 0).interval[1] == 1
    assert change(2, 0, limit=2.0).interval[1] > 1
    assert all(map(math.isnan, change(0, 0).interval))


def test_least_pairs_and_runs_are_those_that_can_be_significant_after_correction():
    for options in (1, 3, 7, 40):
        needed = count_needed_pairs(options)
        assert change(needed, 0).p * options < 0.05 <= change(needed - 1, 0).p * options
        runs = count_needed_runs(options)
        p = [
            compare_architectures({"a": SolvedRuns(n, n), "b": SolvedRuns(0, n)})["a", "b"]
            for n in (runs - 1, runs)
        ]
        assert p[1] * options <= 0.05 < p[0] * options
    assert (count_needed_runs(1), count_needed_runs(45)) == (4, 7)


def test_wilsons_interval_of_two_of_three():
    assert SolvedRuns(2, 3).interval == pytest.approx((0.2077, 0.9385), abs=1e-4)
    assert SolvedRuns(0, 3).interval[0] == 0


def test_architectures_are_compared_by_fishers_test_with_holms_correction():
    runs = {"a": SolvedRuns(5, 5), "b": SolvedRuns(0, 5), "c": SolvedRuns(1, 5)}
    found = compare_architectures(runs)
    of_ac = 12 / 252  # all of the six that are solved, or five and one, in either order
    assert found == pytest.approx({("a", "b"): 3 * 2 / 252, ("a", "c"): 2 * of_ac, ("b", "c"): 1})


def test_ranks_compare_logarithms_and_a_run_that_diverged_is_the_worst():
    before = np.array([1.0, 10.0, 100.0, 1.0, 5.0, math.inf])
    found = rank_pairs(before, before / np.array([2, 2.1, 2.2, 2.3, 2.4, 1]))
    assert (found.lower, found.pairs, found.p) == (5, 6, 2 / 2**5)
    # In logarithms the rise is the largest change, in differences the second least.
    before, after = np.array([1, 10, 100, 200, 300]), np.array([3, 9, 80, 150, 200])
    assert rank_pairs(before, after).p == pytest.approx(20 / 2**5)
    assert rank_pairs(before - 1.0, after - 1.0).p == pytest.approx(6 / 2**5)
    diverged = rank_pairs(np.full(6, math.inf), np.arange(1.0, 7.0))
    assert (diverged.lower, diverged.p) == (6, 2 / 2**6)
    assert rank_pairs(before, before).p == 1
