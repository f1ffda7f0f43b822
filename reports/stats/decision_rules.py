"""Rules that decide whether a hypothesis holds: on the mean value, and on outcome tables.

A rule has two conditions that exclude each other, one under which a hypothesis holds and one under
which it fails. A difference that is not significant decides nothing: the interval has to exclude
what would be worthwhile (Lakens, Scheel & Isager, *Equivalence Testing for Psychological Research*,
2018).

A conjunction holds if all of its k contrasts do: an intersection-union test, at 5% in each (Berger,
*Multiparameter Hypothesis Testing and Acceptance Sampling*, 1982). It fails if one of them does,
and k tests at 5% would fail a true claim too often, so each uses an error of 5% / k (Bonferroni).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from reports.stats.outcome_table import OutcomeTable
from reports.stats.paired_difference import CONFIDENCE, MIN_PAIRS, Interval, PairedDifference

OUTCOME_MARGIN = 0.1
"""Share of the pairs that have to be rescued, less those ruined, to matter."""


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
