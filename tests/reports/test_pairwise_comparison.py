"""Differences between architectures: by hand, against other tests, with shrunk variances."""

import math

import numpy as np
import pytest
from scipy import special, stats
from statsmodels.stats.multitest import multipletests

from reports.stats.crossed_model import adjust_by_holm
from reports.stats.pairwise_comparison import compare_pairwise, compute_difference
from reports.stats.variance_shrinkage import expect_freedom, shrink_variances


def as_runs(losses):
    return dict(enumerate(np.asarray(losses).tolist()))


def compare_two(first, second):
    """Return the tested difference of two architectures, the second of which is better."""
    (difference,) = compare_pairwise({"second": second, "first": first}).pairs.values()
    return difference


def test_crossed_difference_equals_a_calculation_by_hand():
    # Mean 3; run means 2 and 4, window means 1, 3 and 5; the residual is ±1 in four cells.
    d = [[1, 2, 3], [1, 4, 7]]
    zeros = as_runs(np.zeros((2, 3)))
    found = compare_two(as_runs(d), zeros)
    of_runs, of_windows, residual = 3 * 2 / 1, 2 * 8 / 2, 4 / 2
    scaled = of_runs + of_windows - residual
    freedom = scaled**2 / (of_runs**2 / 1 + of_windows**2 / 2 + residual**2 / 2)
    expected = [(scaled, freedom), (of_runs, 1), (of_windows, 2)]
    assert found.mean == pytest.approx(3)
    for (error, free), (square, wanted) in zip(found.errors, expected, strict=True):
        assert (error, free) == pytest.approx((math.sqrt(square / 6), wanted))
    # The p-value over the two runs alone is the largest.
    assert found.p == pytest.approx(2 * stats.t.sf(3 / 1, 1))
    assert found.low == pytest.approx(3 - stats.t.ppf(0.975, 1) * 1)
    assert (found.runs, found.windows) == (2, 3)
    assert compute_difference(zeros, as_runs(d)).mean == pytest.approx(-3)


def test_variance_is_at_least_each_mean_square():
    """Otherwise runs that happen to agree would have a variance of nearly nothing."""
    d = [[1.0, -1.0, 0.0], [-1.0, 1.0, 0.3]]
    found = compute_difference(as_runs(d), as_runs(np.zeros((2, 3))))
    of_runs = 3 * ((0.0 - 0.05) ** 2 + (0.1 - 0.05) ** 2)
    of_windows = 2 * ((0 - 0.05) ** 2 * 2 + (0.15 - 0.05) ** 2) / 2
    of_rest = (np.var(d) * 6 - of_runs - 2 * of_windows) / 2
    assert of_rest > max(of_runs, of_windows)
    assert found.errors[0] == pytest.approx((math.sqrt(of_rest / 6), 2))


@pytest.mark.parametrize("shape", [(1, 7), (7, 1)])
def test_interval_of_one_run_or_one_window_is_students(shape):
    generator = np.random.default_rng(3)
    one, other = generator.normal(size=shape), generator.normal(0.8, size=shape)
    found = compare_two(as_runs(one), as_runs(other))
    expected = stats.ttest_rel(one.ravel(), other.ravel())
    assert found.p == pytest.approx(expected.pvalue if shape == (7, 1) else 1)
    low, high = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_only_common_runs_are_compared():
    found = compute_difference({1: [1.0], 2: [2.0], 3: [9.0]}, {2: [1.5], 1: [0.5], 4: [0.0]})
    assert (found.runs, found.mean) == (2, 0.5)
    none = compare_two({1: [1.0]}, {2: [1.0]})
    assert (none.runs, none.p, none.is_significant) == (0, 1, False)
    single = compare_two({1: [1.0]}, {1: [2.0]})
    assert (single.mean, single.p) == (-1, 1)
    assert math.isnan(single.low)


def test_p_values_are_corrected_by_holms_method():
    # Each alone is below 5%. Holm: 0.01 · 3, 0.02 · 2, and at least as much for 0.03.
    p = np.array([0.02, 0.03, 0.01])
    assert adjust_by_holm(p, 3) == pytest.approx([0.04, 0.04, 0.03])
    assert adjust_by_holm(p, 5) == pytest.approx([0.08, 0.09, 0.05]), "two were tested before"
    many = np.random.default_rng(0).uniform(size=50) ** 4
    assert adjust_by_holm(many) == pytest.approx(multipletests(many, method="holm")[1])
    # A row for each study.
    assert adjust_by_holm(np.array([p, 10 * p]), 3)[1].tolist() == pytest.approx([0.4, 0.4, 0.3])


def test_a_comparison_is_corrected_for_the_architectures_that_were_left_out():
    losses = {name: as_runs(each) for name, each in zip("abc", RUNS, strict=True)}
    alone, of_ten = (compare_pairwise(losses, count=count).pairs["c", "a"] for count in (3, 10))
    assert alone.p == of_ten.p
    # The second of 3 and of 45.
    assert of_ten.p_adjusted == pytest.approx(alone.p_adjusted * 44 / 2)


RUNS = np.random.default_rng(4).normal(size=(3, 6, 1)) + np.array([0, 0, 9])[:, None, None]
"""Three architectures, the last of which is worse."""


def test_single_runs_never_differ_significantly():
    """They differ clearly on every window, which says nothing about another run."""
    losses = np.random.default_rng(0).normal(scale=0.01, size=(3, 1, 40))
    losses += np.arange(3)[:, None, None]
    comparison = compare_pairwise({str(i): as_runs(each) for i, each in enumerate(losses)})
    assert all(pair.low > 0.9 for pair in comparison.pairs.values())
    assert not any(pair.is_significant for pair in comparison.pairs.values())


PAIRS, ARCHITECTURES = 45, 10


def draw_variances(generator, freedom, prior=None):
    """Draw variances of pairs; their true values follow the prior of Smyth (2004)."""
    true = np.ones(PAIRS) if prior is None else prior / generator.chisquare(prior, PAIRS)
    return true * generator.chisquare(freedom, PAIRS) / freedom


def test_prior_is_that_of_a_calculation_by_hand():
    """The logarithms of the variances scatter as Smyth's equations say for this prior."""
    freedom, prior = 6.0, 5.0
    caution = special.polygamma(1, freedom / 2) * np.sqrt(
        (2 + special.polygamma(3, freedom / 2) / special.polygamma(1, freedom / 2) ** 2) / 9
    )
    scatter = special.polygamma(1, prior / 2) + special.polygamma(1, freedom / 2) - caution / 2
    independent = 1 - 0.25 * 2 * 8 / 44
    shape = stats.norm.ppf((np.arange(PAIRS) + 0.5) / PAIRS)
    logs = shape / shape.std(ddof=1) * np.sqrt(scatter * independent)
    variances = np.exp(logs)
    shrunk, found = shrink_variances(variances, np.full(PAIRS, freedom), ARCHITECTURES)
    assert found == pytest.approx(freedom + prior)
    scale = np.exp(
        special.digamma(prior / 2) - np.log(prior / 2)
        - special.digamma(freedom / 2) + np.log(freedom / 2)
    )  # fmt: skip
    assert shrunk == pytest.approx((prior * scale + freedom * variances) / (prior + freedom))


@pytest.mark.parametrize(
    ("variances", "architectures"), [([1.0, 2.0, 5.0], 3), ([0.0] * 9 + [1.0], 5)]
)
def test_few_architectures_and_identical_runs_are_not_shrunk(variances, architectures):
    shrunk, freedom = shrink_variances(
        np.array(variances), np.full(len(variances), 2.0), architectures
    )
    assert shrunk.tolist() == variances
    assert set(freedom) == {2}


def test_pairs_with_fewer_runs_than_most_are_not_shrunk():
    variances = draw_variances(np.random.default_rng(3), 4)
    freedom = np.full(PAIRS, 4.0)
    freedom[:9] = 1  # those of an architecture that lost three of five runs
    shrunk, found = shrink_variances(variances, freedom, ARCHITECTURES)
    assert shrunk[:9].tolist() == variances[:9].tolist()
    assert set(found[:9]) == {1}
    assert (found[9:] > 4).all()
    few, unchanged = shrink_variances(variances, np.ones(PAIRS), ARCHITECTURES)
    assert (few.tolist(), set(unchanged)) == (variances.tolist(), {1})


@pytest.mark.parametrize(("runs", "architectures"), [(3, 10), (5, 10), (10, 6), (3, 4), (2, 10)])
def test_expected_freedom_is_that_of_equal_variances(runs, architectures):
    expected = expect_freedom(runs, architectures)
    assert runs - 1 <= expected <= (architectures - 1) * (runs - 1)
    assert (expected > runs - 1) == (architectures >= 5 and runs >= 3)
    assert expect_freedom(runs, 20) >= expect_freedom(runs, 6)
