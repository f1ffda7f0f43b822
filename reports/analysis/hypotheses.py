"""Tests of the hypotheses that a study stores, each by the interval of one effect and a margin.

A difference that is not significant decides nothing: the interval has to exclude what would be
worthwhile (Lakens, Scheel & Isager, *Equivalence Testing for Psychological Research*, 2018).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from reports.analysis.judged_effects import build_judged_table
from reports.formatting import label_change
from reports.results import Results
from reports.stats.design import Contrast
from reports.stats.differences import PairedDifference
from reports.stats.effects import Effect
from rnn.config import BASELINE_CELLS, GATED_CELL, ParamValue
from studies.messages import format_param, format_value
from studies.records import of_task
from studies.space import CELL
from studies.stated_hypotheses import Hypothesis, HypothesisRecord
from studies.traits import find_traits


class Verdict(StrEnum):
    """Verdict on a hypothesis."""

    HOLDS = "holds"
    UNDECIDED = "undecided"
    FAILS = "does not hold"
    NOT_TESTABLE = "not testable"
    """The study lacks a value that the hypothesis names, or every pair that it compares."""


@dataclass(frozen=True)
class HypothesisTest:
    """A hypothesis and its test on one study.

    Attributes:
        record: the hypothesis, and when the study stored it.
        effect: mean difference over its matched pairs; None if the study cannot test it or is not
            finished.
        verdict: the verdict; None while the study is not finished.
        problem: why there is no effect; "" if there is one.
    """

    record: HypothesisRecord
    effect: Effect | None
    verdict: Verdict | None
    problem: str

    @property
    def hypothesis(self) -> Hypothesis:
        """The hypothesis."""
        return self.record.hypothesis

    @property
    def is_exploratory(self) -> bool:
        """Whether it may have been chosen after looking at results."""
        return self.record.results > 0

    @property
    def mark(self) -> str:
        """When it was registered, for a reader."""
        return f"exploratory, {self.record.mark}" if self.is_exploratory else self.record.mark

    @property
    def change(self) -> str:
        """The change and where it is made: ``residual, state size 256``."""
        hypothesis = self.hypothesis
        name = hypothesis.parameter
        contrast = find_traits([name]).name_contrast(name, hypothesis.before, hypothesis.after)
        where = [f"{format_param(k)} {format_value(v)}" for k, v in hypothesis.where.items()]
        return ", ".join([label_change(contrast), *where])


def run_tests(results: Results) -> list[HypothesisTest]:
    """Test the hypotheses that a study stores."""
    return [_run_test(results, record) for record in results.hypotheses]


def _run_test(results: Results, record: HypothesisRecord) -> HypothesisTest:
    problem = _explain_untestable(results, record.hypothesis)
    effect = None
    verdict = None
    if problem:
        verdict = Verdict.NOT_TESTABLE
    elif not results.is_finished:
        counts = results.counts
        problem = f"{counts.finished:,} of {counts.planned:,} trials are finished"
    else:
        effect = _estimate_effect(results, record.hypothesis)
        verdict = decide(record.hypothesis, effect)
        if not effect.pairs:
            problem = "no pair can show it" if effect.excluded_pairs else "no pair to compare"
            effect = None
            verdict = Verdict.NOT_TESTABLE
    return HypothesisTest(record, effect, verdict, problem)


def _estimate_effect(results: Results, hypothesis: Hypothesis) -> Effect:
    """Estimate the change, each architecture at its best values of the nuisance parameters."""
    varied = results.judged_parameters
    fixed = {name: [value] for name, value in hypothesis.where.items() if name in varied}
    contrast = Contrast(hypothesis.parameter, hypothesis.before, hypothesis.after)
    table = build_judged_table(results).subset(fixed)
    return table.compute_effect(contrast)


def decide(hypothesis: Hypothesis, effect: PairedDifference) -> Verdict:
    """Decide whether a hypothesis holds: whether the interval of an effect excludes the contrary.

    An effect whose interval cannot decides nothing. A change that raises the share of solved runs
    lowers the loss.
    """
    if not effect.is_decidable:
        return Verdict.UNDECIDED
    margin = of_task(hypothesis.margin)
    low, high = effect.interval
    if effect.shares is not None:
        low, high = -high, -low
    is_lower = high < -margin
    is_not_lower = low > -margin
    is_higher = low > margin
    is_not_higher = high < margin
    conditions: Mapping[str, tuple[bool, bool]] = {
        "lower": (is_lower, is_not_lower),
        "not lower": (is_not_lower, is_lower),
        "raise": (is_higher, is_not_higher),
        "not raise": (is_not_higher, is_higher),
        "no difference": (is_not_lower and is_not_higher, is_lower or is_higher),
    }
    holds, fails = conditions[hypothesis.expect]
    if holds:
        return Verdict.HOLDS
    return Verdict.FAILS if fails else Verdict.UNDECIDED


def _explain_untestable(results: Results, hypothesis: Hypothesis) -> str:
    """Say why no study of this grid can test a hypothesis; "" if it can, but for missing pairs.

    In a refinement hypotheses contrast the parameters that its variants change: its other
    differences are a result of the selection of its source trials. Baseline cells test no
    hypothesis, and neither do the survivors of pruning.
    """
    for name, wanted in hypothesis.where.items():
        if wanted not in _list_values(results, name):
            return f"{format_param(name)} has no value {format_value(wanted)}"
        is_shared = name in results.table and not results.table[name].isin([wanted]).all()
        if is_shared and name not in results.judged_parameters:
            return f"{format_param(name)} does not distinguish the {results.noun}s"
    name = hypothesis.parameter
    values = _list_values(results, name)
    if len(values) < 2:
        return f"{format_param(name)} has {'one' if values else 'no'} value"
    for wanted in (hypothesis.before, hypothesis.after):
        if wanted not in values:
            return f"{format_param(name)} has no value {format_value(wanted)}"
    if results.is_pruned:
        return "trials were pruned, and those that remain are a selection"
    if results.cells and set(results.cells) <= set(BASELINE_CELLS):
        return "the study has baseline cells only"
    if name in results.nuisance:
        return f"{format_param(name)} is a nuisance parameter"
    refinement = results.config.refinement
    is_changed = refinement is None or any(name in variant for variant in refinement.variants)
    return "" if is_changed else f"{format_param(name)} is in no variant"


def _list_values(results: Results, name: str) -> list[ParamValue]:
    """List the values of a parameter in a study, whether it varies or not."""
    if name in results.table:
        return results.table[name].dropna().unique().tolist()
    if not results.cells:
        return []
    settings = {CELL: GATED_CELL} | results.config.training.model_dump()
    return [settings[name]] if name in settings else []
