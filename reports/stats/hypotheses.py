"""Whether a hypothesis holds: by the mean difference, or by the outcomes of matched pairs.

*Outcomes.* A trial is good if its loss is below a threshold, and bad otherwise, also if it
diverged; where a higher value is better, if its value is above. A change rescues a pair that is bad
before it and good after it, and ruins one that is good before and bad after. To select the good
trials and compare those would leave out just these pairs: it selects by the outcome (Elwert &
Winship, *Endogenous Selection Bias*, 2014). So no pair is left out here but for those in which a
trial has no outcome yet, and regions are chosen by parameters.

If a change had no effect, a pair with two outcomes would be rescued or ruined with equal
probability: an exact sign test (McNemar, *Note on the Sampling Error of the Difference between
Correlated Proportions*, 1947). The share of pairs that a change rescues, less that which it ruins,
has the interval of two exact ones (Clopper & Pearson, *The Use of Confidence or Fiducial Limits*,
1934), each at half the error. It covers repeating every run, and is too wide for it, because most
trials would end on the same side.

*Rules.* A rule has two conditions that exclude each other, one under which a hypothesis holds and
one under which it fails. A difference that is not significant decides nothing: the interval has to
exclude what would be worthwhile (Lakens, Scheel & Isager, *Equivalence Testing for Psychological
Research*, 2018).

A conjunction holds if all of its k contrasts do: an intersection-union test, at 5% in each (Berger,
*Multiparameter Hypothesis Testing and Acceptance Sampling*, 1982). It fails if one of them does,
and k tests at 5% would fail a true claim too often, so each uses an error of 5% / k (Bonferroni).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from reports.stats.design import Contrast
from reports.stats.effects import CONFIDENCE, MIN_PAIRS, FactorialTable, Interval, PairedDifference
from reports.stats.replicates import adjust_by_holm

GOOD, UNKNOWN, BAD = 0.0, 1.0, 2.0
"""Outcomes as values of a table. The least of several is that of an architecture at its best: good
if one trial is, and unknown if none is but one may yet be."""

OUTCOME_MARGIN = 0.1
"""Share of the pairs that have to be rescued, less those ruined, to matter."""


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
        ContrastOutcomes.from_outcomes(
            *table.values[table.match_contrast(contrast)], contrast=contrast
        )
        for contrast in table.list_contrasts()
    ]
    found = [each for each in found if each.pairs]
    adjusted = adjust_by_holm(np.array([each.p for each in found]))
    return [replace(each, p_adjusted=float(p)) for each, p in zip(found, adjusted, strict=True)]


class Verdict(StrEnum):
    """Verdict on a hypothesis."""

    HOLDS = "holds"
    UNDECIDED = "undecided"
    FAILS = "does not hold"
    NOT_TESTABLE = "not testable"
    """The study lacks a parameter that the hypothesis names, or every pair that it compares."""


LEAST_FAVORABLE_LAST = [Verdict.HOLDS, Verdict.UNDECIDED, Verdict.FAILS]


class Condition(NamedTuple):
    """Condition on the mean difference of the value, and the same on an outcome table.

    Attributes:
        mean: condition, given the interval of the difference and the margin.
        outcome: condition, given the error at which it is tested and a table in which a pair is
            rescued if the value falls across the threshold.
        text: the first condition, with a ``{margin}`` placeholder.
    """

    mean: Callable[[Interval, float], bool]
    outcome: Callable[[OutcomeTable, float], bool]
    text: str


@dataclass(frozen=True)
class DecisionRule:
    """When a hypothesis holds and when it fails; the two conditions exclude each other.

    Attributes:
        holds: condition under which it holds.
        fails: condition under which it fails.
        opposition: how much an interval speaks against it; of the contrasts of a conjunction, that
            with the most decides.
    """

    holds: Condition
    fails: Condition
    opposition: Callable[[Interval], float]

    def describe_holds(self, margin: float, is_conjunction: bool) -> str:
        """Describe when a hypothesis holds: ``the interval lies below −0.02``."""
        text = self.holds.text.format(margin=margin)
        return f"in each contrast {text}" if is_conjunction else text

    def describe_fails(self, margin: float, is_conjunction: bool) -> str:
        """Describe when a hypothesis fails."""
        text = self.fails.text.format(margin=margin)
        if not is_conjunction:
            return text
        wide = text.replace("interval", f"interval of 1 − {1 - CONFIDENCE:.0%} / k", 1)
        return f"in one of its k contrasts {wide}"

    def decide_mean(self, effect: PairedDifference, margin: float, contrasts: int = 1) -> Verdict:
        """Return the verdict on the mean value.

        Args:
            effect: mean difference; it decides nothing if its interval cannot.
            margin: largest difference that counts as none.
            contrasts: number of contrasts of the conjunction of which this is one.
        """
        if not effect.is_decidable:
            return Verdict.UNDECIDED
        if self.holds.mean(effect.compute_interval(), margin):
            return Verdict.HOLDS
        wide = effect.compute_interval(1 - compute_fail_error(contrasts))
        return Verdict.FAILS if self.fails.mean(wide, margin) else Verdict.UNDECIDED

    def decide_outcome(
        self, outcomes: OutcomeTable, contrasts: int = 1, higher_is_better: bool = False
    ) -> Verdict:
        """Return the verdict on an outcome table; too few pairs decide nothing.

        Args:
            outcomes: the table.
            contrasts: as in :meth:`decide_mean`.
            higher_is_better: whether a value above the threshold is good, not one below it.
        """
        if outcomes.pairs < MIN_PAIRS:
            return Verdict.UNDECIDED
        if higher_is_better:  # rules are about the value: where it falls, the pair is ruined
            outcomes = outcomes.exchange_sides()
        if self.holds.outcome(outcomes, 1 - CONFIDENCE):
            return Verdict.HOLDS
        fails = self.fails.outcome(outcomes, compute_fail_error(contrasts))
        return Verdict.FAILS if fails else Verdict.UNDECIDED


def compute_fail_error(contrasts: int) -> float:
    """Return the error at which one of some contrasts decides that their conjunction fails."""
    return (1 - CONFIDENCE) / contrasts


def _changes_outcomes(outcomes: OutcomeTable, error: float) -> bool:
    """Return whether as many more pairs are rescued than ruined, or the reverse, as matter."""
    return outcomes.p < error and abs(outcomes.gain) >= OUTCOME_MARGIN


def _excludes_gain(outcomes: OutcomeTable, error: float) -> bool:
    """Return whether the interval of the gain excludes one that matters."""
    return outcomes.compute_interval(1 - error).high < OUTCOME_MARGIN


def _excludes_change(outcomes: OutcomeTable, error: float) -> bool:
    """Return whether the interval of the gain excludes one that matters, of either sign."""
    low, high = outcomes.compute_interval(1 - error)
    return low > -OUTCOME_MARGIN and high < OUTCOME_MARGIN


_LOWERS = Condition(
    lambda interval, margin: interval.high < -margin,
    lambda outcomes, error: _changes_outcomes(outcomes, error) and outcomes.gain > 0,
    "the interval lies below −{margin}",
)
_DOES_NOT_LOWER = Condition(
    lambda interval, margin: interval.low > -margin,
    _excludes_gain,
    "the interval lies above −{margin}",
)
_RAISES = Condition(
    lambda interval, margin: interval.low > margin,
    lambda outcomes, error: _changes_outcomes(outcomes, error) and outcomes.gain < 0,
    "the interval lies above {margin}",
)
_DOES_NOT_RAISE = Condition(
    lambda interval, margin: interval.high < margin,
    lambda outcomes, error: _excludes_gain(outcomes.exchange_sides(), error),
    "the interval lies below {margin}",
)
_MAKES_NO_DIFFERENCE = Condition(
    lambda interval, margin: -margin < interval.low and interval.high < margin,
    _excludes_change,
    "the interval lies within ±{margin}",
)
_MAKES_A_DIFFERENCE = Condition(
    lambda interval, margin: interval.low > margin or interval.high < -margin,
    _changes_outcomes,
    "the interval lies outside ±{margin}",
)

RULES: Mapping[str, DecisionRule] = {
    "lowers": DecisionRule(_LOWERS, _DOES_NOT_LOWER, lambda interval: interval.high),
    "does-not-lower": DecisionRule(_DOES_NOT_LOWER, _LOWERS, lambda interval: -interval.low),
    "raises": DecisionRule(_RAISES, _DOES_NOT_RAISE, lambda interval: -interval.low),
    "does-not-raise": DecisionRule(_DOES_NOT_RAISE, _RAISES, lambda interval: interval.high),
    "makes-no-difference": DecisionRule(
        _MAKES_NO_DIFFERENCE,
        _MAKES_A_DIFFERENCE,
        lambda interval: max(-interval.low, interval.high),
    ),
}
"""Decision rule of each value of :attr:`studies.hypotheses.Hypothesis.rule`."""
