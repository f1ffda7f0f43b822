"""What the page shows of one study: statistics, charts and text alternatives."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pandas as pd

from reports.analysis.leaderboard import (
    CostSummary,
    LeaderboardEntry,
    StudySummary,
    summarize_costs,
)
from reports.analysis.nuisance import (
    NuisanceSummary,
    build_judged_table,
    join_names,
    summarize_nuisance,
)
from reports.analysis.other_studies import (
    BaselineReference,
    SourceComparison,
    VariantEffect,
    compare_with_source,
    compute_variant_effects,
    find_references,
)
from reports.analysis.pruning import (
    PruningSummary,
    summarize_pruning,
)
from reports.charts.chart import FULL_WIDTH, Chart
from reports.charts.comparison_plots import (
    chart_conditional_effects,
    chart_context,
    chart_differences,
    chart_front,
    chart_interactions,
    chart_levels,
    chart_trends,
    plot_effects,
    plot_replicates,
    plot_variants,
)
from reports.charts.optuna_plots import (
    Importances,
    chart_parameters,
    chart_study,
    compute_block_importances,
    compute_conditional_importances,
    compute_importances,
)
from reports.charts.training_plots import (
    chart_task,
    chart_timeline,
    list_color_schemes,
    plot_curves,
)
from reports.findings import (
    BudgetComparison,
    StudyFindings,
    TaskComparison,
    compare_across_tasks,
    compare_budgets,
)
from reports.formatting import objective_name, value_axis_title
from reports.page.page_tables import RECURRENT, FloorRow, list_floors
from reports.phrases import describe_drawn_curves, describe_outcomes, describe_references
from reports.results import Results, find_replicates
from reports.stats.effects import Effect
from reports.stats.looks import find_detectable_gap
from reports.stats.scale import BAD, GOOD, format_count
from reports.study_reader import MAX_DRAWN
from studies.space import BPTT_STEPS, COST_PARAMS


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
    """Build the sections of a page; each shows the baseline cells of the other studies.

    A study of several tasks has one for each, the first of which compares them.
    """
    split = [study.split_tasks() for study in results]
    parts = [part for of_study in split for part in of_study]
    sections = []
    for of_study in split:
        found = [replace(part, replicates=find_replicates(part, parts)) for part in of_study]
        across_tasks = compare_across_tasks(found)
        for part in found:
            sections.append(Section(part, find_references(part, parts), across_tasks))
            across_tasks = None
    return sections


@dataclass(frozen=True, eq=False)
class Section:
    """Part of the page about one study; each attribute is computed when it is first read.

    Attributes:
        results: results of the study.
        references: baseline cells of other studies, which its charts show.
        across_tasks: comparison with the tasks of the next sections; None but for the first of
            several tasks.
    """

    results: Results
    references: Sequence[BaselineReference] = ()
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
    def budgets(self) -> BudgetComparison | None:
        """Effects at equal steps, tokens and updates; None if trials do not differ in these."""
        return compare_budgets(self.results)

    @cached_property
    def conditional_chart(self) -> Chart | None:
        """Chart of those that differ between the values; None without any."""
        return chart_conditional_effects(self.findings.conditional, self.results.measure.unit)

    @cached_property
    def interactions(self) -> Chart | None:
        """Heat map of the two-way interactions."""
        if self.results.is_pruned:
            return None
        return chart_interactions(build_judged_table(self.results))

    @property
    def shows_effects(self) -> bool:
        """Whether there are effects, or a reason why they are not what they seem."""
        return bool(self.main_effects.effects or self.findings.audited or self.nuisance)

    @cached_property
    def trend_charts(self) -> list[Chart]:
        """Charts of its trends, the significant ones first."""
        model = self.findings.additive
        return chart_trends(model, self.results.scale) if model else []

    @cached_property
    def levels_chart(self) -> Chart | None:
        """Chart of its effects."""
        model = self.findings.additive
        return chart_levels(model, self.results.scale) if model else None

    @cached_property
    def nuisance(self) -> NuisanceSummary | None:
        """Summary of the nuisance parameters; None without them."""
        return summarize_nuisance(self.results)

    @property
    def outcome_sentence(self) -> str:
        """Which changes bring networks below the threshold; "" without one."""
        return "" if self.results.is_pruned else describe_outcomes(self.findings)

    @property
    def has_divided_pairs(self) -> bool:
        """Whether some trials of the pairs are below the threshold, and some are not."""
        effects = [each.effect for each in self.findings.outcomes]
        shares = {share for e in effects for share in (e.mean_before, e.mean_before + e.mean)}
        return len(shares) > 1 or not shares <= {GOOD, BAD}

    # ---------------------------------------------------------------- architectures

    @property
    def summary(self) -> StudySummary:
        """Ranking and comparison of the architectures."""
        return self.findings.summary

    @property
    def leaderboard(self) -> list[LeaderboardEntry]:
        """Best architectures; of replicated studies all of them."""
        summary = self.summary
        return summary.entries if self.results.has_replicates else summary.leaderboard

    @cached_property
    def replicates_chart(self) -> Chart | None:
        """Chart of the runs of each replicated architecture."""
        results, entries = self.results, self.summary.entries
        if not results.has_replicates:
            return None
        return Chart(
            f"Runs of each {results.noun}",
            plot_replicates(entries, results.metric, self.references),
            caption=describe_references(self.references, "metric", results.scale),
            width=360,
        )

    @cached_property
    def pairwise_chart(self) -> Chart | None:
        """Chart of their pairwise comparison."""
        comparison, spec = self.summary.comparison, self.results.metric.scale.value_spec
        return chart_differences(comparison, spec) if comparison else None

    @cached_property
    def task_charts(self) -> list[Chart]:
        """Charts of what the best networks of a task other than text predict."""
        return chart_task(self.results, self.summary.leaderboard)

    @property
    def detectable_gap(self) -> float | None:
        """Gap that their comparison finds with a probability of 80%; None without one."""
        comparison = self.summary.comparison
        return find_detectable_gap(comparison) if comparison else None

    @cached_property
    def costs_and_losses(self) -> CostSummary | None:
        """Pareto fronts of loss and cost; None without held-out losses."""
        return summarize_costs(self.results, self.summary, self.references)

    @cached_property
    def cost_charts(self) -> list[Chart]:
        """Chart of each front."""
        fronts = self.costs_and_losses
        return [chart_front(front, fronts) for front in fronts.fronts] if fronts else []

    @cached_property
    def context_chart(self) -> Chart | None:
        """Chart of the loss by the length of the context; None without such losses."""
        return chart_context(self.results, self.summary.entries)

    @property
    def has_recall(self) -> bool:
        """Whether the corpus is ``recall:D``, and trials recorded their accuracy."""
        rows = self.results.complete
        return "recall_accuracy" in rows and bool(rows["recall_accuracy"].notna().any())

    @property
    def has_networks(self) -> bool:
        """Whether trials trained networks, of which the source code is known."""
        return self.summary.best.architecture is not None

    @property
    def samples(self) -> list[LeaderboardEntry]:
        """Best architectures that generated a sample."""
        return [entry for entry in self.summary.leaderboard if entry.sample]

    @property
    def floors(self) -> list[FloorRow]:
        """The best network of a task other than text, and what needs no memory; may be empty."""
        return list_floors(self.results.floors, self.summary.best)

    @property
    def least_floor(self) -> FloorRow | None:
        """The floor of the least loss among those without memory; None if none are stored."""
        floors = [row for row in self.floors[1:] if row.name != RECURRENT]
        return min(floors, key=lambda row: row.loss, default=None)

    @property
    def slices(self) -> list[str]:
        """Names of the slices by which the losses of the best networks are shown."""
        return list(
            dict.fromkeys(name for each in self.summary.leaderboard for name in each.slices)
        )

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
        figure = plot_curves(results, self.references)
        name = results.measure.curve
        caption = (
            f"{name[:1].upper()}{name[1:]}. Hover to see the {results.noun}; "
            "click a curve to isolate it, and press Escape or click elsewhere to show all again. "
            f"Thick lines: the ten of {'highest' if results.scale.higher_is_better else 'lowest'} "
            f"{objective_name(results.config)}."
        )
        points = sum(len(trace.y) for trace in figure.data)
        caption += describe_drawn_curves(results, points)
        legend = describe_references(self.references, "training_loss", results.scale)
        return Chart(
            "Training curves" if results.cells else "Curves",
            figure,
            caption=f"{caption} {legend}".strip(),
            max_width=FULL_WIDTH,
            color_schemes=list_color_schemes(results),
        )

    @cached_property
    def pruning(self) -> PruningSummary | None:
        """Summary of pruning; None if it was not enabled."""
        return summarize_pruning(self.results)

    @cached_property
    def _importances_in_total(self) -> list[Importances]:
        # Over the survivors of pruning, importances would mislead as effects would.
        if self.results.is_pruned:
            return []
        complete = list(self.results.complete.index)
        return compute_importances(self.results, complete, "all complete trials")

    @cached_property
    def _block_importances(self) -> list[Importances]:
        # With too many values of a parameter, each trial would be a block.
        is_design = not (self.results.is_pruned or self.results.uncontrasted)
        return compute_block_importances(self.results) if is_design else []

    @cached_property
    def importances(self) -> list[Importances]:
        """Over all trials, among those with parameters of their own, and within full blocks."""
        results = self.results
        conditional = [] if results.is_pruned else compute_conditional_importances(results)
        shown = {each.label for each in conditional}  # a cell's trials may be a full block as well
        blocks = [each for each in self._block_importances if each.label not in shown]
        return [*self._importances_in_total, *conditional, *blocks]

    @property
    def has_blocks(self) -> bool:
        """Whether there are importances of full-factorial blocks."""
        return bool(self._block_importances)

    @cached_property
    def optuna_charts(self) -> list[Chart]:
        """Optuna's other charts."""
        complete = list(self.results.complete.index)
        parameters = chart_parameters(self.results, complete, self._importances_in_total)
        return parameters + chart_study(self.results)

    @cached_property
    def timeline(self) -> Chart | None:
        """Chart of the trials by worker and time."""
        return chart_timeline(self.results)

    @cached_property
    def costs(self) -> pd.DataFrame | None:
        """Computing time by the parameters that determine it; None if it is not recorded."""
        rows = self.results.table.dropna(subset=["seconds"])
        if rows.empty:
            return None
        varied = [name for name in COST_PARAMS if name in self.results.parameters]
        first = ("cell", BPTT_STEPS)
        names = [name for name in first if name in varied] + ["layers", "state_size"]
        names += [name for name in varied if name not in names]
        groups = rows.groupby(names, dropna=False)  # without update_every: whole sequences
        costs = groups["seconds"].agg(["count", "mean", "sum"])
        costs["steps_per_second"] = groups["steps_per_second"].median()
        costs["share"] = costs["sum"] / costs["sum"].sum()
        return costs

    @property
    def listed_trials(self) -> list[dict[Any, Any]]:
        """Rows of the trials that the page lists, the best first."""
        rows: list[dict[Any, Any]] = (
            self.results.table.head(MAX_DRAWN).reset_index().to_dict("records")
        )
        return rows

    @property
    def contents(self) -> list[tuple[str, str]]:
        """Headings of the section: the end of the element's id, and the text."""
        headings = {
            "summary": ("Summary", True),
            "effects": (self.results.effects_title, self.shows_effects),
            "conditional": ("What the effects depend on", self.findings.conditional),
            "additive": ("Additive model", self.findings.additive),
            "nuisance": (f"Best {join_names(self.results.nuisance)}", self.nuisance),
            "hypotheses": ("Hypotheses", self.findings.hypotheses),
            "outcomes": ("Rescued and ruined", self.outcome_sentence),
            "curves": (self.curves.title if self.curves else "", self.curves),
            "leaderboard": ("Leaderboard", True),
            "task": ("Task", self.results.config.task_record),
            "cost": ("Equal cost", self.costs_and_losses),
            "memory": ("Memory", self.context_chart),
            "code": ("Source code of the best", self.has_networks),
            "samples": ("Samples", self.samples),
            "importances": ("Importances", True),
            "comparison": ("Comparison", self.slopes or self.pairwise_chart),
            "accounting": ("Accounting", True),
        }
        return [(name, title) for name, (title, is_shown) in headings.items() if is_shown]
