"""What each switch is worth, over the whole grid and in each part that a reader may choose."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from reports.charts import alt_text as in_words
from reports.charts import effect_plots as figures
from reports.charts.chart import Drawing
from reports.data.results import Results
from reports.page.formatting import nats_word, parameter_word, value_word, worth_title
from reports.stats.effects import Effect, Grid
from studies.space import BPTT_STEPS

CHOICES = ("cell", BPTT_STEPS, "state_size", "state_source")
"""The parameters by which a reader may choose a part of the grid, beside the loss."""


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
    """A choice that a reader has.

    Attributes:
        name: in words.
        parameter: that is chosen by; None for the loss.
        answers: a key, words and the value of each; of the loss that is a bound. The first, whose
            value is None, chooses nothing.
    """

    name: str
    parameter: str | None
    answers: list[tuple[str, str, Any]]


def choices_of(results: Results) -> list[Choice]:
    """Return the choices that a reader has, in the order of a part's key."""
    everything = ("", "any", None)
    found = []
    threshold = results.config.report_threshold
    if threshold is not None:
        below = ("below", f"below {threshold} nats", threshold)
        found.append(Choice("Loss", None, [everything, below]))
    for name in CHOICES:
        if name in results.parameters:
            values = sorted(results.table[name].unique().tolist())
            answers = [(str(i), value_word(value), value) for i, value in enumerate(values)]
            words = parameter_word(name).capitalize()
            found.append(Choice(words, name, [everything, *answers]))
    return found


def parts_of(results: Results, choices: list[Choice], grid: Grid) -> Iterator[Part]:
    """Yield the effects within each part that a reader may choose, the whole grid first."""
    for answers in itertools.product(*(choice.answers for choice in choices)):
        values: dict[str | None, Any] = {
            choice.parameter: value
            for choice, (_, _, value) in zip(choices, answers, strict=True)
            if value is not None
        }
        below = values.pop(None, None)
        chosen = {name: value for name, value in values.items() if name is not None}
        yield part_of(results, grid, chosen, below, "/".join(key for key, _, _ in answers))


def part_of(
    results: Results, grid: Grid, chosen: dict[str, Any], below: float | None, key: str
) -> Part:
    """Return the effects within a part of the grid: chosen values, and losses below a bound."""
    part = grid.where(chosen, below)
    words = [f"with {parameter_word(name)} {value_word(v)}" for name, v in chosen.items()]
    words += [] if below is None else [f"with a loss below {below} nats"]
    where = " and ".join(words) or "in all"
    found = part.effects()
    drawing = None
    if found:
        drawing = Drawing(
            f"{worth_title(results.has_switches)} ({where})",
            figures.effects(found, nats_word(results.config)),
            in_words.effects(found),
        )
    return Part(key, where, below is not None, part.points, found, drawing)


def interactions_of(grid: Grid) -> Drawing | None:
    """Draw how each two switches act on each other; None where that cannot be told."""
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
