"""Variance of a trial's value between runs of its architecture.

Each architecture of a grid is trained once. How much its value would change if it were trained
again is estimated from other runs of the same architectures, where there are some, and otherwise
from high-order interactions: a linear model with all main effects and all interactions of two and
three parameters is fitted by least squares, and its residual mean square is taken for noise (Box,
Hunter & Hunter, *Statistics for Experimenters*, 2nd edition, section 5.14). Interactions of more
parameters that exist count as noise, so the estimate is biased upwards.

All trials of a study read the same text in the same order, so that what an order changes for all
architectures alike is not noise of a difference and is left out.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from threadpoolctl import threadpool_limits

from studies.run_means import RunMeans

MIN_DEGREES = 5
"""Degrees of freedom needed to estimate a variance."""

SPLIT_LEVEL = 0.01
"""Significance level at which regions have different variances, corrected for the parameters."""

MAX_COLUMNS = 600
"""Maximum number of columns of the linear model; interactions that would exceed it are left out."""

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class NoiseSource(StrEnum):
    """What the noise of an estimate was estimated from, as a noun phrase."""

    REPLICATES = "replicates"
    INTERACTIONS = "high-order interactions"
    MIXED = "replicates and high-order interactions"
    PAIRS = "differences between the pairs"
    AUDIT = "audited trials"


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


@dataclass(frozen=True)
class RunNoise:
    """Variance of each trial's value between runs, the same within each region of the design.

    Attributes:
        regions: (trials,), index of the region.
        variances: (regions,), variance of one run.
        degrees: (regions,), degrees of freedom of its estimate.
        sources: (regions,), what it was estimated from.
        means: how the values depend on several runs of each trial; None if each is that of one.
        run_regions: (runs,), region of each of these runs.
    """

    regions: Integers
    variances: Floats
    degrees: Floats
    sources: tuple[NoiseSource, ...]
    means: RunMeans | None = None
    run_regions: Integers | None = None

    def select(self, rows: NDArray[np.bool_]) -> "RunNoise":
        """Keep some trials."""
        means = self.means.select(rows) if self.means else None
        return replace(self, regions=self.regions[rows], means=means)

    def compute_error(self, weights: Floats) -> tuple[float, float, NoiseSource]:
        """Compute the standard error of a weighted sum of the values.

        Args:
            weights: (trials,)

        Returns:
            The standard error, its degrees of freedom by Satterthwaite (*An Approximate
            Distribution of Estimates of Variance Components*, 1946), and the source.
        """
        regions = self.regions
        if self.means is not None and self.run_regions is not None:
            weights, regions = self.means.spread(weights), self.run_regions
        sums = np.bincount(regions, weights**2, len(self.variances))
        parts, used = sums * self.variances, sums > 0
        if not used.any():  # each trial occurs with both signs: the sum is always zero
            used[:] = True
        variance = float(parts.sum())
        spread = float((parts[used] ** 2 / self.degrees[used]).sum())
        degrees = variance**2 / spread if spread > 0 else float(self.degrees[used].min())
        sources = {source for source, is_used in zip(self.sources, used, strict=True) if is_used}
        source = sources.pop() if len(sources) == 1 else NoiseSource.MIXED
        return math.sqrt(variance), degrees, source


def estimate_run_noise(
    codes: Integers,
    values: Floats,
    runs: Runs | None = None,
    means: RunMeans | None = None,
    is_grid: bool = True,
) -> RunNoise | None:
    """Estimate the variance between runs, by region.

    A region is split by the parameter between whose values the variance differs most, if it differs
    significantly (Bartlett's test over the residuals within each value) and enough degrees of
    freedom are left; the parts are split further. Each region has a linear model of its own. The
    variance of a region is that of its replicates where these suffice.

    Args:
        codes: (trials, parameters), index of each parameter's value; -1 where a trial lacks it.
        values: (trials,), NaN where there is none.
        runs: further runs of these architectures.
        means: how the values depend on several runs of each trial; None if each is that of one.
        is_grid: whether the trials are a grid; others have no estimate from interactions, because
            a selection confounds them.

    Returns:
        The noise; None if it cannot be estimated.
    """
    # The matrices are small: threads would wait for each other far longer than they compute.
    with threadpool_limits(limits=1, user_api="blas"):
        rows, estimates = _estimate_regions(codes, values, runs, is_grid)
        if None in estimates:
            pooled = _estimate_from_runs(runs, codes) if runs else None
            if pooled is None:
                return None
            rows, estimates = [np.arange(len(values))], [pooled]
    regions = np.zeros(len(values), dtype=np.int64)
    for i, region in enumerate(rows):
        regions[region] = i
    variances, degrees, sources = zip(*(each for each in estimates if each), strict=True)
    run_regions = None if means is None else regions[means.architectures]
    return RunNoise(regions, np.array(variances), np.array(degrees), sources, means, run_regions)


_Estimate = tuple[float, float, NoiseSource]


def _estimate_regions(
    codes: Integers, values: Floats, runs: Runs | None, is_grid: bool
) -> tuple[list[Integers], list[_Estimate | None]]:
    """Return the trials of each region, and its estimate; see :func:`estimate_run_noise`."""
    has_value = ~np.isnan(values)
    rows = [np.arange(len(values))]
    if is_grid:
        rows = list(_split(codes, values, has_value, rows[0]))
    estimates = []
    for region in rows:
        known = region[has_value[region]]
        estimate = _estimate_from_runs(runs, codes[region]) if runs else None
        if estimate is None and is_grid:
            estimate = _estimate_from_interactions(codes[known], values[known])
        estimates.append(estimate)
    return rows, estimates


def _estimate_from_runs(runs: Runs, codes: Integers) -> _Estimate | None:
    """Estimate the variance between the runs of the architectures that some trials have.

    Architectures and replicates are additive factors; the rest is noise.
    """
    known = set(map(tuple, codes.tolist()))
    is_known = np.array([tuple(row) in known for row in runs.codes.tolist()], dtype=bool)
    if not is_known.any():
        return None
    architecture = np.unique(runs.codes[is_known], axis=0, return_inverse=True)[1].ravel()
    factors = (architecture, np.unique(runs.replicates[is_known], return_inverse=True)[1])
    columns = [factor[:, None] == np.arange(factor.max() + 1) for factor in factors]
    squares, degrees = _fit(np.hstack(columns), runs.values[is_known])
    if degrees < MIN_DEGREES:
        return None
    return squares / degrees, degrees, NoiseSource.REPLICATES


def _estimate_from_interactions(codes: Integers, values: Floats) -> _Estimate | None:
    """Estimate the variance from the residuals of :func:`_fit_interactions`."""
    squares, degrees = _fit_interactions(codes, values)
    if degrees < MIN_DEGREES:
        return None
    return squares / degrees, degrees, NoiseSource.INTERACTIONS


def _split(
    codes: Integers, values: Floats, has_value: NDArray[np.bool_], region: Integers
) -> Iterator[Integers]:
    """Yield the parts of a region that have different variances, or the region."""
    tests = []
    names = [i for i in range(codes.shape[1]) if len(np.unique(codes[region, i])) > 1]
    for i in names:
        parts = [region[codes[region, i] == code] for code in np.unique(codes[region, i])]
        known = [part[has_value[part]] for part in parts]
        fits = [_fit_interactions(codes[part], values[part]) for part in known]
        if all(degrees >= MIN_DEGREES and squares > 0 for squares, degrees in fits):
            tests.append((_test_equality(*np.array(fits).T), i, parts))
    if tests:
        p, _, parts = min(tests, key=lambda test: test[:2])
        if p * len(names) < SPLIT_LEVEL:
            for part in parts:
                yield from _split(codes, values, has_value, part)
            return
    yield region


def _test_equality(squares: Floats, degrees: Floats) -> float:
    """Return the p-value of Bartlett's test that variances are equal.

    Bartlett, *Properties of Sufficiency and Statistical Tests*, 1937. ``scipy.stats.bartlett``
    takes samples; these are sums of squares of residuals, each with its degrees of freedom.
    """
    total, k = degrees.sum(), len(degrees)
    statistic = total * math.log(squares.sum() / total) - degrees @ np.log(squares / degrees)
    correction = 1 + ((1 / degrees).sum() - 1 / total) / (3 * (k - 1))
    return float(stats.chi2.sf(statistic / correction, k - 1))


def _fit_interactions(codes: Integers, values: Floats) -> tuple[float, float]:
    """Fit a model with all interactions of up to three parameters, or of two; see :func:`_fit`.

    The smaller model is fitted where the larger one leaves too few degrees of freedom or has too
    many columns. The result has no degrees of freedom if this holds for both.
    """
    levels = [np.unique(codes[:, i])[1:] for i in range(codes.shape[1])]  # less a reference
    mains = [codes[:, i, None] == found for i, found in enumerate(levels) if len(found)]
    columns, sizes = [np.ones((len(codes), 1), dtype=bool)], [1]
    for order in range(1, 4):
        for chosen in itertools.combinations(mains, order):
            product = chosen[0]
            for other in chosen[1:]:
                product = (product[:, :, None] & other[:, None, :]).reshape(len(codes), -1)
            columns.append(product[:, product.any(axis=0)])
        sizes.append(len(columns))
    for order in (3, 2):
        # Parameters that only some trials have give equal columns.
        design = np.unique(np.hstack(columns[: sizes[order]]), axis=1)
        if design.shape[1] > MAX_COLUMNS:
            continue
        squares, degrees = _fit(design, values)
        if degrees >= MIN_DEGREES:
            return squares, degrees
    return 0.0, 0.0


def _fit(design: NDArray[np.bool_], values: Floats) -> tuple[float, float]:
    """Fit values by least squares; return the residual sum of squares and degrees of freedom."""
    columns = design.astype(float)
    centered = values - values.mean() if len(values) else values
    if columns.shape[1] > len(columns):  # the smaller of both products has the same rank
        scales, basis = np.linalg.eigh(columns @ columns.T)
        kept = scales > 1e-9 * scales.max(initial=0)
        residuals = centered - basis[:, kept] @ (basis[:, kept].T @ centered)
    else:
        scales, basis = np.linalg.eigh(columns.T @ columns)
        kept = scales > 1e-9 * scales.max(initial=0)
        coefficients = basis[:, kept] @ ((basis[:, kept].T @ (columns.T @ centered)) / scales[kept])
        residuals = centered - columns @ coefficients
    return float(residuals @ residuals), float(len(values) - kept.sum())
