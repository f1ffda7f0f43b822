"""Differences between architectures: by hand, against other tests, and their error rates."""

import math

import numpy as np
import pytest
from scipy import stats

from reports.stats.pairwise_comparison import add_p_values, compare_pairwise, compute_difference


def as_runs(losses):
    return dict(enumerate(np.asarray(losses).tolist()))


def test_crossed_difference_equals_a_calculation_by_hand():
    # Mean 3; run means 2 and 4, window means 1, 3 and 5; the residual is ±1 in four cells.
    d = [[1, 2, 3], [1, 4, 7]]
    zeros = as_runs(np.zeros((2, 3)))
    (found,) = add_p_values([compute_difference(as_runs(d), zeros)])
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


def test_variance_is_at_least_that_of_runs_and_of_windows():
    d = [[1.0, -1.0, 0.0], [-1.0, 1.0, 0.3]]
    found = compute_difference(as_runs(d), as_runs(np.zeros((2, 3))))
    of_runs = 3 * ((0.0 - 0.05) ** 2 + (0.1 - 0.05) ** 2)
    of_windows = 2 * ((0 - 0.05) ** 2 * 2 + (0.15 - 0.05) ** 2) / 2
    assert found.errors[0][0] == pytest.approx(math.sqrt(max(of_runs, of_windows) / 6))


@pytest.mark.parametrize("shape", [(1, 7), (7, 1)])
def test_interval_of_one_run_or_one_window_is_students(shape):
    generator = np.random.default_rng(3)
    one, other = generator.normal(size=shape), generator.normal(0.8, size=shape)
    (found,) = add_p_values([compute_difference(as_runs(one), as_runs(other))])
    expected = stats.ttest_rel(one.ravel(), other.ravel())
    assert found.p == pytest.approx(expected.pvalue if shape == (7, 1) else 1)
    low, high = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_only_common_runs_are_compared():
    found = compute_difference({1: [1.0], 2: [2.0], 3: [9.0]}, {2: [1.5], 1: [0.5], 4: [0.0]})
    assert (found.runs, found.mean) == (2, 0.5)
    (none,) = add_p_values([compute_difference({1: [1.0]}, {2: [1.0]})])
    assert (none.runs, none.p, none.is_significant) == (0, 1, False)
    (single,) = add_p_values([compute_difference({1: [1.0]}, {1: [2.0]})])
    assert (single.mean, single.p) == (-1, 1)
    assert math.isnan(single.low)


def test_p_values_are_corrected_by_holms_method():
    # Each alone is below 5%. Holm: 0.01 · 3, 0.02 · 2, and at least as much for 0.03.
    runs = 50
    wanted = np.array([0.02, 0.03, 0.01])
    zero = as_runs(np.zeros((runs, 1)))
    shape = np.linspace(-1, 1, runs)[:, None]
    error = shape.std(ddof=1) / math.sqrt(runs)
    means = stats.t.isf(wanted / 2, runs - 1) * error
    found = add_p_values([compute_difference(as_runs(shape + mean), zero) for mean in means])
    assert [each.p for each in found] == pytest.approx(wanted)
    assert [each.p_adjusted for each in found] == pytest.approx([0.04, 0.04, 0.03])
    found = add_p_values(
        [compute_difference(as_runs(shape + mean), zero) for mean in [*means, 0.0, 0.0]]
    )
    assert not any(each.is_significant for each in found[:2]), "0.02 · 4 and 0.03 · 3"


def studies(count, gap, architectures=10, runs=10, windows=64):
    """Generate studies with effects of runs, windows and architectures, and with noise.

    The last architecture is worse by the gap.
    """
    draw = np.random.default_rng(1).normal
    for _ in range(count):
        losses = draw(scale=1, size=(1, 1, windows)) + draw(scale=0.3, size=(1, runs, 1))
        losses = losses + draw(scale=0.02, size=(architectures, runs, 1))
        losses = losses + draw(scale=0.08, size=(architectures, 1, windows))
        losses = losses + draw(scale=0.05, size=(architectures, runs, windows))
        losses[-1] += gap
        yield {str(i): as_runs(each) for i, each in enumerate(losses)}


@pytest.mark.parametrize(("runs", "count"), [(10, 250), (3, 150), (2, 150)])
def test_false_positives_are_rare(runs, count):
    has_false_positive = [
        any(pair.is_significant for pair in compare_pairwise(study).pairs.values())
        for study in studies(count, gap=0, runs=runs)
    ]
    assert np.mean(has_false_positive) <= 0.07


def test_only_a_real_difference_is_significant():
    for study in studies(5, gap=0.15):
        comparison = compare_pairwise(study)
        others = set(study) - {"9"}
        assert all(comparison.is_significant("9", other) for other in others)
        assert comparison.between("9", "0").mean == pytest.approx(0.15, abs=0.06)
        assert comparison.between("0", "9").mean == -comparison.between("9", "0").mean


def test_smallest_is_chosen_among_those_not_significantly_worse():
    noise = np.random.default_rng(0).normal(scale=0.1, size=(3, 40, 1))
    noise -= noise.mean(axis=1, keepdims=True)
    losses = {"best": noise[0], "near": noise[1] + 0.01, "far": noise[2] + 1}
    comparison = compare_pairwise({name: as_runs(each) for name, each in losses.items()})
    assert comparison.best == "best"
    assert not comparison.is_significant("near", "best")
    assert comparison.is_significant("far", "best")
    assert comparison.find_smallest_not_worse({"best": 30, "near": 20, "far": 10}) == "near"
    assert comparison.find_smallest_not_worse({"best": 20, "near": 20, "far": 10}) == "best"


def test_single_runs_never_differ_significantly():
    """They differ clearly on every window, which says nothing about another run."""
    losses = np.random.default_rng(0).normal(scale=0.01, size=(3, 1, 40))
    losses += np.arange(3)[:, None, None]
    comparison = compare_pairwise({str(i): as_runs(each) for i, each in enumerate(losses)})
    assert all(pair.low > 0.9 for pair in comparison.pairs.values())
    assert not any(pair.is_significant for pair in comparison.pairs.values())
