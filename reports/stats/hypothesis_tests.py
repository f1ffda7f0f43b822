"""Tests of hypotheses on the matched pairs of a study.

A hypothesis is tested by mean differences over matched pairs. So is the question which of two
switches has the larger effect: in a two-by-two design the difference of their main effects is the
difference between trials with the first switch alone and trials with the second alone (Box, Hunter
& Hunter, *Statistics for Experimenters*, 2nd edition, chapter 5).
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import pandas as pd

from reports.data.results import Results
from reports.formatting import format_param, format_value
from reports.stats.conditional_effects import ConditionalEffect, find_reversal
from reports.stats.contrast import Contrast
from reports.stats.decision_rules import LEAST_FAVORABLE_LAST, RULES, DecisionRule, Verdict
from reports.stats.effects import FactorialTable
from reports.stats.nuisance import build_judged_table
from reports.stats.outcome_table import OutcomeTable, build_outcome_table
from reports.stats.paired_difference import PairedDifference
from reports.stats.testability import find_gaps, list_contrasted, list_unknown, resolve_region
from studies.hypotheses import Hypothesis, HypothesisRecord, Region, SettingContrast


@dataclass(frozen=True)
class Finding:
    """Estimates of one contrast and the verdicts on its hypothesis.

    Attributes:
        contrast: name of the contrast.
        effect: mean difference of the loss, in nats.
        verdict: verdict on the mean loss; None for a contrast that does not decide it.
        outcomes: outcomes of the pairs; None in a study without a threshold.
        outcome_verdict: verdict on the outcomes; None for a contrast that does not decide it.
        reversal: conditional effect with opposite signs; of several the one that differs most.
    """

    contrast: str
    effect: PairedDifference
    verdict: Verdict | None
    outcomes: OutcomeTable | None
    outcome_verdict: Verdict | None = None
    reversal: ConditionalEffect | None = None

    @property
    def reversal_text(self) -> str:
        """On which parameter the sign of the effect depends, one sentence; "" if on none."""
        if self.reversal is None:
            return ""
        name = format_param(self.reversal.parameter)
        return f"The sign of “{self.contrast}” depends on {name}: {self.reversal.extremes}."


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


@dataclass(frozen=True)
class StudyTables:
    """Values and outcomes of a study's architectures, computed when a test needs them.

    Replicates count as one trial. Each architecture is judged at its best values of the nuisance
    parameters.
    """

    results: Results

    @cached_property
    def values(self) -> FactorialTable:
        """Values of the architectures."""
        return build_judged_table(self.results)

    @cached_property
    def outcomes(self) -> FactorialTable | None:
        """Outcomes of the architectures; None without a threshold."""
        threshold = self.results.config.report_threshold
        return None if threshold is None else build_outcome_table(self.results, threshold)

    def test_stored(self) -> list[HypothesisTest]:
        """Test the hypotheses that the study stores; without findings while it is not finished."""
        return [self._test_record(record) for record in self.results.hypotheses]

    def test(self, hypothesis: Hypothesis) -> HypothesisTest:
        """Test a hypothesis that is exploratory unless the study stores an equal one."""
        for record in reversed(self.results.hypotheses):
            if record.hypothesis == hypothesis:
                return self._test_record(record)
        return self._test(hypothesis, "exploratory", True)

    def _test_record(self, record: HypothesisRecord) -> HypothesisTest:
        config, mark = self.results.config, record.mark
        changed = record.find_changes(config.report_threshold, config.nuisance)
        if changed:
            has = "have" if len(changed) > 1 else "has"
            mark += f"; {' and '.join(changed)} {has} changed since"
        is_exploratory = bool(changed or record.withdrawn) or not record.is_preregistered
        return self._test(record.hypothesis, mark, is_exploratory)

    def _test(self, hypothesis: Hypothesis, mark: str, is_exploratory: bool) -> HypothesisTest:
        findings: list[Finding] = []
        results, counts = self.results, self.results.counts
        gaps = find_gaps(results, hypothesis)
        problem = "; ".join(filter(None, dict.fromkeys(gaps)))
        if unknown := list_unknown(results, hypothesis):
            problem = f"no parameter {', '.join(map(repr, unknown))}"
        is_untestable = bool(unknown) or all(gaps)
        if not is_untestable and counts.finished < counts.planned:
            problem = f"{counts.finished:,} of {counts.planned:,} trials are finished"
        elif not is_untestable:
            findings = find(self, hypothesis)
            is_untestable = not findings
            problem = problem or ("" if findings else "no pair to compare")
        return HypothesisTest(hypothesis, mark, is_exploratory, findings, problem, is_untestable)


def find(tables: StudyTables, hypothesis: Hypothesis) -> list[Finding]:
    """Estimate the contrasts of a hypothesis on a finished study, and decide.

    Returns:
        The context contrasts, then those that are tested; empty if no contrast has a pair.
    """
    contrasted, margin = list_contrasted(tables.results), hypothesis.with_margin().margin
    assert margin is not None
    fixed = resolve_region(tables.results, hypothesis.region)
    if fixed is None or not contrasted:
        return []
    table = tables.values.subset(fixed)
    outcome_table = None if tables.outcomes is None else tables.outcomes.subset(fixed)

    def estimate(contrasts: Iterable[SettingContrast]) -> Iterator[Finding]:
        for contrast in contrasts:
            sides = contrast.before, contrast.after
            effect, outcomes = table.compute_difference(*sides), None
            if outcome_table is not None:
                outcomes = OutcomeTable.from_outcomes(*outcome_table.match_pairs(*sides))
            has_pairs = effect.pairs or (outcomes is not None and outcomes.pairs)
            if has_pairs and contrast.before.keys() <= contrasted:
                name, reversal = name_contrast(contrast), None
                if len(contrast.before) == 1:
                    reversal = find_reversal(table, _to_contrast(contrast))
                yield Finding(name, effect, None, outcomes, None, reversal)

    rule = RULES[hypothesis.rule]
    tested = [
        replace(
            each,
            verdict=rule.decide_mean(each.effect, margin),
            outcome_verdict=rule.decide_outcome(each.outcomes) if each.outcomes else None,
        )
        for each in estimate(list_contrasts(hypothesis, table))
    ]
    if hypothesis.conjunction:
        tested = _keep_least_favorable(tested)
    return [*estimate(hypothesis.context), *tested] if tested else []


def list_contrasts(hypothesis: Hypothesis, table: FactorialTable) -> Iterator[SettingContrast]:
    """Yield the contrasts of a hypothesis that a table can test."""
    yield from hypothesis.contrasts
    if larger := hypothesis.larger_than:
        before, after = larger.contrast.before, larger.contrast.after
        for switch in larger.switches:
            # The switch alone against the contrast alone, each set to what lowers the loss.
            is_better_on = not table.compute_difference({switch: False}, {switch: True}).mean > 0
            yield SettingContrast(
                label=f"{_shorten_contrast(larger.contrast)} against "
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
    return Contrast(name, before, contrast.after[name])


def _shorten_contrast(contrast: SettingContrast) -> str:
    """Return the label of a contrast, or the short name of a parameter that changes alone."""
    if contrast.label or len(contrast.before) > 1:
        return name_contrast(contrast)
    single = _to_contrast(contrast)
    return f"no {single.label}" if single.after is False else single.label


def describe_comparison(hypothesis: Hypothesis) -> str:
    """Describe what a hypothesis compares."""
    parts = list(map(name_contrast, hypothesis.contrasts))
    if name := hypothesis.consecutive:
        parts.append(f"each {format_param(name)} against the next smaller one")
    if larger := hypothesis.larger_than:
        switches = ", ".join(map(format_param, larger.switches))
        parts.append(f"{_shorten_contrast(larger.contrast)} against each of {switches}")
    return "; ".join(parts)


def describe_region(region: Region) -> str:
    """Describe a region of the grid: ``state size 256``, ``layers 2 or 3``; "" for all of it."""
    return ", ".join(
        f"{format_param(name)} "
        + " or ".join(map(format_value, value if isinstance(value, list) else [value]))
        for name, value in region.items()
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


def _keep_least_favorable(findings: Sequence[Finding]) -> list[Finding]:
    """Return the finding that decides on the mean, and that which decides on the outcomes."""
    decides_mean = max(
        findings, key=lambda each: (_rank(each.verdict), each.effect.high), default=None
    )
    if decides_mean is None:
        return []
    decides_outcome = max(
        findings,
        key=lambda each: (
            _rank(each.outcome_verdict),
            -each.outcomes.gain if each.outcomes else -math.inf,
        ),
    )
    if decides_outcome is decides_mean:
        return [decides_mean]
    return [replace(decides_mean, outcome_verdict=None), replace(decides_outcome, verdict=None)]


def _rank(verdict: Verdict | None) -> int:
    return -1 if verdict is None else LEAST_FAVORABLE_LAST.index(verdict)
