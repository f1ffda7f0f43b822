"""Compute what the page shows of each study: statistics, charts and text alternatives."""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from reports.analysis.baseline_references import (
    BaselineReference,
    describe_references,
    describe_training_differences,
    find_references,
)
from reports.analysis.nuisance import NuisanceSummary, build_judged_table, summarize_nuisance
from reports.analysis.pareto_front import summarize_costs
from reports.analysis.pruning_audit import PruningSummary, summarize_pruning
from reports.analysis.ranking import LeaderboardEntry
from reports.analysis.refinement_effects import (
    compare_with_source,
    compute_variant_effects,
)
from reports.charts import alt_text
from reports.charts.chart import FULL_WIDTH, Chart
from reports.charts.comparison_plots import chart_differences, plot_replicates
from reports.charts.context_plots import chart_context
from reports.charts.effect_plots import plot_variants
from reports.charts.filtered_effects import (
    EffectSubset,
    chart_conditional_effects,
    chart_interactions,
    compute_audited_subset,
    compute_effect_subset,
    compute_effect_subsets,
    list_filters,
)
from reports.charts.importances import (
    chart_parameters,
    chart_study,
    compute_block_importances,
    compute_conditional_importances,
    compute_importances,
)
from reports.charts.outcome_plots import compute_outcome_subsets
from reports.charts.pareto_plots import chart_front
from reports.charts.training_plots import (
    chart_timeline,
    describe_drawn_curves,
    list_color_schemes,
    plot_curves,
)
from reports.charts.trend_plots import chart_levels, chart_trends
from reports.data.results import Results, find_replicates
from reports.findings import StudyFindings
from reports.formatting import loss_unit, objective_name, value_axis_title
from reports.page.section import Section
from reports.stats.planned_looks import find_detectable_gap
from studies.space import BPTT_STEPS, COST_PARAMS


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
    findings = StudyFindings(results)
    audited = findings.audited
    filters = list_filters(results) if audited is None else []
    effects = (
        [compute_audited_subset(results, audited)]
        if audited is not None
        else list(compute_effect_subsets(results, filters))
    )
    additive, scale, summary = findings.additive, results.scale, findings.summary
    complete = list(results.complete.index)
    source_comparison = compare_with_source(results)
    fronts = summarize_costs(results, summary, references)
    pruning = summarize_pruning(results)
    # Over the survivors of pruning, importances would mislead as effects would.
    is_whole = audited is None
    importances = compute_importances(results, complete, "all complete trials") if is_whole else []
    conditional = compute_conditional_importances(results) if is_whole else []
    is_design = is_whole and not results.uncontrasted  # else each trial would be a block
    blocks = compute_block_importances(results) if is_design else []
    shown = {each.label for each in conditional}  # a cell's trials may be a full block as well
    return Section(
        results=results,
        findings=findings,
        is_complete=not results.table["value"].isna().any(),
        filters=filters,
        hypotheses=findings.hypotheses,
        effects=effects,
        conditional=findings.conditional,
        conditional_chart=chart_conditional_effects(
            findings.conditional, loss_unit(results.config)
        ),
        outcomes=list(compute_outcome_subsets(results, filters)) if is_whole else [],
        nuisance=_summarize_nuisance(results),
        pruning=pruning,
        audit=findings.audit,
        audited_effects=audited,
        early_effects=_compute_early_effects(results, pruning) if pruning else None,
        additive=additive,
        trend_charts=chart_trends(additive, scale) if additive else [],
        levels_chart=chart_levels(additive, scale) if additive else None,
        interactions=chart_interactions(build_judged_table(results)) if is_whole else None,
        curves=_chart_curves(results, references),
        summary=summary,
        replicates_chart=_chart_replicates(results, summary.entries, references)
        if results.has_replicates
        else None,
        pairwise_chart=chart_differences(summary.comparison, results.metric.scale.value_spec)
        if summary.comparison
        else None,
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
        costs=_summarize_costs(results),
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
    legend = describe_references(references, "metric", results.scale)
    return Chart(
        f"Runs of each {results.noun}",
        plot_replicates(entries, results.metric, references),
        alt_text.describe_replicates(entries, results.metric) + legend,
        f"{legend} {describe_training_differences(references)}".strip() if legend else "",
        width=640,
    )


def _chart_curves(results: Results, references: Sequence[BaselineReference]) -> Chart | None:
    if results.curves.empty:
        return None
    figure = plot_curves(results, references)
    name = results.measure.curve
    caption = (
        f"{name[:1].upper()}{name[1:]}. Hover to see the {results.noun}; "
        "click a curve to isolate it, and press Escape or click elsewhere to show all again. "
        f"Thick lines: the ten of {'highest' if results.scale.higher_is_better else 'lowest'} "
        f"{objective_name(results.config)}."
    )
    caption += describe_drawn_curves(results, figure)
    legend = describe_references(references, "training_loss", results.scale)
    if legend:
        caption = f"{caption}{legend} {describe_training_differences(references)}".strip()
    return Chart(
        "Training curves" if results.cells else "Curves",
        figure,
        alt_text.describe_curves(results) + legend,
        caption,
        max_width=FULL_WIDTH,
        color_schemes=list_color_schemes(results),
    )


def _summarize_costs(results: Results) -> pd.DataFrame | None:
    """Return the computing time by the parameters that determine it; None if none is recorded."""
    rows = results.table.dropna(subset=["seconds"])
    if rows.empty:
        return None
    varied = [name for name in COST_PARAMS if name in results.parameters]
    first = ("cell", BPTT_STEPS)
    names = [name for name in first if name in varied] + ["layers", "state_size"]
    names += [name for name in varied if name not in names]
    groups = rows.groupby(names, dropna=False)  # without update_every: whole sequences
    costs = groups["seconds"].agg(["count", "mean", "sum"])
    costs["steps_per_second"] = groups["steps_per_second"].median()
    costs["share"] = costs["sum"] / costs["sum"].sum()
    return costs
