"""The noise between runs: its estimates, and intervals of effects in simulated studies."""

import math
from dataclasses import replace
from html import unescape

import numpy as np
import pandas as pd
import pytest
from factories import gated_params, make_replicates, make_runs, make_study, read_studies, results_of

from reports.analysis.nuisance import build_judged_table
from reports.page.page import render_page
from reports.page.section import build_sections
from reports.results import find_replicates
from reports.stats.design import Contrast
from reports.stats.effects import FactorialTable
from reports.stats.noise import NoiseSource, estimate_run_noise
from rnn_search import load
from studies.space import REPLICATE
from tests.simulations.grids import GRID, NOISE, Scenario, simulate


def test_error_allows_for_the_noise_of_each_trial():
    """Of 192 trials those of one state size vary twenty times as much as the others."""
    grid = GRID | {"gate_e": [False, True]}
    (study,) = simulate(Scenario(name="by size", noise_by_size=(1, 1, 20), grid=grid), 1)
    table = study.observed
    small, large = (table.subset({"state_size": size}) for size in (16, 64))
    contrast = Contrast("gate_a", False, True)
    for part, noise in ((small, NOISE), (large, 20 * NOISE)):
        effect = part.compute_effect(contrast)
        assert effect.error == pytest.approx(noise * math.sqrt(2 / effect.pairs), rel=0.5)
        assert effect.source is NoiseSource.INTERACTIONS
    deviations = table.noise.deviations.of_trials
    sizes = table.codes[:, list(table.axes).index("state_size")]
    assert deviations[sizes == 0][0] == pytest.approx(NOISE, rel=0.5)
    assert deviations[sizes == 2][0] == pytest.approx(20 * NOISE, rel=0.5)


def test_degrees_of_freedom_equal_the_formula():
    codes = np.array(list(np.ndindex(2, 2, 2, 2, 2)))
    values = np.random.default_rng(0).normal(size=len(codes))
    close, fit = estimate_run_noise(codes, values).fits
    weights = np.where(codes[:, 1] == 0, codes[:, 0] - 0.5, 0) / 4
    # Leverages of 26 / 32 are too high for residuals to stand for the noise of single trials.
    assert close.estimate_variance(weights) is None
    projection = np.eye(len(codes)) - fit.basis @ fit.basis.T
    product = np.diag(weights**2 / np.diag(projection)) @ projection
    residuals = projection @ values
    expected = weights**2 @ (residuals**2 / np.diag(projection))
    variance, degrees = fit.estimate_variance(weights)
    assert variance == pytest.approx(expected)
    assert degrees == pytest.approx(np.trace(product) ** 2 / np.trace(product @ product))


def test_few_trials_of_high_leverage_leave_the_differences_between_pairs():
    """Four networks of three layers tell their own mean and interactions, not their noise."""
    rows = [
        {"a": a, "b": b, "c": c, "d": d, "layers": layers, "value": value}
        for (a, b, c, d, layers), value in zip(
            np.argwhere(np.ones((2, 2, 2, 2, 3))).tolist(),
            np.random.default_rng(1).normal(size=48),
            strict=True,
        )
        if layers < 2 or not (a or b)
    ]
    table = FactorialTable.from_frame(pd.DataFrame(rows), ["a", "b", "c", "d", "layers"])
    found = {each.contrast.label: each for each in table.compute_effects()}
    assert found["layers 0 → 1"].source is NoiseSource.INTERACTIONS
    deep = found["layers 1 → 2"]
    assert (deep.source, deep.reason) == (NoiseSource.PAIRS, "too few pairs to test: 4 of 8")


def test_error_of_adjusted_means_is_that_of_their_runs():
    """What an order of the text changes for all runs alike is not noise."""
    generator = np.random.default_rng(0)
    runs = pd.DataFrame(np.argwhere(np.ones((6, 4))), columns=["a", REPLICATE])
    runs["value"] = runs["a"] + 100.0 * runs[REPLICATE] + generator.normal(size=24)
    table = FactorialTable.from_runs(runs.assign(b=0), ["a", "b"])
    noise = table.noise
    assert noise.source is NoiseSource.REPLICATES
    assert noise.deviations.of_trials[0] == pytest.approx(1, rel=0.5)
    error, degrees, _ = noise.compute_error(np.array([1.0, -1, 0, 0, 0, 0]))
    assert error == pytest.approx(math.sqrt(2 / 4), rel=0.6)
    assert 4 < degrees < 24 - 6 - 4 + 1
    kept = noise.select(np.array([True, True, False, False, False, False]))
    assert kept.compute_error(np.array([1.0, -1])).error == error


def test_replicates_give_one_variance_unless_the_noise_differs():
    """Replicates of the best nine say little of other networks, which may vary more or less."""
    equal = Scenario(name="equal", scales=(0.2, 0.1, 0.05, 0.02), replicates=3)
    (study,) = simulate(equal, 1)
    assert {each.source for each in study.observed.compute_effects()} == {NoiseSource.REPLICATES}
    (study,) = simulate(replace(equal, noise_by_size=(1, 4, 16)), 1)
    assert {each.source for each in study.observed.compute_effects()} == {NoiseSource.INTERACTIONS}


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
    effects = load("made", storage=sqlite_url).effects()
    assert set(effects.table["source"]) == {"replicates"}
    source = "replicates of these architectures in study 'again'."
    assert f"\nThe noise between runs is estimated from {source}" in repr(effects)
    page, alone = (
        unescape("".join(render_page(build_sections(studies)[:1])))
        for studies in ([made, again], [made])
    )
    assert source in page
    assert source not in alone


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
