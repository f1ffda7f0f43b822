"""Hypotheses tested on a study: those that it stores, and others, which are exploratory."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from reports.analysis.findings import Finding, estimate_findings, name_contrast, shorten_contrast
from reports.analysis.nuisance import build_judged_table
from reports.analysis.outcomes import build_outcome_table
from reports.analysis.testability import find_gaps, list_unknown
from reports.data.results import Results
from reports.stats.decision_rules import RULES, DecisionRule, Verdict
from reports.stats.effects import FactorialTable
from reports.stats.scale import format_param, format_value
from studies.hypotheses import Hypothesis, HypothesisRecord, Region


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
        """Test a hypothesis, which is exploratory unless the study stores one with its test."""
        stored = self.results.hypotheses
        same = [record for record in stored if record.hypothesis.has_same_test(hypothesis)]
        if not same:
            return self._test(hypothesis, "exploratory", True)
        in_same_words = [record for record in same if record.hypothesis == hypothesis]
        record = (in_same_words or same)[-1]
        # What else is shown was not stated before the first trial.
        context = {"context": record.hypothesis.context}
        return self._test_record(record, hypothesis.model_copy(update=context))

    def _test_record(
        self, record: HypothesisRecord, hypothesis: Hypothesis | None = None
    ) -> HypothesisTest:
        config, mark = self.results.config, record.mark
        changed = record.find_changes(config.report_threshold, config.nuisance)
        if changed:
            has = "have" if len(changed) > 1 else "has"
            mark += f"; {' and '.join(changed)} {has} changed since"
        is_exploratory = bool(changed or record.withdrawn) or not record.is_preregistered
        return self._test(hypothesis or record.hypothesis, mark, is_exploratory)

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
            findings = estimate_findings(results, hypothesis, self.values, self.outcomes)
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
