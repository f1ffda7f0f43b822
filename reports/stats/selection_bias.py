"""Correction of the best of several runs, which is lucky as well as good.

Of runs at several values of the nuisance parameters the one with the least loss is selected, of
replicates the values of the least mean; where a higher value is better, its negative is the loss.
The selected loss is lower than that of another run at the same values, by up to 0.85 standard
deviations of the noise between runs for three values that are equally good, and not at all where
one is clearly the best. In a difference this does not cancel if the noise, or the distance between
the values, differs between both sides.

The expected loss of another run at the selected values is estimated by the coupled bootstrap
(Oliveira, Lei & Tibshirani, *Unbiased Risk Estimation in the Normal Means Problem via Coupled
Bootstrap Techniques*, 2024). With noise z of the same variance as that between runs, y + z and
y − z are independent: one selects, the other is an unbiased estimate of what was selected. The mean
over z is an integral over one dimension. What is not known of the noise is part of the error of the
estimate, by the delta method. A selection from y + z errs slightly more often than one
from y, so that the estimate is a little high where values are about two standard deviations apart.
"""

import numpy as np

from reports.stats.noise import Floats, Integers

_GRID = np.linspace(-6, 6, 193)
"""Points of the integral over the noise of one run, in standard deviations."""

_DENSITY = np.exp(-(_GRID**2) / 2) / np.exp(-(_GRID**2) / 2).sum()

_TINY = 1e-12
"""Standard deviation of runs without noise, of which the least is selected."""


def estimate_selected(
    values: Floats, deviations: Floats, groups: Integers
) -> tuple[Floats, Floats]:
    """Estimate the value expected of another run of the best of each group.

    Args:
        values: (runs,), observed values.
        deviations: (runs,), standard deviation of each between runs; NaN if unknown.
        groups: (runs,), index of the group of each run; 0, 1, ….

    Returns:
        The expected values (groups,), the least observed value where a deviation of the group is
        unknown; and their derivatives by the logarithm of the deviations, (groups,).
    """
    least = np.full(int(groups.max(initial=-1)) + 1, np.inf)
    np.minimum.at(least, groups, values)
    # The probabilities sum to 1 up to errors of the grid, which would multiply the common level.
    excess = values - least[groups]
    low, high = (_integrate(excess, deviations * factor, groups) for factor in (0.95, 1.05))
    return least + _integrate(excess, deviations, groups), (high - low) / 0.1


def _integrate(values: Floats, deviations: Floats, groups: Integers) -> Floats:
    """Integrate over the noise of the selected run, see :func:`estimate_selected`."""
    from scipy.special import ndtr

    count = int(groups.max(initial=-1)) + 1
    order = np.argsort(groups, kind="stable")
    sizes = np.bincount(groups, minlength=count)
    places = np.arange(len(values)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    # (groups, most runs), padded by runs that are never selected.
    observed = np.full((count, int(sizes.max(initial=0))), np.inf)
    spread = np.full(observed.shape, _TINY)
    observed[groups[order], places] = values[order]
    spread[groups[order], places] = np.maximum(deviations[order], _TINY)
    spread[np.isnan(spread).any(axis=1)] = _TINY
    expected = np.zeros(count)
    for i in range(observed.shape[1]):
        exists = np.isfinite(observed[:, i])
        own, noise = observed[exists, i], spread[exists, i]
        perturbed = own[:, None] + noise[:, None] * _GRID  # (groups, points)
        is_least = np.tile(_DENSITY, (len(own), 1))
        for j in range(observed.shape[1]):
            if j != i:
                others, scale = observed[exists, j, None], spread[exists, j, None]
                is_least *= ndtr((others - perturbed) / scale)
        # y − z where y + z is the least.
        expected[exists] += own * is_least.sum(axis=1) - noise * (is_least @ _GRID)
    return expected
