"""A study's results → all that the page shows of it: numbers, figures, and those in words."""

from dataclasses import dataclass

import pandas as pd

from reports import curves, figures, in_words
from reports.drawing import Drawing
from reports.effects import Effect, Grid
from reports.importances import (
    Importances,
    importances_by_block,
    importances_of,
    parameters_of,
    whole_of,
)
from reports.lineage import Change, changes, lineage_of, replicates
from reports.parts import Choice, Part, choices_of, interactions_of, part_of, parts_of
from reports.pruning import Pruning, pruning_of
from reports.trials import Results, architecture_of
from rnn.architecture import Architecture
from studies.records import SOURCE_TRIALS

BEST = 10
"""Architectures in the answer's table, each with its forward function."""


@dataclass(frozen=True)
class Winner:
    """One of the best architectures.

    Attributes:
        number: of its trial, the best of them if it was run several times.
        architecture: to be written out.
        runs: that are complete; what follows is their mean.
        value: the loss, nats a byte.
        spread: standard deviation of the loss over the runs; NaN for one.
        held_out: bits per character.
        parameters: weights and biases.
        seconds: of computing.
        sources: the numbers of the trials that it was derived from.
    """

    number: int
    architecture: Architecture
    runs: int
    value: float
    spread: float
    held_out: float
    parameters: float
    seconds: float
    sources: list[int]


@dataclass(frozen=True)
class Section:
    """A study's part of the page."""

    results: Results
    is_complete: bool
    winners: list[Winner]
    choices: list[Choice]
    parts: list[Part]
    pruning: Pruning | None
    interactions: Drawing | None
    importances: list[Importances]
    optuna: list[Drawing]
    timeline: Drawing | None
    curves: Drawing | None
    below: Part | None
    below_importances: list[Importances]
    below_optuna: list[Drawing]
    slopes: Drawing | None
    changes: list[Change]
    replicates: pd.DataFrame | None
    replicates_drawing: Drawing | None
    shapes: pd.DataFrame

    @property
    def leading(self) -> list[Effect]:
        """The three largest effects over the whole grid that are clear of zero."""
        clear = [effect for effect in self.parts[0].effects if effect.is_clear]
        return sorted(clear, key=lambda effect: -abs(effect.mean))[:3]


def section_of(results: Results) -> Section:
    """Work out all that the page shows of a study."""
    grid = Grid.of(results.table, results.axes)
    choices = choices_of(results)
    threshold = results.definition.threshold
    complete, below = list(results.complete.index), list(results.below.index)
    has_below = threshold is not None and 0 < len(below) < len(complete)
    lineage = lineage_of(results)
    repeated = replicates(results) if results.has_replicates else None
    importances = importances_of(results, complete, "over all complete points")
    below_importances = importances_of(results, below, "below the threshold") if has_below else []
    return Section(
        results=results,
        is_complete=grid.is_complete,
        winners=_winners(results),
        choices=choices,
        parts=list(parts_of(choices, grid)),
        pruning=pruning_of(results),
        interactions=interactions_of(grid),
        importances=importances + importances_by_block(results),
        optuna=parameters_of(results, complete, importances) + whole_of(results),
        timeline=_timeline(results),
        curves=_curves(results),
        below=part_of(grid, {}, threshold, "below") if has_below else None,
        below_importances=below_importances,
        below_optuna=parameters_of(results, below, below_importances),
        slopes=Drawing(
            "From the source to each variant",
            figures.slopes(lineage),
            in_words.slopes(lineage),
            "Each line is an architecture: on the left its loss in the source, on the right that "
            "of the variant, which may have had another budget.",
            width=170 * len(list(lineage.by_variant())),
        )
        if lineage
        else None,
        changes=changes(lineage) if lineage else [],
        replicates=repeated,
        replicates_drawing=None
        if repeated is None
        else Drawing(
            "Replicates", figures.replicates(repeated), in_words.replicates(repeated), width=640
        ),
        shapes=_shapes(results),
    )


def _winners(results: Results) -> list[Winner]:
    """Return the best architectures: of replicates not the luckiest, but the best on average."""
    winners = []
    for _, runs in results.complete.groupby("architecture"):
        best = runs.iloc[0]
        winners.append(
            Winner(
                int(runs.index[0]),
                architecture_of(best, results.definition),
                len(runs),
                float(runs["value"].mean()),
                float(runs["value"].std()),
                float(runs["validation_bits_per_character"].mean()),
                float(runs["parameter_count"].mean()),
                float(runs["seconds"].mean()),
                best[SOURCE_TRIALS] or [],
            )
        )
    return sorted(winners, key=lambda winner: (winner.value, winner.number))[:BEST]


def _curves(results: Results) -> Drawing | None:
    if results.curves.empty:
        return None
    figure = curves.draw(results)
    drawn = len(figure.data)
    note = (
        "Hover for the architecture; click a curve to see it alone, and anywhere else, or Escape, "
        "to see all again. The ten best are thick."
    )
    if drawn < results.curves["number"].nunique():
        note += f" Of {results.curves['number'].nunique():,} curves {drawn:,} are drawn."
    return Drawing(
        "Every training curve",
        figure,
        in_words.curves(results),
        note,
        colourings=curves.colourings(results),
    )


def _timeline(results: Results) -> Drawing | None:
    figure = figures.timeline(results)
    if not figure.data:
        return None
    return Drawing(
        "Timeline: who trained what, and when",
        figure,
        in_words.timeline(results.table),
        "A point that was taken up again is drawn where it was ended.",
        width=520,
    )


def _shapes(results: Results) -> pd.DataFrame:
    """Return the computing time by layers and state size."""
    rows = results.table.dropna(subset=["seconds"])
    groups = rows.groupby(["layers", "state_size"])
    shapes = groups["seconds"].agg(["count", "mean", "sum"])
    shapes["steps_per_second"] = groups["steps_per_second"].median()
    shapes["share"] = shapes["sum"] / shapes["sum"].sum()
    return shapes.reset_index()
