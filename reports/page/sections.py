"""Compute what the page shows of each study: statistics, charts and text alternatives."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from reports.charts import alt_text
from reports.charts.chart import Chart
from reports.charts.comparison_plots import chart_differences, plot_replicates
from reports.charts.context_plots import chart_context
from reports.charts.effect_plots import plot_variants
from reports.charts.filtered_effects import (
    EffectSubset,
    SubsetFilter,
    chart_conditional_effects,
    chart_interactions,
    compute_audited_subset,
    compute_effect_subset,
    compute_effect_subsets,
    list_filters,
)
from reports.charts.importances import (
    Importances,
    chart_parameters,
    chart_study,
    compute_block_importances,
    compute_conditional_importances,
    compute_importances,
)
from reports.charts.outcome_plots import OutcomeSubset, compute_outcome_subsets
from reports.charts.pareto_plots import chart_front
from reports.charts.timeline_plot import chart_timeline
from reports.charts.training_plots import (
    describe_drawn_curves,
    list_color_schemes,
    plot_curves,
)
from reports.data.drawn_trials import MAX_DRAWN
from reports.data.replicates import find_replicates
from reports.data.results import Results
from reports.formatting import effects_title, loss_unit, objective_name, value_axis_title
from reports.stats.audited_effects import AuditedEffects, estimate_audited_effects
from reports.stats.baseline_references import (
    BaselineReference,
    describe_references,
    describe_training_differences,
    find_references,
)
from reports.stats.conditional_effects import (
    ConditionalEffect,
    RankedEffect,
    compute_conditional_effects,
    rank_effects,
)
from reports.stats.hypothesis_tests import HypothesisTest, StudyTables
from reports.stats.leaderboard import StudySummary, summarize_study
from reports.stats.nuisance import NuisanceSummary, build_judged_table, summarize_nuisance
from reports.stats.outcome_table import describe_outcomes
from reports.stats.pareto_front import CostSummary, summarize_costs
from reports.stats.planned_looks import find_detectable_gap
from reports.stats.pruning_audit import PruningAudit, audit_pruning
from reports.stats.pruning_summary import PruningSummary, summarize_pruning
from reports.stats.ranking import LeaderboardEntry
from reports.stats.refinement_effects import (
    VariantEffect,
    compare_with_source,
    compute_variant_effects,
)
from studies.space import BPTT_STEPS, COST_PARAMS


@dataclass(frozen=True)
class Section:
    """Part of the page about one study.

    Attributes:
        results: results of the study.
        is_complete: whether every combination of the grid has a value.
        filters: filters for the effects.
        hypotheses: the hypotheses that the study stores, and their tests.
        effects: effects within each combination of filters; the whole grid comes first.
        conditional: effects over the whole grid within each value of the other parameters.
        conditional_chart: chart of those that differ between the values; None without any.
        outcomes: outcomes of the pairs below and above the threshold within each combination;
            empty without a threshold.
        nuisance: summary of the nuisance parameters; None without them.
        pruning: summary of pruning; None if it was not enabled.
        audit: what the audited trials measure; None without them.
        audited_effects: effects of a pruned study, which replace all others; None without pruned or
            paused trials.
        early_effects: effects at the last step that all trials of a pruned study have reached.
        interactions: chart of the two-way interactions.
        curves: chart of the training curves.
        summary: ranking and comparison of the architectures.
        replicates_chart: chart of the runs of each replicated architecture.
        pairwise_chart: chart of their pairwise comparison.
        context_chart: chart of the loss by the length of the context; None without such losses.
        detectable_gap: gap that their comparison finds with a probability of 80%; None without one.
        importances: parameter importances: over all trials, among those that have parameters of
            their own, and within full-factorial blocks.
        has_blocks: whether some of them are those of full-factorial blocks.
        optuna_charts: Optuna's other charts.
        slopes: chart of a refinement's architectures in the source and in each variant.
        variants: effect of each variant of a refinement.
        timeline: chart of the trials by worker and time.
        cost_params: parameters that determine the computing time.
        costs: computing time by these parameters.
        costs_and_losses: Pareto fronts of loss and cost; None without held-out losses.
        cost_charts: chart of each front.
    """

    results: Results
    is_complete: bool
    filters: list[SubsetFilter]
    hypotheses: list[HypothesisTest]
    effects: list[EffectSubset]
    conditional: list[ConditionalEffect]
    conditional_chart: Chart | None
    outcomes: list[OutcomeSubset]
    nuisance: NuisanceSummary | None
    pruning: PruningSummary | None
    audit: PruningAudit | None
    audited_effects: AuditedEffects | None
    early_effects: EffectSubset | None
    interactions: Chart | None
    curves: Chart | None
    summary: StudySummary
    replicates_chart: Chart | None
    pairwise_chart: Chart | None
    context_chart: Chart | None
    detectable_gap: float | None
    importances: list[Importances]
    has_blocks: bool
    optuna_charts: list[Chart]
    slopes: Chart | None
    variants: list[VariantEffect]
    timeline: Chart | None
    cost_params: list[str]
    costs: pd.DataFrame
    costs_and_losses: CostSummary | None
    cost_charts: list[Chart]

    @property
    def effects_title(self) -> str:
        """Heading of the main effects."""
        return effects_title(self.results.is_gated)

    @property
    def outcome_sentence(self) -> str:
        """Which changes bring networks below the threshold; "" without one."""
        if not self.outcomes:
            return ""
        unit = loss_unit(self.results.config)
        return describe_outcomes(self.outcomes[0].outcomes, self.results, unit)

    @property
    def leaderboard(self) -> list[LeaderboardEntry]:
        """Best architectures; of replicated studies all of them."""
        summary = self.summary
        return summary.entries if self.results.has_replicates else summary.leaderboard

    @property
    def listed_trials(self) -> list[dict[Any, Any]]:
        """Rows of the trials that the page lists, the best first."""
        rows: list[dict[Any, Any]] = (
            self.results.table.head(MAX_DRAWN).reset_index().to_dict("records")
        )
        return rows

    @property
    def has_recall(self) -> bool:
        """Whether the corpus is ``recall:D``, and trials recorded their accuracy."""
        return bool(self.results.complete["recall_accuracy"].notna().any())

    @property
    def longest_context(self) -> int:
        """Largest number of tokens of context of which losses were recorded."""
        return max(entry.context.bins[-1] for entry in self.summary.entries if entry.context)

    @property
    def samples(self) -> list[LeaderboardEntry]:
        """Best architectures that generated a sample."""
        return [entry for entry in self.summary.leaderboard if entry.sample]

    @property
    def ranked_effects(self) -> list[RankedEffect]:
        """Effects over the whole grid, the largest first, with the conditions that rival them."""
        return rank_effects(self.effects[0].effects, self.conditional)

    @property
    def largest_effects(self) -> list[RankedEffect]:
        """The three largest significant effects; empty if none is."""
        return [each for each in self.ranked_effects if each.is_significant][:3]


def build_sections(results: Sequence[Results]) -> list[Section]:
    """Build the sections of a page; each shows the baseline cells of the other studies."""
    return [
        build_section(
            replace(study, replicates=find_replicates(study, results)),
            find_references(study, results),
        )
        for study in results
    ]


def build_section(results: Results, references: Sequence[BaselineReference] = ()) -> Section:
    """Build the section of one study.

    Args:
        results: results of the study.
        references: baseline cells to draw in its charts.
    """
    grid = build_judged_table(results)
    audited = estimate_audited_effects(results) if results.is_pruned else None
    filters = list_filters(results) if audited is None else []
    effects = (
        [compute_audited_subset(results, audited)]
        if audited is not None
        else list(compute_effect_subsets(results, filters))
    )
    conditional_effects = (
        compute_conditional_effects(grid, effects[0].effects) if audited is None else []
    )
    complete = list(results.complete.index)
    source_comparison = compare_with_source(results)
    summary = summarize_study(results)
    fronts = summarize_costs(results, summary, references)
    pruning = summarize_pruning(results)
    varied = [name for name in COST_PARAMS if name in results.parameters]
    first = ("cell", BPTT_STEPS)
    cost_params = [name for name in first if name in varied] + ["layers", "state_size"]
    cost_params += [name for name in varied if name not in cost_params]
    # Over the survivors of pruning, importances would mislead as effects would.
    is_whole = audited is None
    importances = compute_importances(results, complete, "all complete trials") if is_whole else []
    conditional = compute_conditional_importances(results) if is_whole else []
    blocks = compute_block_importances(results) if is_whole else []
    shown = {each.label for each in conditional}  # a cell's trials may be a full block as well
    return Section(
        results=results,
        is_complete=not results.table["value"].isna().any(),
        filters=filters,
        hypotheses=StudyTables(results).test_stored(),
        effects=effects,
        conditional=conditional_effects,
        conditional_chart=chart_conditional_effects(conditional_effects, loss_unit(results.config)),
        outcomes=list(compute_outcome_subsets(results, filters)) if is_whole else [],
        nuisance=_summarize_nuisance(results),
        pruning=pruning,
        audit=audit_pruning(results) if pruning else None,
        audited_effects=audited,
        early_effects=_compute_early_effects(results, pruning) if pruning else None,
        interactions=chart_interactions(grid) if is_whole else None,
        curves=_chart_curves(results, references),
        summary=summary,
        replicates_chart=_chart_replicates(results, summary.entries, references)
        if results.has_replicates
        else None,
        pairwise_chart=chart_differences(summary.comparison) if summary.comparison else None,
        context_chart=chart_context(results, summary.entries),
        detectable_gap=find_detectable_gap(summary.comparison) if summary.comparison else None,
        importances=[
            *importances,
            *conditional,
            *(each for each in blocks if each.label not in shown),
        ],
        has_blocks=bool(blocks),
        optuna_charts=chart_parameters(results, complete, importances) + chart_study(results),
        slopes=Chart(
            "From the source to each variant",
            plot_variants(source_comparison, value_axis_title(results.config)),
            alt_text.describe_variants(source_comparison),
            "Each line is an architecture: its loss in the source study on the left, its loss in "
            "the variant on the right. The training budgets may differ.",
            width=170 * len(list(source_comparison.group_by_variant())),
        )
        if source_comparison
        else None,
        variants=compute_variant_effects(source_comparison) if source_comparison else [],
        timeline=chart_timeline(results),
        cost_params=cost_params,
        costs=_summarize_costs(results, cost_params),
        costs_and_losses=fronts,
        cost_charts=[chart_front(front, fronts) for front in fronts.fronts] if fronts else [],
    )


def _summarize_nuisance(results: Results) -> NuisanceSummary | None:
    summary = summarize_nuisance(results)
    return replace(summary, effects=[]) if summary and results.is_pruned else summary


def _compute_early_effects(results: Results, pruning: PruningSummary) -> EffectSubset | None:
    subset = compute_effect_subset(results, pruning.early_table, {}, "early")
    return subset if subset.effects else None


def _chart_replicates(
    results: Results,
    entries: Sequence[LeaderboardEntry],
    references: Sequence[BaselineReference],
) -> Chart:
    legend = describe_references(references, "metric")
    return Chart(
        "Runs of each architecture",
        plot_replicates(entries, results.metric, references),
        alt_text.describe_replicates(entries, results.metric) + legend,
        f"{legend} {describe_training_differences(references)}".strip() if legend else "",
        width=640,
    )


def _chart_curves(results: Results, references: Sequence[BaselineReference]) -> Chart | None:
    if results.curves.empty:
        return None
    figure = plot_curves(results, references)
    caption = (
        "Smoothed training loss. Hover to see the architecture; click a curve to isolate it, and "
        f"press Escape or click elsewhere to show all again. Thick lines: the ten of lowest "
        f"{objective_name(results.config)}."
    )
    caption += describe_drawn_curves(results, figure)
    legend = describe_references(references, "training_loss")
    if legend:
        caption = f"{caption}{legend} {describe_training_differences(references)}".strip()
    return Chart(
        "Training curves",
        figure,
        alt_text.describe_curves(results) + legend,
        caption,
        color_schemes=list_color_schemes(results),
    )


def _summarize_costs(results: Results, params: list[str]) -> pd.DataFrame:
    """Return the computing time by the parameters that determine it."""
    rows = results.table.dropna(subset=["seconds"])
    groups = rows.groupby(params)
    costs = groups["seconds"].agg(["count", "mean", "sum"])
    costs["steps_per_second"] = groups["steps_per_second"].median()
    costs["share"] = costs["sum"] / costs["sum"].sum()
    return costs.reset_index()
