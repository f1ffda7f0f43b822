"""What a design can find before it has run: the smallest effects.

A pair is two architectures that differ in one parameter alone, each trained with the same seeds.
Effects are in standard deviations of a run within a replicate. Power is that of one test at 5%,
before a correction for several.
"""

import math
from functools import cache

import numpy as np

from reports.stats.estimate import CONFIDENCE

POWER = 0.8
"""Probability with which the smallest effect is found."""

MIN_DIFFERENCES = 4
"""Differences between two runs that a t-test needs."""

MIN_SEEDS_PER_CONTEXT = 3
"""Seeds from which the noise is measured within each pair."""

_MAX_EXACT_RUNS = 200
"""Runs of each side up to which the power of a difference of shares is summed exactly."""


def count_degrees(pairs: int, seeds: float) -> float:
    """Return the degrees of freedom of the mean difference over pairs × seeds.

    From :data:`MIN_SEEDS_PER_CONTEXT` seeds on they are of the variance within pairs, before of
    that of all differences. Satterthwaite's are fewer than all, because the variances of the pairs
    differ by chance: with all of them, the smallest effect of 4 pairs × 3 seeds has a power of 72%.
    """
    if seeds >= MIN_SEEDS_PER_CONTEXT:
        return (seeds - 1) * (pairs * (seeds - 1) + 2) / (seeds + 1)
    return pairs * seeds - 1


@cache
def find_smallest_effect(pairs: int, seeds: float) -> float:
    """Return the smallest mean difference that is found with a power of 80%.

    Args:
        pairs: number of pairs of architectures.
        seeds: number of runs of each architecture; the mean number if it varies.

    Returns:
        The difference in standard deviations of a run; infinite with too few differences to test.
    """
    from scipy import special

    differences = pairs * seeds
    if differences < MIN_DIFFERENCES:
        return math.inf
    degrees = count_degrees(pairs, seeds)
    critical = special.stdtrit(degrees, (1 + CONFIDENCE) / 2)
    noncentrality = special.nctdtrinc(degrees, 1 - POWER, critical)
    return float(noncentrality * math.sqrt(2 / differences))


@cache
def find_smallest_share(runs: int) -> float:
    """Return the smallest difference between two shares of solved runs that is found.

    Args:
        runs: number of pairs of runs, pairs × seeds; their outcomes are independent.

    Returns:
        The difference, of 1, between shares at equal distances from one half that McNemar's mid-p
        test finds with a power of 80%; infinite if it finds none.
    """
    from scipy import optimize

    exact = min(runs, _MAX_EXACT_RUNS)
    if _compute_share_power(1, exact) < POWER:
        return math.inf
    found = optimize.brentq(lambda share: _compute_share_power(share, exact) - POWER, 0, 1)
    return float(found) * math.sqrt(exact / runs)


def _compute_share_power(difference: float, runs: int) -> float:
    """Return the probability that McNemar's mid-p test finds a difference of shares."""
    from scipy.stats import binom

    high = (1 + difference) / 2
    rescued = high * high
    ruined = (1 - high) * (1 - high)
    counts = np.arange(runs + 1)
    changed = counts[:, None]  # pairs of which one run alone solves the task
    probabilities = binom.pmf(changed, runs, rescued + ruined) * binom.pmf(
        counts, changed, rescued / (rescued + ruined)
    )  # (changed, rescued)
    p = 2 * binom.sf(counts, changed, 0.5) + binom.pmf(counts, changed, 0.5)
    return float(probabilities[p <= 1 - CONFIDENCE].sum())
