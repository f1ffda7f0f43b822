"""Error rates and power of all statistics in simulated studies, of which the truth is known."""

from collections.abc import Callable, Iterable

import numpy as np
import pytest

from reports.stats.conditional_effects import compute_conditional_effects, rank_effects
from reports.stats.design import Contrast
from reports.stats.effects import FactorialTable
from reports.stats.estimate import adjust_estimates
from reports.stats.power import find_smallest_effect
from tests.simulations.grids import (
    SMALL_GRID,
    Gaps,
    Scenario,
    Tables,
    cover_effects,
    equal_rates,
    find_flags,
    mixed_rates,
    simulate,
    simulate_tuned,
)
from tests.simulations.paired_differences import (
    MODELS,
    build_design,
    draw_equal,
    find_significant,
)
from tests.simulations.replicates import (
    MARGIN,
    simulate_verdicts,
)
from tests.simulations.shares import EFFECT, SCENARIOS, measure_cover, measure_tests
from tests.simulations.shares import simulate as simulate_shares

Rate = tuple[float, float, Callable[[], float]]
"""Least and greatest value of a rate, and what simulates it."""

EQUAL = np.zeros(10)
AT_MARGIN = np.where(np.arange(10) == 0, 0.0, MARGIN)
SPREAD = np.array([0, 0, 0.01, 0.01, 0.03, 0.03, 0.1, 0.1, 0.3, 0.3])
NOISY = Scenario(scales=(0.1,), noise_by_size=(1, 2, 4))
ONE_SIGN = Scenario(scales=(), joint=-0.2)
REVERSAL = Scenario(scales=(), reversal=0.03)
NOTHING = Scenario(scales=(), grid=SMALL_GRID)


def share(found: Iterable[bool]) -> float:
    return float(np.mean(list(found)))


def cover(studies: Iterable[Tables]) -> float:
    """Return how often the interval of an effect has the mean over all retrained networks."""
    return share(hit for study in studies for hit in cover_effects(*study))


def flag(studies: Iterable[Tables], flag: int) -> float:
    """Return how often an effect differs between values (0) or has opposite signs (1)."""
    return share(find_flags(observed)[flag] for _, observed in studies)


def names_zero(truth: FactorialTable, observed: FactorialTable) -> bool:
    """Return whether the answer of a study names an effect that is zero."""
    effects = adjust_estimates(observed.compute_effects())
    ranked = rank_effects(effects, compute_conditional_effects(observed, effects))
    named = [found.main.contrast for found in ranked if found.main.is_significant]
    return any(abs(truth.compute_effect(contrast).mean) < 1e-9 for contrast in named)


def name_zero() -> float:
    return share(names_zero(*study) for study in simulate(NOTHING, seed=2))


def find_tuned(gaps: Gaps, factor: float) -> float:
    """Return how often an effect at the best of three rates is significant, of which none is."""
    contrast = Contrast("layers", 2, 3)
    tables = (observed for _, observed in simulate_tuned(gaps, factor))
    return share(table.compute_effect(contrast).is_significant for table in tables)


def find_worse(noise: str, runs: int) -> float:
    return simulate_verdicts(EQUAL, noise, runs).count_false_worse()


def share_of_tests(name: str, effect: float, test: int) -> float:
    """Return how often shares (0) or ranks (1) are significant."""
    return measure_tests(simulate_shares(SCENARIOS[name], 8, 3, effect))[test]


def cover_shares(name: str, pairs: int = 8) -> float:
    return measure_cover(simulate_shares(SCENARIOS[name], pairs, 3, EFFECT))


def find_false(model: str, pairs: int, seeds: int, count: int = 1000, **options: float) -> float:
    return float(
        find_significant(build_design(pairs, seeds), MODELS[model], count, **options).mean()
    )


QUICK: dict[str, Rate] = {
    "no effect of 8 pairs with noise ×4": (0, 0.07, lambda: find_false("noise ×4", 8, 1)),
    "no effect of 8 pairs × 3 seeds": (0.02, 0.07, lambda: find_false("equal noise", 8, 3)),
    "smallest effect of 4 pairs × 3 seeds": (
        0.76,
        0.84,
        lambda: find_false("equal noise", 4, 3, effect=find_smallest_effect(4, 3)),
    ),
    "interval covers": (0.90, 1, lambda: cover(simulate(Scenario(), 20))),
    "option rescues eight pairs": (
        0.64,
        0.80,
        lambda: share_of_tests("equal architectures", EFFECT, 0),
    ),
    "equal replicates differ": (0, 0.1, lambda: find_worse("half fourfold", 3)),
}
"""Rates of single studies are correlated."""

OTHERS: dict[str, Rate] = {
    "no effect of 32 pairs": (0.03, 0.07, lambda: find_false("equal noise", 32, 1)),
    "no effect of 32 pairs with lost runs": (
        0.03,
        0.07,
        lambda: find_false("noise ×4", 32, 1, lost=0.1),
    ),
    "no effect of a mixture": (0.02, 0.07, lambda: find_false("mixture", 16, 3)),
    "no mean of effects that differ": (0.02, 0.07, lambda: find_false("interactions", 16, 3)),
    "no effect of a grid with exclusions": (
        0.03,
        0.07,
        lambda: float(find_significant(build_design(32, 1, True), draw_equal, 1000).mean()),
    ),
    "equal shares differ": (0.01, 0.08, lambda: share_of_tests("easy and hard ones", 0, 0)),
    "equal shares differ, some diverged": (
        0.01,
        0.08,
        lambda: share_of_tests("a tenth diverged", 0, 0),
    ),
    "equal losses of solved runs differ": (
        0.01,
        0.08,
        lambda: share_of_tests("easy and hard ones", 0, 1),
    ),
    "interval of shares covers": (0.92, 1, lambda: cover_shares("with an interaction")),
    "interval of shares covers, some missing": (
        0.92,
        1,
        lambda: cover_shares("a tenth missing", 32),
    ),
    "interval covers where noise depends on the size": (0.90, 0.99, lambda: cover(simulate(NOISY))),
    "effect of nothing is named": (0, 0.175, name_zero),
    # At 5%, more than 7 of 40 studies have a probability of 0.1%.
    "additive effect differs": (0, 0.175, lambda: flag(simulate(NOISY), 0)),
    "effect of one sign has two": (0, 0.175, lambda: flag(simulate(ONE_SIGN), 1)),
    "effect of two signs has two": (0.75, 1, lambda: flag(simulate(REVERSAL), 1)),
    "interval at the best rate covers": (0.9, 0.99, lambda: cover(simulate_tuned(equal_rates, 4))),
    "interval at the best of mixed ones": (
        0.9,
        0.99,
        lambda: cover(simulate_tuned(mixed_rates, 1)),
    ),
    "luck at the best rate is an effect": (0, 0.17, lambda: find_tuned(equal_rates, 4)),
    "two equal runs differ": (0, 0.1, lambda: find_worse("equal", 2)),
    "ten equal runs differ": (0, 0.1, lambda: find_worse("best fourfold", 10)),
    "distance of the margin is as good": (
        0,
        0.1,
        lambda: simulate_verdicts(AT_MARGIN, "half fourfold", 3).count_false_as_good(),
    ),
    "any distance exceeds its bound": (
        0,
        0.1,
        lambda: simulate_verdicts(SPREAD, "half fourfold", 5).count_exceeded_bounds(),
    ),
}


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(n, marks=pytest.mark.extended) for n in OTHERS)]
)
def test_rate_lies_between_its_bounds(name: str) -> None:
    least, most, measure = (QUICK | OTHERS)[name]
    assert least <= measure() <= most
