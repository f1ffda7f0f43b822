"""Findings on a hypothesis: estimates of its contrasts in a study, and the verdicts on them.

A hypothesis is tested by mean differences over matched pairs. So is the question which of two
switches has the larger effect: in a two-by-two design the difference of their main effects is the
difference between trials with the first switch alone and trials with the second alone (Box, Hunter
& Hunter, *Statistics for Experimenters*, 2nd edition, chapter 5).
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from reports.analysis.testability import list_contrasted, resolve_region
from reports.data.results import Results
from reports.data.trial_table import find_traits
from reports.stats.conditional_effects import ConditionalEffect, find_reversal
from reports.stats.contrast import Contrast
from reports.stats.decision_rules import (
    LEAST_FAVORABLE_LAST,
    RULES,
    DecisionRule,
    Verdict,
    compute_fail_error,
)
from reports.stats.effects import FactorialTable
from reports.stats.outcome_table import BAD, GOOD, OutcomeTable
from reports.stats.paired_difference import Interval, PairedDifference
from reports.stats.scale import format_param, format_signed
from studies.hypotheses import Hypothesis, SettingContrast


@dataclass(frozen=True)
class Finding:
    """Estimates of one contrast and the verdicts on its hypothesis.

    Attributes:
        contrast: name of the contrast.
        effect: mean difference of the loss.
        verdict: verdict on the mean loss; None for a contrast that does not decide it.
        outcomes: outcomes of the pairs; None in a study without a threshold.
        outcome_verdict: verdict on the outcomes; None for a contrast that does not decide it, and
            where all trials are on one side of the threshold.
        reversal: conditional effect with opposite signs; of several the one that differs most.
        conjunction: number of contrasts of the conjunction that it decides; 1 without one.
    """

    contrast: str
    effect: PairedDifference
    verdict: Verdict | None
    outcomes: OutcomeTable | None
    outcome_verdict: Verdict | None = None
    reversal: ConditionalEffect | None = None
    conjunction: int = 1

    @property
    def notes(self) -> list[str]:
        """What a reader needs to know besides the verdicts, in sentences."""
        return [text for text in (self._conjunction_text, self.reversal_text) if text]

    @property
    def _conjunction_text(self) -> str:
        if self.conjunction == 1 or not self.verdict or math.isnan(self.effect.error):
            return ""
        confidence = 1 - compute_fail_error(self.conjunction)
        spec = self.effect.scale.spec
        low, high = (format_signed(e, spec) for e in self.effect.compute_interval(confidence))
        return (
            f"Of {self.conjunction} contrasts, “{self.contrast}” is the least favorable; its "
            f"interval of {100 * confidence:.4g}% is {low} to {high}."
        )

    @property
    def reversal_text(self) -> str:
        """On which parameter the sign of the effect depends, one sentence; "" if on none."""
        if self.reversal is None:
            return ""
        name = format_param(self.reversal.parameter)
        return f"The sign of “{self.contrast}” depends on {name}: {self.reversal.extremes}."


def estimate_findings(
    results: Results,
    hypothesis: Hypothesis,
    values: FactorialTable,
    outcomes: FactorialTable | None,
) -> list[Finding]:
    """Estimate the contrasts of a hypothesis on a finished study, and decide.

    Args:
        results: results of the study.
        hypothesis: the hypothesis.
        values: values of the architectures.
        outcomes: outcomes of the architectures; None without a threshold.

    Returns:
        The context contrasts, then those that are tested; empty if no contrast has a pair.
    """
    contrasted, margin = list_contrasted(results), hypothesis.with_margin().margin
    assert margin is not None
    fixed = resolve_region(results, hypothesis.region)
    if fixed is None or not contrasted:
        return []
    table = values.subset(fixed)
    outcome_table = None if outcomes is None else outcomes.subset(fixed)
    # Where all trials are on one side of the threshold, no change could move one across it.
    has_both = outcome_table is not None and bool({GOOD, BAD} <= set(outcome_table.values.flat))

    def estimate(contrasts: Iterable[SettingContrast]) -> Iterator[Finding]:
        for contrast in contrasts:
            sides = contrast.before, contrast.after
            effect, counts = table.compute_difference(*sides), None
            if outcome_table is not None:
                counts = OutcomeTable.from_outcomes(*outcome_table.match_pairs(*sides))
            has_pairs = effect.pairs or (counts is not None and counts.pairs)
            if has_pairs and contrast.before.keys() <= contrasted:
                name, reversal = name_contrast(contrast), None
                if len(contrast.before) == 1:
                    reversal = find_reversal(table, _to_contrast(contrast))
                yield Finding(name, effect, None, counts, None, reversal)

    rule, tested = RULES[hypothesis.rule], list(estimate(list_contrasts(hypothesis, table)))
    count = len(tested) if hypothesis.conjunction else 1
    tested = [
        replace(
            each,
            verdict=rule.decide_mean(each.effect, margin, count),
            outcome_verdict=(
                rule.decide_outcome(each.outcomes, count, table.scale.higher_is_better)
                if each.outcomes and has_both
                else None
            ),
            conjunction=count,
        )
        for each in tested
    ]
    if hypothesis.conjunction:
        tested = _keep_least_favorable(tested, rule)
    return [*estimate(hypothesis.context), *tested] if tested else []


def list_contrasts(hypothesis: Hypothesis, table: FactorialTable) -> Iterator[SettingContrast]:
    """Yield the contrasts of a hypothesis that a table can test."""
    yield from hypothesis.contrasts
    if larger := hypothesis.larger_than:
        before, after = larger.contrast.before, larger.contrast.after
        for switch in larger.switches:
            # The switch alone against the contrast alone, each set to what lowers the value, or
            # raises it if the rule is about that.
            mean = table.compute_difference({switch: False}, {switch: True}).mean
            is_better_on = not (mean < 0 if hypothesis.is_about_rise else mean > 0)
            yield SettingContrast(
                label=f"{shorten_contrast(larger.contrast)} against "
                f"{'' if is_better_on else 'no '}{format_param(switch)}",
                before={**before, switch: is_better_on},
                after={**after, switch: not is_better_on},
            )
    if name := hypothesis.consecutive:
        for less, more in itertools.pairwise(table.axes.get(name, ())):
            yield SettingContrast(before={name: less}, after={name: more})


def name_contrast(contrast: SettingContrast) -> str:
    """Return the label of a contrast, or else the changes of its parameters."""
    changes = (
        Contrast(name, before, contrast.after[name]).description
        for name, before in contrast.before.items()
    )
    return contrast.label or ", ".join(changes)


def _to_contrast(contrast: SettingContrast) -> Contrast:
    """Return the contrast of a parameter that changes alone."""
    ((name, before),) = contrast.before.items()
    return find_traits([name]).name_contrast(name, before, contrast.after[name])


def shorten_contrast(contrast: SettingContrast) -> str:
    """Return the label of a contrast, or the short name of a parameter that changes alone."""
    if contrast.label or len(contrast.before) > 1:
        return name_contrast(contrast)
    single = _to_contrast(contrast)
    return f"no {single.label}" if single.after is False else single.label


def _keep_least_favorable(findings: Sequence[Finding], rule: DecisionRule) -> list[Finding]:
    """Return the finding that decides on the mean, and that which decides on the outcomes."""

    def rank(verdict: Verdict | None, interval: Interval) -> tuple[int, float]:
        opposition = rule.opposition(interval)
        place = -1 if verdict is None else LEAST_FAVORABLE_LAST.index(verdict)
        return place, math.inf if math.isnan(opposition) else opposition

    def rank_outcome(finding: Finding) -> tuple[int, float]:
        gain = finding.outcomes.gain if finding.outcomes else math.nan
        change = gain if finding.effect.scale.higher_is_better else -gain
        return rank(finding.outcome_verdict, Interval(change, change))

    if not findings:
        return []
    mean = max(findings, key=lambda each: rank(each.verdict, each.effect.compute_interval()))
    outcome = max(findings, key=rank_outcome)
    if outcome is mean or outcome.outcome_verdict is None:
        return [mean]
    return [replace(mean, outcome_verdict=None), replace(outcome, verdict=None)]
