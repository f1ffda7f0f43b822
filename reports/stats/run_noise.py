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

import math
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from reports.stats.interaction_model import Floats, Integers, InteractionModel
from reports.stats.noise_regions import ReplicateModel, Runs, fit, split
from reports.stats.run_means import RunMeans


class NoiseSource(StrEnum):
    """What the noise of an estimate was estimated from, as a noun phrase."""

    REPLICATES = "replicates"
    INTERACTIONS = "high-order interactions"
    MIXED = "replicates and high-order interactions"
    PAIRS = "differences between the pairs"
    PARTIAL = "other trials and differences between the pairs"
    AUDIT = "audited trials"
    ADDITIVE = "an additive model"


@dataclass(frozen=True)
class RunNoise:
    """Variance of each trial's value between runs, the same within each region of the design.

    Attributes:
        regions: (trials,), index of the region.
        variances: (regions,), variance of one run; NaN where it is unknown.
        degrees: (regions,), degrees of freedom of its estimate; 0 where it is unknown.
        sources: (regions,), what it was estimated from; ``PAIRS`` where it is unknown.
        means: how the values depend on several runs of each trial; None if each is that of one.
        run_regions: (runs,), region of each of these runs.
        slopes: (trials,), derivative of a value by the logarithm of its region's standard
            deviation; None if the values do not depend on these.
    """

    regions: Integers
    variances: Floats
    degrees: Floats
    sources: tuple[NoiseSource, ...]
    means: RunMeans | None = None
    run_regions: Integers | None = None

    slopes: Floats | None = None

    def select(self, rows: NDArray[np.bool_]) -> "RunNoise":
        """Keep some trials."""
        means = self.means.select(rows) if self.means else None
        slopes = None if self.slopes is None else self.slopes[rows]
        return replace(self, regions=self.regions[rows], means=means, slopes=slopes)

    @property
    def is_known(self) -> NDArray[np.bool_]:
        """(trials,), whether the variance of the trial's region is known."""
        return self.degrees[self.regions] > 0

    def compute_error(self, weights: Floats) -> tuple[float, float, NoiseSource] | None:
        """Compute the standard error of a weighted sum of the values.

        Args:
            weights: (trials,); 0 for those of which the variance is unknown.

        Returns:
            The standard error, its degrees of freedom by Satterthwaite (*An Approximate
            Distribution of Estimates of Variance Components*, 1946), and the source. None if runs
            of unknown variance adjust the values for the replicates.
        """
        regions = self.regions
        if self.means is not None and self.run_regions is not None:
            weights, regions = self.means.spread(weights), self.run_regions
        sums = np.bincount(regions, weights**2, len(self.variances))
        if sums[self.degrees == 0].sum() > 1e-9 * sums.sum():
            return None
        used = (sums > 0) & (self.degrees > 0)
        if not used.any():  # each trial occurs with both signs: the sum is always zero
            used = self.degrees > 0
        parts, degrees = sums[used] * self.variances[used], self.degrees[used]
        if self.slopes is not None:
            # A standard deviation with f degrees of freedom has a relative variance of 1 / 2f.
            slopes = np.bincount(self.regions, weights * self.slopes, len(self.variances))
            parts = parts + slopes[used] ** 2 / (2 * degrees)
        variance, spread = float(parts.sum()), float((parts**2 / degrees).sum())
        sources = {source for source, is_used in zip(self.sources, used, strict=True) if is_used}
        return (
            math.sqrt(variance),
            variance**2 / spread if spread > 0 else float(degrees.min()),
            sources.pop() if len(sources) == 1 else NoiseSource.MIXED,
        )


def estimate_run_noise(
    codes: Integers,
    values: Floats,
    runs: Runs | None = None,
    means: RunMeans | None = None,
    is_grid: bool = True,
) -> RunNoise | None:
    """Estimate the variance between runs, by region.

    The design is split into regions by the residuals of its trials, or, if these have too few
    degrees of freedom, by those of replicates. Each region has a model of its own; its variance is
    that of its replicates where these suffice, else that of its interactions. A region without an
    estimate is never given that of others.

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
    from threadpoolctl import threadpool_limits

    crossed = InteractionModel(codes, values) if is_grid else None
    replicated = ReplicateModel(codes, runs) if runs else None
    everything = np.arange(len(values))
    # The matrices are small: threads would wait for each other far longer than they compute.
    with threadpool_limits(limits=1, user_api="blas"):
        model: InteractionModel | ReplicateModel | None = crossed
        if replicated and not (crossed and fit(crossed, everything)[1]):
            model = replicated
        rows = list(split(model, codes, everything)) if model else [everything]
        estimates = [_estimate(replicated, crossed, region) for region in rows]
    regions = np.zeros(len(values), dtype=np.int64)
    for i, region in enumerate(rows):
        regions[region] = i
    variances, degrees, sources = zip(*estimates, strict=True)
    if all(source is NoiseSource.PAIRS for source in sources):
        return None
    run_regions = None if means is None else regions[means.architectures]
    return RunNoise(regions, np.array(variances), np.array(degrees), sources, means, run_regions)


def _estimate(
    replicated: ReplicateModel | None, crossed: InteractionModel | None, region: Integers
) -> tuple[float, float, NoiseSource]:
    """Estimate the variance of a region, from its replicates where these suffice.

    Returns:
        The variance, its degrees of freedom and its source.
    """
    models = ((replicated, NoiseSource.REPLICATES), (crossed, NoiseSource.INTERACTIONS))
    for model, source in models:
        if model:
            squares, degrees = fit(model, region)
            if degrees:
                return squares / degrees, degrees, source
    return math.nan, 0.0, NoiseSource.PAIRS
