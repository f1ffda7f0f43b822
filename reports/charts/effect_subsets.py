"""What each switch is worth, over the whole grid and in each part that a reader may choose."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from reports.charts import alt_text as in_words
from reports.charts import effect_plots as figures
from reports.charts.chart import Chart
from reports.data.results import Results
from reports.formatting import effects_title, format_param, format_value, loss_unit
from reports.stats.effects import Effect, FactorialTable
from studies.space import BPTT_STEPS

FILTER_PARAMS = ("cell", BPTT_STEPS, "state_size", "state_source")
"""The parameters by which a reader may choose a part of the grid, beside the loss."""


@dataclass(frozen=True)
class EffectSubset:
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
    drawing: Chart | None


@dataclass(frozen=True)
class SubsetFilter:
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


def list_filters(results: Results) -> list[SubsetFilter]:
    """Return the choices that a reader has, in the order of a part's key."""
    everything = ("", "any", None)
    found = []
    threshold = results.config.report_threshold
    if threshold is not None:
        below = ("below", f"below {threshold} nats", threshold)
        found.append(SubsetFilter("Loss", None, [everything, below]))
    for name in FILTER_PARAMS:
        if name in results.parameters:
            values = sorted(results.table[name].unique().tolist())
            answers = [(str(i), format_value(value), value) for i, value in enumerate(values)]
            words = format_param(name).capitalize()
            found.append(SubsetFilter(words, name, [everything, *answers]))
    return found


def compute_effect_subsets(
    results: Results, choices: list[SubsetFilter], grid: FactorialTable
) -> Iterator[EffectSubset]:
    """Yield the effects within each part that a reader may choose, the whole grid first."""
    for answers in itertools.product(*(choice.answers for choice in choices)):
        values: dict[str | None, Any] = {
            choice.parameter: value
            for choice, (_, _, value) in zip(choices, answers, strict=True)
            if value is not None
        }
        below = values.pop(None, None)
        chosen = {name: value for name, value in values.items() if name is not None}
        yield compute_effect_subset(
            results, grid, chosen, below, "/".join(key for key, _, _ in answers)
        )


def compute_effect_subset(
    results: Results, grid: FactorialTable, chosen: dict[str, Any], below: float | None, key: str
) -> EffectSubset:
    """Return the effects within a part of the grid: chosen values, and losses below a bound."""
    part = grid.where(chosen, below)
    words = [f"with {format_param(name)} {format_value(v)}" for name, v in chosen.items()]
    words += [] if below is None else [f"with a loss below {below} nats"]
    where = " and ".join(words) or "in all"
    found = part.effects()
    drawing = None
    if found:
        drawing = Chart(
            f"{effects_title(results.is_gated)} ({where})",
            figures.effects(found, loss_unit(results.config)),
            in_words.effects(found),
        )
    return EffectSubset(key, where, below is not None, part.points, found, drawing)


def chart_interactions(grid: FactorialTable) -> Chart | None:
    """Draw how each two switches act on each other; None where that cannot be told."""
    found = grid.interactions()
    if not found:
        return None
    return Chart(
        "Two-way interactions",
        figures.interactions(found),
        in_words.interactions(found),
        "How much more (orange) or less (blue) loss two changes bring together than each brings "
        "alone. Blue: they help each other. Zero: the one is worth the same with and without the "
        "other.",
        width=620,
    )
