"""Variances shrunk towards their common value."""

import numpy as np
import pytest
from scipy import special, stats

from reports.stats.variance_shrinkage import expect_freedom, shrink_variances

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
