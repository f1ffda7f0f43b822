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

import pandas as pd

from reports.analysis.nuisance import (
    build_judged_table,
    build_outcome_table,
    estimate_effects,
)
from reports.results import Results
from reports.stats.conditional_effects import ConditionalEffect, find_reversal
from reports.stats.design import Contrast
from reports.stats.effects import FactorialTable, Interval, PairedDifference
from reports.stats.hypotheses import (
    BAD,
    GOOD,
    LEAST_FAVORABLE_LAST,
    RULES,
    DecisionRule,
    OutcomeTable,
    Verdict,
)
from reports.stats.scale import format_param, format_value
from reports.trial_table import find_traits
from rnn.config import BASELINE_CELLS, ParamValue
from studies.hypotheses import Hypothesis, HypothesisRecord, Region, SettingContrast
from studies.space import CELL, GATED_CELL, REPLICATE


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
    def rule(self) -> DecisionRule:
        """The decision rule."""
        return RULES[self.hypothesis.rule]

    @property
    def comparison(self) -> str:
        """What is compared, for a reader."""
        return self.hypothesis.comparison or describe_comparison(self.hypothesis)

    @property
    def region(self) -> str:
        """The region of the grid, for a reader; "" for the whole grid."""
        return describe_region(self.hypothesis.region)


def run_stored_tests(results: Results) -> list[HypothesisTest]:
    """Test the hypotheses that a study stores; without findings while it is not finished."""
    return [_test_record(results, record) for record in results.hypotheses]


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
    results: Results, record: HypothesisRecord, hypothesis: Hypothesis | None = None
) -> HypothesisTest:
    config, mark = results.config, record.mark
    changed = record.find_changes(config.report_threshold, config.nuisance)
    if changed:
        has = "have" if len(changed) > 1 else "has"
        mark += f"; {' and '.join(changed)} {has} changed since"
    is_exploratory = bool(changed or record.withdrawn) or not record.is_preregistered
    return _test(results, hypothesis or record.hypothesis, mark, is_exploratory)


def _test(
    results: Results, hypothesis: Hypothesis, mark: str, is_exploratory: bool
) -> HypothesisTest:
    findings: list[Finding] = []
    counts, gaps = results.counts, _find_gaps(results, hypothesis)
    problem = "; ".join(filter(None, dict.fromkeys(gaps)))
    if unknown := list_unknown(results, hypothesis):
        problem = f"no parameter {', '.join(map(repr, unknown))}"
    is_untestable = bool(unknown) or all(gaps)
    if not is_untestable and counts.finished < counts.planned:
        problem = f"{counts.finished:,} of {counts.planned:,} trials are finished"
    elif not is_untestable:
        findings = _estimate_findings(results, hypothesis)
        is_untestable = not findings
        problem = problem or ("" if findings else "no pair to compare")
    return HypothesisTest(hypothesis, mark, is_exploratory, findings, problem, is_untestable)


def describe_comparison(hypothesis: Hypothesis) -> str:
    """Describe what a hypothesis compares."""
    parts = list(map(name_contrast, hypothesis.contrasts))
    if name := hypothesis.consecutive:
        parts.append(f"each {format_param(name)} against the next smaller one")
    if larger := hypothesis.larger_than:
        switches = ", ".join(map(format_param, larger.switches))
        parts.append(f"{shorten_contrast(larger.contrast)} against each of {switches}")
    return "; ".join(parts)


def describe_region(region: Region) -> str:
    """Describe a region of the grid: ``state size 256``, ``layers 2 or 3``; "" for all of it."""
    return ", ".join(
        f"{format_param(name)} {' or '.join(map(format_value, values))}"
        for name, values in region.items()
    )


def to_frame(tests: Sequence[HypothesisTest]) -> pd.DataFrame:
    """Return one row per contrast of each hypothesis, or one without values if there are none."""
    columns = [
        "claim", "status", "exploratory", "contrast", "region", "margin", "effect", "low", "high",
        "pairs", "verdict", "rescued", "ruined", "outcome_verdict", "sign_depends_on", "problem",
    ]  # fmt: skip
    rows: list[dict[str, object]] = []
    for test in tests:
        stated = {
            "claim": test.hypothesis.claim,
            "status": test.mark,
            "exploratory": test.is_exploratory,
            "region": test.region,
            "margin": test.hypothesis.margin,
            "problem": test.problem,
        }
        if not test.findings:
            verdict = Verdict.NOT_TESTABLE if test.is_untestable else None
            rows.append(stated | {"verdict": verdict, "sign_depends_on": ""})
        for finding in test.findings:
            effect, outcomes = finding.effect, finding.outcomes
            counts = {"rescued": outcomes.rescued, "ruined": outcomes.ruined} if outcomes else {}
            rows.append(
                stated
                | {name: getattr(effect, name) for name in ("low", "high", "pairs")}
                | {"contrast": finding.contrast, "effect": effect.mean, **counts}
                | {"verdict": finding.verdict, "outcome_verdict": finding.outcome_verdict}
                | {"sign_depends_on": finding.reversal.parameter if finding.reversal else ""}
            )
    return pd.DataFrame(rows, columns=columns)


# ------------------------------------------------------------------ estimates of contrasts


def _estimate_findings(results: Results, hypothesis: Hypothesis) -> list[Finding]:
    """Estimate the contrasts of a hypothesis on a finished study, and decide.

    Replicates count as one trial. Each architecture is judged at its best values of the nuisance
    parameters.

    Returns:
        The context contrasts, then those that are tested; empty if no contrast has a pair.
    """
    contrasted, margin = list_contrasted(results), hypothesis.with_margin().margin
    assert margin is not None
    if not contrasted or _find_region_gap(results, hypothesis.region):
        return []
    varied, threshold = results.judged_parameters, results.config.report_threshold
    fixed = {name: each for name, each in hypothesis.region.items() if name in varied}
    table, outcome_table = build_judged_table(results).subset(fixed), None
    if threshold is not None:
        outcome_table = build_outcome_table(results, threshold).subset(fixed)
    # Where all trials are on one side of the threshold, no change could move one across it.
    has_both = outcome_table is not None and bool({GOOD, BAD} <= set(outcome_table.values.flat))

    def estimate(contrasts: Iterable[SettingContrast]) -> Iterator[Finding]:
        for contrast in contrasts:
            sides = contrast.before, contrast.after
            effect, counts = table.compute_difference(*sides), None
            if outcome_table is not None:
                counts = OutcomeTable.from_outcomes(
                    *outcome_table.values[outcome_table.match(*sides)]
                )
            has_pairs = effect.pairs or (counts is not None and counts.pairs)
            if has_pairs and contrast.before.keys() <= contrasted:
                name, reversal = name_contrast(contrast), None
                if len(contrast.before) == 1:
                    known = () if fixed else estimate_effects(results)[1]
                    reversal = find_reversal(table, _to_contrast(contrast), known)
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


# ------------------------------------------------------------------ what a study can test


_Wanted = Mapping[str, Sequence[ParamValue]]
"""Values that a comparison needs of each parameter; any two or more where there are none."""


def list_contrasted(results: Results) -> set[str]:
    """List the parameters that hypotheses about a study may contrast.

    In a refinement these are the parameters that its variants change: its other differences are a
    result of the selection of its source trials. Baseline cells test no hypothesis, and neither do
    the survivors of pruning.
    """
    if results.is_pruned or _has_only_baselines(results):
        return set()
    names, refinement = set(results.judged_parameters), results.config.refinement
    return names if refinement is None else names & set().union(*refinement.variants)


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
    region = _find_region_gap(results, hypothesis.region)
    return [region or _find_gap(results, wanted) for wanted in _list_comparisons(hypothesis)]


def _list_comparisons(hypothesis: Hypothesis) -> Iterator[_Wanted]:
    for contrast in hypothesis.contrasts:
        yield {name: [value, contrast.after[name]] for name, value in contrast.before.items()}
    if hypothesis.consecutive:
        yield {hypothesis.consecutive: []}
    if larger := hypothesis.larger_than:
        contrast = larger.contrast
        sides = {name: [value, contrast.after[name]] for name, value in contrast.before.items()}
        yield from (sides | {switch: [False, True]} for switch in larger.switches)


def _find_gap(results: Results, wanted: _Wanted) -> str:
    contrasted = list_contrasted(results)
    for name, needed in wanted.items():
        values = _list_values(results, name)
        if len(values) < 2:
            return f"{name} has {'one' if values else 'no'} value"
        if missing := [value for value in needed if value not in values]:
            return f"{name} has no value {format_value(missing[0])}"
        if name not in contrasted:
            return _explain_exclusion(results, name)
    return ""


def _explain_exclusion(results: Results, name: str) -> str:
    """Say why a study with several values of a parameter does not contrast them."""
    if results.is_pruned:
        return "trials were pruned, and those that remain are a selection"
    if _has_only_baselines(results):
        return "the study has baseline cells only"
    return f"{name} is {'a nuisance parameter' if name in results.nuisance else 'in no variant'}"


def _find_region_gap(results: Results, region: Region) -> str:
    for name, wanted in region.items():
        values = _list_values(results, name)
        if not any(each in values for each in wanted):
            return f"{name} has no value {' or '.join(map(format_value, wanted))}"
        if name in results.judged_parameters:
            continue
        if name in results.table and not results.table[name].isin(wanted).all():
            return f"{name} does not distinguish the architectures"
    return ""


def _list_values(results: Results, name: str) -> list[ParamValue]:
    """List the values of a parameter in a study, whether it varies or not."""
    if name in results.table:
        return results.table[name].dropna().unique().tolist()
    if not results.cells:
        return []
    settings = {CELL: GATED_CELL} | results.config.training.model_dump()
    return [settings[name]] if name in settings else []


def _has_only_baselines(results: Results) -> bool:
    return bool(results.cells) and set(results.cells) <= set(BASELINE_CELLS)
