"""Which changes bring trials below a loss: the four outcomes of matched pairs.

A trial is good if its loss is below a threshold, and bad otherwise, also if it diverged; where a
higher value is better, if its value is above. A change rescues a pair that is bad before it and
good after it, and ruins one that is good before and bad after. To select the good trials and
compare those would leave out just these pairs: it selects by the outcome (Elwert & Winship,
*Endogenous Selection Bias*, 2014). So no pair is left out here but for those in which a trial has
no outcome yet, and regions are chosen by parameters.

If a change had no effect, a pair with two outcomes would be rescued or ruined with equal
probability: an exact sign test (McNemar, *Note on the Sampling Error of the Difference between
Correlated Proportions*, 1947). The share of pairs that a change rescues, less that which it ruins,
has the interval of two exact ones (Clopper & Pearson, *The Use of Confidence or Fiducial Limits*,
1934), each at half the error. It covers repeating every run, and is too wide for it, because
most trials would end on the same side.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from reports.stats.contrast import Contrast
from reports.stats.effects import FactorialTable
from reports.stats.paired_difference import CONFIDENCE, Interval
from reports.stats.replicates import adjust_by_holm

GOOD, UNKNOWN, BAD = 0.0, 1.0, 2.0
"""Outcomes as values of a table. The least of several is that of an architecture at its best: good
if one trial is, and unknown if none is but one may yet be."""


@dataclass(frozen=True, kw_only=True)
class OutcomeTable:
    """Outcomes of the matched pairs of a change.

    Attributes:
        both_good: number of pairs whose trials are both below the threshold, or above it where a
            higher value is better.
        rescued: number of pairs of which only the second trial is.
        ruined: number of pairs of which only the first trial is.
        both_bad: number of pairs of which neither is.
        unknown: number of pairs with a trial that has no outcome: it was pruned, failed, or is not
            finished.
    """

    both_good: int
    rescued: int
    ruined: int
    both_bad: int
    unknown: int

    @classmethod
    def from_outcomes(
        cls, before: NDArray[np.float64], after: NDArray[np.float64], **attributes: Any
    ) -> Self:
        """Count the outcomes of some pairs.

        Args:
            before: (pairs,), outcome of the first trial of each pair.
            after: (pairs,), outcome of the second trial.
            attributes: other attributes, of a subclass.
        """
        return cls(
            both_good=int(((before == GOOD) & (after == GOOD)).sum()),
            rescued=int(((before == BAD) & (after == GOOD)).sum()),
            ruined=int(((before == GOOD) & (after == BAD)).sum()),
            both_bad=int(((before == BAD) & (after == BAD)).sum()),
            unknown=int(((before == UNKNOWN) | (after == UNKNOWN)).sum()),
            **attributes,
        )

    def exchange_sides(self) -> "OutcomeTable":
        """Return the table in which good and bad are exchanged."""
        return OutcomeTable(
            both_good=self.both_bad,
            rescued=self.ruined,
            ruined=self.rescued,
            both_bad=self.both_good,
            unknown=self.unknown,
        )

    @property
    def pairs(self) -> int:
        """Number of pairs with two outcomes."""
        return self.both_good + self.rescued + self.ruined + self.both_bad

    @property
    def gain(self) -> float:
        """Share of the pairs that are rescued, less that of those ruined; NaN without pairs."""
        return (self.rescued - self.ruined) / self.pairs if self.pairs else math.nan

    @property
    def p(self) -> float:
        """Two-sided p-value of the exact sign test; 1 if no pair is rescued or ruined."""
        from scipy.stats import binomtest

        decided = self.rescued + self.ruined
        return float(binomtest(self.rescued, decided).pvalue) if decided else 1.0

    def compute_interval(self, confidence: float = CONFIDENCE) -> Interval:
        """Compute an interval of the gain; NaN without pairs."""
        from scipy.stats import binomtest

        if not self.pairs:
            return Interval(math.nan, math.nan)
        rescued, ruined = (
            binomtest(count, self.pairs).proportion_ci((1 + confidence) / 2)
            for count in (self.rescued, self.ruined)
        )
        return Interval(float(rescued.low - ruined.high), float(rescued.high - ruined.low))


@dataclass(frozen=True, kw_only=True)
class ContrastOutcomes(OutcomeTable):
    """Outcomes of a contrast.

    Attributes:
        contrast: the change.
        p_adjusted: p-value after Holm's correction for all contrasts of its table.
    """

    contrast: Contrast
    p_adjusted: float = 1.0

    @property
    def is_significant(self) -> bool:
        """Whether the numbers of rescued and ruined pairs differ, corrected for all contrasts."""
        return self.p_adjusted < 1 - CONFIDENCE


def compute_outcomes(table: FactorialTable) -> list[ContrastOutcomes]:
    """Count the outcomes of each contrast that has a pair.

    Args:
        table: outcomes of the trials.
    """
    found = [
        ContrastOutcomes.from_outcomes(*table.match_contrast(contrast), contrast=contrast)
        for contrast in table.list_contrasts()
    ]
    found = [each for each in found if each.pairs]
    adjusted = adjust_by_holm(np.array([each.p for each in found]))
    return [replace(each, p_adjusted=float(p)) for each, p in zip(found, adjusted, strict=True)]
