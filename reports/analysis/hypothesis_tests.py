"""Hypotheses tested on a study: those that it stores, and others, which are exploratory.

A hypothesis is tested by mean differences over matched pairs. So is the question which of two
switches has the larger effect: in a two-by-two design the difference of their main effects is the
difference between trials with the first switch alone and trials with the second alone (Box, Hunter
& Hunter, *Statistics for Experimenters*, 2nd edition, chapter 5).
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from reports.analysis.nuisance import (
    build_judged_table,
    build_outcome_table,
    estimate_effects,
)
from reports.results import Results
from reports.stats.conditional_effects import ConditionalEffect, find_reversal
from reports.stats.design import Contrast
from reports.stats.effects import FactorialTable, PairedDifference
from reports.stats.hypotheses import (
    OUTCOME_MARGIN,
    RULES,
    DecisionRule,
    Verdict,
)
from reports.stats.scale import BAD, GOOD, format_param, format_value
from reports.trial_table import find_traits
from rnn.config import BASELINE_CELLS, ParamValue
from studies.hypotheses import Hypothesis, HypothesisRecord, SettingContrast
from studies.space import CELL, GATED_CELL, REPLICATE

_NO_PAIRS = PairedDifference.from_trials(np.empty(0), np.empty((2, 0), np.int64), (-1, 1), None)


@dataclass(frozen=True)
class Finding:
    """Estimates of one contrast and the verdicts on its hypothesis.

    Attributes:
        contrast: name of the contrast.
        effect: mean difference of the loss.
        verdict: verdict on the mean loss; None for a contrast that does not decide it.
        outcomes: mean difference of the outcomes; None in a study without a threshold.
        outcome_verdict: verdict on the outcomes; None for a contrast that does not decide it, and
            where all trials are on one side of the threshold.
        reversal: conditional effect with opposite signs; of several the one that differs most.
        conjunction: number of contrasts of the conjunction that it decides; 1 without one.
    """

    contrast: str
    effect: PairedDifference
    verdict: Verdict | None = None
    outcomes: PairedDifference | None = None
    outcome_verdict: Verdict | None = None
    reversal: ConditionalEffect | None = None
    conjunction: int = 1

    @property
    def judged(self) -> list[tuple[Verdict, PairedDifference]]:
        """Its verdicts, each with the estimate that it is about."""
        both = (self.verdict, self.effect), (self.outcome_verdict, self.outcomes)
        return [(verdict, estimate) for verdict, estimate in both if verdict and estimate]


@dataclass(frozen=True)
class HypothesisTest:
    """A hypothesis and its test on one study.

    Attributes:
        hypothesis: the hypothesis, with its margin.
        mark: when the study stored it; ``exploratory`` if it did not.
        is_exploratory: whether it may have been chosen after looking at results.
        findings: its contrasts, those shown as context first; empty if the study cannot test it or
            is not finished.
        problem: why there are no findings, or not of all of its contrasts.
        is_untestable: whether the study cannot test it, finished or not.
    """

    hypothesis: Hypothesis
    mark: str
    is_exploratory: bool
    findings: list[Finding]
    problem: str = ""
    is_untestable: bool = False

    @property
    def rows(self) -> list[Finding]:
        """Its findings; without any one that has the verdict alone, for tables."""
        verdict = Verdict.NOT_TESTABLE if self.is_untestable else None
        return self.findings or [Finding("", _NO_PAIRS, verdict)]


def run_stored_tests(results: Results) -> list[HypothesisTest]:
    """Test the hypotheses that a study stores; without findings while it is not finished."""
    return [_test_record(results, each, each.hypothesis) for each in results.hypotheses]


def run_test(results: Results, hypothesis: Hypothesis) -> HypothesisTest:
    """Test a hypothesis, which is exploratory unless the study stores one with its test."""
    same = [each for each in results.hypotheses if each.hypothesis.has_same_test(hypothesis)]
    if not same:
        return _test(results, hypothesis, "exploratory", True)
    in_same_words = [record for record in same if record.hypothesis == hypothesis]
    record = (in_same_words or same)[-1]
    # What else is shown was not stated before the first trial.
    context = {"context": record.hypothesis.context}
    return _test_record(results, record, hypothesis.model_copy(update=context))


def _test_record(
    results: Results, record: HypothesisRecord, hypothesis: Hypothesis
) -> HypothesisTest:
    config, mark = results.config, record.mark
    changed = record.find_changes(config.report_threshold, config.nuisance)
    if changed:
        has = "have" if len(changed) > 1 else "has"
        mark += f"; {' and '.join(changed)} {has} changed since"
    is_exploratory = bool(changed or record.withdrawn) or not record.is_preregistered
    return _test(results, hypothesis, mark, is_exploratory)


def _test(
    results: Results, hypothesis: Hypothesis, mark: str, is_exploratory: bool
) -> HypothesisTest:
    findings: list[Finding] = []
    counts, gaps = results.counts, _find_gaps(results, hypothesis)
    problem, is_untestable = "; ".join(filter(None, dict.fromkeys(gaps))), all(gaps)
    if not is_untestable and counts.finished < counts.planned:
        problem = f"{counts.finished:,} of {counts.planned:,} trials are finished"
    elif not is_untestable:
        findings = _estimate_findings(results, hypothesis)
        is_untestable = not findings
        problem = problem or ("" if findings else "no pair to compare")
    return HypothesisTest(hypothesis, mark, is_exploratory, findings, problem, is_untestable)


def describe_comparison(hypothesis: Hypothesis) -> str:
    """Describe what a hypothesis compares, in its own words if it has some."""
    parts = list(map(name_contrast, hypothesis.contrasts))
    if name := hypothesis.consecutive:
        parts.append(f"each {format_param(name)} against the next smaller one")
    if larger := hypothesis.larger_than:
        switches = ", ".join(map(format_param, larger.switches))
        parts.append(f"{name_contrast(larger.contrast, True)} against each of {switches}")
    return hypothesis.comparison or "; ".join(parts)


def describe_rule(hypothesis: Hypothesis) -> tuple[str, str]:
    """Describe when a hypothesis holds and when not."""
    margin = hypothesis.with_margin().margin
    assert margin is not None
    return RULES[hypothesis.rule].describe(margin, hypothesis.conjunction)


def describe_region(hypothesis: Hypothesis) -> str:
    """Describe the region of a hypothesis: ``state size 256, layers 2 or 3``; "" for all trials."""
    return ", ".join(
        f"{format_param(name)} {' or '.join(map(format_value, values))}"
        for name, values in hypothesis.region.items()
    )


# ------------------------------------------------------------------ estimates of contrasts


def _estimate_findings(results: Results, hypothesis: Hypothesis) -> list[Finding]:
    """Estimate the contrasts of a hypothesis on a finished study, and decide.

    Replicates count as one trial. Each architecture is judged at its best values of the nuisance
    parameters.

    Returns:
        The context contrasts, then those that are tested; empty if no contrast has a pair.
    """
    margin, threshold = hypothesis.with_margin().margin, results.config.report_threshold
    assert margin is not None
    varied = results.judged_parameters
    fixed = {name: each for name, each in hypothesis.region.items() if name in varied}
    table, outcome_table = build_judged_table(results).subset(fixed), None
    if threshold is not None:
        outcome_table = build_outcome_table(results, threshold).subset(fixed)
    # Where all trials are on one side of the threshold, no change could move one across it.
    has_both = outcome_table is not None and {GOOD, BAD} <= set(outcome_table.values.flat)

    def estimate(contrasts: Iterable[SettingContrast]) -> Iterator[Finding]:
        for contrast in contrasts:
            sides, changes = (contrast.before, contrast.after), _list_changes(contrast)
            effect = table.compute_difference(*sides)
            outcomes = outcome_table.compute_difference(*sides) if outcome_table else None
            has_pairs = effect.pairs or (outcomes and outcomes.pairs)
            if has_pairs and not any(_explain_exclusion(results, name) for name in sides[0]):
                name, reversal = name_contrast(contrast), None
                if len(changes) == 1:
                    known = () if fixed else estimate_effects(results)[1]
                    reversal = find_reversal(table, changes[0], known)
                yield Finding(name, effect, outcomes=outcomes, reversal=reversal)

    tested = list(estimate(list_contrasts(hypothesis, table)))
    rule, count = RULES[hypothesis.rule], len(tested) if hypothesis.conjunction else 1
    # Rules are about the value. Outcomes are better where they are lower.
    outcome_rule = rule.mirror() if results.scale.higher_is_better else rule
    tested = [
        replace(
            each,
            verdict=rule.decide(each.effect, margin, count),
            outcome_verdict=(
                outcome_rule.decide(each.outcomes, OUTCOME_MARGIN, count)
                if each.outcomes and has_both
                else None
            ),
            conjunction=count,
        )
        for each in tested
    ]
    if tested and hypothesis.conjunction:
        tested = _keep_least_favorable(tested, rule, outcome_rule)
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
                label=f"{name_contrast(larger.contrast, True)} against "
                f"{'' if is_better_on else 'no '}{format_param(switch)}",
                before={**before, switch: is_better_on},
                after={**after, switch: not is_better_on},
            )
    if name := hypothesis.consecutive:
        for less, more in itertools.pairwise(table.axes.get(name, ())):
            yield SettingContrast(before={name: less}, after={name: more})


def name_contrast(contrast: SettingContrast, is_short: bool = False) -> str:
    """Return the label of a contrast, or else the changes of its parameters.

    Args:
        contrast: the contrast.
        is_short: whether a parameter that changes alone is given by its short name.
    """
    changes = _list_changes(contrast)
    if is_short and len(changes) == 1 and not contrast.label:
        return f"no {changes[0].label}" if changes[0].after is False else changes[0].label
    return contrast.label or ", ".join(each.description for each in changes)


def _list_changes(contrast: SettingContrast) -> list[Contrast]:
    traits = find_traits(contrast.before)
    return [
        traits.name_contrast(name, before, contrast.after[name])
        for name, before in contrast.before.items()
    ]


def _keep_least_favorable(
    findings: Sequence[Finding], rule: DecisionRule, outcome_rule: DecisionRule
) -> list[Finding]:
    """Return the finding that decides on the mean, and that which decides on the outcomes."""

    def rank(judged: tuple[Verdict, PairedDifference]) -> tuple[int, float]:
        verdict, estimate = judged
        opposition = (outcome_rule if estimate.scale.is_outcome else rule).measure_opposition(
            estimate
        )
        place = list(Verdict).index(verdict)
        return place, math.inf if math.isnan(opposition) else opposition

    mean, *outcome = (
        max(findings, key=lambda each: rank(each.judged[i])) for i in range(len(findings[0].judged))
    )
    if outcome in ([], [mean]):
        return [mean]
    return [replace(mean, outcome_verdict=None), replace(outcome[0], verdict=None)]


# ------------------------------------------------------------------ what a study can test


def list_unknown(results: Results, hypothesis: Hypothesis) -> list[str]:
    """List the parameters of a hypothesis that no study of this kind has."""
    known = {CELL, REPLICATE, *results.config.list_params()}
    return [name for name in hypothesis.parameters if name not in known]


def _find_gaps(results: Results, hypothesis: Hypothesis) -> list[str]:
    """Say of each comparison of a hypothesis why no study of this grid can make it.

    Returns:
        A reason such as ``layers has one value`` for each contrast, consecutive parameter and
        switch; "" for those that the grid has, though it may lack all of their pairs.
    """
    # Values that a comparison needs of each parameter; any two or more where there are none.
    needed: list[Mapping[str, Sequence[ParamValue]]] = [
        {each.parameter: (each.before, each.after) for each in _list_changes(contrast)}
        for contrast in hypothesis.contrasts
    ]
    if hypothesis.consecutive:
        needed.append({hypothesis.consecutive: ()})
    if larger := hypothesis.larger_than:
        changes = _list_changes(larger.contrast)
        sides = {each.parameter: (each.before, each.after) for each in changes}
        needed += [sides | {switch: (False, True)} for switch in larger.switches]
    unknown = list_unknown(results, hypothesis)
    problem = f"no parameter {', '.join(map(repr, unknown))}" if unknown else ""
    problem = problem or _find_region_gap(results, hypothesis.region)
    return [problem or _find_gap(results, each) for each in needed]


def _find_gap(results: Results, needed: Mapping[str, Sequence[ParamValue]]) -> str:
    for name, wanted in needed.items():
        values = _list_values(results, name)
        if len(values) < 2:
            return f"{format_param(name)} has {'one' if values else 'no'} value"
        if missing := [value for value in wanted if value not in values]:
            return f"{format_param(name)} has no value {format_value(missing[0])}"
        if reason := _explain_exclusion(results, name):
            return reason
    return ""


def _explain_exclusion(results: Results, name: str) -> str:
    """Say why a study does not contrast a parameter that has several values; "" if it does.

    In a refinement hypotheses contrast the parameters that its variants change: its other
    differences are a result of the selection of its source trials. Baseline cells test no
    hypothesis, and neither do the survivors of pruning.
    """
    refinement = results.config.refinement
    if results.is_pruned:
        return "trials were pruned, and those that remain are a selection"
    if results.cells and set(results.cells) <= set(BASELINE_CELLS):
        return "the study has baseline cells only"
    if name in results.nuisance:
        return f"{format_param(name)} is a nuisance parameter"
    is_changed = refinement is None or any(name in variant for variant in refinement.variants)
    return "" if is_changed else f"{format_param(name)} is in no variant"


def _find_region_gap(results: Results, region: Mapping[str, Sequence[ParamValue]]) -> str:
    for name, wanted in region.items():
        values = _list_values(results, name)
        if not any(each in values for each in wanted):
            return f"{format_param(name)} has no value {' or '.join(map(format_value, wanted))}"
        if name in results.judged_parameters:
            continue
        if name in results.table and not results.table[name].isin(wanted).all():
            return f"{format_param(name)} does not distinguish the architectures"
    return ""


def _list_values(results: Results, name: str) -> list[ParamValue]:
    """List the values of a parameter in a study, whether it varies or not."""
    if name in results.table:
        return results.table[name].dropna().unique().tolist()
    if not results.cells:
        return []
    settings = {CELL: GATED_CELL} | results.config.training.model_dump()
    return [settings[name]] if name in settings else []
