"""Intervals of the pruner's predictions, and the test whether final values lie within them."""

import math

DEGREES = 5
"""Degrees of freedom of a prediction, a Student's t-distribution: its tails are heavier than a
normal distribution's."""

INTERVAL_SCALES = 2.0
"""Half width of the interval of a prediction, in scales."""

_ANGLE = math.atan(INTERVAL_SCALES / math.sqrt(DEGREES))

STATED_SHARE = (
    2 / math.pi * (_ANGLE + math.sin(_ANGLE) * (math.cos(_ANGLE) + 2 / 3 * math.cos(_ANGLE) ** 3))
)
"""Share of the final values that such intervals are to cover: 0.898 (Abramowitz & Stegun, *Handbook
of Mathematical Functions*, 26.7.3, for five degrees)."""


def compute_outside_p_value(trials: int, inside: int) -> float:
    """Return the p-value of the exact one-sided binomial test of the number of values outside.

    Args:
        trials: number of predictions whose final values are known, independent of each other.
        inside: number of these values that are within their intervals.
    """
    from scipy import stats

    return float(stats.binom.sf(trials - inside - 1, trials, 1 - STATED_SHARE))
