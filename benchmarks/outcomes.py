"""``python -m benchmarks outcomes``: errors of verdicts by outcome, before and after.

Before: effects among the networks below a threshold, over pairs of which both are. After: the table
of all four outcomes. The networks of a simulated grid are either stuck at a high loss or below the
threshold; each has a probability to be, and a run of it is one draw.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats

from reports.stats.decision_rules import OUTCOME_MARGIN, RULES, Verdict
from reports.stats.outcome_table import BAD, GOOD, OutcomeTable
from reports.stats.paired_difference import MIN_PAIRS, Floats
from studies.hypotheses import DEFAULT_MARGIN

PAIRS = 48
"""Pairs of a switch in a grid of 96 networks."""

THRESHOLD = 1.9
"""Loss below which a simulated network is good, in nats."""

RUN_NOISE = 0.02
"""Standard deviation between runs of one network, in nats."""


@dataclass(frozen=True)
class SignTestRates:
    """Error rates of the sign test and its interval over simulated studies.

    Attributes:
        significant: share of the studies in which the sign test is significant.
        coverage: share in which the interval contains the expected gain.
        wrong: share in which "lowers" holds though the expected gain is not above zero, or fails
            though it is at the margin or above.
    """

    significant: float
    coverage: float
    wrong: float


@dataclass(frozen=True)
class VerdictRates:
    """How often a verdict on "lowers" is right, wrong or undecided where a switch rescues."""

    right: float
    wrong: float

    @property
    def undecided(self) -> float:
        """Share of the studies without a verdict."""
        return 1 - self.right - self.wrong


def simulate_sign_tests(
    effect: float, studies: int, seed: int, pairs: int = PAIRS
) -> SignTestRates:
    """Simulate studies in which a change adds ``effect`` to each probability of being good.

    The probabilities differ between the pairs of a study, from 0 to 1, mostly near the ends.
    """
    generator = np.random.default_rng(seed)
    significant = covered = wrong = 0
    for _ in range(studies):
        before = generator.beta(0.4, 0.4, pairs)
        after = np.clip(before + effect, 0, 1)
        expected = float((after - before).mean())
        draws = (np.where(generator.random(pairs) < p, GOOD, BAD) for p in (before, after))
        table = OutcomeTable.from_outcomes(*draws)
        low, high = table.compute_interval()
        verdict = RULES["lowers"].decide_outcome(table)
        significant += table.p < 0.05
        covered += low <= expected <= high
        wrong += verdict is Verdict.HOLDS and expected <= 0
        wrong += verdict is Verdict.FAILS and expected >= OUTCOME_MARGIN
    return SignTestRates(significant / studies, covered / studies, wrong / studies)


def simulate_rescue(
    rescued: float, studies: int, seed: int, cost: float = 0.01, pairs: int = PAIRS
) -> tuple[VerdictRates, VerdictRates]:
    """Simulate grids in which a switch rescues some of the networks that are stuck without it.

    Without the switch, 60% of the networks are stuck at 2.4 nats, above a threshold of 1.9; the
    others are at 1.6 to 1.8. With it, some of those that were stuck are at 1.85. Where it has
    nothing to rescue it costs a little, as the input gate does in the published grid.

    Args:
        rescued: share of the networks that the switch rescues.
        studies: number of studies.
        seed: seed of all studies.
        cost: what the switch adds to the loss of a network that is not stuck, in nats.
        pairs: number of pairs of each study.

    Returns:
        Rates of the verdict before, on the mean difference among pairs below the threshold, and
        after, on the outcome table. Right is that the switch lowers the loss.
    """
    generator = np.random.default_rng(seed)
    before_rule, after_rule = [], []
    for _ in range(studies):
        place = generator.random(pairs)
        is_stuck, is_rescued = place < 0.6, place < rescued
        level = np.where(is_stuck, 2.4, generator.uniform(1.6, 1.8, pairs))
        without = level + generator.normal(0, RUN_NOISE, pairs)
        change = np.where(is_rescued, 1.85 - 2.4, np.where(is_stuck, 0, cost))
        with_it = level + change + generator.normal(0, RUN_NOISE, pairs)
        both = (without < THRESHOLD) & (with_it < THRESHOLD)
        before_rule.append(_decide_below((with_it - without)[both]))
        outcomes = (np.where(each < THRESHOLD, GOOD, BAD) for each in (without, with_it))
        table = OutcomeTable.from_outcomes(*outcomes)
        after_rule.append(RULES["lowers"].decide_outcome(table))
    return _rate(before_rule), _rate(after_rule)


def _decide_below(differences: Floats) -> Verdict:
    """Decide "lowers" as before, on the pairs of which both networks are below the threshold."""
    if len(differences) < MIN_PAIRS:
        return Verdict.UNDECIDED
    reach = stats.sem(differences) * stats.t.ppf(0.975, len(differences) - 1)
    low, high = differences.mean() - reach, differences.mean() + reach
    if high < 0:
        return Verdict.HOLDS
    return Verdict.FAILS if low >= -DEFAULT_MARGIN else Verdict.UNDECIDED


def _rate(verdicts: list[Verdict]) -> VerdictRates:
    right, wrong = (verdicts.count(each) / len(verdicts) for each in (Verdict.HOLDS, Verdict.FAILS))
    return VerdictRates(right, wrong)


def measure() -> Iterator[str]:
    """Yield the error rates of the sign test and the verdicts."""
    studies = 4000
    yield f"sign test of rescued against ruined, {PAIRS} pairs, {studies:,} studies"
    yield "| share added to the good | significant | interval covers | wrong verdict |"
    for effect in (0.0, 0.1, 0.2, 0.3):
        rates = simulate_sign_tests(effect, studies, 1)
        shares = (rates.significant, rates.coverage, rates.wrong)
        yield f"| {effect:.0%} | {' | '.join(f'{share:.1%}' for share in shares)} |"
    yield "a switch that rescues networks and costs the others 0.01 nats: does it lower the loss?"
    yield "| rescued | before: yes | no | undecided | after: yes | no | undecided |"
    for rescued in (0.05, 0.1, 0.2, 0.3, 0.5):
        rules = simulate_rescue(rescued, studies, 1)
        verdicts = [each for rule in rules for each in (rule.right, rule.wrong, rule.undecided)]
        yield f"| {rescued:.0%} | {' | '.join(f'{share:.1%}' for share in verdicts)} |"
