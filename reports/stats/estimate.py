"""An estimate of a difference: mean, interval, p-value, corrections."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from reports.stats import Floats

CONFIDENCE = 0.95
"""Confidence of intervals; a p-value below the rest is significant."""


@dataclass(frozen=True, kw_only=True)
class Estimate(ABC):
    """Estimate of a mean difference, with its 95% interval and p-value.

    Attributes:
        mean: the estimate; NaN without data.
        p_adjusted: p-value after a correction for several tests; None without a correction.
    """

    mean: float
    p_adjusted: float | None = None

    @property
    @abstractmethod
    def low(self) -> float:
        """Lower end of the 95% interval, without a correction; NaN if it is unknown."""

    @property
    @abstractmethod
    def high(self) -> float:
        """Upper end of the interval."""

    @property
    @abstractmethod
    def p(self) -> float:
        """Two-sided p-value of a zero mean, without a correction; 1 if nothing can be tested."""

    @property
    def is_significant(self) -> bool:
        """Whether a zero mean is rejected, after the correction if there is one."""
        return (self.p if self.p_adjusted is None else self.p_adjusted) < 1 - CONFIDENCE


_E = TypeVar("_E", bound=Estimate)


def adjust_estimates(estimates: Sequence[_E]) -> list[_E]:
    """Correct the p-values of estimates for their number, by Holm's method."""
    adjusted = adjust_by_holm(np.array([estimate.p for estimate in estimates])).tolist()
    pairs = zip(estimates, adjusted, strict=True)
    return [replace(estimate, p_adjusted=p) for estimate, p in pairs]


def adjust_by_holm(p: Floats) -> Floats:
    """Correct p-values (..., P) for their number by Holm's method.

    The last axis is one family of tests.
    """
    # statsmodels.multipletests gives the same for one family, but collects all garbage per call:
    # 60 ms or more, and there are dozens of calls per report.
    order = np.argsort(p, axis=-1)
    factors = np.arange(p.shape[-1], 0, -1)
    steps = np.maximum.accumulate(np.take_along_axis(p, order, axis=-1) * factors, axis=-1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(1, steps), axis=-1)
    return adjusted


def mean_half_width(values: Sequence[float]) -> float:
    """Return half the width of Student's 95% interval of a mean; NaN for a single value."""
    if len(values) < 2:
        return math.nan
    from scipy import special

    quantile = float(special.stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2))
    return quantile * float(np.std(values, ddof=1)) / math.sqrt(len(values))
