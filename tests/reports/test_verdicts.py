"""Differences between replicated architectures: by hand, against other tests; verdicts, looks."""

import math
from dataclasses import replace

import numpy as np
import pytest
from factories import gated_params, make_runs, results_of
from scipy import stats
from statsmodels.stats.multitest import multipletests

from reports.analysis.leaderboard import summarize_study
from reports.stats.looks import (
    PlannedLook,
    estimate_noise,
    find_detectable_gap,
    spend_error,
    take_look,
)
from reports.stats.replicates import (
    Verdict,
    adjust_by_holm,
    bound_distances,
    compare_pairwise,
    compare_single_runs,
    expect_degrees,
    judge,
    moderate_variances,
)
from reports.stats.run_means import Run, RunMeans, rank_runs
from rnn_search import load
from studies.attributes import LookRecord
from studies.settings import DEFAULT_LOOKS
from tests.simulations.replicates import MARGIN, NOISES, RUN_NOISE, TEXT_NOISE, simulate_losses


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
    assert adjust_by_holm(p, 3) == pytest.approx([0.04, 0.04, 0.03])
    assert adjust_by_holm(p, 5) == pytest.approx([0.08, 0.09, 0.05]), "two were tested before"
    many = np.random.default_rng(0).uniform(size=50) ** 4
    assert adjust_by_holm(many) == pytest.approx(multipletests(many, method="holm")[1])
    # A row for each study.
    assert adjust_by_holm(np.array([p, 10 * p]), 3)[1].tolist() == pytest.approx([0.4, 0.4, 0.3])


def test_a_comparison_is_corrected_for_the_architectures_that_were_left_out():
    runs = np.random.default_rng(4).normal(size=(3, 6, 1)) + np.array([0, 0, 9])[:, None, None]
    losses = {name: as_runs(each) for name, each in zip("abc", runs, strict=True)}
    alone, of_ten = (compare_pairwise(losses, count=count).pairs["c", "a"] for count in (3, 10))
    # The second of 3 and of 45.
    assert of_ten.p_adjusted == pytest.approx(alone.p_adjusted * 44 / 2)


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


@pytest.mark.parametrize(("runs", "size"), [(3, 10), (5, 10), (10, 6), (3, 4), (2, 10), (3, 2)])
def test_expected_degrees_are_those_of_equal_variances(runs, size):
    expected = expect_degrees(runs, size)
    assert runs - 1 <= expected <= (size - 1) * (runs - 1)
    assert (expected > runs - 1) == (size >= 6)
    assert expect_degrees(runs, 20) >= expect_degrees(runs, 6)


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
    assert set(judgement.candidates) == {"best", "noisy"}
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
    bounds, may_be_best = bound_distances(upper)
    assert may_be_best.tolist() == [True, True, False]
    assert bounds == pytest.approx([0.3, 0.2, 1.2])


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
    weights = np.array([1.0, -0.5, 2.0, 0.25, 0.0])
    assert means.spread(weights) @ losses == pytest.approx(weights[:4] @ expected)
    kept = means.select(np.array([True, False, True, False, False]))
    assert kept.compute(losses) == pytest.approx(expected[[0, 2]])
    assert kept.spread(weights[[0, 2]]) @ losses == pytest.approx(expected[0] + 2 * expected[2])


def test_best_of_a_planned_look_is_one_of_those_that_it_compares_over_its_runs():
    rows = [("stopped", 2, 1.0), ("a", 2, 2.0), *(("b", i, 1.5) for i in (2, 3, 4))]
    rows += [("b", 5, 9.0), ("late", 5, 0.0)]
    runs = [Run(name, i, replicate, loss, loss) for i, (name, replicate, loss) in enumerate(rows)]
    names = {run.number: run.architecture for run in runs}
    ranked = rank_runs(runs, names, [2, 3, 4], [[1, 2]], is_finished=True)
    assert [each.architecture for each in ranked] == ["b", "stopped", "a", "late"]


# ------------------------------------------------------------------ planned looks

NAMES = {"a": 0, "b": 2, "c": 4, "d": 6}
"""First trial of each architecture."""


def make_losses(runs, **means):
    """Return losses of one window; the scatter of the runs is the same at each number of runs."""
    generator = np.random.default_rng(0)
    return {
        name: {run + 1: [mean + 0.01 * generator.normal()] for run in range(runs)}
        for name, mean in means.items()
    }


def test_looks_spend_five_percent_by_pococks_function():
    levels = spend_error(DEFAULT_LOOKS)
    assert sum(levels) == pytest.approx(0.05)
    assert levels[0] == pytest.approx(0.05 * math.log(1 + (math.e - 1) * 3 / 20))
    assert [round(100 * level, 2) for level in levels] == [1.15, 0.64, 1.31, 1.9]
    assert spend_error([10]) == pytest.approx([0.05])


def test_measured_noise_is_that_of_runs_and_text():
    losses = simulate_losses(np.random.default_rng(0), NOISES["equal"], 20, 1)[0]
    comparison = compare_pairwise({str(i): dict(enumerate(each)) for i, each in enumerate(losses)})
    noise = estimate_noise(comparison)
    # The noise of single windows is part of that of a run.
    assert noise.of_run == pytest.approx(RUN_NOISE, rel=0.2)
    assert noise.of_text == pytest.approx(2**0.5 * TEXT_NOISE, rel=0.6)
    assert find_detectable_gap(comparison) == pytest.approx(noise.find_gap(20, 10, 0.05))
    single = compare_pairwise({"a": {1: [1.0]}, "b": {1: [2.0]}})
    assert (estimate_noise(single), find_detectable_gap(single)) == (None, None)


def test_only_undecided_architectures_and_rivals_of_the_best_continue():
    losses = make_losses(3, a=1.0, b=1.01, c=1.02, d=3.0)
    names = NAMES | {"without a complete run": 8}
    judgement, look = take_look(losses, names, [3, 5], MARGIN, [])
    assert (look.runs, look.level) == (3, pytest.approx(spend_error([3, 5])[0]))
    assert (look.verdicts[6], look.verdicts[8]) == ("worse", "undecided")
    assert look.continued == [0, 2, 4]
    assert judgement.verdicts["d"] == "worse"
    assert (len(judgement.verdicts), judgement.count("undecided")) == (4, 2)
    more = make_losses(5, a=1.0, b=1.01, c=1.02) | {"d": losses["d"]}
    judgement, last = take_look(more, names, [3, 5], MARGIN, [look])
    assert last.continued == []
    assert last.verdicts[6] == "worse", "verdicts are final"
    assert "d" not in judgement.comparison.names
    assert judgement.comparison.count == 5, "the correction is for all"
    assert judgement.comparison.pairs["b", "a"].runs == 5


def test_rival_of_the_best_continues_while_another_is_undecided():
    """Bounds on the distance from the best must cover it, although it is as good already."""
    noise = np.array([-1.0, 0.0, 1.0])
    shapes = {"a": 0 * noise, "b": 0.001 * noise + 0.001, "c": 0.1 * noise[[1, 2, 0]] + 0.05}
    losses = {name: {i: [1 + d] for i, d in enumerate(each)} for name, each in shapes.items()}
    earlier = PlannedLook(
        runs=2,
        level=0.01,
        verdicts={0: "undecided", 2: "as good", 4: "undecided", 6: "worse"},
        continued=[0, 2, 4],
    )
    _, look = take_look(losses, NAMES, [2, 3, 5], MARGIN, [earlier])
    assert (look.verdicts[2], look.verdicts[4]) == ("as good", "undecided")
    assert look.continued == [0, 2, 4]


def read_looked(url, runs, looks=()):
    """Create and read a study of three architectures with looks at 3 and 5 runs.

    The first two have so many complete runs. The third has the three of the easiest texts, is far
    worse and the smallest.
    """
    generator = np.random.default_rng(5)
    trials = []
    for layers, worse, count in ((3, 0.0, runs), (2, 0.01, runs), (1, 2.0, 3)):
        for run in range(count):
            mean = 2 + worse + 0.1 * run + 0.02 * generator.normal()
            recorded = {"test_bits_per_byte": mean, "test_windows": [mean] * 2}
            recorded["parameter_count"] = 10 * layers
            trials.append((gated_params(layers, replicate=run + 1), float(layers), recorded))
    refinement = {"source": "made", "replicates": 5, "looks": [3, 5]}
    raw = {"eval_split": "test", "refinement": refinement}
    make_runs(url, "looked", raw, trials, looks=list(looks))
    return results_of(url, "looked")


FIRST_LOOK = LookRecord(
    runs=3,
    level=spend_error([3, 5])[0],
    verdicts={0: "undecided", 5: "undecided", 10: "worse"},
    continued=[0, 5],
)
"""The third architecture stops, the others get two more runs."""


def test_report_of_a_later_look_keeps_the_architectures_that_stopped(sqlite_url):
    results = read_looked(sqlite_url, 5, [FIRST_LOOK])
    summary = summarize_study(results)
    assert summary.look.runs == 5
    assert [entry.runs for entry in summary.entries] == [5, 5, 3]
    assert [entry.verdict for entry in summary.entries][2] == "worse"
    best = load("looked", storage=sqlite_url).status.best
    assert (best.number, best.value, best.runs) == (0, summary.best.mean, 5)
    assert summary.entries[2].gap.runs == 3
    # All are ranked over their common runs.
    best = summary.best.mean
    assert [entry.mean - best for entry in summary.entries] == pytest.approx([0, 0, 2], abs=0.1)
    # The bound of the architecture that stopped is that of its last look.
    assert 1.9 < summary.entries[2].bound < math.inf


def test_runs_after_the_latest_look_do_not_change_the_order(sqlite_url):
    """A later look is under way: of the runs that it asked for, one is waiting."""
    results = read_looked(sqlite_url, 5, [FIRST_LOOK])
    table = results.table.copy()
    table.loc[4, ["state", "value"]] = ["WAITING", math.nan]
    summary = summarize_study(replace(results, table=table))
    assert summary.look == FIRST_LOOK
    assert [entry.runs for entry in summary.entries] == [3, 3, 3]
    assert [entry.verdict for entry in summary.entries] == ["undecided", "undecided", "worse"]
    assert {each.runs for each in summary.comparison.pairs.values()} == {3}
