"""Mean difference over matched pairs of runs, with its interval and p-value.

A pair of runs is equal in everything but a change, the replicate included: runs of one replicate
read the data in one order. The pairs of runs of a pair of architectures are its *context*. The mean
over the contexts is exact for these runs; its error is that of training each network again from
other weights.

*One or two runs of each architecture.* Student's t over all differences. From :data:`MIN_MAIN`
differences, what the other parameters explain of them is removed by least squares, and from
:data:`MIN_PRODUCTS` what each two of them explain: their intercept is the mean, with the classical
error. Either is done only if the degrees of freedom stay at least half of the differences, so the
choice depends on the design, never on the values. What is left contains how the effect varies
between networks, and then the interval is too wide.

*Three runs or more.* The error is that of the runs alone, whatever varies between networks. A
context with r differences of variance s² adds s² / (r n²) to the variance of the mean of n contexts
(Satterthwaite, *An Approximate Distribution of Estimates of Variance Components*, 1946, for the
degrees of freedom). A context with one difference takes the pooled s².

Both were chosen by simulations (docs/benchmarks.md). Worse were BCa, bootstrap-t, GEE, mixed
models, unpaired Welch, Games-Howell and the sign test.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, Self

import numpy as np

from reports.stats import Floats, Integers
from reports.stats.design import build_contrasts, count_contrasts, orthonormalize
from reports.stats.estimate import CONFIDENCE, Estimate
from reports.stats.power import MIN_DIFFERENCES, MIN_SEEDS_PER_CONTEXT
from reports.stats.shares import ShareChange

MIN_MAIN = 32
"""Differences from which the other parameters are removed from them."""

MIN_PRODUCTS = 64
"""Differences from which each two of the other parameters are."""

_MAX_COLUMNS = 1000
"""Columns of a model up to which it is tried: more leave too few degrees of freedom."""


class Method(StrEnum):
    """What the error of an estimate rests on, as a noun phrase."""

    PAIRS = "differences between the pairs"
    SEEDS = "differences between the seeds of each pair"
    SHARES = "numbers of rescued and ruined pairs"
    AUDIT = "audited trials"
    ADDITIVE = "residuals of a least-squares fit"


class MeanError(NamedTuple):
    """A mean, its standard error, the degrees of freedom of that, and what it rests on."""

    mean: float
    error: float
    degrees: float
    method: Method


@dataclass(frozen=True, kw_only=True)
class PairedDifference(Estimate):
    """Mean difference over matched pairs.

    Attributes:
        pairs: number of pairs of architectures, each with a difference or more.
        seeds: planned number of runs of each architecture.
        differences: number of pairs of runs.
        error: standard error of the mean; NaN if unknown.
        degrees: degrees of freedom of the error; 0 if it is unknown.
        method: what the error rests on.
        improved_count: number of pairs of architectures whose mean difference is an improvement.
        shares: change of the share of runs that are solved; None where losses are compared.
    """

    pairs: int
    seeds: int = 1
    differences: int
    error: float
    degrees: float
    method: Method
    improved_count: int
    higher_is_better: bool = False
    shares: ShareChange | None = None

    @classmethod
    def from_differences(
        cls,
        differences: Floats,
        contexts: Integers,
        seeds: int = 1,
        factors: Integers | None = None,
        higher_is_better: bool = False,
        shares: ShareChange | None = None,
        **attributes: Any,
    ) -> Self:
        """Estimate the mean of some differences.

        Args:
            differences: (N,), the difference of each pair of runs.
            contexts: (N,), number of its pair of architectures.
            seeds: planned number of runs of each architecture.
            factors: (N, parameters), codes of the other parameters of each pair.
            higher_is_better: whether a higher value is better.
            shares: the change that they are, of runs that are solved or not; None for losses.
            attributes: other attributes, of a subclass.
        """
        contexts, counts = np.unique(contexts, return_inverse=True, return_counts=True)[1:]
        means = np.bincount(contexts, differences, len(counts)) / counts
        if shares is None:
            found = estimate_mean(differences, contexts, seeds, factors)
        else:
            found = MeanError(shares.mean, shares.error, math.inf, Method.SHARES)
        return cls(
            pairs=len(counts),
            seeds=seeds,
            differences=len(differences),
            improved_count=int(((means > 0) if higher_is_better else (means < 0)).sum()),
            higher_is_better=higher_is_better,
            shares=shares,
            **found._asdict(),
            **attributes,
        )

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95% interval of the mean; NaN if the error is unknown."""
        from scipy import special

        if self.shares is not None:
            return self.shares.interval
        half_width = float(special.stdtrit(self.degrees, (1 + CONFIDENCE) / 2)) * self.error
        return self.mean - half_width, self.mean + half_width

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.interval[0]

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.interval[1]

    @property
    def p(self) -> float:
        """Two-sided p-value of a zero mean; 1 if the error is unknown or from too few pairs."""
        from scipy import special

        if not self.is_decidable:
            return 1.0
        if self.shares is not None:
            return self.shares.p
        if self.error == 0:
            return float(self.mean == 0)
        return float(2 * special.stdtr(self.degrees, -abs(self.mean) / self.error))

    @property
    def is_improvement(self) -> bool:
        """Whether the mean is better than no difference."""
        return self.mean > 0 if self.higher_is_better else self.mean < 0

    @property
    def reason(self) -> str:
        """Why the interval supports no decision: ``too few pairs to test: 3 of 4``; "" if it does.

        The scatter of fewer than :data:`MIN_DIFFERENCES` differences says too little, and so few
        shares as not to be significant whatever they are say nothing.
        """
        needed = MIN_DIFFERENCES if self.method in (Method.PAIRS, Method.SEEDS) else 0
        if self.shares is not None:
            needed = self.shares.needed
        if self.differences >= needed and not math.isnan(self.error):
            return ""
        noun = "pairs" if self.seeds == 1 else "pairs of runs"
        return f"too few {noun} to test: {self.differences} of {needed}"

    @property
    def is_decidable(self) -> bool:
        """Whether the interval can support a decision; :attr:`reason` says why not."""
        return not self.reason


def estimate_mean(
    differences: Floats, contexts: Integers, seeds: int, factors: Integers | None = None
) -> MeanError:
    """Estimate the mean of differences and its error, by the rule for this number of seeds.

    Args:
        differences: (N,), the difference of each pair of runs.
        contexts: (N,), index of its pair of architectures: 0, 1, ….
        seeds: planned number of runs of each architecture.
        factors: (N, parameters), codes of the other parameters; None without any.
    """
    counts = np.bincount(contexts)
    # Before most architectures have a second run, the scatter of the runs is not known.
    if seeds >= MIN_SEEDS_PER_CONTEXT and 2 * (counts > 1).sum() >= len(counts) > 0:
        return _estimate_by_seeds(differences, contexts)
    count = len(differences)
    if count < 2:
        mean = float(differences[0]) if count else math.nan
        return MeanError(mean, math.nan, 0.0, Method.PAIRS)
    residuals = differences - differences.mean()
    degrees = count - 1
    if factors is not None and count >= MIN_MAIN:
        basis = _build_basis(np.ascontiguousarray(factors).tobytes(), factors.shape)
        residuals = residuals - basis @ (basis.T @ residuals)
        degrees = count - basis.shape[1]
    variance = float(residuals @ residuals) / degrees
    error = math.sqrt(variance / count)
    return MeanError(float(differences.mean()), error, float(degrees), Method.PAIRS)


def _estimate_by_seeds(differences: Floats, contexts: Integers) -> MeanError:
    """Estimate the mean over contexts, two or more of which have several differences."""
    counts = np.bincount(contexts)
    means = np.bincount(contexts, differences) / counts
    squares = np.bincount(contexts, (differences - means[contexts]) ** 2)
    degrees = counts - 1.0
    is_known = counts > 1
    # The weight of each s² in the variance: its own, and as a part of the pooled one.
    weights = 1 / counts + degrees / degrees.sum() * (~is_known).sum()
    parts = weights[is_known] * squares[is_known] / degrees[is_known] / len(counts) ** 2
    variance = float(parts.sum())
    spread = float((parts**2 / degrees[is_known]).sum())
    return MeanError(
        mean=float(means.mean()),
        error=math.sqrt(variance),
        degrees=variance**2 / spread if spread > 0 else float(degrees.sum()),
        method=Method.SEEDS,
    )


@lru_cache(maxsize=4)  # effects within values, and their difference, have one design
def _build_basis(codes: bytes, shape: tuple[int, int]) -> Floats:
    """Build an orthonormal basis (N, columns) of what is removed from N differences.

    Codes (N, parameters) of the other parameters come as bytes, which can be cached.
    """
    factors = np.frombuffer(codes, dtype=np.int64).reshape(shape)
    count = len(factors)
    levels = [np.unique(column, return_inverse=True)[1] for column in factors.T]
    levels = [column for column in levels if column.max() > 0]
    basis = np.full((count, 1), 1 / math.sqrt(count))
    for order, least in ((1, MIN_MAIN), (2, MIN_PRODUCTS)):
        columns = count_contrasts([int(column.max()) for column in levels], order)
        if count < least or columns > _MAX_COLUMNS:
            break
        larger = orthonormalize(build_contrasts(levels, count, order))
        if 2 * (count - larger.shape[1]) < count:
            break
        basis = larger
    return basis
