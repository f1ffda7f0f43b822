"""The noise between runs: its estimates, and intervals of effects in simulated studies."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from factories import gated_params, make_replicates, make_runs, make_study, read_studies, results_of

from reports.analysis.nuisance import build_judged_table
from reports.data.results import find_replicates
from reports.stats.contrast import Contrast
from reports.stats.effects import FactorialTable
from reports.stats.noise_regions import Runs
from reports.stats.paired_difference import PairedDifference
from reports.stats.run_means import RunMeans
from reports.stats.run_noise import NoiseSource, RunNoise, estimate_run_noise
from rnn_search import load
from studies.space import REPLICATE
from tests.simulations.grids import NOISE, Scenario, simulate


def test_regions_are_split_where_the_noise_differs():
    (study,) = simulate(Scenario(name="noise by size", noise_by_size=(1, 1, 20)), 1)
    noise = study.observed.noise
    column = list(study.observed.axes).index("state_size")
    deviations = {
        size: math.sqrt(noise.variances[noise.regions[study.observed.codes[:, column] == size][0]])
        for size in range(3)
    }
    assert deviations[0] == pytest.approx(NOISE, rel=0.8)
    assert deviations[2] == pytest.approx(20 * NOISE, rel=0.8)


def test_pairs_of_unknown_noise_add_the_variance_of_their_differences():
    noise = RunNoise(
        regions=np.repeat([0, 1], [4, 8]),
        variances=np.array([2.0, math.nan]),
        degrees=np.array([10.0, 0.0]),
        sources=(NoiseSource.INTERACTIONS, NoiseSource.PAIRS),
    )
    values = np.array([0, 0, 0, 0, 0, 0, 0, 0, 1.0, 2.0, 6.0, 3.0])
    trials = np.array([[0, 1, 4, 5, 6, 7], [2, 3, 8, 9, 10, 11]])
    found = PairedDifference.from_trials(values, trials, (-1, 1), noise)
    known, others = 4 * 2 / 36, 4 * np.var([1, 2, 6, 3], ddof=1) / 36
    assert found.error == pytest.approx(math.sqrt(known + others))
    assert found.degrees == pytest.approx((known + others) ** 2 / (known**2 / 10 + others**2 / 3))
    assert found.source is NoiseSource.PARTIAL
    assert found.is_decidable
    alone = PairedDifference.from_trials(values, trials[:, 2:], (-1, 1), noise)
    assert (alone.source, alone.is_decidable) == (NoiseSource.PAIRS, False)
    # Two pairs do not tell their variance: all pairs are used.
    few = PairedDifference.from_trials(values, trials[:, :4], (-1, 1), noise)
    assert (few.source, few.degrees) == (NoiseSource.PAIRS, 3)


def test_error_of_a_sum_uses_each_trials_variance_and_satterthwaites_degrees():
    noise = RunNoise(
        regions=np.array([0, 0, 1]),
        variances=np.array([4.0, 9.0]),
        degrees=np.array([5.0, 10.0]),
        sources=(NoiseSource.REPLICATES, NoiseSource.INTERACTIONS),
    )
    error, degrees, source = noise.compute_error(np.array([1.0, -1.0, 0.0]))
    assert (error, degrees, source) == (pytest.approx(math.sqrt(4 + 4)), 5, NoiseSource.REPLICATES)
    error, degrees, source = noise.compute_error(np.array([0.0, 1.0, -2.0]))
    assert error == pytest.approx(math.sqrt(4 + 36))
    assert degrees == pytest.approx(40**2 / (4**2 / 5 + 36**2 / 10))
    assert source is NoiseSource.MIXED
    # A trial that occurs in two pairs has twice the weight.
    pairs = np.array([[0, 0], [1, 2]])
    found = PairedDifference.from_trials(np.array([1.0, 2.0, 4.0]), pairs, (-1, 1), noise)
    assert found.mean == pytest.approx(2)
    assert found.error == pytest.approx(math.sqrt(4 + 4 / 4 + 9 / 4))
    # Means over four and two runs of the first two trials are compared over their two common runs;
    # those of the second and third have no replicate in common but for the runs of the first.
    means = RunMeans.fit(np.array([0, 0, 0, 0, 1, 1, 2, 2]), np.array([0, 1, 2, 3, 0, 1, 2, 3]))
    noise = replace(noise, means=means, run_regions=noise.regions[means.architectures])
    error, *_ = noise.compute_error(np.array([1.0, -1.0, 0.0]))
    assert error == pytest.approx(math.sqrt(4 / 2 + 4 / 2))
    error, *_ = noise.compute_error(np.array([0.0, 1.0, -1.0]))
    assert error == pytest.approx(math.sqrt(4 / 2 + 9 / 2 + 4 / 2 + 4 / 2))
    error, *_ = noise.select(np.array([False, True, True])).compute_error(np.array([1.0, -1.0]))
    assert error == pytest.approx(math.sqrt(4 / 2 + 9 / 2 + 4 / 2 + 4 / 2))


def test_what_a_text_order_changes_for_all_runs_is_not_noise():
    codes = np.arange(6)[:, None].repeat(4, axis=0)
    replicates = np.tile(np.arange(4), 6)
    values = codes[:, 0] + 100.0 * replicates
    noise = np.random.default_rng(0).normal(size=24)
    runs = Runs(codes, replicates, values + noise)
    found = estimate_run_noise(np.arange(6)[:, None], np.zeros(6), runs, is_grid=False)
    assert found.sources == (NoiseSource.REPLICATES,)
    assert found.degrees[0] == 24 - 6 - 4 + 1
    assert found.variances[0] == pytest.approx(1, rel=0.8)


def test_runs_of_unknown_variance_that_adjust_means_leave_the_error_unknown():
    """Networks of three layers have half of the runs and vary ten times as much."""
    contrast, sources = Contrast("layers", 1, 2), []
    for seed in range(10):
        generator = np.random.default_rng(seed)
        runs = pd.DataFrame(np.argwhere(np.ones((3, 2, 6))), columns=["layers", "size", REPLICATE])
        runs["layers"] += 1
        noise = generator.normal(size=36) * np.where(runs["layers"] == 3, 0.1, 0.01)
        is_lost = np.where(runs["layers"] == 3, runs[REPLICATE] >= 3, generator.random(36) < 0.25)
        runs["value"] = (2 + 0.05 * runs[REPLICATE] + noise).mask(is_lost)
        sources.append(
            FactorialTable.from_runs(runs, ["layers", "size"]).compute_effect(contrast).source
        )
    assert sources.count(NoiseSource.PAIRS) >= 8


def test_too_few_trials_leave_the_differences_between_pairs():
    rows = [
        {"a": a, "size": size, "value": float(a) + size % 3}
        for a in (False, True)
        for size in range(9)
    ]
    table = FactorialTable.from_frame(pd.DataFrame(rows), ["a", "size"])
    assert table.noise is None
    effect = table.compute_effect(Contrast("a", False, True))
    assert effect.source is NoiseSource.PAIRS
    assert effect.is_significant
    few = FactorialTable.from_frame(pd.DataFrame(rows[:7] + rows[9:16]), ["a", "size"])
    untested = few.compute_effect(Contrast("a", False, True))
    assert not untested.is_significant
    assert (effect.reason, untested.reason) == ("", "too few pairs to test: 7 of 8")


def replicates_of(url, **config):
    make_study(url, diverged=None)
    runs = [
        (gated_params(layers, size, replicate=run), 1.5 + layers + size / 10 + noise / 100, {})
        for layers in (1, 2)
        for size, noises in ((4, (1, 2, 5)), (8, (3, 3, 1)))
        for run, noise in enumerate(noises, 1)
    ]
    make_runs(url, "again", {"refinement": {"source": "made", "replicates": 3}} | config, runs)
    return read_studies(url, "made", "again", with_curves=False)


def test_replicates_of_another_study_on_the_page_give_the_noise(sqlite_url):
    made, again = replicates_of(sqlite_url)
    rows = find_replicates(made, [made, again])
    assert len(rows) == 12
    table = build_judged_table(replace(made, replicates=rows))
    assert {effect.source for effect in table.compute_effects()} == {NoiseSource.REPLICATES}
    assert build_judged_table(made).noise is None
    assert set(load("made", storage=sqlite_url).effects().table["source"]) == {"replicates"}


@pytest.mark.parametrize(
    "changed",
    [{"training": {"steps": 77}}, {"objective": "training"}, {"gate_inputs": "candidate"}],
    ids=str,
)
def test_replicates_that_are_trained_or_judged_otherwise_do_not_count(sqlite_url, changed):
    made, again = replicates_of(sqlite_url, **changed)
    assert find_replicates(made, [made, again]) is None


def test_study_of_replicates_has_its_own_noise(sqlite_url):
    make_replicates(sqlite_url)
    results = results_of(sqlite_url, "replicates", with_curves=False)
    assert len(find_replicates(results, [results])) == 9
