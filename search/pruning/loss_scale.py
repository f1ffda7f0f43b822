"""Scale on which losses are predicted: bad trials differ less on it than good ones.

What a bad trial ends at hardly matters for who is among the best, but a regression follows those
that are far from the others: from a few networks that learn nothing, a line through all of them
predicts that the middle ones stay where they are.
"""

import math
from dataclasses import dataclass

import numpy as np

from search.pruning.regression import Floats

_MAX_LOGARITHM = 20.0
"""Greatest logarithm of an excess, in widths, that is expanded; greater predictions are equal."""


@dataclass(frozen=True)
class LossScale:
    """Losses up to the median as they are, and the logarithm of the excess over it.

    Attributes:
        median: loss from which the scale is logarithmic; by default the scale is linear.
        width: excess over it at which differences count half.
    """

    median: float = math.inf
    width: float = 1.0

    @classmethod
    def from_losses(cls, losses: Floats, *others: Floats) -> "LossScale":
        """Return the scale for some losses, of which missing ones are NaN.

        Its width is the greatest distance of the least loss from the median, in these or in others
        of the same trials: losses may hardly differ at first. It is linear if that is 0.
        """
        known = losses[np.isfinite(losses)]
        width = max(map(_lower_spread, [losses, *others]))
        return cls(float(np.median(known)), width) if len(known) and width > 0 else cls()

    @property
    def is_linear(self) -> bool:
        """Whether all losses are as they are."""
        return self.median == math.inf

    def shift(self, reference: Floats, losses: Floats) -> "LossScale":
        """Return the same scale for later losses of the same trials.

        A trial that keeps its lead over the others keeps it on both scales.

        Args:
            reference: losses on this scale, NaN where missing.
            losses: later losses, NaN where missing.
        """
        is_known = np.isfinite(losses) & np.isfinite(reference)
        if self.is_linear or not is_known.any():
            return self
        change = float(np.median(losses[is_known] - reference[is_known]))
        return LossScale(self.median + change, self.width)

    def compress(self, losses: Floats) -> Floats:
        """Return losses on this scale."""
        if self.is_linear:
            return losses
        excess = np.maximum(losses - self.median, 0) / self.width
        compressed: Floats = np.minimum(losses, self.median) + self.width * np.log1p(excess)
        return compressed

    def expand(self, compressed: Floats) -> Floats:
        """Return the losses that are compressed to these."""
        if self.is_linear:
            return compressed
        logarithm = np.maximum(compressed - self.median, 0) / self.width
        excess = self.width * np.expm1(np.minimum(logarithm, _MAX_LOGARITHM))
        expanded: Floats = np.minimum(compressed, self.median) + excess
        return expanded

    def slope(self, losses: Floats) -> Floats:
        """Return how much a difference between losses near these counts on this scale."""
        if self.is_linear:
            return np.ones_like(losses)
        slopes: Floats = 1 / (1 + np.maximum(losses - self.median, 0) / self.width)
        return slopes


def _lower_spread(losses: Floats) -> float:
    """Return the distance of the least known loss from the median; 0 without any."""
    known = losses[np.isfinite(losses)]
    return float(np.median(known) - known.min()) if len(known) else 0.0
