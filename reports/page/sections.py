"""A study's results → all that the page shows of it: numbers, figures, and those in words."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from reports.charts import alt_text as in_words
from reports.charts import comparison_plots as held_out
from reports.charts import effect_plots as figures
from reports.charts import training_plots as curves
from reports.charts.chart import Chart
from reports.charts.effect_subsets import (
    EffectSubset,
    SubsetFilter,
    chart_interactions,
    compute_effect_subset,
    compute_effect_subsets,
    list_filters,
)
from reports.charts.importances import (
    Importances,
    chart_parameters,
    chart_study,
    compute_block_importances,
    compute_importances,
)
from reports.data.results import Results
from reports.formatting import effects_title, value_axis_title
from reports.stats.baseline_references import (
    BaselineReference,
    describe_references,
    describe_training_differences,
    find_references,
)
from reports.stats.comparison import Comparison, Difference
from reports.stats.effects import Effect, FactorialTable
from reports.stats.leaderboard import LeaderboardEntry, rank_architectures
from reports.stats.pruning_summary import PruningSummary, summarize_pruning
from reports.stats.variant_effects import Change, changes, compare_with_source, replicates
from studies.space import BPTT_STEPS


@dataclass(frozen=True)
class Section:
    """A study's part of the page."""

    results: Results
    is_complete: bool
    winners: list[LeaderboardEntry]
    choices: list[SubsetFilter]
    parts: list[EffectSubset]
    pruning: PruningSummary | None
    interactions: Chart | None
    importances: list[Importances]
    optuna: list[Chart]
    timeline: Chart | None
    curves: Chart | None
    below: EffectSubset | None
    below_importances: list[Importances]
    below_optuna: list[Chart]
    slopes: Chart | None
    changes: list[Change]
    replicates: pd.DataFrame | None
    replicates_drawing: Chart | None
    comparison: Comparison | None
    differences_to_best: dict[str, Difference]
    smallest: str | None
    differences: Chart | None
    shape: list[str]
    shapes: pd.DataFrame

    @property
    def effects_title(self) -> str:
        """What the part about effects is called."""
        return effects_title(self.results.is_gated)

    @property
    def samples(self) -> list[LeaderboardEntry]:
        """The winners that have written a text."""
        return [winner for winner in self.winners if winner.sample]

    @property
    def leading(self) -> list[Effect]:
        """The three largest effects over the whole grid that are clear of zero."""
        clear = [effect for effect in self.parts[0].effects if effect.is_significant]
        return sorted(clear, key=lambda effect: -abs(effect.mean))[:3]


def sections_of(results: Sequence[Results]) -> list[Section]:
    """Work out all that one page shows of studies, each beside the known cells of the others."""
    return [section_of(each, find_references(each, results)) for each in results]


def section_of(results: Results, references: Sequence[BaselineReference] = ()) -> Section:
    """Work out all that the page shows of a study.

    Args:
        results: of the study.
        references: what known cells come to, for its figures.
    """
    grid = FactorialTable.from_frame(results.table, results.axes)
    choices = list_filters(results)
    threshold = results.config.report_threshold
    complete, below = list(results.complete.index), list(results.below.index)
    has_below = threshold is not None and 0 < len(below) < len(complete)
    lineage = compare_with_source(results)
    winners = rank_architectures(results)
    repeated = replicates(results) if results.has_replicates else None
    best = [winner.label for winner in winners] if repeated is None else list(repeated.index)
    comparison = held_out.comparison_of(results, best)
    shape = [name for name in ("cell", BPTT_STEPS) if name in results.parameters]
    shape += ["layers", "state_size"]
    importances = compute_importances(results, complete, "over all complete points")
    below_importances = (
        compute_importances(results, below, "below the threshold") if has_below else []
    )
    return Section(
        results=results,
        is_complete=grid.is_complete,
        winners=winners,
        choices=choices,
        parts=list(compute_effect_subsets(results, choices, grid)),
        pruning=summarize_pruning(results),
        interactions=chart_interactions(grid),
        importances=importances + compute_block_importances(results),
        optuna=chart_parameters(results, complete, importances) + chart_study(results),
        timeline=_timeline(results),
        curves=_curves(results, references),
        below=compute_effect_subset(results, grid, {}, threshold, "below") if has_below else None,
        below_importances=below_importances,
        below_optuna=chart_parameters(results, below, below_importances),
        slopes=Chart(
            "From the source to each variant",
            figures.slopes(lineage, value_axis_title(results.config)),
            in_words.slopes(lineage),
            "Each line is an architecture: on the left its loss in the source, on the right that "
            "of the variant, which may have had another budget.",
            width=170 * len(list(lineage.by_variant())),
        )
        if lineage
        else None,
        changes=changes(lineage) if lineage else [],
        replicates=repeated,
        replicates_drawing=None if repeated is None else _replicates(results, repeated, references),
        comparison=comparison,
        differences_to_best=held_out.differences_to_best(results, best),
        smallest=None
        if repeated is None or comparison is None
        else comparison.smallest(dict(zip(repeated.index, repeated["parameters"], strict=True))),
        differences=None
        if repeated is None or comparison is None
        else held_out.drawing_of(comparison),
        shape=shape,
        shapes=_shapes(results, shape),
    )


def _replicates(
    results: Results, rows: pd.DataFrame, references: Sequence[BaselineReference]
) -> Chart:
    named = describe_references(references, "measured")
    return Chart(
        "Replicates",
        figures.replicates(rows, results.metric, references),
        in_words.replicates(rows, results.metric) + named,
        (named + " " + describe_training_differences(references)).strip() if named else "",
        width=640,
    )


def _curves(results: Results, references: Sequence[BaselineReference]) -> Chart | None:
    if results.curves.empty:
        return None
    figure = curves.draw(results, references)
    drawn = len(figure.data)
    note = (
        "The smoothed training loss. Hover for the architecture; click a curve to see it alone, "
        "and anywhere else, or Escape, to see all again. The ten best are thick."
    )
    if results.config.objective == "validation":
        note = note[:-1] + ": those of the least loss on held-out text."
    if drawn < results.curves["number"].nunique():
        note += f" Of {results.curves['number'].nunique():,} curves {drawn:,} are drawn."
    named = describe_references(references, "training_loss")
    if named:
        note = f"{note}{named} {describe_training_differences(references)}".strip()
    return Chart(
        "Every training curve",
        figure,
        in_words.curves(results) + named,
        note,
        color_schemes=curves.color_schemes(results),
    )


def _timeline(results: Results) -> Chart | None:
    figure = figures.timeline(results)
    if not figure.data:
        return None
    return Chart(
        "Timeline: who trained what, and when",
        figure,
        in_words.timeline(results.table),
        "A point that was taken up again is drawn where it was ended.",
        width=520,
    )


def _shapes(results: Results, shape: list[str]) -> pd.DataFrame:
    """Return the computing time by what it depends on most."""
    rows = results.table.dropna(subset=["seconds"])
    groups = rows.groupby(shape)
    shapes = groups["seconds"].agg(["count", "mean", "sum"])
    shapes["steps_per_second"] = groups["steps_per_second"].median()
    shapes["share"] = shapes["sum"] / shapes["sum"].sum()
    return shapes.reset_index()
