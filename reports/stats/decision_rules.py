"""Rules that decide whether a hypothesis holds: on the mean loss, and on outcome tables.

A rule has two conditions that exclude each other, one under which a hypothesis holds and one under
which it fails. A difference that is not significant decides nothing: the interval has to exclude
what would be worthwhile (Lakens, Scheel & Isager, *Equivalence Testing for Psychological Research*,
2018).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from reports.stats.outcome_table import OutcomeTable
from reports.stats.paired_difference import CONFIDENCE, MIN_PAIRS, PairedDifference

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


@dataclass(frozen=True)
class Condition:
    """Condition on the mean difference of the loss, and the same on an outcome table.

    Attributes:
        mean: condition, given the difference and the margin in nats.
        outcome: condition, given the table.
        mean_text: the first condition, with a ``{margin}`` placeholder.
        outcome_text: the second condition.
    """

    mean: Callable[[PairedDifference, float], bool]
    outcome: Callable[[OutcomeTable], bool]
    mean_text: str
    outcome_text: str


@dataclass(frozen=True)
class DecisionRule:
    """When a hypothesis holds and when it fails; the two conditions exclude each other."""

    holds: Condition
    fails: Condition

    def decide_mean(self, effect: PairedDifference, margin: float) -> Verdict:
        """Return the verdict on the mean loss.

        Args:
            effect: mean difference; it decides nothing if its interval cannot.
            margin: largest difference, in nats, that counts as none.
        """
        if not effect.is_decidable:
            return Verdict.UNDECIDED
        if self.holds.mean(effect, margin):
            return Verdict.HOLDS
        return Verdict.FAILS if self.fails.mean(effect, margin) else Verdict.UNDECIDED

    def decide_outcome(self, outcomes: OutcomeTable) -> Verdict:
        """Return the verdict on an outcome table; too few pairs decide nothing."""
        if outcomes.pairs < MIN_PAIRS:
            return Verdict.UNDECIDED
        if self.holds.outcome(outcomes):
            return Verdict.HOLDS
        return Verdict.FAILS if self.fails.outcome(outcomes) else Verdict.UNDECIDED


def _changes_outcomes(outcomes: OutcomeTable) -> bool:
    """Return whether as many more pairs are rescued than ruined, or the reverse, as matter."""
    return outcomes.p < 1 - CONFIDENCE and abs(outcomes.gain) >= OUTCOME_MARGIN


_SHARE = f"{OUTCOME_MARGIN:.0%}"

_LOWERS = Condition(
    lambda effect, margin: effect.high < -margin,
    lambda outcomes: _changes_outcomes(outcomes) and outcomes.gain > 0,
    "the interval lies below −{margin}",
    f"significantly more pairs are rescued than ruined, by {_SHARE} of the pairs or more",
)
_DOES_NOT_LOWER = Condition(
    lambda effect, margin: effect.low > -margin,
    lambda outcomes: outcomes.interval[1] < OUTCOME_MARGIN,
    "the interval lies above −{margin}",
    f"the interval of the gain lies below {_SHARE}",
)
_MAKES_NO_DIFFERENCE = Condition(
    lambda effect, margin: -margin < effect.low and effect.high < margin,
    lambda outcomes: (
        outcomes.interval[0] > -OUTCOME_MARGIN and outcomes.interval[1] < OUTCOME_MARGIN
    ),
    "the interval lies within ±{margin}",
    f"the interval of the gain lies within ±{_SHARE}",
)
_MAKES_A_DIFFERENCE = Condition(
    lambda effect, margin: effect.low > margin or effect.high < -margin,
    _changes_outcomes,
    "the interval lies outside ±{margin}",
    f"the numbers of rescued and ruined pairs differ significantly, by {_SHARE} of the pairs or "
    "more",
)

RULES: Mapping[str, DecisionRule] = {
    "lowers": DecisionRule(_LOWERS, _DOES_NOT_LOWER),
    "does-not-lower": DecisionRule(_DOES_NOT_LOWER, _LOWERS),
    "makes-no-difference": DecisionRule(_MAKES_NO_DIFFERENCE, _MAKES_A_DIFFERENCE),
}
"""Decision rule of each value of :attr:`studies.hypotheses.Hypothesis.rule`."""
