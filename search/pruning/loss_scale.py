"""Scale on which losses are predicted: bad trials differ less on it than good ones.

What a bad trial ends at hardly matters for who is among the best, but a regression follows those
that are far from the others: from a few networks that learn nothing, a line through all of them
predicts that the middle ones stay where they are.
"""

import sys
from dataclasses import dataclass

import numpy as np

from search.pruning.regression import Floats

_MAX_LOGARITHM = 20.0
"""Greatest logarithm that is expanded: beyond it a prediction says nothing."""


@dataclass(frozen=True)
class LossScale:
    """Losses up to the median as they are, and the logarithm of the excess over it.

    Attributes:
        median: loss from which the scale is logarithmic; by default the scale is linear.
        width: excess over it at which differences count half.
    """

    median: float = sys.float_info.max
    width: float = 1.0

    @classmethod
    def from_losses(cls, losses: Floats) -> "LossScale":
        """Return the scale for some losses, of which missing ones are NaN.

        Its width is the distance of the least loss from the median; it is linear if that is 0.
        """
        known = losses[~np.isnan(losses)]
        width = float(np.median(known) - known.min()) if len(known) else 0.0
        return cls(float(np.median(known)), width) if width > 0 else cls()

    def shift(self, reference: Floats, losses: Floats) -> "LossScale":
        """Return the same scale for later losses of the same trials.

        A trial that keeps its lead over the others keeps it on both scales.

        Args:
            reference: losses on this scale, NaN where missing.
            losses: later losses, NaN where missing.
        """
        change = (losses - reference)[~np.isnan(losses - reference)]
        if not len(change) or self == LossScale():
            return self
        return LossScale(self.median + float(np.median(change)), self.width)

    def compress(self, losses: Floats) -> Floats:
        """Return losses on this scale."""
        excess = np.maximum(losses - self.median, 0) / self.width
        compressed: Floats = np.minimum(losses, self.median) + self.width * np.log1p(excess)
        return compressed

    def expand(self, compressed: Floats) -> Floats:
        """Return the losses that are compressed to these."""
        logarithm = np.maximum(compressed - self.median, 0) / self.width
        excess = self.width * np.expm1(np.minimum(logarithm, _MAX_LOGARITHM))
        expanded: Floats = np.minimum(compressed, self.median) + excess
        return expanded

    def slope(self, losses: Floats) -> Floats:
        """Return how much a difference between losses near these counts on this scale."""
        slopes: Floats = 1 / (1 + np.maximum(losses - self.median, 0) / self.width)
        return slopes
