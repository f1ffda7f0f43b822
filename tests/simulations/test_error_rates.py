"""Error rates and power of all statistics in simulated studies, of which the truth is known."""

from collections.abc import Callable

import numpy as np
import pytest

from reports.stats.design import Contrast
from tests.simulations.grids import SMALL_GRID, Scenario, find_flags, names_zero, simulate
from tests.simulations.replicates import (
    MARGIN,
    NOISES,
    count_false_as_good,
    count_false_worse,
    simulate_verdicts,
)
from tests.simulations.unequal_runs import (
    LOST_RUNS,
    SCENARIOS,
    simulate_differences,
    simulate_lost_runs,
)
from tests.simulations.uneven_noise import (
    Gaps,
    count_findings,
    cover_effects,
    equal_rates,
    mixed_rates,
    simulate_regions,
    simulate_tuned,
    simulate_variants,
)

Rate = tuple[float, float, Callable[[], float]]
"""Least and greatest value of a rate, and what simulates it."""

EQUAL = np.zeros(10)
AT_MARGIN = np.where(np.arange(10) == 0, 0.0, MARGIN)
SPREAD = np.array([0, 0, 0.01, 0.01, 0.03, 0.03, 0.1, 0.1, 0.3, 0.3])
NOISY = Scenario(name="noise by size", scales=(0.1,), noise_by_size=(1, 2, 4))
REPLICATED = Scenario(name="replicates", scales=(0.2, 0.1, 0.05, 0.03), replicates=4)
ONE_SIGN = Scenario(name="one sign or none", scales=(), joint=-0.2)
REVERSAL = Scenario(name="opposite signs", scales=(), reversal=0.03)
*_, UNSTABLE = LOST_RUNS
NOTHING = Scenario(name="nothing", scales=(), grid=SMALL_GRID)


def cover(scenario: Scenario, count: int = 40) -> float:
    """Return how often the interval of an effect has the mean over all retrained networks."""
    studies = simulate(scenario, count)
    hits = [hit for study in studies for hit in cover_effects(study.truth, study.observed)]
    return float(np.mean(hits))


def flag(scenario: Scenario, flag: int) -> float:
    """Return how often an effect differs between values (0) or has opposite signs (1)."""
    return float(np.mean([find_flags(study.observed)[flag] for study in simulate(scenario, 40)]))


def name_zero() -> float:
    return float(np.mean([names_zero(study) for study in simulate(NOTHING, 40, seed=2)]))


def judge_few_noisy(what: str) -> float:
    """Judge studies of which four networks have ten times the noise."""
    return float(getattr(count_findings(list(simulate_regions(4, 10, 30))), what))


def cover_tuned(gaps: Gaps, factor: float) -> float:
    """Return how often intervals of effects at the best of three rates have the truth."""
    studies = simulate_tuned(gaps, factor, 30)
    return float(np.mean([hit for study in studies for hit in cover_effects(*study)]))


def find_tuned(gaps: Gaps, factor: float) -> float:
    """Return how often an effect at the best of three rates is significant, of which none is."""
    contrast = Contrast("layers", 2, 3)
    found = [table.compute_effect(contrast) for _, table in simulate_tuned(gaps, factor, 30)]
    return float(np.mean([effect.is_significant for effect in found]))


def find_worse(noise: str, runs: int) -> float:
    (verdicts,) = simulate_verdicts([EQUAL], NOISES[noise], runs, 200)
    return count_false_worse(verdicts, EQUAL)


def find_as_good(noise: str, runs: int) -> float:
    (verdicts,) = simulate_verdicts([AT_MARGIN], NOISES[noise], runs, 200)
    return count_false_as_good(verdicts, AT_MARGIN)


def exceed_bounds() -> float:
    (verdicts,) = simulate_verdicts([SPREAD], NOISES["half fourfold"], 5, 200)
    return float((verdicts.bounds < SPREAD).any(axis=1).mean())


QUICK: dict[str, Rate] = {
    "interval covers": (0.90, 0.99, lambda: cover(Scenario(name="equal noise"), 20)),
    "equal replicates differ": (0, 0.1, lambda: find_worse("half fourfold", 3)),
}
"""Rates of single studies are correlated."""

OTHERS: dict[str, Rate] = {
    "interval covers where noise depends on the size": (0.90, 0.99, lambda: cover(NOISY)),
    "interval covers with replicates": (0.90, 0.99, lambda: cover(REPLICATED)),
    "interval covers where few networks are noisy": (0.9, 1, lambda: judge_few_noisy("covered")),
    "effect of nothing is named": (0, 0.175, name_zero),
    # At 5%, more than 7 of 40 studies have a probability of 0.1%.
    "additive effect differs": (0, 0.175, lambda: flag(NOISY, 0)),
    "additive effect differs among few noisy": (0, 0.15, lambda: judge_few_noisy("differs")),
    "effect of one sign has two": (0, 0.175, lambda: flag(ONE_SIGN, 1)),
    "effect of two signs has two": (0.75, 1, lambda: flag(REVERSAL, 1)),
    "interval at the best rate covers": (0.9, 0.99, lambda: cover_tuned(equal_rates, 4)),
    "interval at the best of mixed rates covers": (0.9, 0.99, lambda: cover_tuned(mixed_rates, 1)),
    "luck at the best rate is an effect": (0, 0.17, lambda: find_tuned(equal_rates, 4)),
    "order of the text is an effect": (0, 0.112, lambda: simulate_differences(SCENARIOS[1], 200)),
    "lost run is an effect": (0, 0.112, lambda: simulate_differences(SCENARIOS[3], 200)),
    "effect in unequal runs": (0.7, 1, lambda: simulate_differences(SCENARIOS[1], 40, -0.02)),
    "unstable variant differs": (0, 0.15, lambda: float(np.mean([*simulate_variants(12, 60)]))),
    "unstable architecture that lost runs differs": (
        0,
        0.09,
        lambda: simulate_lost_runs(UNSTABLE, 0.002, 100),
    ),
    "two equal runs differ": (0, 0.1, lambda: find_worse("equal", 2)),
    "ten equal runs differ": (0, 0.1, lambda: find_worse("best fourfold", 10)),
    "distance of the margin is as good": (0, 0.1, lambda: find_as_good("half fourfold", 3)),
    "any distance exceeds its bound": (0, 0.1, exceed_bounds),
}


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(n, marks=pytest.mark.extended) for n in OTHERS)]
)
def test_rate_lies_between_its_bounds(name: str) -> None:
    least, most, measure = (QUICK | OTHERS)[name]
    assert least <= measure() <= most
