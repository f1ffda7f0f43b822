"""Smallest effects against published and simulated values."""

import math

import numpy as np
import pytest
from scipy import stats

from reports.stats.power import find_smallest_effect, find_smallest_share


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        (4, [3.0, 1.6, 1.43, 0.97]),
        (8, [1.6, 1.1, 0.91, 0.66]),
        (16, [1.1, 0.72, 0.61, 0.45]),
        (32, [0.72, 0.50, 0.42, 0.32]),
    ],
)
def test_smallest_effect_falls_with_pairs_and_seeds(pairs: int, expected: list[float]) -> None:
    found = [find_smallest_effect(pairs, seeds) for seeds in (1, 2, 3, 5)]
    assert found == pytest.approx(expected, rel=0.04)


def test_smallest_effect_is_found_in_four_of_five_simulated_studies() -> None:
    rng = np.random.default_rng(0)
    effect = find_smallest_effect(8, 1)
    runs = rng.normal(size=(2, 8, 4000))
    p = stats.ttest_rel(runs[1] + effect, runs[0]).pvalue
    assert (p < 0.05).mean() == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize(
    ("runs", "points"), [(8, 74), (12, 60), (16, 51), (24, 42), (48, 29), (96, 21)]
)
def test_smallest_share_falls_with_runs(runs: int, points: int) -> None:
    assert 100 * find_smallest_share(runs) == pytest.approx(points, abs=2)


def test_too_few_pairs_find_nothing() -> None:
    assert find_smallest_effect(3, 1) == math.inf
    assert find_smallest_effect(2, 2) < math.inf
    assert find_smallest_share(4) == math.inf
    assert find_smallest_share(5) < 1
