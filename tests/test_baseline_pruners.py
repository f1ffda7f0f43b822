"""Pruners with which ours is compared."""

import numpy as np
import pytest

from benchmarks.pruning_families import FAMILIES, simulate_family
from benchmarks.replay_pruning import (
    ConformalPruner,
    check_points,
    keep_best_at_first_rung,
    replay_in_optuna,
)
from tests.simulations.pruned_search import RecordedCurves


def make_curves(count):
    """Return curves that never cross: the trial with number i ends as the i-th best."""
    steps = np.arange(20, 1001, 20)
    values = 2 + np.arange(count) / count
    curves = values[:, None] + np.exp(-steps / 100)
    params = [{"number": number} for number in range(count)]
    return RecordedCurves(params, steps, curves, curves[:, -1])


def test_one_look_trains_the_best_at_the_first_rung_to_the_end():
    result = keep_best_at_first_rung(make_curves(100), 0.1)
    assert (result.recall, result.complete) == (1, 0.1)
    assert result.cost == pytest.approx(0.04 + 0.1 * 0.96)
    late = simulate_family("few late", 3)
    assert keep_best_at_first_rung(late, 0.1).recall < 1


def test_conformal_pruner_prunes_bad_trials_once_it_is_calibrated():
    recorded = make_curves(200)
    order = np.random.default_rng(0).permutation(200).tolist()
    pruner = ConformalPruner(100)
    result = replay_in_optuna(recorded, pruner, check_points(recorded), order, 1, 0.1)
    assert result.recall == 1
    assert 60 / 200 < result.complete < 0.9
    assert result.cost < 0.8


def test_conformal_pruner_prunes_nothing_before_it_is_calibrated():
    recorded = make_curves(50)
    pruner = ConformalPruner(100)
    result = replay_in_optuna(recorded, pruner, check_points(recorded), list(range(50)), 1, 0.1)
    assert (result.cost, result.recall) == (1, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_of_curves_repeat_with_their_seed(family):
    first, again, other = (simulate_family(family, seed) for seed in (1, 1, 2))
    assert (first.curves == again.curves).all()
    assert (first.curves != other.curves).any()
    assert len(first.params) == len(first.values) == 128
