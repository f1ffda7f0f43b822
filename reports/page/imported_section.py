"""Compute what the page shows of an imported study, of which nothing but its results is known."""

from collections.abc import Iterator

from reports.charts import alt_text
from reports.charts.chart import FULL_WIDTH, Chart
from reports.charts.comparison_plots import plot_replicates
from reports.charts.filtered_effects import (
    chart_conditional_effects,
    chart_interactions,
    compute_effect_subset,
)
from reports.charts.importances import (
    chart_parameters,
    chart_study,
    compute_block_importances,
    compute_conditional_importances,
    compute_importances,
)
from reports.charts.outcome_plots import compute_outcome_subsets
from reports.charts.training_plots import (
    describe_drawn_curves,
    list_color_schemes,
    plot_curves,
)
from reports.data.results import Results
from reports.formatting import format_count, format_param, loss_unit
from reports.page.section import Section
from reports.stats.conditional_effects import compute_conditional_effects
from reports.stats.hypothesis_tests import StudyTables
from reports.stats.leaderboard import StudySummary, summarize_study
from reports.stats.nuisance import build_judged_table, summarize_nuisance


def build_imported_section(results: Results) -> Section:
    """Build the section of an imported study."""
    table = build_judged_table(results)
    effects = compute_effect_subset(results, table, {}, "")
    conditional = compute_conditional_effects(table, effects.effects)
    complete = list(results.complete.index)
    summary = summarize_study(results)
    importances = compute_importances(results, complete, "all complete trials")
    owned = compute_conditional_importances(results)
    blocks = compute_block_importances(results) if not results.uncontrasted else []
    shown = {each.label for each in owned}
    return Section(
        results=results,
        is_complete=not results.table["value"].isna().any(),
        hypotheses=StudyTables(results).test_stored(),
        outcomes=list(compute_outcome_subsets(results, [])),
        nuisance=summarize_nuisance(results),
        effects=[effects],
        conditional=conditional,
        conditional_chart=chart_conditional_effects(conditional, loss_unit(results.config)),
        interactions=chart_interactions(table),
        curves=_chart_curves(results),
        summary=summary,
        replicates_chart=_chart_replicates(results, summary) if results.has_replicates else None,
        importances=[
            *importances,
            *owned,
            *(each for each in blocks if each.label not in shown),
        ],
        has_blocks=bool(blocks),
        optuna_charts=chart_parameters(results, complete, importances) + chart_study(results),
    )


def describe_uncompared(section: Section) -> str:
    """Name the parameters that no matched pair compares, in one sentence; "" if there are none."""
    results = section.results
    compared = {effect.contrast.parameter for effect in section.effects[0].effects}
    missing = [name for name in results.judged_parameters if name not in compared]
    if not results.parameters:
        return "All trials have the same parameters, so there is nothing to compare."
    if not missing:
        return ""
    if not compared:
        return (
            "No two trials differ in one parameter only, so no effect can be estimated from "
            "matched pairs; importances and slices say what is known."
        )
    listed = ", ".join(_name_with_values(results, missing))
    return (
        f"No matched pairs compare {listed}: trials that differ in it alone are missing, or its "
        "values are too many; importances and slices say what is known of it."
    )


def _name_with_values(results: Results, names: list[str]) -> Iterator[str]:
    for name in names:
        count = format_count(results.table[name].nunique(), "value")
        yield f"{format_param(name)} ({count})"


def _chart_curves(results: Results) -> Chart | None:
    if results.curves.empty:
        return None
    figure = plot_curves(results)
    caption = (
        "Intermediate values. Hover to see the parameters; click a curve to isolate it, and press "
        "Escape or click elsewhere to show all again. Thick lines: the best ten."
    )
    return Chart(
        "Curves",
        figure,
        alt_text.describe_curves(results),
        caption + describe_drawn_curves(results, figure),
        max_width=FULL_WIDTH,
        color_schemes=list_color_schemes(results),
    )


def _chart_replicates(results: Results, summary: StudySummary) -> Chart:
    return Chart(
        "Runs of each configuration",
        plot_replicates(summary.entries, results.metric),
        alt_text.describe_replicates(summary.entries, results.metric),
        width=640,
    )
