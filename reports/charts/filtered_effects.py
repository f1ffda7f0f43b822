"""Effects over all trials, and over each subset of them that a reader may choose."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reports.analysis.audited_effects import AuditedEffects
from reports.analysis.nuisance import build_judged_table, join_names, tries_same_values
from reports.charts.alt_text import (
    describe_conditional_effects,
    describe_effects,
    describe_interactions,
)
from reports.charts.chart import Chart
from reports.charts.effect_plots import (
    plot_conditional_effects,
    plot_effects,
    plot_interactions,
)
from reports.data.results import Results
from reports.formatting import effects_title, loss_unit
from reports.stats.conditional_effects import ConditionalEffect
from reports.stats.contrast import Contrast
from reports.stats.effects import Effect, FactorialTable
from reports.stats.noise import NoiseSource
from reports.stats.scale import format_param, format_value, order_values
from studies.space import BPTT_STEPS

FILTER_PARAMS = ("cell", BPTT_STEPS, "state_size", "state_source")
"""Parameters by which a reader may choose a subset, in addition to nuisance parameters."""

MAX_CONDITIONAL = 12
"""Maximum number of rows of the chart of conditional effects."""

MAX_CONDITIONS = 2
"""Maximum number of these rows about one contrast."""

MAX_CONTRASTS = 80
"""Contrasts above which the chart of their interactions would be too large to read."""

MAX_SUBSETS = 150
"""Maximum number of subsets, each of which has its chart on the page; filters that would exceed it
are left out."""


@dataclass(frozen=True)
class EffectSubset:
    """Effects within a subset of the trials.

    Attributes:
        key: keys of the chosen options, joined by ``/``.
        label: name of the subset.
        trial_count: number of trials with a value.
        effects: effects of the contrasts with a pair.
        chart: chart of the effects; None without effects.
        noun: what is counted: a trial, or an architecture at its best.
        unit: what the parameters describe: an architecture, or a configuration of anything.
    """

    key: str
    label: str
    trial_count: int
    effects: list[Effect]
    chart: Chart | None
    noun: str = "trial"
    unit: str = "architecture"

    @property
    def interval_text(self) -> str:
        """What the intervals were estimated from, in one or two sentences."""
        sources = {effect.source for effect in self.effects}
        if NoiseSource.AUDIT in sources:
            return "It does not contain the noise between runs."
        if sources == {NoiseSource.PAIRS}:
            return (
                "The noise between runs cannot be estimated from these trials, so the interval is "
                "that of the differences between the pairs. It contains the noise and is too wide "
                "where the effect differs between contexts. An effect of fewer than eight pairs is "
                "not called significant."
            )
        source = min(sources - {NoiseSource.PAIRS})
        text = f"The noise between runs is estimated from {source}"
        if source is NoiseSource.REPLICATES:
            text += f" of these {self.unit}s."
        else:
            text += "; interactions that exist make it look larger, never smaller."
        if NoiseSource.PAIRS in sources:
            text += (
                f" Where few {self.unit}s carry an effect, the differences between the pairs are "
                "used, and an effect of fewer than eight such pairs is not called significant."
            )
        return text

    @property
    def best_of(self) -> list[str]:
        """Descriptions of the effects that compare a cell or an optimizer at its best."""
        return [effect.description for effect in self.effects if max(effect.variants) > 1]


@dataclass(frozen=True)
class SubsetFilter:
    """A choice of subsets by one parameter.

    Attributes:
        name: name of the parameter, for a reader.
        parameter: the parameter.
        options: (key, label, value) of each option. The first one, with the value None, selects
            everything.
    """

    name: str
    parameter: str
    options: list[tuple[str, str, Any]]


def list_filters(results: Results) -> list[SubsetFilter]:
    """List the filters that a reader has, in the order of the keys of a subset."""
    everything = ("", "any", None)
    filters: list[SubsetFilter] = []
    for name in dict.fromkeys([*results.nuisance, *FILTER_PARAMS]):
        is_listed = name not in results.nuisance or tries_same_values(results)
        if name in results.parameters and is_listed:
            values = order_values(results.table[name].dropna().unique().tolist())
            options = [(str(i), format_value(value), value) for i, value in enumerate(values)]
            label = format_param(name).capitalize()
            first = ("", f"each {results.noun}’s best", None)
            first = first if name in results.nuisance else everything
            count = math.prod(len(each.options) for each in filters) * (len(values) + 1)
            if count <= MAX_SUBSETS:
                filters.append(SubsetFilter(label, name, [first, *options]))
    return filters


def list_subsets(filters: list[SubsetFilter]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the key and the fixed values of each subset of some filters, all trials first."""
    for options in itertools.product(*(each.options for each in filters)):
        values = {
            each.parameter: value
            for each, (_, _, value) in zip(filters, options, strict=True)
            if value is not None
        }
        yield "/".join(key for key, _, _ in options), values


def compute_effect_subsets(results: Results, filters: list[SubsetFilter]) -> Iterator[EffectSubset]:
    """Yield the effects within each subset that the filters can select, all trials first."""
    tables: dict[tuple[Any, ...], FactorialTable] = {}
    for key, fixed in list_subsets(filters):
        nuisance = {name: value for name, value in fixed.items() if name in results.nuisance}
        place = tuple(nuisance.items())
        if place not in tables:
            tables[place] = build_judged_table(results, nuisance)
        yield compute_effect_subset(results, tables[place], fixed, key)


def compute_effect_subset(
    results: Results, table: FactorialTable, fixed: dict[str, Any], key: str
) -> EffectSubset:
    """Compute the effects among trials with fixed values.

    Args:
        results: results of the study.
        table: values of the architectures, at the fixed values of nuisance parameters.
        fixed: parameter values.
        key: key of the subset.
    """
    judged = {name: value for name, value in fixed.items() if name not in results.nuisance}
    subset = table.subset(judged)
    label, noun = describe_subset(results, fixed)
    effects = subset.compute_effects()
    chart = None
    if effects:
        chart = Chart(
            f"{effects_title(results.is_gated)} ({label})",
            plot_effects(effects, loss_unit(results.config)),
            describe_effects(effects),
        )
    return EffectSubset(key, label, subset.value_count, effects, chart, noun, results.noun)


def describe_subset(results: Results, fixed: Mapping[str, Any]) -> tuple[str, str]:
    """Return the name of a subset, and of what is counted in it: a trial or an architecture."""
    conditions = [f"with {format_param(name)} {format_value(v)}" for name, v in fixed.items()]
    label = " and ".join(conditions) or "in total"
    free = [name for name in results.nuisance if name not in fixed]
    if free:
        label += f", each at its best {join_names(free)}"
    if results.has_replicates:
        label += f"{' and' if free else ', each'} over its runs"
    return label, results.noun if free or results.has_replicates else "trial"


def chart_conditional_effects(conditional: Sequence[ConditionalEffect], unit: str) -> Chart | None:
    """Chart the effects that differ most between values; None if none differs significantly."""
    differing = [each for each in conditional if each.is_significant]
    if not differing:
        return None
    # Of each contrast the largest difference first, so that no contrast fills the chart.
    differing.sort(key=lambda each: -each.difference.mean)
    seen: Counter[Contrast] = Counter()
    shown = []
    for each in differing:
        seen[each.contrast] += 1
        if seen[each.contrast] <= MAX_CONDITIONS:
            shown.append(each)
    shown = shown[:MAX_CONDITIONAL]
    return Chart(
        "What the effects depend on",
        plot_conditional_effects(shown, unit),
        describe_conditional_effects(shown),
        "Each row is the effect of one change at the values of one other parameter, written at the "
        "markers, with 95% intervals. Triangles are significant after the correction for all "
        "effects of this kind. Rows are those with the largest significant differences.",
        width=340,
    )


def compute_audited_subset(results: Results, found: AuditedEffects) -> EffectSubset:
    """Arrange the effects of a pruned study, which are estimated over all of its architectures."""
    noun, chart = results.judged_noun, None
    if found.effects:
        chart = Chart(
            f"{effects_title(results.is_gated)} (over all {noun}s)",
            plot_effects(found.effects, loss_unit(results.config)),
            describe_effects(found.effects),
        )
    count = len(results.judge())
    return EffectSubset("", "in total", count, found.effects, chart, noun)


def chart_interactions(table: FactorialTable) -> Chart | None:
    """Chart the two-way interactions; None without a quadruple of trials, or with too many."""
    if len(table.list_contrasts()) > MAX_CONTRASTS:
        return None
    interactions = table.compute_interactions()
    name = f"{table.scale.name[:1].upper()}{table.scale.name[1:]}"
    if not interactions:
        return None
    return Chart(
        "Two-way interactions",
        plot_interactions(interactions),
        describe_interactions(interactions),
        f"{name} of two changes together, minus the sum of their separate effects. Blue: they "
        "reinforce each other. Orange: they weaken each other. Zero: their effects add up.",
        width=620,
        max_width=900,
    )
