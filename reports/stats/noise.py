"""Standard deviation between runs of one architecture, from residuals of a linear model.

Each architecture of a grid is often trained once. How much its value would change if it were
trained again is told by high-order interactions: a linear model with all main effects and all
interactions of two and three parameters is fitted by least squares, and its residuals are taken for
noise (Box, Hunter & Hunter, *Statistics for Experimenters*, 2nd edition, section 5.14).
Interactions of more parameters that exist count as noise, so the estimate is biased upwards. Where
architectures have several runs, the model is one of architecture and replicate as additive factors:
what an order of the data changes for all architectures alike is not noise of a difference.

The correction of tuned architectures for luck needs it, and the number of architectures within the
noise of the best. Effects do not: see :mod:`reports.stats.differences`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Self

import numpy as np

from reports.stats import Floats, Integers
from reports.stats.design import build_contrasts, count_contrasts, orthonormalize

ORDERS = (3, 2)
"""Largest number of parameters of an interaction in the model, the one with more terms first."""

MAX_COLUMNS = 600
"""Maximum number of columns of the model; interactions that would exceed it are left out."""

MIN_DEGREES = 4.0
"""Degrees of freedom needed."""

_LEVEL = 0.05
"""Level at which the noise differs between values of a parameter, corrected for all parameters.

In simulations intervals of tuned architectures with noise ×4 cover 79% without the test, 95% at 5%;
with noise ×2 87%, 90%, and 92% at 20%, which would say of a fifth of the others that their noise is
uneven."""


class ResidualFit(NamedTuple):
    """Least-squares fit whose residuals are noise.

    Attributes:
        residuals: (units,), residuals of the values.
        leverages: (units,), share of a unit's value in its own fitted value.
    """

    residuals: Floats
    leverages: Floats

    @classmethod
    def fit(cls, columns: Floats, values: Floats) -> Self:
        """Fit values (units,) by columns (units, columns), which may depend on each other."""
        basis = orthonormalize(columns)
        centered = values - values.mean()
        residuals = centered - basis @ (basis.T @ centered)
        return cls(residuals, np.minimum(1.0, np.einsum("ij,ij->i", basis, basis)))

    @property
    def degrees(self) -> float:
        """Degrees of freedom of all residuals."""
        return float((1 - self.leverages).sum())

    @property
    def variance(self) -> float:
        """Variance of a residual, by its degrees of freedom."""
        return float(self.residuals @ self.residuals) / self.degrees


class Deviations(NamedTuple):
    """Standard deviation of one run, by the values of the parameter that tells most about it.

    Attributes:
        groups: (trials,), index of the group of each trial.
        deviations: (groups,), standard deviation between runs; NaN where it is unknown.
        degrees: (groups,), degrees of freedom of its estimate.
    """

    groups: Integers
    deviations: Floats
    degrees: Floats

    @property
    def of_trials(self) -> Floats:
        """(trials,), standard deviation of each trial between runs; NaN where it is unknown."""
        return np.asarray(self.deviations[self.groups])


def estimate_deviations(
    codes: Integers, values: Floats, replicates: Integers | None = None
) -> Deviations | None:
    """Estimate the standard deviation between runs.

    Args:
        codes: (trials, parameters), index of each parameter's value; -1 where a trial lacks it.
        values: (trials,), NaN where there is none.
        replicates: (trials,), number of the replicate; None for single runs.

    Returns:
        The deviations; None if too few degrees of freedom are left.
    """
    from threadpoolctl import threadpool_limits

    known = np.flatnonzero(~np.isnan(values))
    if replicates is None:
        refit = partial(_fit_interactions, codes[known], values[known])
    else:
        refit = partial(_fit_replicates, codes[known], replicates[known], values[known])
    # The matrices are small: threads would wait for each other far longer than they compute.
    with threadpool_limits(limits=1, user_api="blas"):
        fit = refit(np.arange(len(known)))
        return None if fit is None else _fit_values(codes, known, fit, refit)


def _fit_values(
    codes: Integers,
    known: Integers,
    fit: ResidualFit,
    refit: Callable[[Integers], ResidualFit | None],
) -> Deviations:
    """Fit each value alone of the parameter between whose values the noise differs most.

    In a common fit, residuals of noisy units spread to others. ``known`` is the trial of each row
    of the fit, and ``refit`` fits some of these rows alone.

    Returns:
        The deviations: one if the noise differs between the values of no parameter.
    """
    column = _find_uneven(codes[known], fit)
    if column is not None:
        found, groups = np.unique(codes[:, column], return_inverse=True)
        fits = [refit(np.flatnonzero(groups[known] == i)) for i in range(len(found))]
        if any(fits):
            deviations = np.array([math.sqrt(own.variance) if own else math.nan for own in fits])
            return Deviations(
                groups, deviations, np.array([own.degrees if own else 0 for own in fits])
            )
    everything = np.zeros(len(codes), dtype=np.int64)
    return Deviations(everything, np.sqrt([fit.variance]), np.array([fit.degrees]))


def _find_uneven(codes: Integers, fit: ResidualFit) -> int | None:
    """Return the parameter between whose values the noise differs most; None for none."""
    squares = fit.residuals**2
    shares = 1 - fit.leverages
    tests = []
    for i, column in enumerate(codes.T):
        places = np.unique(column, return_inverse=True)[1]
        parts, degrees = (
            np.bincount(places, summed).astype(np.float64) for summed in (squares, shares)
        )
        known = (degrees >= MIN_DEGREES) & (parts > 0)
        if known.sum() > 1:
            tests.append((_compare_variances(parts[known], degrees[known]), i))
    if not tests:
        return None
    p, found = min(tests)
    return found if p * len(tests) < _LEVEL else None


def _compare_variances(squares: Floats, degrees: Floats) -> float:
    """Return the p-value of Bartlett's test that variances are equal.

    Bartlett, *Properties of Sufficiency and Statistical Tests*, 1937. ``scipy.stats.bartlett``
    takes samples; these are sums of squares of residuals (parts,), each with its degrees of freedom
    (parts,).
    """
    from scipy import special

    total, k = degrees.sum(), len(degrees)
    statistic = total * math.log(squares.sum() / total) - degrees @ np.log(squares / degrees)
    correction = 1 + ((1 / degrees).sum() - 1 / total) / (3 * (k - 1))
    return float(special.chdtrc(k - 1, statistic / correction))


def _fit_replicates(
    codes: Integers, replicates: Integers, values: Floats, rows: Integers
) -> ResidualFit | None:
    """Fit some runs by architecture and replicate; None if too few degrees are left."""
    if not rows.size:
        return None
    architectures = np.unique(codes[rows], axis=0, return_inverse=True)[1].ravel()
    factors = (architectures, np.unique(replicates[rows], return_inverse=True)[1])
    columns = [factor[:, None] == np.arange(factor.max() + 1) for factor in factors]
    fit = ResidualFit.fit(np.hstack(columns).astype(float), values[rows])
    return fit if fit.degrees >= MIN_DEGREES else None


def _fit_interactions(codes: Integers, values: Floats, rows: Integers) -> ResidualFit | None:
    """Fit some trials by the model of the highest order that leaves enough degrees of freedom."""
    if not rows.size:
        return None
    columns = [np.unique(column, return_inverse=True)[1] for column in codes[rows].T]
    varied = [column for column in columns if column.max() > 0]
    for order in ORDERS:
        if count_contrasts([int(column.max()) for column in varied], order) <= MAX_COLUMNS:
            fit = ResidualFit.fit(build_contrasts(varied, len(rows), order), values[rows])
            if fit.degrees >= MIN_DEGREES:
                return fit
    return None
