"""Effective context: how many tokens back a network uses its text."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression

THRESHOLD = math.log2(1.01)
"""Excess loss in bits per byte below which a longer context makes no difference: 1% of perplexity,
the threshold of Khandelwal et al., *Sharp Nearby, Fuzzy Far Away: How Neural Language Models Use
Context*, 2018, section 3."""

_QUANTILE = 1.96

_LEAST = THRESHOLD / 10
"""Least excess that is interpolated, for bins without any."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class EffectiveContext:
    """Number of tokens of context beyond which the loss falls by less than :data:`THRESHOLD`.

    Attributes:
        size: the estimate, 1 or more; infinite if it exceeds ``longest``.
        low: lower end of its 95% interval over the evaluation windows; NaN with a single window.
        high: upper end of the interval; infinite if it exceeds ``longest``.
        longest: largest number of tokens that was measured, half of an evaluation window.
    """

    size: float
    low: float
    high: float
    longest: int

    def __str__(self) -> str:
        size = _format_size(self.size, self.longest)
        if self.low != self.low:
            return size
        return f"{size} [{_format_size(self.low, self.longest)}, " + (
            f"{_format_size(self.high, self.longest)}]"
        )


@dataclass(frozen=True)
class ContextProfile:
    """Loss of a network by the number of tokens of context, on the same text.

    Attributes:
        bins: largest number of tokens of context in each bin.
        excess: loss with a context of each bin minus that with half a window more (bins,), in bits
            per byte.
        stderr: standard error of each over the evaluation windows (bins,); NaN if unknown.
        loss: loss with the long context, in bits per byte.
    """

    bins: tuple[int, ...]
    excess: Floats
    stderr: Floats
    loss: float

    @property
    def centers(self) -> Floats:
        """Geometric mean of the smallest and the largest number of tokens in each bin (bins,)."""
        smallest = np.array([1, *(each + 1 for each in self.bins[:-1])])
        centers: Floats = np.sqrt(smallest * np.array(self.bins))
        return centers

    def estimate(self) -> EffectiveContext:
        """Estimate the effective context.

        In expectation the excess does not rise with the context, so an isotonic regression,
        weighted by the inverse variances, smooths the noise of single bins. The estimate is where
        it crosses the threshold, interpolated linearly between the logarithms of excess and
        context. The interval is where the excess plus and minus 1.96 standard errors cross it; it
        does not cover the interpolation's error, some 5%.
        """
        margin = _QUANTILE * self.stderr
        low, size, high = (self._cross(self.excess + shift) for shift in (-margin, 0, margin))
        return EffectiveContext(size, low, high, self.bins[-1])

    def _cross(self, excess: Floats) -> float:
        """Return the context at which a decreasing fit crosses the threshold; NaN if unknown."""
        if np.isnan(excess).any():
            return math.nan
        known = np.isfinite(self.stderr) & (self.stderr > 0)
        weights = 1 / self.stderr**2 if known.all() else None
        fit = isotonic_regression(excess, weights=weights, increasing=False).x
        below = np.flatnonzero(fit < THRESHOLD)
        if not len(below):
            return math.inf
        if (first := int(below[0])) == 0:
            return 1.0
        places = np.log(self.centers[[first, first - 1]])
        levels = np.log(np.maximum(fit[[first, first - 1]], _LEAST))
        return float(np.exp(np.interp(math.log(THRESHOLD), levels, places)))


def read_profile(recorded: Mapping[Any, Any]) -> ContextProfile | None:
    """Return the profile of a trial's attributes; None if it has none, as older trials."""
    bins, loss = recorded.get("context_bins"), recorded.get("context_loss")
    stated = recorded.get("context_excess")
    if not isinstance(bins, Sequence) or not isinstance(stated, Sequence):
        return None
    if not isinstance(loss, float):
        return None
    stderr = recorded.get("context_stderr")
    excess = np.array(stated, dtype=float)
    return ContextProfile(
        tuple(bins),
        excess,
        np.array(stderr) if isinstance(stderr, Sequence) else np.full_like(excess, np.nan),
        loss,
    )


def average_profiles(profiles: Sequence[ContextProfile]) -> ContextProfile:
    """Return the mean of the profiles of several runs, all of the same bins.

    The runs read the same windows, so their errors are taken to be fully correlated: the mean has
    the mean standard error.
    """
    return ContextProfile(
        profiles[0].bins,
        np.mean([each.excess for each in profiles], axis=0),
        np.mean([each.stderr for each in profiles], axis=0),
        float(np.mean([each.loss for each in profiles])),
    )


def _format_size(size: float, longest: int) -> str:
    return f"{size:.0f}" if math.isfinite(size) else f"> {longest}"
