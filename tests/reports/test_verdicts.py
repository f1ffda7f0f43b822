"""Differences between replicated architectures: by hand, against other tests; verdicts."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from reports.stats.estimate import adjust_by_holm
from reports.stats.replicates import (
    Verdict,
    bound_distances,
    compare_pairwise,
    compare_single_runs,
    judge,
    moderate_variances,
)
from reports.stats.run_means import RunMeans


def as_runs(losses):
    return dict(enumerate(np.asarray(losses).tolist()))


def compare_two(first, second):
    """Return the tested difference of two architectures, the second of which is better."""
    (difference,) = compare_pairwise({"second": second, "first": first}).pairs.values()
    return difference


def test_difference_equals_a_calculation_by_hand():
    # Mean 3; run means 2 and 4, window means 1, 3 and 5; the residual is ±1 in four cells.
    d = [[1, 2, 3], [1, 4, 7]]
    found = compare_two(as_runs(d), as_runs(np.zeros((2, 3))))
    of_runs, of_windows, of_rest = 3 * 2 / 1, 2 * 8 / 2, 4 / 2
    expected = of_runs / 6, (of_windows - of_rest) / 6
    assert found.mean == pytest.approx(3)
    assert found.variances == pytest.approx(expected)
    assert found.degrees == (1, 2)
    quantiles = stats.t.ppf(0.975, [1, 2])
    half_width = math.sqrt(quantiles**2 @ expected)
    assert (found.low, found.high) == pytest.approx((3 - half_width, 3 + half_width))
    # The p-value is that of the interval which ends at zero.
    at_zero = stats.t.isf(found.p / 2, [1, 2]) ** 2 @ expected
    assert at_zero == pytest.approx(3**2)
    assert (found.runs, found.windows) == (2, 3)


def test_windows_add_nothing_beyond_the_noise_of_single_runs():
    d = [[1.0, -1.0, 0.0], [-1.0, 1.0, 0.3]]
    found = compare_two(as_runs(d), as_runs(np.zeros((2, 3))))
    assert found.variances == pytest.approx((0.1**2 / 4, 0))
    assert found.p == pytest.approx(2 * stats.t.sf(0.05 / 0.05, 1))


@pytest.mark.parametrize("shape", [(1, 7), (7, 1)])
def test_interval_of_one_run_or_one_window_is_students(shape):
    generator = np.random.default_rng(3)
    one, other = generator.normal(size=shape), generator.normal(0.8, size=shape)
    found = compare_two(as_runs(one), as_runs(other))
    expected = stats.ttest_rel(one.ravel(), other.ravel())
    assert found.p == pytest.approx(expected.pvalue if shape == (7, 1) else 1)
    low, high = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))
    (single,) = compare_single_runs([one.ravel()], other.ravel())
    assert single.mean == pytest.approx(found.mean)


def test_only_common_runs_are_compared():
    found = compare_two({1: [1.0], 2: [2.0], 3: [9.0]}, {2: [1.5], 1: [0.5], 4: [0.0]})
    assert (found.runs, found.mean) == (2, 0.5)
    # Both runs differ by the same, and nothing says how much others would.
    assert (found.half_width, found.p) == (0, 0)
    none = compare_two({1: [1.0]}, {2: [1.0]})
    assert (none.runs, none.p, none.is_significant) == (0, 1, False)
    single = compare_two({1: [1.0, 1.1]}, {1: [2.0, 2.1]})
    assert (single.mean, single.p, single.is_significant) == (-1, 1, False), "of one run"
    assert math.isnan(compare_two({1: [1.0]}, {1: [2.0]}).low)


def test_p_values_are_corrected_by_holms_method():
    # Each alone is below 5%. Holm: 0.01 · 3, 0.02 · 2, and at least as much for 0.03.
    p = np.array([0.02, 0.03, 0.01])
    assert adjust_by_holm(p) == pytest.approx([0.04, 0.04, 0.03])
    many = np.random.default_rng(0).uniform(size=50) ** 4
    assert adjust_by_holm(many) == pytest.approx(multipletests(many, method="holm")[1])
    # A row for each study.
    assert adjust_by_holm(np.array([p, 10 * p]))[1].tolist() == pytest.approx([0.4, 0.4, 0.3])


def list_pairs(size):
    return np.array([(i, j) for i in range(size) for j in range(i + 1, size)]).T


PAIRS = list_pairs(10)


def test_variances_of_pairs_are_moderated_by_the_prior_of_architectures():
    """Smyth's prior has five degrees of freedom, and a variance 1; each has seven runs."""
    random, size, prior = np.random.default_rng(0), 60, 5
    deviations = np.sqrt(prior / random.chisquare(prior, size))
    runs = random.normal(size=(size, 7)) * deviations[:, None] + random.normal(size=7)
    first, second = list_pairs(size)
    variances = (runs[first] - runs[second]).var(axis=1, ddof=1)
    moderated, degrees = moderate_variances(
        variances, np.full(len(first), 6.0), np.array([first, second])
    )
    assert len(set(degrees)) == 1
    assert degrees[0] - 6 == pytest.approx(prior, rel=0.25)
    found = degrees[0] - 6
    scale = (moderated * degrees[0] - 6 * variances) / found
    assert scale == pytest.approx(np.full(len(scale), scale[0]))
    assert scale[0] == pytest.approx(2, rel=0.25)


@pytest.mark.parametrize(("size", "scale"), [(4, 1.0), (10, 0.0)])
def test_few_architectures_and_identical_runs_are_not_moderated(size, scale):
    pairs = list_pairs(size)
    variances, given = scale * np.arange(1.0, 1 + pairs.shape[1]), np.full(pairs.shape[1], 2.0)
    moderated, degrees = moderate_variances(variances, given, pairs)
    assert (moderated.tolist(), degrees.tolist()) == (variances.tolist(), given.tolist())


def test_pairs_with_fewer_runs_than_most_are_not_moderated():
    variances = np.random.default_rng(3).chisquare(4, PAIRS.shape[1])
    is_short = (PAIRS == 0).any(axis=0)  # the first architecture lost three of five runs
    degrees = np.where(is_short, 1.0, 4.0)
    moderated, found = moderate_variances(variances, degrees, PAIRS)
    assert moderated[is_short].tolist() == variances[is_short].tolist()
    assert set(found[is_short]) == {1}
    assert (found[~is_short] > 4).all()


# ------------------------------------------------------------------ verdicts


def runs_around(mean, scale, count=12, seed=0):
    """Return runs with exactly this mean, and one window."""
    noise = np.random.default_rng(seed).normal(scale=scale, size=count)
    return {i: [value] for i, value in enumerate((noise - noise.mean() + mean).tolist())}


def judge_runs(**losses):
    return judge(compare_pairwise(losses), 0.02)


def test_three_verdicts():
    judgement = judge_runs(
        best=runs_around(1, 0.001, seed=1),
        near=runs_around(1.01, 0.001, seed=2),
        noisy=runs_around(1.012, 0.05, seed=3),
        far=runs_around(1.2, 0.001, seed=4),
    )
    assert judgement.comparison.between("near", "best").is_significant
    assert judgement.verdicts == {
        "best": Verdict.UNDECIDED,  # "noisy" may be better
        "near": Verdict.WORSE,
        "noisy": Verdict.UNDECIDED,
        "far": Verdict.WORSE,
    }
    without = judge_runs(
        best=runs_around(1, 0.001, seed=1),
        near=runs_around(1.01, 0.001, seed=2),
        far=runs_around(1.2, 0.001, seed=4),
        single={0: [1.0]},
    )
    assert without.comparison.between("near", "best").is_significant
    assert without.verdicts == {
        "best": Verdict.AS_GOOD,
        "near": Verdict.AS_GOOD,  # significantly worse, by less than the margin
        "far": Verdict.WORSE,
        "single": Verdict.UNDECIDED,  # and withholds no verdict on the others
    }
    assert without.bounds["best"] == 0, "it is shown to be the best"
    assert 0.01 < without.bounds["near"] < 0.02
    assert without.bounds["single"] == math.inf
    assert [without.count(verdict) for verdict in Verdict] == [1, 1, 1]


def test_distances_are_bounded_to_those_that_may_be_the_best():
    # The third is worse than the first, so that the wide bound to it does not count.
    upper = np.array([[0.0, 0.3, -0.1], [0.2, 0.0, 0.9], [1.2, 1.0, 0.0]])
    assert bound_distances(upper) == pytest.approx([0.3, 0.2, 1.2])


# ------------------------------------------------------------------ means over runs


def test_means_are_those_of_a_least_squares_fit_of_architecture_and_replicate():
    generator = np.random.default_rng(0)
    runs = [(i, run) for i, count in enumerate((20, 20, 3, 5)) for run in range(count)]
    architectures, replicates = np.array(runs).T
    losses = generator.normal(size=len(runs))
    means = RunMeans.fit(architectures, replicates, 5)
    design = np.hstack(
        [architectures[:, None] == np.arange(4), replicates[:, None] == np.arange(20)]
    )
    fitted = np.linalg.lstsq(design.astype(float), losses, rcond=None)[0]
    expected = fitted[:4] + fitted[4:].mean()
    assert means.compute(losses)[:4] == pytest.approx(expected)
    assert np.isnan(means.compute(losses)[4])
