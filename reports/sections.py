"""A study's results → all that the page shows of it: numbers, figures, and those in words."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from reports import figures, in_words, optuna_figures
from reports.effects import Effect, Grid
from reports.lineage import Change, changes, lineage_of, replicates
from reports.trials import Results, architecture_of, full_factorial_blocks
from reports.words import count_word, parameter_word, value_word
from rnn.architecture import Architecture

BEST = 10
"""Architectures in the answer's table, each with its forward function."""

FEW = 100
"""Points below which an importance for the best tenth rests on a handful."""

QUESTIONS = {
    "PED-ANOVA": "What brings a trial among the best tenth?",
    "fANOVA": "What moves the loss overall?",
}

CHOICES = ("state_size", "state_source")
"""The parameters by which a reader may choose a part of the grid, beside the loss."""


@dataclass(frozen=True)
class Drawing:
    """A figure on the page.

    Attributes:
        title: what it shows.
        figure: as plotly draws it.
        words: the same for those who do not see it.
        note: how to read it.
        width: in pixels, below which it is not squeezed but scrolled; 0 if it may be.
        colourings: the ways to colour the curves, if it shows them.
    """

    title: str
    figure: go.Figure
    words: str
    note: str = ""
    width: int = 0
    colourings: list[figures.Colouring] = field(default_factory=list)

    @property
    def height(self) -> int:
        """Of the figure, in pixels."""
        return int(self.figure.layout.height or 450)

    @property
    def colouring_data(self) -> list[dict[str, Any]]:
        """Return the ways to colour the curves as the page's script takes them."""
        return [{"legend": each.legend, "of": each.of} for each in self.colourings]

    @property
    def is_webgl(self) -> bool:
        """Whether it needs one of the few WebGL contexts that a browser grants a page."""
        return any(trace.type in ("scattergl", "parcoords") for trace in self.figure.data)


@dataclass(frozen=True)
class Winner:
    """One of the best architectures.

    Attributes:
        number: of its trial.
        row: of the table.
        architecture: to be written out.
    """

    number: int
    row: "pd.Series[Any]"
    architecture: Architecture


@dataclass(frozen=True)
class Part:
    """What the switches are worth in a part of the grid.

    Attributes:
        key: of the choices that it stands for.
        where: the part in words.
        has_below: whether it is cut by the loss.
        points: in it.
        effects: that can be told.
        drawing: of them; None if there are none.
    """

    key: str
    where: str
    has_below: bool
    points: int
    effects: list[Effect]
    drawing: Drawing | None


@dataclass(frozen=True)
class Choice:
    """A choice that a reader has: its name, and (key, words) of each answer."""

    name: str
    answers: list[tuple[str, str]]


@dataclass(frozen=True)
class Importances:
    """Optuna's two importances, side by side, over some of the trials."""

    where: str
    note: str
    drawings: list[Drawing]


@dataclass(frozen=True)
class Section:
    """A study's part of the page."""

    results: Results
    is_complete: bool
    winners: list[Winner]
    choices: list[Choice]
    parts: list[Part]
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
    threshold = results.definition.threshold
    complete, below = list(results.complete.index), list(results.below.index)
    has_below = threshold is not None and 0 < len(below) < len(complete)
    lineage = lineage_of(results)
    repeated = replicates(results) if results.has_replicates else None
    return Section(
        results=results,
        is_complete=grid.is_complete,
        winners=_winners(results),
        choices=_choices(results),
        parts=list(_parts(results, grid)),
        interactions=_interactions(grid),
        importances=_importances(results, complete, "over all complete points")
        + _block_importances(results),
        optuna=_optuna(results, complete) + _whole(results),
        timeline=_timeline(results),
        curves=_curves(results),
        below=_part(grid, results, {}, threshold, "below") if has_below else None,
        below_importances=_importances(results, below, "below the threshold") if has_below else [],
        below_optuna=_optuna(results, below) if has_below else [],
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


# ---------------------------------------------------------------------- the answer


def _winners(results: Results) -> list[Winner]:
    rows = results.complete.drop_duplicates("architecture").head(BEST)
    return [
        Winner(number, rows.loc[number], architecture_of(rows.loc[number], results.definition))
        for number in rows.index
    ]


# ---------------------------------------------------------------------- effects


def _choices(results: Results) -> list[Choice]:
    found = []
    if results.definition.threshold is not None:
        below = f"below {results.definition.threshold} nats"
        found.append(Choice("Loss", [("", "any"), ("below", below)]))
    for name in CHOICES:
        if name in results.parameters:
            values = sorted(results.table[name].unique().tolist())
            answers = [(str(i), value_word(value)) for i, value in enumerate(values)]
            found.append(Choice(parameter_word(name).capitalize(), [("", "any"), *answers]))
    return found


def _parts(results: Results, grid: Grid) -> Iterator[Part]:
    """Yield the effects within each part that a reader may choose, the whole grid first."""
    options: list[list[tuple[str, str, Any]]] = []
    threshold = results.definition.threshold
    if threshold is not None:
        options.append([("", "loss", None), ("below", "loss", threshold)])
    for name in CHOICES:
        if name in results.parameters:
            values = sorted(results.table[name].unique().tolist())
            options.append([("", name, None), *((str(i), name, v) for i, v in enumerate(values))])
    for chosen in itertools.product(*options):
        key = "/".join(answer for answer, _, _ in chosen)
        set_values = {name: value for _, name, value in chosen if value is not None}
        below = set_values.pop("loss", None)
        yield _part(grid, results, set_values, below, key)


def _part(
    grid: Grid, results: Results, chosen: dict[str, Any], below: float | None, key: str
) -> Part:
    part = grid.where(chosen, below)
    words = [f"{parameter_word(name)} {value_word(v)}" for name, v in chosen.items()]
    words += [] if below is None else [f"loss below {below} nats"]
    where = " and ".join(words) or "the whole grid"
    found = part.effects()
    drawing = None
    if found:
        drawing = Drawing(
            f"What each switch is worth ({where})", figures.effects(found), in_words.effects(found)
        )
    return Part(key, where, below is not None, part.points, found, drawing)


def _interactions(grid: Grid) -> Drawing | None:
    found = grid.interactions()
    if not found:
        return None
    return Drawing(
        "Two-way interactions",
        figures.interactions(found),
        in_words.interactions(found),
        "How much more (orange) or less (blue) loss two changes bring together than each brings "
        "alone. Blue: they help each other. Zero: the one is worth the same with and without the "
        "other.",
        width=620,
    )


# ---------------------------------------------------------------------- Optuna's figures


def _importances(
    results: Results, numbers: list[int], where: str, note: str = ""
) -> list[Importances]:
    if not optuna_figures.can_explain(results, numbers):
        return []
    study = optuna_figures.in_memory(results, numbers, optuna_figures.varying(results, numbers))
    if len(numbers) < FEW:
        tenth = count_word(max(1, len(numbers) // 10), "point")
        note += f" The best tenth is {tenth}: with so few, take PED-ANOVA as a hint."
    drawings = []
    for name, evaluator in optuna_figures.evaluators().items():
        figure = optuna_figures.importance(study, evaluator)
        drawings.append(
            Drawing(name, figure, f"{where}: {in_words.importance(figure)}", QUESTIONS[name])
        )
    return [Importances(f"{where} ({count_word(len(numbers), 'point')})", note.strip(), drawings)]


def _block_importances(results: Results) -> list[Importances]:
    blocks = full_factorial_blocks(results.table, results.parameters)
    complete = results.complete.index
    found = []
    for name, block in blocks.items():
        numbers = list(block.index.intersection(complete))
        found += _importances(results, numbers, f"where {name}")
    return found


def _optuna(results: Results, numbers: list[int]) -> list[Drawing]:
    """Draw what Optuna has for the trials' parameters."""
    if not optuna_figures.can_explain(results, numbers):
        return []
    names = optuna_figures.varying(results, numbers)
    study = optuna_figures.in_memory(results, numbers, names)
    rows = results.table.loc[numbers]
    leading = optuna_figures.most_important(study)
    drawings = [
        Drawing(
            "Slice: every trial over each parameter",
            optuna_figures.slices(study),
            in_words.medians(rows, names),
            width=130 * len(names),
        )
    ]
    if len(leading) > 1:
        top, pair = leading[:3], leading[:2]
        drawings += [
            Drawing(
                f"Rank over the most important parameters ({', '.join(top)})",
                optuna_figures.ranks(study, top),
                in_words.medians(rows, [_parameter(word) for word in top]),
                "The bluer, the better a trial's rank; points in one place lie on each other.",
                width=640,
            ),
            Drawing(
                "Parallel coordinates: every trial as a line",
                optuna_figures.parallel_coordinates(study),
                in_words.medians(rows, names),
                "Drag along an axis to choose some of its values.",
                width=110 * (1 + len(names)),
            ),
            Drawing(
                f"Contour over the two most important parameters ({', '.join(pair)})",
                optuna_figures.contour(study, pair),
                in_words.pairs(rows, [_parameter(word) for word in pair]),
            ),
        ]
    return drawings


def _whole(results: Results) -> list[Drawing]:
    """Draw what Optuna has for a study as a whole."""
    study = optuna_figures.in_memory(results, list(results.complete.index), results.parameters)
    return [
        Drawing(
            "Empirical distribution of the loss",
            optuna_figures.distribution([study]),
            in_words.distribution(results.complete),
        ),
        Drawing(
            "Optimization history",
            optuna_figures.history(study),
            in_words.history(results.complete),
            "A grid is run in a shuffled order: that the best so far falls is chance, no learning.",
        ),
    ]


def _parameter(word: str) -> str:
    return word.replace(" ", "_")


# ---------------------------------------------------------------------- curves, time


def _curves(results: Results) -> Drawing | None:
    if results.curves.empty:
        return None
    figure = figures.curves(results)
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
        colourings=figures.colourings(results),
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
