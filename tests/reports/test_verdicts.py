"""Verdicts on replicated architectures: by hand, and their error rates in simulated studies."""

import numpy as np
import pytest
from scipy import stats

from reports.stats.pairwise_comparison import compare_pairwise
from reports.stats.verdicts import Verdict, bound_distances, judge


def runs_around(mean, scale, count=12, seed=0):
    """Return runs with exactly this mean, and one window."""
    noise = np.random.default_rng(seed).normal(scale=scale, size=count)
    return {i: [value] for i, value in enumerate((noise - noise.mean() + mean).tolist())}


def judge_runs(margin=0.02, **losses):
    return judge(compare_pairwise(losses), margin)


def test_three_verdicts():
    judgement = judge_runs(
        best=runs_around(1, 0.001, seed=1),
        near=runs_around(1.01, 0.001, seed=2),
        noisy=runs_around(1.012, 0.05, seed=3),
        far=runs_around(1.2, 0.001, seed=4),
    )
    assert judgement.comparison.is_significant("near", "best")
    assert judgement.verdicts == {
        "best": Verdict.UNDECIDED,  # "noisy" may be better
        "near": Verdict.WORSE,
        "noisy": Verdict.UNDECIDED,
        "far": Verdict.WORSE,
    }
    assert set(judgement.candidates) == {"best", "noisy"}
    without = judge_runs(
        best=runs_around(1, 0.001, seed=1),
        near=runs_around(1.01, 0.001, seed=2),
        far=runs_around(1.2, 0.001, seed=4),
    )
    assert without.comparison.is_significant("near", "best")
    assert without.verdicts == {
        "best": Verdict.AS_GOOD,
        "near": Verdict.AS_GOOD,  # significantly worse, by less than the margin
        "far": Verdict.WORSE,
    }
    assert without.bounds["best"] == 0, "it is shown to be the best"
    assert 0.01 < without.bounds["near"] < 0.02
    assert [without.count(verdict) for verdict in Verdict] == [1, 1, 0]


def test_bound_of_two_architectures_is_students():
    first, second = runs_around(1, 0.01, seed=1), runs_around(1.004, 0.01, seed=2)
    judgement = judge_runs(best=first, other=second)
    d = np.ravel([*second.values()]) - np.ravel([*first.values()])
    expected = d.mean() + stats.t.ppf(0.95, 11) * d.std(ddof=1) / 12**0.5
    assert judgement.bounds["other"] == pytest.approx(expected)


def test_distances_are_bounded_to_those_that_may_be_the_best():
    # The third is worse than the first, so that the wide bound to it does not count.
    upper = np.array([[0.0, 0.3, -0.1], [0.2, 0.0, 0.9], [1.2, 1.0, 0.0]])
    bounds, may_be_best = bound_distances(upper)
    assert may_be_best.tolist() == [True, True, False]
    assert bounds == pytest.approx([0.3, 0.2, 1.2])


def test_smallest_is_one_that_is_shown_to_be_as_good():
    losses = {
        "best": runs_around(1, 0.001, seed=1),
        "near": runs_around(1.005, 0.001, seed=2),
        "far": runs_around(1.2, 0.001, seed=3),
    }
    judgement = judge_runs(**losses)
    assert judgement.find_smallest_as_good({"best": 30, "near": 20, "far": 10}) == "near"
    assert judgement.find_smallest_as_good({"best": 20, "near": 20, "far": 10}) is None
    few = {name: {run: runs[run] for run in (0, 1)} for name, runs in losses.items()}
    few["near"] = {0: [1.05], 1: [0.96]}
    assert judge_runs(**few).find_smallest_as_good({"best": 3, "near": 2, "far": 1}) is None


def test_architecture_of_a_single_run_does_not_withhold_the_verdicts_of_others():
    judgement = judge_runs(
        best=runs_around(1, 0.001, seed=1),
        near=runs_around(1.005, 0.001, seed=2),
        diverged={0: [1.0]},
    )
    assert judgement.verdicts["near"] is Verdict.AS_GOOD
    assert judgement.verdicts["diverged"] is Verdict.UNDECIDED
    assert judgement.bounds["diverged"] == np.inf
