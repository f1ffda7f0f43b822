"""What a study shows, as data: the findings that :mod:`reports.narrative` puts into words.

A finding about a change is a :class:`reports.stats.conditional_effects.RankedEffect`: estimate,
interval and the condition on which it depends. Page, note, terminal and Python take the same ones,
so that none of them calls an effect significant that another one does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from reports.analysis.audited_effects import AuditedEffects, estimate_audited_effects
from reports.analysis.budgets import find_rates
from reports.analysis.hypothesis_tests import HypothesisTest, StudyTables
from reports.analysis.leaderboard import StudySummary, summarize_study
from reports.analysis.nuisance import Edge, build_judged_table, find_edges
from reports.analysis.outcomes import build_outcome_table
from reports.analysis.pruning_audit import PruningAudit, audit_pruning
from reports.analysis.sweeps import fit_sweep
from reports.data.results import BUDGET_PARAMS, Results
from reports.stats.additive_model import AdditiveModel, Trend
from reports.stats.conditional_effects import (
    ConditionalEffect,
    RankedEffect,
    compute_conditional_effects,
    rank_effects,
)
from reports.stats.effects import Effect
from reports.stats.hypotheses import ContrastOutcomes, Verdict, compute_outcomes
from reports.stats.scale import format_value
from studies.space import CELL
from studies.storage.trials import TrialStatus

N_LARGEST = 3
"""Largest significant effects that are named."""


@dataclass(frozen=True)
class Divergence:
    """A cell or an architecture that diverged in most of its trials.

    Attributes:
        name: name of the cell or the architecture.
        diverged: number of its trials that diverged.
        ended: number of its trials that were complete, pruned or diverged.
    """

    name: str
    diverged: int
    ended: int


@dataclass(frozen=True)
class UnequalBudget:
    """A parameter that is compared at equal steps, in which its values get unequal budgets.

    Attributes:
        parameter: name of the parameter.
        unit: what is unequal: ``updates``, or what is read: ``bytes``, ``tokens`` or ``inputs``.
        least: value of the parameter with the smallest budget.
        most: value with the largest one.
        ratio: largest budget divided by the smallest.
    """

    parameter: str
    unit: str
    least: Any
    most: Any
    ratio: float


@dataclass(frozen=True)
class StudyFindings:
    """What a study shows; each part is computed when a text needs it.

    Attributes:
        results: results of the study, with a complete trial.
    """

    results: Results

    @cached_property
    def summary(self) -> StudySummary:
        """Ranking and comparison of the architectures."""
        return summarize_study(self.results)

    @property
    def has_verdicts(self) -> bool:
        """Whether replicated architectures are compared, which decides what the answer is about."""
        return self.results.has_replicates and self.summary.has_verdicts

    @cached_property
    def audited(self) -> AuditedEffects | None:
        """Effects of a pruned study, or why there are none; None unless trials were pruned."""
        return estimate_audited_effects(self.results) if self.results.is_pruned else None

    @cached_property
    def audit(self) -> PruningAudit | None:
        """What the audited trials measure; None without them, and without pruning."""
        return audit_pruning(self.results) if self.results.config.pruning.enabled else None

    @cached_property
    def effects(self) -> list[Effect]:
        """Main effects: over matched pairs or, of a pruned study, estimated."""
        if self.audited is not None:
            return self.audited.effects
        return build_judged_table(self.results).compute_effects()

    @cached_property
    def conditional(self) -> list[ConditionalEffect]:
        """Effects within each value of the other parameters; none of a pruned study."""
        if self.audited is not None:
            return []
        return compute_conditional_effects(build_judged_table(self.results), self.effects)

    @cached_property
    def ranked(self) -> list[RankedEffect]:
        """Effects, the largest first, each with the condition that says more than its mean."""
        return rank_effects(self.effects, self.conditional)

    @property
    def largest(self) -> list[RankedEffect]:
        """The largest significant effects, and that with the largest mean; empty if none is.

        The size of an effect that depends on a condition is that where it is largest.
        """
        significant = [each for each in self.ranked if each.is_significant]
        named = significant[:N_LARGEST]
        by_mean = sorted(significant, key=lambda each: -abs(each.main.mean))
        return named + [each for each in by_mean[:1] if id(each) not in map(id, named)]

    @property
    def reversals(self) -> list[RankedEffect]:
        """Changes that significantly help at one value of another parameter and harm at another."""
        return [e for e in self.ranked if e.condition and e.condition.has_opposite_signs]

    @cached_property
    def additive(self) -> AdditiveModel | None:
        """Additive model of trials that matched pairs do not compare; None if they do."""
        return fit_sweep(self.results, self.effects)

    @property
    def trends(self) -> list[Trend]:
        """Trends of parameters of which matched pairs compare no values."""
        names = self._list_uncompared()
        trends = self.additive.trends if self.additive else []
        return [each for each in trends if each.parameter in names]

    @property
    def uncompared(self) -> list[str]:
        """Parameters of which nothing is known: no matched pair compares them, and no trend."""
        known = {each.parameter for each in self.trends}
        return [name for name in self._list_uncompared() if name not in known]

    def _list_uncompared(self) -> list[str]:
        compared = {each.contrast.parameter for each in self.effects}
        return [name for name in self.results.judged_parameters if name not in compared]

    @cached_property
    def outcomes(self) -> list[ContrastOutcomes]:
        """Which changes bring trials below the threshold; none without one, or if pruned."""
        threshold = self.results.config.report_threshold
        if threshold is None or self.results.is_pruned:
            return []
        return compute_outcomes(build_outcome_table(self.results, threshold))

    @cached_property
    def hypotheses(self) -> list[HypothesisTest]:
        """The hypotheses that the study stores, and their tests."""
        return StudyTables(self.results).test_stored()

    @property
    def holding(self) -> list[HypothesisTest]:
        """Hypotheses that hold, on the mean or on the outcomes."""
        return [
            test
            for test in self.hypotheses
            if any(Verdict.HOLDS in (e.verdict, e.outcome_verdict) for e in test.findings)
        ]

    @cached_property
    def edges(self) -> list[Edge]:
        """Ends of the nuisance values at which many architectures, or the best, are best."""
        return [edge for edge in find_edges(self.results) if edge.is_prominent]

    @cached_property
    def divergences(self) -> list[Divergence]:
        """Cells, and architectures of other cells, that diverged in most of their trials."""
        return find_divergences(self.results)

    @cached_property
    def budgets(self) -> list[UnequalBudget]:
        """Parameters whose values get unequal budgets and are compared nevertheless."""
        names = [each.contrast.parameter for each in self.effects]
        names += [each.parameter for each in self.additive.trends] if self.additive else []
        return find_budgets(self.results, list(dict.fromkeys(names)))


def find_divergences(results: Results) -> list[Divergence]:
    """Find what diverged in most of two or more trials; the architectures of a cell are left out.

    An architecture has several trials where it is replicated, or has nuisance parameters.
    """
    ended = (TrialStatus.COMPLETE, TrialStatus.PRUNED, TrialStatus.DIVERGED)
    rows = results.table[results.table["state"].isin(ended)]
    if not results.cells or not (rows["state"] == TrialStatus.DIVERGED).any():
        return []
    cells = rows[CELL] if CELL in rows else pd.Series(results.cells[0], rows.index)
    by_cell = _count_divergences(rows, cells)
    is_left = ~cells.isin([each.name for each in by_cell])
    by_architecture = _count_divergences(rows[is_left], rows["architecture"][is_left])
    named = [Divergence(format_value(e.name), e.diverged, e.ended) for e in by_cell]
    return named + by_architecture


def _count_divergences(rows: pd.DataFrame, groups: "pd.Series[Any]") -> list[Divergence]:
    has_diverged = (rows["state"] == TrialStatus.DIVERGED).groupby(groups)
    counts = has_diverged.agg(["sum", "size"])
    counts = counts[(counts["size"] > 1) & (2 * counts["sum"] > counts["size"])]
    return [
        Divergence(str(name), int(diverged), int(ended))
        for name, diverged, ended in counts.sort_values("sum", ascending=False).itertuples()
    ]


def find_budgets(results: Results, parameters: Sequence[str]) -> list[UnequalBudget]:
    """Find the parameters whose values get unequal budgets in the same number of steps.

    Values are compared among trials that are equal in all other parameters.

    Args:
        results: results of the study.
        parameters: parameters of which values are compared.
    """
    names = [name for name in BUDGET_PARAMS if name in parameters]
    if not (results.cells and names):
        return []
    rows, rates, found = results.complete, find_rates(results), []
    for name in names:
        others = [each for each in results.all_parameters if each != name]
        alike = rows.groupby(others, dropna=False).ngroup() if others else pd.Series(0, rows.index)
        for unit, rate in rates.drop(columns="steps").items():
            of_pairs = rate.groupby(alike)
            differs = of_pairs.transform("max") > 1.01 * of_pairs.transform("min")
            means = rate[differs].groupby(rows[name][differs]).mean().sort_values()
            if len(means) > 1:
                least, most = means.index[0], means.index[-1]
                ratio = float(means.iloc[-1] / means.iloc[0])
                found.append(UnequalBudget(name, str(unit), least, most, ratio))
    return found
