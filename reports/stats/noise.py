"""Noise between runs: the error of a weighted sum of values, from residuals of a linear model.

Each architecture of a grid is trained once. How much its value would change if it were trained
again is told by high-order interactions: a linear model with all main effects and all interactions
of two and three parameters is fitted by least squares, and its residuals are taken for noise (Box,
Hunter & Hunter, *Statistics for Experimenters*, 2nd edition, section 5.14). Interactions of more
parameters that exist count as noise, so the estimate is biased upwards. Where each architecture has
several runs, the model is one of architecture and replicate as additive factors: what an order of
the text changes for all architectures alike is not noise of a difference.

Networks differ in their noise. The error of Σ cᵢ yᵢ is therefore √Σ cᵢ² eᵢ² / (1 − hᵢ), with the
residuals e and leverages h of the model, so that each trial's residual stands for its own noise
(HC2; MacKinnon & White, *Some Heteroskedasticity-Consistent Covariance Matrix Estimators*, 1985).
Its degrees of freedom are those of Bell & McCaffrey, *Bias Reduction in Standard Errors for Linear
Regression with Multi-Stage Samples*, 2002 (Pustejovsky & Tipton, *Small-Sample Methods for
Cluster-Robust Variance Estimation*, 2018): tr(AP)² / tr((AP)²), where A = diag(cᵢ² / (1 − hᵢ)) and
P projects on the residuals.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import NamedTuple, Self

import numpy as np

from reports.stats import Booleans, Floats, Integers
from reports.stats.run_means import RunMeans

ORDERS = (3, 2)
"""Largest number of parameters of an interaction in the model, the one with more terms first."""

MAX_COLUMNS = 600
"""Maximum number of columns of the model; interactions that would exceed it are left out."""

MIN_DEGREES = 4.0
"""Degrees of freedom needed: with fewer, Satterthwaite's approximation fails (Tipton, *Small
Sample Adjustments for Robust Variance Estimation with Meta-Regression*, 2015)."""

MAX_LEVERAGE = 0.75
"""Largest leverage of a trial whose residual stands for its noise. Chosen by simulations of
grids with few networks that vary ten times as much: intervals cover 95% with it, 87% without."""

_ENOUGH_DEGREES = 200.0
"""Degrees of freedom from which a lower bound of them is used: Student's quantile is 0.6% larger
than a normal distribution's."""

_LEVEL = 0.05
"""Level at which the noise differs between values of a parameter, corrected for all parameters.

In simulations intervals of tuned architectures with noise ×4 cover 79% without the test, 95% at 5%;
with noise ×2 87%, 90%, and 92% at 20%, which would say of a fifth of the others that their noise is
uneven."""

_MARKS = 2**36
"""Number of random marks of a trial: sums of 100,000 of them are exact in double precision."""


class NoiseSource(StrEnum):
    """What the noise of an estimate was estimated from, as a noun phrase."""

    REPLICATES = "replicates"
    INTERACTIONS = "high-order interactions"
    PAIRS = "differences between the pairs"
    AUDIT = "audited trials"
    ADDITIVE = "residuals of a least-squares fit"


class NoiseError(NamedTuple):
    """Standard error of a sum, its degrees of freedom, and what it was estimated from."""

    error: float
    degrees: float
    source: NoiseSource


@dataclass(frozen=True)
class Runs:
    """Further runs of a table's architectures.

    Attributes:
        codes: (runs, parameters), their parameters, in the codes of the table.
        replicates: (runs,), number of the replicate; equal numbers read the text in one order.
        values: (runs,), their values.
    """

    codes: Integers
    replicates: Integers
    values: Floats


@dataclass(frozen=True, eq=False)
class ResidualFit:
    """Least-squares fit whose residuals are noise.

    Attributes:
        basis: (units, columns), orthonormal basis of the model.
        residuals: (units,), residuals of the values.
        leverages: (units,), share of a unit's value in its own fitted value.
    """

    basis: Floats
    residuals: Floats
    leverages: Floats

    @classmethod
    def fit(cls, columns: Floats, values: Floats) -> Self:
        """Fit values (units,) by columns (units, columns), which may depend on each other."""
        if columns.shape[1] > len(columns):  # the smaller of both products has the same rank
            scales, basis = np.linalg.eigh(columns @ columns.T)
            basis = basis[:, scales > 1e-9 * scales.max(initial=0)]
        else:
            scales, vectors = np.linalg.eigh(columns.T @ columns)
            kept = scales > 1e-9 * scales.max(initial=0)
            basis = columns @ (vectors[:, kept] / np.sqrt(scales[kept]))
        centered = values - values.mean()
        residuals = centered - basis @ (basis.T @ centered)
        return cls(basis, residuals, np.minimum(1.0, np.einsum("ij,ij->i", basis, basis)))

    @property
    def degrees(self) -> float:
        """Degrees of freedom of all residuals."""
        return float(len(self.residuals) - self.basis.shape[1])

    @property
    def variance(self) -> float:
        """Variance of a residual, by its degrees of freedom."""
        return float(self.residuals @ self.residuals) / self.degrees

    @property
    def is_sharp(self) -> bool:
        """Whether every residual tells the noise of its unit."""
        return self.degrees >= MIN_DEGREES and bool(self.leverages.max() <= MAX_LEVERAGE)

    def estimate_variance(self, weights: Floats) -> tuple[float, float] | None:
        """Estimate the variance of a sum of the values with these weights (units,).

        Returns:
            The variance and its degrees of freedom; None if a leverage is too high, or if there are
            too few degrees of freedom.
        """
        used = np.flatnonzero(np.abs(weights) > 1e-9 * np.abs(weights).max(initial=0))
        leverages = self.leverages[used]
        squares = weights[used] ** 2
        if leverages.max(initial=0) > MAX_LEVERAGE:
            return None
        scaled = squares / (1 - leverages)
        variance = float(scaled @ self.residuals[used] ** 2)
        if not used.size:  # each trial occurs with both signs: the sum is always zero
            return variance, self.degrees
        degrees = float(squares.sum() ** 2 / (scaled @ squares))  # at least so many
        if degrees < _ENOUGH_DEGREES:
            basis = self.basis[used]
            if len(used) <= basis.shape[1]:
                overlap = float(scaled @ (basis @ basis.T) ** 2 @ scaled)
            else:
                overlap = float(((basis.T @ (scaled[:, None] * basis)) ** 2).sum())
            total = float(scaled**2 @ (1 - 2 * leverages)) + overlap
            degrees = float(squares.sum() ** 2) / total
        return (variance, degrees) if degrees >= MIN_DEGREES else None


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


class Slopes(NamedTuple):
    """How values depend on standard deviations that were estimated.

    Attributes:
        slopes: (trials,), derivative of a value by the logarithm of a standard deviation.
        groups: (trials,), index of that standard deviation.
        degrees: (groups,), degrees of freedom of its estimate.
    """

    slopes: Floats
    groups: Integers
    degrees: Floats


@dataclass(frozen=True, eq=False)
class RunNoise:
    """Noise of each trial's value between runs.

    Attributes:
        fits: fits whose residuals are noise, that with the most terms first.
        units: (trials,), row of each trial in the fits; -1 for a trial without a value.
        deviations: standard deviation of one run.
        source: what the noise was estimated from.
        means: how the values depend on several runs of each trial, which are then the rows of the
            fits; None if each is that of one.
        pooled: variance of every run and its degrees of freedom, from replicates whose noise does
            not differ; None without one. That of another study's replicates replaces the residuals;
            that of ``means`` is used where an architecture has too few runs.
        slopes: how the values depend on estimated standard deviations; None if they do not.
    """

    fits: tuple[ResidualFit, ...]
    units: Integers
    deviations: Deviations
    source: NoiseSource
    means: RunMeans | None = None
    pooled: tuple[float, float] | None = None
    slopes: Slopes | None = None

    def select(self, rows: Booleans) -> "RunNoise":
        """Keep some trials; the fits remain those of all."""
        deviations = self.deviations._replace(groups=self.deviations.groups[rows])
        means = self.means.select(rows) if self.means else None
        slopes = self.slopes
        if slopes is not None:
            slopes = slopes._replace(slopes=slopes.slopes[rows], groups=slopes.groups[rows])
        return replace(
            self, units=self.units[rows], deviations=deviations, means=means, slopes=slopes
        )

    def compute_error(self, weights: Floats) -> NoiseError | None:
        """Compute the standard error of a sum of the values with these weights (trials,).

        Returns:
            The error, with the model that has the most terms and does not fit a trial too closely;
            None if there is none.
        """
        found = self._estimate_variance(weights)
        if found is None:
            return None
        variance, degrees = found
        if self.slopes is not None:
            # A standard deviation with f degrees of freedom has a relative variance of 1 / 2f.
            slopes, groups, known = self.slopes
            sums = np.bincount(groups, weights * slopes, len(known))
            used = known > 0
            parts = np.array([variance, *(sums[used] ** 2 / (2 * known[used]))])
            spread = float((parts**2 / np.array([degrees, *known[used]])).sum())
            variance = float(parts.sum())
            degrees = variance**2 / spread if spread > 0 else degrees
        return NoiseError(math.sqrt(variance), degrees, self.source)

    def _estimate_variance(self, weights: Floats) -> tuple[float, float] | None:
        if self.means is not None:
            spread = self.means.spread(weights)
        elif self.pooled is not None:
            return self.pooled[0] * float(weights @ weights), self.pooled[1]
        else:
            is_known = self.units >= 0
            spread = np.zeros(len(self.fits[0].residuals))
            spread[self.units[is_known]] = weights[is_known]
        estimates = (fit.estimate_variance(spread) for fit in self.fits)
        found = next((estimate for estimate in estimates if estimate is not None), None)
        if found is None and self.pooled is not None:
            return self.pooled[0] * float(spread @ spread), self.pooled[1]
        return found


def estimate_run_noise(
    codes: Integers,
    values: Floats,
    runs: Runs | None = None,
    means: RunMeans | None = None,
    is_grid: bool = True,
) -> RunNoise | None:
    """Estimate the noise between runs.

    Args:
        codes: (trials, parameters), index of each parameter's value; -1 where a trial lacks it.
        values: (trials,), NaN where there is none.
        runs: further runs of these architectures; with ``means``, the runs that they are of.
        means: how the values depend on several runs of each trial; None if each is that of one.
        is_grid: whether the trials are a grid; others have no noise from interactions, because a
            selection confounds them.

    Returns:
        The noise; None if it cannot be estimated.
    """
    from threadpoolctl import threadpool_limits

    units = np.full(len(values), -1, dtype=np.int64)
    pooled = None
    source = NoiseSource.INTERACTIONS
    if means is not None and runs is not None:
        owners = means.architectures
        source = NoiseSource.REPLICATES
        refit = partial(_fit_replicates, owners, means.replicates, runs.values)
    else:
        owners = np.flatnonzero(~np.isnan(values))
        units[owners] = np.arange(len(owners))
        refit = partial(_fit_interactions, codes[owners], values[owners])
    # The matrices are small: threads would wait for each other far longer than they compute.
    with threadpool_limits(limits=1, user_api="blas"):
        fits = refit(np.arange(len(owners))) if means is not None or is_grid else ()
        if runs is not None:
            pooled = _pool_replicates(codes, runs)
        deviations, own = _fit_values(codes, owners, fits, refit) if fits else (None, None)
    if own is not None:
        pooled = None
        fits = (own, *fits)
    if pooled is not None:
        everything, source = np.zeros(len(values), dtype=np.int64), NoiseSource.REPLICATES
        deviations = Deviations(everything, np.sqrt(pooled[:1]), np.array(pooled[1:]))
    if deviations is None:
        return None
    return RunNoise(fits, units, deviations, source, means, pooled)


def _fit_values(
    codes: Integers,
    owners: Integers,
    fits: tuple[ResidualFit, ...],
    refit: Callable[[Integers], tuple[ResidualFit, ...]],
) -> tuple[Deviations, ResidualFit | None]:
    """Fit each value alone of the parameter between whose values the noise differs most.

    In a common fit, residuals of noisy units spread to others.

    Args:
        codes: (trials, parameters), index of each parameter's value.
        owners: (units,), trial of each row of the fits.
        fits: fits of all units.
        refit: fits some units alone.

    Returns:
        The standard deviations, and one fit of all units, in which those of a value that is too
        rare for the terms of the common fit have a leverage of 1. If the noise differs between the
        values of no parameter, all trials have the same deviation, and there is no such fit.
    """
    fit = next((fit for fit in fits if fit.is_sharp), fits[-1])
    column = _find_uneven(codes[owners], fit)
    if column is not None:
        found, groups = np.unique(codes[:, column], return_inverse=True)
        deviations, degrees = np.full(len(found), math.nan), np.zeros(len(found))
        residuals, leverages = np.zeros(len(owners)), np.ones(len(owners))
        bases = [np.empty((len(owners), 0))]
        for i in range(len(found)):
            rows = np.flatnonzero(groups[owners] == i)
            own = refit(rows)
            if own:
                deviations[i], degrees[i] = math.sqrt(own[0].variance), own[0].degrees
            if len(own) == len(fits) and own[0].is_sharp:
                bases.append(np.zeros((len(owners), own[0].basis.shape[1])))
                bases[-1][rows] = own[0].basis
                residuals[rows], leverages[rows] = own[0].residuals, own[0].leverages
        if degrees.any():
            alone = ResidualFit(np.hstack(bases), residuals, leverages)
            return Deviations(groups, deviations, degrees), alone
    everything = np.zeros(len(codes), dtype=np.int64)
    return Deviations(everything, np.sqrt([fit.variance]), np.array([fit.degrees])), None


def _find_uneven(codes: Integers, fit: ResidualFit) -> int | None:
    """Return the parameter between whose values the noise differs most; None if it does not differ.

    Args:
        codes: (units, parameters), index of each parameter's value.
        fit: fit of all units.
    """
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
    takes samples; these are sums of squares of residuals, each with its degrees of freedom.

    Args:
        squares: (parts,), residual sum of squares of each part.
        degrees: (parts,), its degrees of freedom.
    """
    from scipy import stats

    total, k = degrees.sum(), len(degrees)
    statistic = total * math.log(squares.sum() / total) - degrees @ np.log(squares / degrees)
    correction = 1 + ((1 / degrees).sum() - 1 / total) / (3 * (k - 1))
    return float(stats.chi2.sf(statistic / correction, k - 1))


def _fit_replicates(
    architectures: Integers, replicates: Integers, values: Floats, rows: Integers
) -> tuple[ResidualFit, ...]:
    """Fit some runs by architecture and replicate; empty if too few degrees are left."""
    if not rows.size:
        return ()
    factors = [
        np.unique(factor[rows], return_inverse=True)[1] for factor in (architectures, replicates)
    ]
    columns = [factor[:, None] == np.arange(factor.max() + 1) for factor in factors]
    fit = ResidualFit.fit(np.hstack(columns).astype(float), values[rows])
    return (fit,) if fit.degrees >= MIN_DEGREES else ()


def _pool_replicates(codes: Integers, runs: Runs) -> tuple[float, float] | None:
    """Return the variance between replicates of a table's architectures, and its degrees."""
    known = set(map(tuple, codes.tolist()))
    is_known = np.array([tuple(row) in known for row in runs.codes.tolist()], dtype=bool)
    architectures = np.unique(runs.codes, axis=0, return_inverse=True)[1].ravel()
    fits = _fit_replicates(architectures, runs.replicates, runs.values, np.flatnonzero(is_known))
    return next(((fit.variance, fit.degrees) for fit in fits), None)


def _fit_interactions(codes: Integers, values: Floats, rows: Integers) -> tuple[ResidualFit, ...]:
    """Fit some trials by the model of each order that leaves enough degrees of freedom.

    The model of order k has a column for each combination of values of each k or fewer parameters.
    These depend on each other; fewer columns, contrasts and their products, span the same space.
    """
    if not rows.size:
        return ()
    values = values[rows]
    columns = [np.unique(column, return_inverse=True)[1] for column in codes[rows].T]
    varied = [column for column in columns if column.max(initial=0) > 0]
    sizes = [int(column.max()) for column in varied]
    fits = []
    for order in ORDERS:
        if _count_contrasts(sizes, order) <= MAX_COLUMNS:
            design = _build_contrasts(varied, len(values), order)
        else:  # parameters that only some trials have give equal columns
            distinct = _list_columns(varied, len(values), order)
            if distinct is None:
                continue
            design = np.array([places == code for places, code in distinct], dtype=float).T
        fit = ResidualFit.fit(design, values)
        if fit.degrees >= MIN_DEGREES:
            fits.append(fit)
    return tuple(fits)


def _list_columns(
    parameters: list[Integers], count: int, order: int
) -> list[tuple[Integers, int]] | None:
    """List the combinations of values that different trials have, each as (codes, code).

    Two combinations are equal if the same trials have them, which the sums of random marks tell.

    Args:
        parameters: (trials,) each, index of each parameter's value.
        count: number of trials.
        order: largest number of parameters of a combination.

    Returns:
        The combinations; None if they are more than :data:`MAX_COLUMNS`, or as many as trials.
    """
    marks = np.random.default_rng(0).integers(_MARKS, size=(2, count)).astype(float)
    found: dict[tuple[float, ...], tuple[Integers, int]] = {}
    for codes in _combine(parameters, count, order):
        sizes = np.bincount(codes)
        if len(sizes) >= min(count, MAX_COLUMNS + 1) and codes.any():
            return None  # the columns of one combination are independent
        sums = (np.bincount(codes, row) for row in marks)
        for code, key in enumerate(zip(*sums, strict=True)):
            found.setdefault(key, (codes, code))
        if len(found) > MAX_COLUMNS:
            return None
    return list(found.values())


def _combine(parameters: list[Integers], count: int, order: int) -> Iterator[Integers]:
    """Yield the codes (trials,) of the values of each combination of parameters, without gaps."""
    combined: dict[tuple[int, ...], Integers] = {(): np.zeros(count, dtype=np.int64)}
    yield combined[()]
    for size in range(1, order + 1):
        for chosen in itertools.combinations(range(len(parameters)), size):
            last = parameters[chosen[-1]]
            keys = combined[chosen[:-1]] * (int(last.max()) + 1) + last
            is_used = np.bincount(keys) > 0
            combined[chosen] = (np.cumsum(is_used) - 1)[keys]
            yield combined[chosen]


def _count_contrasts(sizes: list[int], order: int) -> int:
    """Return the number of products of contrasts, given the number of contrasts of each one."""
    return sum(
        math.prod(chosen)
        for size in range(order + 1)
        for chosen in itertools.combinations(sizes, size)
    )


def _build_contrasts(parameters: list[Integers], count: int, order: int) -> Floats:
    """Return the products (trials, columns) of orthonormal contrasts of up to some parameters."""
    single = []
    for codes in parameters:
        levels = int(codes.max()) + 1
        basis = np.linalg.qr(np.hstack([np.ones((levels, 1)), np.eye(levels)[:, 1:]]))[0]
        single.append(basis[codes, 1:] * math.sqrt(levels))  # a mean square of 1
    products: dict[tuple[int, ...], Floats] = {(): np.ones((count, 1))}
    for size in range(1, order + 1):
        for chosen in itertools.combinations(range(len(single)), size):
            pair = products[chosen[:-1]][:, :, None] * single[chosen[-1]][:, None, :]
            products[chosen] = pair.reshape(count, -1)
    return np.hstack(list(products.values()))
