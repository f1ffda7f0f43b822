"""Findings of a study, as data.

A finding about a change is a :class:`reports.stats.conditional_effects.RankedEffect`: estimate,
interval and the condition on which it depends. Page, note, terminal and Python take the same ones,
so that none of them calls an effect significant that another one does not.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from reports.analysis.hypotheses import HypothesisTest, run_tests
from reports.analysis.judged_effects import (
    build_judged_table,
    estimate_effects,
    find_edges,
    measure_noise,
)
from reports.analysis.leaderboard import StudySummary, summarize_study
from reports.analysis.pruning import (
    PruningAudit,
    PruningSummary,
    audit_pruning,
    estimate_audited_effects,
    summarize_pruning,
)
from reports.analysis.refinement import (
    SourceComparison,
    VariantEffect,
    compare_with_source,
    compute_variant_effects,
)
from reports.analysis.solved import compare_by_threshold, count_solved, find_threshold_outcomes
from reports.results import BUDGET_PARAMS, Results
from reports.stats.additive_effects import estimate_additive_effects
from reports.stats.audit import AuditedEffects
from reports.stats.conditional_effects import ConditionalEffect, RankedEffect, rank_effects
from reports.stats.design import Contrast, number_groups
from reports.stats.differences import Method
from reports.stats.effects import Effect
from reports.stats.estimate import adjust_estimates
from reports.stats.judged import Edge
from reports.stats.shares import SolvedRuns
from reports.trial_table import is_continuous, to_python
from studies.measure import SOLVED, Measure
from studies.messages import format_value, is_missing
from studies.space import CELL
from studies.storage.trials import TrialStatus

N_LARGEST = 3
"""Largest significant effects that are named."""

QUANTILE = 1.96
"""Half-width of a 95% interval, in standard deviations."""

MIN_BUDGET_RATIO = 1.01
"""Ratio of two budgets from which they are unequal: a last sequence may be shorter."""


MIN_AGREEING = 2
"""Tasks with a significant effect of one sign from which a change is said to agree across tasks."""


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
class Answer:
    """The effects of a study by what they say; each is in one group, the largest first.

    Attributes:
        largest: at most :data:`N_LARGEST` whose mean is significant.
        reversals: changes that significantly help at one value of another parameter and harm at
            another; they are in no other group.
        smaller: others whose mean is significant.
        dependent: changes that have an effect at some values of another parameter only.
        undecided: those that are not significant.
    """

    largest: list[RankedEffect]
    reversals: list[RankedEffect]
    smaller: list[RankedEffect]
    dependent: list[RankedEffect]
    undecided: list[RankedEffect]


@dataclass(frozen=True)
class Rivals:
    """Architectures that another run might rank before the best.

    Attributes:
        count: number of others that are worse by less than two runs differ in 95% of the cases.
        width: that difference, of two runs of the best one.
    """

    count: int
    width: float


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
        """Main effects: over matched pairs, or by least squares; of a pruned study, estimated.

        Their p-values are corrected for their number.
        """
        if self.audited is not None:
            return adjust_estimates(self.audited.effects)
        known = {effect.contrast.parameter for effect in self.additive if effect.is_decidable}
        paired = [effect for effect in self.paired if effect.contrast.parameter not in known]
        has_pairs = {effect.contrast.parameter for effect in paired}
        added = [effect for effect in self.additive if effect.contrast.parameter not in has_pairs]
        return adjust_estimates(paired + added)

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
        shown = {effect.contrast for effect in self.effects}
        return [conditional for conditional in found if conditional.contrast in shown]

    @cached_property
    def ranked(self) -> list[RankedEffect]:
        """Effects in the order of the answer, each with the condition that says more than its mean.

        Those of a significant mean come first, then those whose sign depends on another parameter,
        then all others; the largest means come first.
        """
        answer = self.answer
        others = sorted([*answer.dependent, *answer.undecided], key=_sort_by_mean)
        return [*answer.largest, *answer.smaller, *answer.reversals, *others]

    @cached_property
    def answer(self) -> Answer:
        """The effects by what they say."""
        ranked = sorted(rank_effects(self.effects, self.conditional), key=_sort_by_mean)
        reversals = [effect for effect in ranked if effect.is_reversal]
        others = [effect for effect in ranked if not effect.is_reversal]
        significant = [effect for effect in others if effect.main.is_significant]
        rest = [effect for effect in others if not effect.main.is_significant]
        return Answer(
            largest=significant[:N_LARGEST],
            reversals=reversals,
            smaller=significant[N_LARGEST:],
            dependent=[effect for effect in rest if effect.condition is not None],
            undecided=[effect for effect in rest if effect.condition is None],
        )

    @cached_property
    def misled(self) -> int:
        """Number of networks that do not see the input that their task may need."""
        table = self.results.table
        return int(table["architecture"][self.results.find_misled(table)].nunique())

    @property
    def networks(self) -> int:
        """Number of networks, whatever their nuisance values and replicates."""
        return int(self.results.table["architecture"].nunique())

    @property
    def excludes_some(self) -> bool:
        """Whether some networks or pairs count in no effect."""
        leaves_out = self.results.config.untrained == "exclude" and self.misled > 0
        return leaves_out or any(effect.excluded_pairs for effect in self.effects)

    def find_drawn(self, contrast: Contrast) -> tuple[Any, list[str]] | None:
        """Find the value of a change at which parts are never trained that the other value trains.

        Returns:
            The value and the names of these parts; None if both values train the same parts.
        """
        column = self.results.table[contrast.parameter].astype(object)
        sides = []
        for value in (contrast.before, contrast.after):
            parts: dict[str, bool] = {}
            for facts in self.results.facts[column == value].dropna():
                for part, is_trained in facts.cell_parts.items():
                    parts[part] = parts.get(part, False) or is_trained
            sides.append((value, parts))
        for (value, parts), (_, others) in zip(sides, sides[::-1], strict=True):
            drawn = [part for part in parts if others.get(part) and not parts[part]]
            if drawn:
                return value, drawn
        return None

    @property
    def is_additive(self) -> bool:
        """Whether all effects are those of an additive model, for want of matched pairs."""
        return bool(self.effects) and len(self.additive_parameters) == len(self.effects)

    @property
    def additive_parameters(self) -> list[str]:
        """Parameters whose effects are by least squares."""
        added = (effect for effect in self.effects if effect.method is Method.ADDITIVE)
        return [effect.contrast.parameter for effect in added]

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
        decided = {effect.contrast.parameter for effect in self.paired if effect.is_decidable}
        is_swept = any(is_continuous(results.table[name]) for name in names)
        has_too_few = not (results.is_grid or decided)
        if not (is_swept or has_too_few):
            return []
        rows = results.judge(results.complete)
        if results.outcomes is not None:
            rows = results.judge().assign(value=results.outcomes).dropna(subset="value")
        excludes = results.config.untrained == "exclude"
        if excludes:
            rows = rows[~results.find_misled(rows)]
        settings = results.number_settings(rows)
        means = rows["value"].groupby(settings).mean()  # in the order of the rows
        firsts = rows[~settings.duplicated()]
        columns: dict[str, list[Any]] = {}
        for name in names:
            if is_continuous(results.table[name]) or name not in results.uncontrasted:
                column = firsts[name].astype(object)
                if excludes:  # they say as little of it as networks that lack it
                    column = column.mask(results.find_untrained(firsts, name))
                columns[name] = [None if is_missing(v) else to_python(v) for v in column]
        effects = estimate_additive_effects(columns, means.tolist(), self.measure.higher_is_better)
        return [effect for effect in effects if effect.contrast.parameter not in decided]

    @property
    def uncompared(self) -> list[str]:
        """Parameters of which no effect can be estimated: they have too many values, or no pair."""
        compared = {effect.contrast.parameter for effect in self.effects}
        return [name for name in self.results.judged_parameters if name not in compared]

    def has_excluded_pairs(self, name: str) -> bool:
        """Return whether pairs of networks differ in a parameter alone and none can show it."""
        table = build_judged_table(self.results)
        contrasts = [found for found in table.list_contrasts() if found.parameter == name]
        matches = [table.match_contrast(contrast) for contrast in contrasts]
        has_excluded = any(found.excluded.size for found in matches)
        return has_excluded and not any(found.trials.size for found in matches)

    @cached_property
    def rivals(self) -> Rivals | None:
        """Architectures within the noise of the best; None if the noise of runs is unknown."""
        results = self.results
        is_value = results.metric.is_value
        is_single = not (results.has_replicates or results.is_pruned)
        if not is_single or not is_value or results.outcomes is not None:
            return None
        noise = measure_noise(results)
        if noise is None:
            return None
        deviations = dict(zip(results.table.index, noise.of_trials, strict=True))
        best = self.summary.best
        of_best = deviations[best.number]
        to_loss = results.measure.to_loss
        count = 0
        for entry in self.summary.entries[1:]:
            width = QUANTILE * math.hypot(of_best, deviations[entry.number])
            count += to_loss(entry.loss) - to_loss(best.loss) < width
        return None if math.isnan(of_best) else Rivals(count, QUANTILE * math.sqrt(2) * of_best)

    @property
    def measure(self) -> Measure:
        """What effects are differences of: the study's value, or the share of solved runs."""
        return self.results.measure if self.results.outcomes is None else SOLVED

    @cached_property
    def solved(self) -> SolvedRuns | None:
        """How many runs are solved, at the best nuisance values; None if the task does not say."""
        return self._count(self.results.outcomes)

    @cached_property
    def reached(self) -> SolvedRuns | None:
        """How many runs are better than the ``report_threshold``; None without one."""
        return self._count(find_threshold_outcomes(self.results))

    def _count(self, outcomes: "pd.Series[float] | None") -> SolvedRuns | None:
        return None if outcomes is None else count_solved(outcomes[self.results.judge().index])

    @cached_property
    def threshold_effects(self) -> dict[Contrast, Effect]:
        """Effects on the share of runs better than the ``report_threshold``; none without one."""
        return compare_by_threshold(self.results)

    @cached_property
    def pruning(self) -> PruningSummary | None:
        """What pruning saved; None if it was not enabled."""
        return summarize_pruning(self.results)

    @cached_property
    def source_comparison(self) -> SourceComparison | None:
        """Losses of a refinement next to those of its source; None for another study."""
        return compare_with_source(self.results)

    @cached_property
    def variants(self) -> list[VariantEffect]:
        """Effect of each variant of a refinement."""
        comparison = self.source_comparison
        return [] if comparison is None else compute_variant_effects(comparison)

    @cached_property
    def hypotheses(self) -> list[HypothesisTest]:
        """The hypotheses that the study stores, and their tests."""
        return run_tests(self.results)

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
        if not (rows["state"] == TrialStatus.DIVERGED).any():
            return []
        if not results.cells:
            return _count_divergences(rows, rows["architecture"])
        cells = rows[CELL] if CELL in rows else pd.Series(results.cells[0], rows.index)
        cells = cells.map(format_value)
        by_cell = _count_divergences(rows, cells)
        is_left = ~cells.isin([found.name for found in by_cell])
        return by_cell + _count_divergences(rows[is_left], rows["architecture"][is_left])

    @cached_property
    def budgets(self) -> list[UnequalBudget]:
        """Compared parameters whose values get unequal budgets at equal steps."""
        compared = {effect.contrast.parameter for effect in self.effects}
        names = [name for name in BUDGET_PARAMS if name in compared and self.results.cells]
        found = [_find_unequal_budget(self.results, name) for name in names]
        return [budget for budget in found if budget]


def _sort_by_mean(effect: RankedEffect) -> tuple[bool, float]:
    """Return the key that sorts the largest means first, and those that are unknown last."""
    return math.isnan(effect.main.mean), -abs(effect.main.mean)


def _find_unequal_budget(results: Results, name: str) -> UnequalBudget | None:
    """Find the values of a parameter with the most and the least data or updates in a step.

    Trials that are equal in all other parameters are compared.
    """
    rows = results.complete
    alike = number_groups(rows, [other for other in results.all_parameters if other != name])
    token = results.config.token_name
    data = "inputs" if token == "step" else f"{token}s"
    for column, unit in (("inputs", data), ("updates", "updates")):
        rates = rows[column] / rows["steps"]
        ratios = rates / rates.groupby(alike).transform("min")
        differs = ratios.groupby(alike).transform("max") > MIN_BUDGET_RATIO
        largest = ratios[differs].groupby(rows[name][differs]).max().sort_values()
        if len(largest) > 1:
            ratio = float(largest.iloc[-1])
            return UnequalBudget(name, unit, largest.index[0], largest.index[-1], ratio)
    return None


def _count_divergences(rows: pd.DataFrame, groups: "pd.Series[Any]") -> list[Divergence]:
    has_diverged = (rows["state"] == TrialStatus.DIVERGED).groupby(groups)
    counts = has_diverged.agg(["sum", "size"])
    counts = counts[(counts["size"] > 1) & (2 * counts["sum"] > counts["size"])]
    return [
        Divergence(str(name), int(diverged), int(ended))
        for name, diverged, ended in counts.sort_values("sum", ascending=False).itertuples()
    ]


# ------------------------------------------------------------------ several tasks


@dataclass(frozen=True)
class TaskContrast:
    """A change in all tasks that have its matched pairs.

    Attributes:
        by_task: its effect by the name of the task, corrected for all changes in all tasks.
    """

    contrast: Contrast
    by_task: Mapping[str, Effect]

    @property
    def helps(self) -> list[str]:
        """Tasks in which it improves the loss significantly."""
        return self._list_significant(True)

    @property
    def harms(self) -> list[str]:
        """Tasks in which it worsens the loss significantly."""
        return self._list_significant(False)

    def _list_significant(self, is_better: bool) -> list[str]:
        return [
            task
            for task, effect in self.by_task.items()
            if effect.is_significant and effect.is_improvement == is_better
        ]

    @property
    def agrees(self) -> bool:
        """Whether it has significant effects in several tasks, all of the same sign."""
        helps = len(self.helps)
        harms = len(self.harms)
        return min(helps, harms) == 0 and max(helps, harms) >= MIN_AGREEING

    @property
    def agreement(self) -> str:
        """Whether the signs agree, for a reader: ``helps in 3 of 4, harms in 1``."""
        parts = []
        if self.helps:
            parts.append(f"helps in {len(self.helps)}")
        if self.harms:
            parts.append(f"harms in {len(self.harms)}")
        if not parts:
            return f"undecided in {len(self.by_task)}"
        parts[0] += f" of {len(self.by_task)}"
        return ", ".join(parts)


@dataclass(frozen=True)
class TaskComparison:
    """What a study of several tasks says about all of them.

    Attributes:
        measures: measure of each task that has complete trials, by its name.
    """

    name: str
    measures: dict[str, Measure]
    contrasts: list[TaskContrast]


def compare_across_tasks(tasks: Sequence[StudyFindings]) -> TaskComparison | None:
    """Compare the findings in each of several tasks of a study; None for those of one."""
    if not tasks[0].results.task:
        return None
    effects = {findings.results.task: findings.effects for findings in tasks}
    measures = {findings.results.task: findings.measure for findings in tasks}
    return TaskComparison(tasks[0].results.name, measures, _compare_tasks(effects))


def _compare_tasks(effects: Mapping[str, Sequence[Effect]]) -> list[TaskContrast]:
    """Correct effects for all changes in all tasks, and arrange them by change and task.

    Changes with significant effects in most tasks come first.
    """
    tasks = [task for task, found in effects.items() for _ in found]
    adjusted = adjust_estimates([effect for found in effects.values() for effect in found])
    changes: dict[Contrast, dict[str, Effect]] = {}
    for task, effect in zip(tasks, adjusted, strict=True):
        changes.setdefault(effect.contrast, {})[task] = effect
    contrasts = [TaskContrast(contrast, by_task) for contrast, by_task in changes.items()]
    return sorted(contrasts, key=lambda found: -len(found.helps) - len(found.harms))
