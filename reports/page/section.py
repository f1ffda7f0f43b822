"""What the page shows of one study: statistics and charts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import pandas as pd

from reports.analysis.costs import COSTS, list_costs
from reports.analysis.nuisance import NuisanceSummary, build_judged_table, summarize_nuisance
from reports.analysis.pruning import PruningSummary, summarize_pruning
from reports.analysis.refinement import (
    SourceComparison,
    VariantEffect,
    compare_with_source,
    compute_variant_effects,
)
from reports.charts.chart import FULL_WIDTH, Chart
from reports.charts.comparison_plots import (
    chart_context,
    chart_costs,
    chart_interactions,
    plot_effects,
    plot_replicates,
    plot_variants,
)
from reports.charts.optuna_plots import chart_importances
from reports.charts.training_plots import plot_curves
from reports.findings import (
    StudyFindings,
    TaskComparison,
    compare_across_tasks,
)
from reports.formatting import objective_name, value_axis_title
from reports.phrases import describe_drawn_curves
from reports.results import Results, find_replicates
from reports.stats.effects import Effect
from reports.stats.scale import format_count
from reports.study_reader import select_drawn_curves


@dataclass(frozen=True)
class MainEffects:
    """Main effects of a study.

    Attributes:
        effects: effects of the contrasts with a pair.
        chart: chart of the effects; None without effects.
        scope: number of trials, or of architectures at their best, with a value.
    """

    effects: Sequence[Effect]
    chart: Chart | None
    scope: str

    @property
    def best_of(self) -> list[str]:
        """Descriptions of the effects that compare a cell or an optimizer at its best."""
        return [effect.description for effect in self.effects if max(effect.variants) > 1]


def build_sections(results: Sequence[Results]) -> list["Section"]:
    """Build the sections of a page.

    A study of several tasks has one for each, the first of which compares them.
    """
    split = [study.split_tasks() for study in results]
    parts = [part for of_study in split for part in of_study]
    sections = []
    for of_study in split:
        found = [replace(part, replicates=find_replicates(part, parts)) for part in of_study]
        across_tasks = compare_across_tasks(found)
        for part in found:
            sections.append(Section(part, across_tasks))
            across_tasks = None
    return sections


@dataclass(frozen=True, eq=False)
class Section:
    """Part of the page about one study; each attribute is computed when it is first read.

    Attributes:
        results: results of the study.
        across_tasks: comparison with the tasks of the next sections; None but for the first of
            several tasks.
    """

    results: Results
    across_tasks: TaskComparison | None = None

    # ---------------------------------------------------------------- effects

    @cached_property
    def findings(self) -> StudyFindings:
        """What the study shows."""
        return StudyFindings(self.results)

    @cached_property
    def main_effects(self) -> MainEffects:
        """Effects over the whole grid, of a pruned study those that the audit supports."""
        is_audited = self.findings.audited is not None
        table = None if is_audited else build_judged_table(self.results)
        count = len(self.results.judge()) if table is None else table.value_count
        return self._chart_effects(self.findings.effects, count, self.results.effects_title)

    @cached_property
    def early_effects(self) -> MainEffects | None:
        """Effects at the last step that all trials of a pruned study have reached."""
        if self.pruning is None:
            return None
        table, step = self.pruning.early_table, self.pruning.common_step
        effects = table.compute_effects()
        title = f"{self.results.effects_title} after {step:,} steps"
        return self._chart_effects(effects, table.value_count, title) if effects else None

    def _chart_effects(self, effects: Sequence[Effect], count: int, title: str) -> MainEffects:
        unit = self.results.measure.unit
        chart = Chart(title, plot_effects(effects, unit)) if effects else None
        scope = format_count(count, self.results.judged_noun)
        return MainEffects(effects, chart, scope)

    @cached_property
    def interactions(self) -> Chart | None:
        """Heat map of the two-way interactions."""
        if self.results.is_pruned:
            return None
        return chart_interactions(build_judged_table(self.results))

    @cached_property
    def nuisance(self) -> NuisanceSummary | None:
        """Summary of the nuisance parameters; None without them."""
        return summarize_nuisance(self.results)

    # ---------------------------------------------------------------- architectures

    @cached_property
    def replicates_chart(self) -> Chart | None:
        """Chart of the runs of each replicated architecture."""
        results, entries = self.results, self.findings.summary.entries
        if not results.has_replicates:
            return None
        return Chart(
            f"Runs of each {results.noun}",
            plot_replicates(entries, results.metric),
            width=360,
        )

    @cached_property
    def cost_charts(self) -> dict[str, Chart]:
        """Charts of the held-out losses against each cost that is known, by the cost."""
        results = self.results
        charts = {
            cost: chart_costs(self._costs[0], cost, results.measure, results.metric.split)
            for cost in COSTS
        }
        return {cost: chart for cost, chart in charts.items() if chart}

    @property
    def cost_conditions(self) -> str:
        """Conditions of the runs whose computing times are compared."""
        return self._costs[1]

    @cached_property
    def _costs(self) -> tuple[pd.DataFrame, str]:
        return list_costs(self.results, self.findings.summary.entries)

    @cached_property
    def context_chart(self) -> Chart | None:
        """Chart of the loss by the length of the context; None without such losses."""
        return chart_context(self.results, self.findings.summary.entries)

    @property
    def has_networks(self) -> bool:
        """Whether trials trained networks, of which the source code is known."""
        return self.findings.summary.best.architecture is not None

    @property
    def slices(self) -> list[str]:
        """Names of the slices by which the losses of the best networks are shown."""
        entries = self.findings.summary.leaderboard
        return list(dict.fromkeys(name for each in entries for name in each.slices))

    @cached_property
    def _source_comparison(self) -> SourceComparison | None:
        return compare_with_source(self.results)

    @cached_property
    def slopes(self) -> Chart | None:
        """Chart of a refinement's architectures in the source and in each variant."""
        comparison = self._source_comparison
        if comparison is None:
            return None
        return Chart(
            "From the source to each variant",
            plot_variants(comparison, value_axis_title(self.results.config)),
            caption="Each line is an architecture: its loss in the source study on the left, its "
            "loss in the variant on the right. The training budgets may differ.",
            width=170 * len(list(comparison.group_by_variant())),
        )

    @cached_property
    def variants(self) -> list[VariantEffect]:
        """Effect of each variant of a refinement."""
        return compute_variant_effects(self._source_comparison) if self._source_comparison else []

    # ---------------------------------------------------------------- trials

    @cached_property
    def curves(self) -> Chart | None:
        """Chart of the training curves."""
        results = self.results
        if results.curves.empty:
            return None
        figure = plot_curves(results)
        name = results.measure.curve
        caption = (
            f"{name[:1].upper()}{name[1:]}, by the rank of {objective_name(results.config)}. "
            f"Hover to see the {results.noun}; click an entry of the legend to hide its curves."
        )
        # A gap follows each curve.
        points = sum(len(trace.y) for trace in figure.data) - len(select_drawn_curves(results))
        caption += describe_drawn_curves(results, points)
        return Chart(
            "Training curves" if results.cells else "Curves",
            figure,
            caption=caption,
            max_width=FULL_WIDTH,
        )

    @cached_property
    def pruning(self) -> PruningSummary | None:
        """Summary of pruning; None if it was not enabled."""
        return summarize_pruning(self.results)

    @cached_property
    def importances(self) -> list[Chart]:
        """Charts of the importances by PED-ANOVA and fANOVA, and of the slices; may be empty."""
        return chart_importances(self.results)
