"""What tells networks apart: by hand, against other tests, and where nothing is to be told."""

import math

import numpy as np
import pytest
from scipy import stats

from reports.stats.comparison import compare, judged, paired_difference


def as_runs(losses):
    return dict(enumerate(np.asarray(losses).tolist()))


def test_a_crossed_difference_is_the_one_worked_out_by_hand():
    # The mean is 3; of the runs 2 and 4, of the lanes 1, 3 and 5; what is left is 1 in four cells.
    d = [[1, 2, 3], [1, 4, 7]]
    zeros = as_runs(np.zeros((2, 3)))
    (found,) = judged([paired_difference(as_runs(d), zeros)])
    of_runs, of_lanes, residual = 3 * 2 / 1, 2 * 8 / 2, 4 / 2
    scaled = of_runs + of_lanes - residual
    freedom = scaled**2 / (of_runs**2 / 1 + of_lanes**2 / 2 + residual**2 / 2)
    expected = [(scaled, freedom), (of_runs, 1), (of_lanes, 2)]
    assert found.mean == pytest.approx(3)
    for (error, free), (square, wanted) in zip(found.errors, expected, strict=True):
        assert (error, free) == pytest.approx((math.sqrt(square / 6), wanted))
    # The largest is that over the two runs alone.
    assert found.p == pytest.approx(2 * stats.t.sf(3 / 1, 1))
    assert found.low == pytest.approx(3 - stats.t.ppf(0.975, 1) * 1)
    assert (found.runs, found.windows) == (2, 3)
    assert paired_difference(zeros, as_runs(d)).mean == pytest.approx(-3)


def test_the_variance_is_no_less_than_that_of_runs_or_of_lanes():
    d = [[1.0, -1.0, 0.0], [-1.0, 1.0, 0.3]]
    found = paired_difference(as_runs(d), as_runs(np.zeros((2, 3))))
    of_runs = 3 * ((0.0 - 0.05) ** 2 + (0.1 - 0.05) ** 2)
    of_lanes = 2 * ((0 - 0.05) ** 2 * 2 + (0.15 - 0.05) ** 2) / 2
    assert found.errors[0][0] == pytest.approx(math.sqrt(max(of_runs, of_lanes) / 6))


@pytest.mark.parametrize("shape", [(1, 7), (7, 1)])
def test_of_one_run_or_one_lane_the_interval_is_students(shape):
    generator = np.random.default_rng(3)
    one, other = generator.normal(size=shape), generator.normal(0.8, size=shape)
    (found,) = judged([paired_difference(as_runs(one), as_runs(other))])
    expected = stats.ttest_rel(one.ravel(), other.ravel())
    assert found.p == pytest.approx(expected.pvalue if shape == (7, 1) else 1)
    low, high = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_only_runs_that_both_have_are_compared():
    found = paired_difference({1: [1.0], 2: [2.0], 3: [9.0]}, {2: [1.5], 1: [0.5], 4: [0.0]})
    assert (found.runs, found.mean) == (2, 0.5)
    (none,) = judged([paired_difference({1: [1.0]}, {2: [1.0]})])
    assert (none.runs, none.p, none.is_significant) == (0, 1, False)
    (single,) = judged([paired_difference({1: [1.0]}, {1: [2.0]})])
    assert (single.mean, single.p) == (-1, 1)
    assert math.isnan(single.low)


def test_all_comparisons_are_considered():
    # Each alone is below 5%; Holm: 0.01 · 3, 0.02 · 2, and the last no less than the one before.
    runs = 50
    wanted = np.array([0.02, 0.03, 0.01])
    zero = as_runs(np.zeros((runs, 1)))
    shape = np.linspace(-1, 1, runs)[:, None]
    error = shape.std(ddof=1) / math.sqrt(runs)
    means = stats.t.isf(wanted / 2, runs - 1) * error
    found = judged([paired_difference(as_runs(shape + mean), zero) for mean in means])
    assert [each.p for each in found] == pytest.approx(wanted)
    assert [each.adjusted for each in found] == pytest.approx([0.04, 0.04, 0.03])
    found = judged([paired_difference(as_runs(shape + mean), zero) for mean in [*means, 0.0, 0.0]])
    assert not any(each.is_significant for each in found[:2]), "0.02 · 4 and 0.03 · 3"


def studies(count, gap, architectures=10, runs=10, windows=64):
    """Draw studies: what runs and lanes have in common, what is each architecture's own, and noise.

    The last architecture is worse by the gap.
    """
    draw = np.random.default_rng(1).normal
    for _ in range(count):
        losses = draw(scale=1, size=(1, 1, windows)) + draw(scale=0.3, size=(1, runs, 1))
        losses = losses + draw(scale=0.02, size=(architectures, runs, 1))
        losses = losses + draw(scale=0.08, size=(architectures, 1, windows))
        losses = losses + draw(scale=0.05, size=(architectures, runs, windows))
        losses[-1] += gap
        yield {str(i): as_runs(own) for i, own in enumerate(losses)}


@pytest.mark.parametrize(("runs", "count"), [(10, 250), (3, 150), (2, 150)])
def test_where_no_two_differ_two_are_rarely_told_apart(runs, count):
    told = [
        any(pair.is_significant for pair in compare(study).pairs.values())
        for study in studies(count, gap=0, runs=runs)
    ]
    assert np.mean(told) <= 0.07


def test_a_large_difference_is_found_and_no_other():
    for study in studies(5, gap=0.15):
        comparison = compare(study)
        others = set(study) - {"9"}
        assert all(comparison.is_significant("9", other) for other in others)
        assert comparison.between("9", "0").mean == pytest.approx(0.15, abs=0.06)
        assert comparison.between("0", "9").mean == -comparison.between("9", "0").mean


def test_the_smallest_is_sought_among_those_not_told_apart_from_the_best():
    noise = np.random.default_rng(0).normal(scale=0.1, size=(3, 40, 1))
    noise -= noise.mean(axis=1, keepdims=True)
    losses = {"best": noise[0], "near": noise[1] + 0.01, "far": noise[2] + 1}
    comparison = compare({name: as_runs(own) for name, own in losses.items()})
    assert comparison.best == "best"
    assert not comparison.is_significant("near", "best")
    assert comparison.is_significant("far", "best")
    assert comparison.smallest({"best": 30, "near": 20, "far": 10}) == "near"
    assert comparison.smallest({"best": 20, "near": 20, "far": 10}) == "best"


def test_single_runs_are_never_told_apart():
    """Their lanes differ clearly, and say nothing about another run of either."""
    losses = np.random.default_rng(0).normal(scale=0.01, size=(3, 1, 40))
    losses += np.arange(3)[:, None, None]
    comparison = compare({str(i): as_runs(own) for i, own in enumerate(losses)})
    assert all(pair.low > 0.9 for pair in comparison.pairs.values())
    assert not any(pair.is_significant for pair in comparison.pairs.values())
