"""The noise between runs: its estimates, and intervals of effects in simulated studies."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from factories import gated_params, make_runs, make_study, read_studies

from reports.analysis.nuisance import build_judged_table
from reports.results import find_replicates
from reports.stats.design import Contrast
from reports.stats.effects import FactorialTable
from reports.stats.noise import NoiseSource
from rnn_search import load
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


def test_replicates_give_one_variance_unless_the_noise_differs():
    """Replicates of the best nine say little of other networks, which may vary more or less."""
    equal = Scenario(name="equal", scales=(0.2, 0.1, 0.05, 0.02), replicates=3)
    (study,) = simulate(equal, 1)
    assert {each.source for each in study.observed.compute_effects()} == {NoiseSource.REPLICATES}
    (study,) = simulate(replace(equal, noise_by_size=(1, 4, 16)), 1)
    assert {each.source for each in study.observed.compute_effects()} == {NoiseSource.INTERACTIONS}


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
