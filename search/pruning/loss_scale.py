"""Scale on which losses are predicted: bad trials differ less on it than good ones.

A regression would otherwise follow the bad ones, which hardly matter. Losses that fall towards 0
differ by factors: where they span a decade, their logarithms take their place.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from search.pruning.regression import Floats

_MAX_LOGARITHM = 20.0
"""Greatest logarithm of an excess, in widths, that is expanded; greater predictions are equal."""

_DECADE = 10.0
"""Least ratio of the median loss to the least one of which the logarithms are predicted."""

_FURTHEST = 200.0
"""Distance from the median on a scale of logarithms beyond which all predictions are equal."""


@dataclass(frozen=True)
class LossScale:
    """Losses up to the median as they are, and the logarithm of the excess over it.

    Attributes:
        median: loss from which the scale is logarithmic; by default the scale is linear.
        width: excess over it at which differences count half.
        least: if positive, logarithms take the place of losses, and median and width are theirs;
            it takes the place of a loss of 0.
    """

    median: float = math.inf
    width: float = 1.0
    least: float = 0.0

    @classmethod
    def from_losses(cls, losses: Floats, *others: Floats) -> "LossScale":
        """Return the scale for some losses, of which missing ones are NaN.

        Its width is the greatest distance of the least loss from the median, in these or in others
        of the same trials: losses may hardly differ at first. Where most trials have the least
        loss, that is 0, and the median excess of the others is taken. The scale is linear if all
        losses are equal or missing.
        """
        columns = [losses, *others]
        least = _find_least(columns)
        columns = [cls(least=least)._take_logarithms(column) for column in columns]
        known = [column[np.isfinite(column)] for column in columns]
        excesses = [each - np.median(each) for each in known if len(each)]
        width = max((-excess.min() for excess in excesses), default=0.0)
        if width == 0:
            above = [excess[excess > 0] for excess in excesses]
            width = max((np.median(each) for each in above if len(each)), default=0.0)
        if width == 0:
            return cls()
        median = float(np.median(known[0])) if len(known[0]) else math.inf
        return cls(median, float(width), least)

    @property
    def unit(self) -> float:
        """Power of two near the width, to divide losses by without rounding; 1 of logarithms."""
        return 1.0 if self.least > 0 else math.ldexp(1.0, math.frexp(self.width)[1])

    def divide(self, divisor: float) -> "LossScale":
        """Return the same scale for losses that are divided by a number."""
        return replace(self, median=self.median / divisor, width=self.width / divisor)

    def shift(self, reference: Floats, losses: Floats) -> "LossScale":
        """Return the same scale for later losses of the trials of reference, NaN where missing.

        A trial that keeps its lead over the others keeps it on both scales.
        """
        is_known = np.isfinite(losses) & np.isfinite(reference)
        if self.median == math.inf or not is_known.any():
            return self
        change = self._take_logarithms(losses) - self._take_logarithms(reference)
        return replace(self, median=self.median + float(np.median(change[is_known])))

    def compress(self, losses: Floats) -> Floats:
        """Return losses on this scale."""
        losses = self._take_logarithms(losses)
        if self.median == math.inf:
            return losses
        excess = np.maximum(losses - self.median, 0) / self.width
        compressed: Floats = np.minimum(losses, self.median) + self.width * np.log1p(excess)
        return compressed

    def expand(self, compressed: Floats) -> Floats:
        """Return the losses that are compressed to these."""
        expanded = compressed
        if self.median != math.inf:
            logarithm = np.maximum(compressed - self.median, 0) / self.width
            excess = self.width * np.expm1(np.minimum(logarithm, _MAX_LOGARITHM))
            expanded = np.minimum(compressed, self.median) + excess
        if self.least > 0:
            middle = math.log(self.least) if self.median == math.inf else self.median
            expanded = np.exp(np.clip(expanded, middle - _FURTHEST, middle + _FURTHEST))
        return expanded

    def slope(self, losses: Floats) -> Floats:
        """Return how much a difference between losses near these counts on this scale."""
        slopes = 1 / self._fill(losses) if self.least > 0 else np.ones_like(losses)
        if self.median == math.inf:
            return slopes
        excess = np.maximum(self._take_logarithms(losses) - self.median, 0) / self.width
        return slopes / (1 + excess)

    def _take_logarithms(self, losses: Floats) -> Floats:
        return np.log(self._fill(losses)) if self.least > 0 else losses

    def _fill(self, losses: Floats) -> Floats:
        """Return losses with the least positive one in the place of 0."""
        return np.where(losses == 0, self.least, losses)


def _find_least(columns: Sequence[Floats]) -> float:
    """Return the least positive loss if losses span a decade and none is negative; else 0."""
    least, ratio = math.inf, 1.0
    for column in columns:
        known = column[np.isfinite(column)]
        positive = known[known > 0]
        if (known < 0).any():
            return 0.0
        if len(positive):
            least = min(least, float(positive.min()))
            ratio = max(ratio, float(np.median(known) / positive.min()))
    return least if ratio >= _DECADE else 0.0
