"""What a study shows, as data: the findings that :mod:`reports.narrative` puts into words.

A finding about a change is a :class:`reports.stats.conditional_effects.RankedEffect`: estimate,
interval and the condition on which it depends. Page, note, terminal and Python take the same ones,
so that none of them calls an effect significant that another one does not.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from reports.analysis.hypotheses import HypothesisTest, Verdict, run_tests
from reports.analysis.leaderboard import StudySummary, summarize_study
from reports.analysis.nuisance import (
    estimate_effects,
    find_edges,
)
from reports.analysis.pruning import (
    PruningAudit,
    audit_pruning,
    estimate_audited_effects,
)
from reports.analysis.solved import SolvedChange, compare_solved
from reports.results import BUDGET_PARAMS, Results
from reports.stats.additive_effects import estimate_additive_effects
from reports.stats.audit import AuditedEffects
from reports.stats.conditional_effects import (
    ConditionalEffect,
    RankedEffect,
    rank_effects,
)
from reports.stats.design import Contrast, number_groups
from reports.stats.effects import Effect
from reports.stats.judged import Edge
from reports.stats.scale import format_value, is_missing
from reports.stats.task_contrasts import TaskContrast, compare_tasks
from reports.trial_table import is_continuous, to_python
from studies.records import TaskRecord
from studies.space import CELL
from studies.storage.trials import TrialStatus

N_LARGEST = 3
"""Largest significant effects that are named."""

MAX_DISTANCE = 1000.0
"""Distance of a value from the median, in median distances, from which a warning names it: of
normally distributed values 670 standard deviations."""

MIN_VALUES = 5
"""Values from which their median distance is used."""

MIN_BUDGET_RATIO = 1.01
"""Ratio of two budgets from which they are unequal: a last sequence may be shorter."""


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
        """Main effects: over matched pairs, or by least squares; of a pruned study, estimated."""
        if self.audited is not None:
            return self.audited.effects
        known = {effect.contrast.parameter for effect in self.additive if effect.is_decidable}
        paired = [effect for effect in self.paired if effect.contrast.parameter not in known]
        has_pairs = {effect.contrast.parameter for effect in paired}
        added = [effect for effect in self.additive if effect.contrast.parameter not in has_pairs]
        return paired + added

    @property
    def paired(self) -> list[Effect]:
        """Main effects over matched pairs; for a study that is not pruned."""
        return estimate_effects(self.results)[0]

    @cached_property
    def conditional(self) -> list[ConditionalEffect]:
        """Effects within each value of the other parameters; none of a pruned study."""
        if self.audited is not None:
            return []
        found = estimate_effects(self.results)[1]
        shown = {id(effect) for effect in self.effects}
        return [conditional for conditional in found if id(conditional.main) in shown]

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
    def additive(self) -> list[Effect]:
        """Effects by least squares of the parameters that matched pairs do not compare; may be [].

        They do not if a parameter has too many values, or if trials are no grid and have too few
        pairs. Trials that were selected by their results, by pruning or from another study, have
        none.
        """
        results = self.results
        is_selected = results.is_pruned or results.config.refinement is not None
        if is_selected or not results.is_finished:
            return []
        names = results.judged_parameters
        decided = {e.contrast.parameter for e in self.paired if e.is_decidable}
        is_swept = any(is_continuous(results.table[name]) for name in names)
        has_too_few = not (results.is_grid or decided)
        if not (is_swept or has_too_few):
            return []
        rows = results.judge(results.complete)
        settings = results.number_settings(rows)
        means = rows["value"].groupby(settings).mean()  # in the order of the rows
        firsts = rows[~settings.duplicated()]
        columns: dict[str, list[Any]] = {}
        for name in names:
            if is_continuous(results.table[name]) or name not in results.uncontrasted:
                column = firsts[name]
                columns[name] = [None if is_missing(v) else to_python(v) for v in column]
        effects = estimate_additive_effects(columns, means.tolist(), results.scale)
        return [effect for effect in effects if effect.contrast.parameter not in decided]

    @property
    def uncompared(self) -> list[str]:
        """Parameters of which no effect can be estimated: they have too many values, or no pair."""
        compared = {effect.contrast.parameter for effect in self.effects}
        return [name for name in self.results.judged_parameters if name not in compared]

    @cached_property
    def solved(self) -> dict[Contrast, SolvedChange]:
        """Shares of the pairs that are solved before and after each change; none if pruned."""
        return compare_solved(self.results)

    @cached_property
    def hypotheses(self) -> list[HypothesisTest]:
        """The hypotheses that the study stores, and their tests."""
        return run_tests(self.results)

    @property
    def holding(self) -> list[HypothesisTest]:
        """Hypotheses that hold."""
        return [test for test in self.hypotheses if test.verdict is Verdict.HOLDS]

    @cached_property
    def edges(self) -> list[Edge]:
        """Ends of the nuisance values at which some architectures are best."""
        return find_edges(self.results)

    @cached_property
    def divergences(self) -> list[Divergence]:
        """Cells, and architectures of other cells, that diverged in most of two or more trials.

        An architecture has several trials where it is replicated, or has nuisance parameters.
        """
        results = self.results
        ended = (TrialStatus.COMPLETE, TrialStatus.PRUNED, TrialStatus.DIVERGED)
        rows = results.table[results.table["state"].isin(ended)]
        if not results.cells or not (rows["state"] == TrialStatus.DIVERGED).any():
            return []
        cells = rows[CELL] if CELL in rows else pd.Series(results.cells[0], rows.index)
        cells = cells.map(format_value)
        by_cell = _count_divergences(rows, cells)
        is_left = ~cells.isin([each.name for each in by_cell])
        return by_cell + _count_divergences(rows[is_left], rows["architecture"][is_left])

    @cached_property
    def outliers(self) -> "pd.Series[float]":
        """Values of complete trials that went astray without diverging, the farthest first.

        They are further than :data:`MAX_DISTANCE` times the median distance from the median, which
        half of all values do not move (Hampel, *The Influence Curve and its Role in Robust
        Estimation*, 1974). Where half of the values are equal, none is.
        """
        values = self.results.complete["value"].astype(float)
        distances = (values - values.median()).abs().sort_values(ascending=False)
        typical = float(distances.median())
        if len(values) < MIN_VALUES or not typical:
            return values[:0]
        return values[distances.index[distances > MAX_DISTANCE * typical]]

    @cached_property
    def budgets(self) -> list[UnequalBudget]:
        """Compared parameters whose values get unequal budgets at equal steps."""
        compared = {effect.contrast.parameter for effect in self.effects}
        names = [name for name in BUDGET_PARAMS if name in compared]
        found = [_find_unequal_budget(self.results, name) for name in names]
        return [budget for budget in found if budget]


def _find_unequal_budget(results: Results, name: str) -> UnequalBudget | None:
    """Find the values of a parameter with the most and the least data or updates in a step.

    Trials that are equal in all other parameters are compared.
    """
    rows = results.complete
    alike = number_groups(rows, [other for other in results.all_parameters if other != name])
    data = f"{results.config.token_name}s" if results.config.is_text else "inputs"
    for column, unit in (("inputs", data), ("updates", "updates")):
        rates = rows[column] / rows["steps"]
        ratios = rates / rates.groupby(alike).transform("min")
        differs = ratios.groupby(alike).transform("max") > MIN_BUDGET_RATIO
        largest = ratios[differs].groupby(rows[name][differs]).max().sort_values()
        if len(largest) > 1:
            least, most = largest.index[0], largest.index[-1]
            return UnequalBudget(name, unit, least, most, float(largest.iloc[-1]))
    return None


def _count_divergences(rows: pd.DataFrame, groups: "pd.Series[Any]") -> list[Divergence]:
    has_diverged = (rows["state"] == TrialStatus.DIVERGED).groupby(groups)
    counts = has_diverged.agg(["sum", "size"])
    counts = counts[(counts["size"] > 1) & (2 * counts["sum"] > counts["size"])]
    return [
        Divergence(str(name), int(diverged), int(ended))
        for name, diverged, ended in counts.sort_values("sum", ascending=False).itertuples()
    ]


@dataclass(frozen=True)
class TaskComparison:
    """What a study of several tasks says about all of them.

    Attributes:
        name: name of the study.
        tasks: records of the tasks that have complete trials, by name.
        contrasts: the changes.
    """

    name: str
    tasks: dict[str, TaskRecord]
    contrasts: list[TaskContrast]


def compare_across_tasks(results: Iterable[Results]) -> TaskComparison | None:
    """Compare the results of each of several tasks; None for those of one.

    Args:
        results: results of each task of a study, of :meth:`Results.split_tasks`.
    """
    tasks = {each.task: each for each in results if each.task}
    if not tasks:
        return None
    return TaskComparison(
        next(iter(tasks.values())).name,
        {name: each.config.list_tasks()[""] for name, each in tasks.items()},
        compare_tasks({name: StudyFindings(each).effects for name, each in tasks.items()}),
    )
