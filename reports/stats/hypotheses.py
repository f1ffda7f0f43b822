"""When a hypothesis about a change holds: by its mean difference, or by the outcomes of its pairs.

A rule has two conditions that exclude each other, one under which a hypothesis holds and one under
which it fails. A difference that is not significant decides nothing: the interval has to exclude
what would be worthwhile (Lakens, Scheel & Isager, *Equivalence Testing for Psychological Research*,
2018).

A conjunction holds if all of its k contrasts do: an intersection-union test, at 5% in each (Berger,
*Multiparameter Hypothesis Testing and Acceptance Sampling*, 1982). It fails if one of them does,
and k tests at 5% would fail a true claim too often, so each uses an error of 5% / k (Bonferroni).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self

from reports.stats.effects import CONFIDENCE, Interval, PairedDifference
from reports.stats.noise import NoiseSource

OUTCOME_MARGIN = 0.1
"""Share of the pairs that have to be rescued, less those ruined, to matter."""


class Verdict(StrEnum):
    """Verdict on a hypothesis, the least favorable of those that are testable last."""

    HOLDS = "holds"
    UNDECIDED = "undecided"
    FAILS = "does not hold"
    NOT_TESTABLE = "not testable"
    """The study lacks a parameter that the hypothesis names, or every pair that it compares."""


@dataclass(frozen=True)
class DecisionRule:
    """When a hypothesis holds and when it fails.

    Attributes:
        directions: changes of the value that it is about: 1 for a rise, -1 for a fall, or both.
        expects_change: whether it says that the value changes so by more than a margin, rather than
            that it does not.
    """

    directions: tuple[int, ...]
    expects_change: bool

    def mirror(self) -> Self:
        """Return the rule about values whose sign is reversed."""
        return replace(self, directions=tuple(-each for each in self.directions))

    def decide(self, effect: PairedDifference, margin: float, contrasts: int = 1) -> Verdict:
        """Return the verdict on a mean difference.

        Args:
            effect: the difference; it decides nothing if its interval cannot.
            margin: largest difference that counts as none.
            contrasts: number of contrasts of the conjunction of which this is one.
        """
        if not effect.is_decidable:
            return Verdict.UNDECIDED
        if self._is_met(self.expects_change, effect, margin, 1 - CONFIDENCE):
            return Verdict.HOLDS
        error = compute_fail_error(contrasts)
        is_contrary = self._is_met(not self.expects_change, effect, margin, error)
        return Verdict.FAILS if is_contrary else Verdict.UNDECIDED

    def measure_opposition(self, effect: PairedDifference) -> float:
        """Measure how much the interval of a difference, or a mean outcome, is against it.

        Of the contrasts of a conjunction, that with the most decides.
        """
        is_outcome = effect.source is NoiseSource.SIGNS
        interval = Interval(effect.mean, effect.mean) if is_outcome else effect.compute_interval()
        ranges = self._turn(interval)
        return max(-each.low if self.expects_change else each.high for each in ranges)

    def describe(self, margin: float, is_conjunction: bool) -> tuple[str, str]:
        """Describe when a hypothesis holds and when not: ``the interval lies below −0.02``."""
        holds, fails = (
            self._describe_place(changes, margin)
            for changes in (self.expects_change, not self.expects_change)
        )
        if not is_conjunction:
            return f"the interval lies {holds}", f"the interval lies {fails}"
        error = f"{1 - CONFIDENCE:.0%} / k"
        return (
            f"in each contrast the interval lies {holds}",
            f"in one of its k contrasts the interval of 1 − {error} lies {fails}",
        )

    def _is_met(self, changes: bool, effect: PairedDifference, margin: float, error: float) -> bool:
        """Return whether the value is shown to change by more than a margin, or not to."""
        if changes and effect.source is NoiseSource.SIGNS:
            is_large = any(each * effect.mean >= margin for each in self.directions)
            return effect.p < error and is_large
        ranges = self._turn(effect.compute_interval(1 - error))
        if changes:
            return any(each.low > margin for each in ranges)
        return all(each.high < margin for each in ranges)

    def _turn(self, interval: Interval) -> list[Interval]:
        """Return the interval of the change in each direction."""
        low, high = interval
        return [interval if each > 0 else Interval(-high, -low) for each in self.directions]

    def _describe_place(self, changes: bool, margin: float) -> str:
        if len(self.directions) > 1:
            return f"{'outside' if changes else 'within'} ±{margin}"
        is_rise = self.directions[0] > 0
        return f"{'above' if is_rise == changes else 'below'} {'' if is_rise else '−'}{margin}"


def compute_fail_error(contrasts: int) -> float:
    """Return the error at which one of some contrasts decides that their conjunction fails."""
    return (1 - CONFIDENCE) / contrasts


RULES: Mapping[str, DecisionRule] = {
    "lowers": DecisionRule((-1,), expects_change=True),
    "does-not-lower": DecisionRule((-1,), expects_change=False),
    "raises": DecisionRule((1,), expects_change=True),
    "does-not-raise": DecisionRule((1,), expects_change=False),
    "makes-no-difference": DecisionRule((-1, 1), expects_change=False),
}
"""Decision rule of each value of :attr:`studies.hypotheses.Hypothesis.rule`."""
