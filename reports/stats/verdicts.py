"""Verdicts on replicated architectures: worse than the best, as good as the best, or undecided.

Which architecture is the best is unknown: the best mean may be luck. Two statements are possible.

*Worse*: another architecture is significantly better. All pairs are tested, with a probability of
at most 5% of any false difference (Holm, 1979).

*As good*: the architecture is at most a margin worse than the best one, whichever that is. This is
Hsu's multiple comparison with the best (*Simultaneous Confidence Intervals for All Distances from
the "Best"*, Annals of Statistics 9, 1981; *Constrained Simultaneous Confidence Intervals for
Multiple Comparisons with the Best*, Annals of Statistics 12, 1984). Let b be the best of K, and let
the K − 1 upper confidence bounds U(i, b) of the differences between i and b hold together with a
probability of 95%, by Bonferroni's inequality each with 1 − 5% / (K − 1). While they hold, b is
among the architectures C that none is better than by these bounds, and the distance of i from b is
at most the largest U(i, j) over j in C. So these distances hold together for all i, without knowing
b.

An architecture may be significantly worse, and by less than the margin; it is called as good.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from reports.stats.paired_difference import Floats
from reports.stats.pairwise_comparison import Comparison

Booleans = NDArray[np.bool_]


class Verdict(StrEnum):
    """What the runs show of an architecture."""

    WORSE = "worse"
    AS_GOOD = "as good"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Judgement:
    """Verdicts on the architectures of a study.

    Attributes:
        comparison: pairwise comparison that they follow from.
        margin: largest difference to the best that makes no difference, in the unit of the losses.
        verdicts: verdict of each architecture.
        bounds: upper confidence bound of the difference of each compared architecture to the best;
            infinite where there are too few runs.
        candidates: architectures that may be the best.
        without_run: number of architectures of the study without a complete run, which have no
            verdict.
    """

    comparison: Comparison
    margin: float
    verdicts: dict[str, Verdict]
    bounds: dict[str, float]
    candidates: list[str]
    without_run: int = 0

    def count(self, verdict: str) -> int:
        """Return the number of architectures with a verdict, the best mean left out."""
        return sum(
            each == verdict for name, each in self.verdicts.items() if name != self.comparison.best
        )

    def find_smallest_as_good(self, sizes: Mapping[str, float]) -> str | None:
        """Return the smallest architecture that is as good as the best.

        Args:
            sizes: number of parameters by name.

        Returns:
            None if none that is smaller than that of the best mean is shown to be as good.
        """
        best = sizes[self.comparison.best]
        smaller = [
            name
            for name, verdict in self.verdicts.items()
            if verdict is Verdict.AS_GOOD and sizes[name] < best
        ]
        return min(smaller, key=sizes.__getitem__, default=None)


def judge(comparison: Comparison, margin: float) -> Judgement:
    """Compare each architecture with the best, whichever that is.

    Args:
        comparison: pairwise comparison of the architectures.
        margin: largest difference to the best that makes no difference, in the unit of the losses.
    """
    names = comparison.names
    tail = comparison.level / max(1, comparison.count - 1)
    # An architecture with too few runs has no bounds, and must not withhold those of the others.
    compared = [
        name
        for name in names
        if any(comparison.pairs[pair].runs > 1 for pair in comparison.pairs if name in pair)
    ]
    size = len(compared)
    upper, is_better = np.zeros((size, size)), np.zeros((size, size), dtype=bool)
    for i, first in enumerate(compared):
        for j, second in enumerate(compared):
            difference = comparison.between(first, second)
            if difference is not None:
                upper[i, j] = difference.upper_bound(tail)
                is_better[i, j] = comparison.is_better(first, second)
    bounds, may_be_best = bound_distances(upper)
    verdicts, found = dict.fromkeys(names, Verdict.UNDECIDED), dict.fromkeys(names, np.inf)
    for i, name in enumerate(compared):
        found[name] = float(bounds[i])
        if bounds[i] < margin:
            verdicts[name] = Verdict.AS_GOOD
        elif is_better[:, i].any():
            verdicts[name] = Verdict.WORSE
    candidates = [name for name, is_one in zip(compared, may_be_best, strict=True) if is_one]
    return Judgement(comparison, margin, verdicts, found, candidates)


def bound_distances(upper: Floats) -> tuple[Floats, Booleans]:
    """Bound the distance of each architecture from the best.

    Args:
        upper: upper confidence bounds (..., K, K) of the row's loss minus the column's; 0 on the
            diagonal.

    Returns:
        The bounds (..., K), and which architectures (..., K) may be the best.
    """
    # The lower bound of i minus j is that below the difference j minus i.
    may_be_best = np.asarray(~(upper < 0).any(axis=-2))
    candidates = np.where(may_be_best[..., None, :], upper, -np.inf)
    return np.maximum(candidates.max(axis=-1, initial=0.0), 0), may_be_best
