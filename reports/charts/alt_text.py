"""Text alternatives of the figures, for screen readers and for print."""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from reports.analysis.ranking import LeaderboardEntry
from reports.analysis.refinement_effects import SourceComparison
from reports.data.results import Results
from reports.data.trial_table import is_continuous
from reports.stats.additive_findings import describe_trend, format_place
from reports.stats.additive_model import Trend
from reports.stats.conditional_effects import ConditionalEffect
from reports.stats.effects import Effect, Interaction
from reports.stats.noise import NoiseSource
from reports.stats.paired_difference import PairedDifference
from reports.stats.pairwise_comparison import Comparison, Difference
from reports.stats.scale import (
    NATS,
    Metric,
    Scale,
    format_count,
    format_param,
    format_signed,
    format_value,
)

_MAX_ITEMS = 5
"""Items that are listed of a long list."""

_MAX_COMBINATIONS = 100
"""Combinations of values that are all listed."""


def format_effect(effect: Effect) -> str:
    """Return an effect in one line."""
    text = (
        f"{effect.description}: {effect.scale.format_difference(effect.mean)}"
        f"{format_interval(effect)}"
    )
    if effect.source is NoiseSource.ADDITIVE:  # there are no pairs
        return text
    return (
        f"{text}, better in {effect.improved_count / effect.pairs:.0%} of "
        f"{format_count(effect.pairs, 'pair')}"
    )


def describe_effects(effects: Sequence[Effect]) -> str:
    """List every effect."""
    return "; ".join(map(format_effect, effects)) + "."


def describe_curve(trend: Trend, scale: Scale) -> str:
    """State the fitted values at both ends of a trend and at its best place, and what they mean."""
    ends = (
        f"{scale.add_unit(scale.format_value(float(trend.curve[i])))} at {format_place(x, trend)}"
        for i, x in ((0, trend.low), (-1, trend.high))
    )
    axis = "logarithmic axis" if trend.is_log else "linear axis"
    return (
        f"{format_count(len(trend.points), 'run')} on a {axis}. Fitted {scale.name}: "
        f"{' and '.join(ends)}. {describe_trend(trend, scale)}."
    )


def describe_conditional_effects(conditional: Sequence[ConditionalEffect]) -> str:
    """List the effect at each value of the other parameter."""
    parts = []
    for each in conditional:
        levels = (
            f"{format_value(level.value)} {format_signed(level.mean, level.scale.spec)}"
            f"{format_interval(level)}"
            for level in each.levels
        )
        parts.append(
            f"{each.contrast.label} by {format_param(each.parameter)}: {', '.join(levels)}"
        )
    scale = conditional[0].main.scale if conditional else NATS
    return scale.add_unit("; ".join(parts)) + "."


def format_interaction(interaction: Interaction) -> str:
    """Return an interaction in one line."""
    return (
        f"{interaction.first.label} with {interaction.second.label}: "
        f"{interaction.scale.format_difference(interaction.mean)}{format_interval(interaction)} in "
        f"addition to their separate effects, over "
        f"{format_count(interaction.quadruples, 'quadruple')}"
    )


def describe_interactions(interactions: Sequence[Interaction]) -> str:
    """List the largest interactions."""
    largest = sorted(interactions, key=lambda each: -abs(each.mean))[:_MAX_ITEMS]
    return "The largest: " + "; ".join(map(format_interaction, largest)) + "."


def describe_importances(figure: go.Figure) -> str:
    """List every parameter's importance, the greatest first."""
    (bars,) = figure.data
    pairs = sorted(zip(bars.x, bars.y, strict=True), reverse=True)
    return ", ".join(f"{name} {value:.3f}" for value, name in pairs) + "."


def describe_medians(rows: pd.DataFrame, parameters: Sequence[str], scale: Scale = NATS) -> str:
    """List the median value of the trials by each parameter, of many values by quarters."""
    parts = []
    for name in parameters:
        known = rows.dropna(subset=name)
        groups: Any = known[name]
        label: Callable[[Any], str] = format_value
        if is_continuous(known[name]):
            groups = pd.qcut(known[name].astype(float), 4, duplicates="drop")
            label = _format_range
        medians = known.groupby(groups, observed=True)["value"].median()
        values = (f"{label(value)} {median:{scale.spec}}" for value, median in medians.items())
        parts.append(f"{format_param(name)}: {', '.join(values)}")
    return f"Median {scale.name} by value: " + "; ".join(parts) + "."


def _format_range(interval: Any) -> str:
    return f"up to {interval.right:.3g}"


def describe_best(rows: pd.DataFrame, parameters: Sequence[str], scale: Scale = NATS) -> str:
    """List the best value of the trials by combinations of parameters; of many the best."""
    groups = rows.groupby(list(parameters))["value"]
    best = groups.max() if scale.higher_is_better else groups.min()
    listed, more = best, ""
    if len(best) > _MAX_COMBINATIONS:
        listed = best.sort_values(ascending=not scale.higher_is_better).head(_MAX_ITEMS)
        more = f"; and {len(best) - len(listed):,} more combinations"
    parts = []
    for values, value in listed.items():
        assert isinstance(values, tuple)
        settings = (
            f"{format_param(name)} {format_value(each)}"
            for name, each in zip(parameters, values, strict=True)
        )
        parts.append(f"{' and '.join(settings)} {value:{scale.spec}}")
    return f"{scale.best_name.capitalize()} {scale.name}: " + "; ".join(parts) + f"{more}."


def describe_distribution(rows: pd.DataFrame, scale: Scale = NATS) -> str:
    """List the quartiles of the values."""
    ends = rows["value"].quantile([0, 0.25, 0.5, 0.75, 1])
    lowest, lower, middle, upper, highest = (f"{end:{scale.spec}}" for end in ends)
    return (
        f"From {lowest} to {scale.add_unit(highest)}; a quarter of the trials is below {lower}, "
        f"half below {middle}, three quarters below {upper}."
    )


def describe_history(rows: pd.DataFrame, scale: Scale = NATS) -> str:
    """List the trials that were the best so far."""
    by_number = rows["value"].sort_index()
    losses = scale.to_loss(by_number)
    best = by_number[losses.cummin() == losses].drop_duplicates()
    items = ", ".join(f"{value:{scale.spec}} at trial {number}" for number, value in best.items())
    return f"Best so far: {items}."


def describe_curves(results: Results) -> str:
    """List the least losses, or the best imported values, of the best trials' curves."""
    rows, scale = results.complete, results.scale
    read = results.curves.groupby("number")["loss"]
    known = read.max() if scale.higher_is_better else read.min()
    rows = rows.assign(best=known.reindex(rows.index).fillna(rows["training_loss"]))
    best = rows["best"]
    items = "; ".join(
        f"{row.label} {row.best:{scale.value_spec}}"
        for row in rows.dropna(subset="best").head(_MAX_ITEMS).itertuples()
    )
    ends = f"{best.min():{scale.spec}} to {best.max():{scale.spec}}"
    return (
        f"{format_count(len(results.curve_ends), 'curve')} of the {results.measure.curve} with "
        f"{'maxima' if scale.higher_is_better else 'minima'} from {scale.add_unit(ends)}. "
        f"The best: {items}."
    )


def describe_timeline(table: pd.DataFrame) -> str:
    """Return the time span and the number of trials by worker."""
    rows = table.dropna(subset=["started", "completed", "worker"])
    counts = rows["worker"].value_counts()
    items = ", ".join(f"{worker} {count:,}" for worker, count in counts.head(_MAX_ITEMS).items())
    more = f", and {len(counts) - _MAX_ITEMS} more workers" if len(counts) > _MAX_ITEMS else ""
    return (
        f"From {rows['started'].min():%Y-%m-%d %H:%M} to "
        f"{rows['completed'].max():%Y-%m-%d %H:%M} UTC. Trials by worker: {items}{more}."
    )


def describe_variants(comparison: SourceComparison) -> str:
    """Return how often each variant improves on the source, and its best architecture."""
    parts, scale = [], comparison.scale
    for variant, rows in comparison.group_by_variant():
        best = rows.sort_values("value").iloc[0]
        improved = int((rows["value"] < rows["source_value"]).sum())
        parts.append(
            f"{variant}: lower than in {comparison.source} for {improved} of {len(rows)}, the best "
            f"{best['label']} with {scale.add_unit(scale.format_value(best['value']))}"
        )
    return "; ".join(parts) + "."


def describe_replicates(entries: Sequence[LeaderboardEntry], metric: Metric) -> str:
    """List each architecture's mean and standard deviation."""
    spec = metric.scale.value_spec
    parts = (
        f"{each.label}: {each.mean:{spec}}"
        + ("" if each.std != each.std else f" ± {each.std:{spec}}")
        for each in entries
    )
    return f"Mean and standard deviation of the {metric.axis_title}: " + "; ".join(parts) + "."


def format_difference(first: str, second: str, difference: Difference, spec: str = ".4f") -> str:
    """Return the difference of two architectures in one line."""
    interval = ""
    if difference.half_width == difference.half_width:
        ends = (format_signed(end, spec) for end in (difference.low, difference.high))
        interval = f" [{', '.join(ends)}]"
    verdict = "significant" if difference.is_significant else "not significant"
    return f"{first} minus {second}: {format_signed(difference.mean, spec)}{interval}, {verdict}"


def describe_differences(comparison: Comparison, names: Sequence[str]) -> str:
    """List the architectures that each architecture is significantly better than."""
    parts = []
    for i, name in enumerate(names[:-1], 1):
        worse = [
            str(j)
            for j, other in enumerate(names[i:], i + 1)
            if comparison.is_significant(name, other)
        ]
        parts.append(f"{i}, {name}: {', '.join(worse) or 'none'}")
    parts.append(f"{len(names)}, {names[-1]}, is the last")
    return f"Each architecture, and those it is significantly better than: {'; '.join(parts)}."


def format_interval(difference: PairedDifference) -> str:
    """Return the interval of a difference to follow its mean; "" if it is unknown."""
    if difference.low != difference.low:
        return ""
    spec = difference.scale.spec
    return f" [{format_signed(difference.low, spec)}, {format_signed(difference.high, spec)}]"
