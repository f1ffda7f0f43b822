"""What each figure shows, in words: for those who hear a page, and for print."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from reports.data.results import Results
from reports.formatting import format_count, format_param, format_signed, format_value
from reports.stats.comparison import Comparison, Difference
from reports.stats.effects import Effect, Interaction
from reports.stats.metric import Metric
from reports.stats.variant_effects import SourceComparison

_NAMED = 5
"""Of a long list, how many are named."""


def effect_words(effect: Effect) -> str:
    """Return an effect in one line."""
    bounds = (
        ""
        if effect.low != effect.low
        else f" [{format_signed(effect.low)}, {format_signed(effect.high)}]"
    )
    return (
        f"{effect.contrast.meaning}: {format_signed(effect.mean)} nats{bounds}, better in "
        f"{effect.improved_count / effect.pairs:.0%} of {effect.pairs:,} pairs"
    )


def effects(found: Sequence[Effect]) -> str:
    """Name every effect."""
    return "; ".join(map(effect_words, found)) + "."


def interaction_words(each: Interaction) -> str:
    """Return an interaction in one line."""
    bounds = (
        "" if each.low != each.low else f" [{format_signed(each.low)}, {format_signed(each.high)}]"
    )
    return (
        f"{each.first.label} with {each.second.label}: {format_signed(each.mean)} nats{bounds} "
        f"in addition to the separate effects, over {each.quadruples:,} quadruples"
    )


def interactions(found: Sequence[Interaction]) -> str:
    """Name the largest interactions."""
    largest = sorted(found, key=lambda each: -abs(each.mean))[:_NAMED]
    return "The largest: " + "; ".join(map(interaction_words, largest)) + "."


def importance(figure: go.Figure) -> str:
    """Name every parameter's importance, the greatest first."""
    (bars,) = figure.data
    pairs = sorted(zip(bars.x, bars.y, strict=True), reverse=True)
    return ", ".join(f"{name} {value:.3f}" for value, name in pairs) + "."


def medians(rows: pd.DataFrame, parameters: Sequence[str]) -> str:
    """Name the median value at each value of each parameter."""
    parts = []
    for name in parameters:
        found = rows.groupby(name)["value"].median()
        values = (f"{format_value(value)} {median:.3f}" for value, median in found.items())
        parts.append(f"{format_param(name)}: {', '.join(values)}")
    return "Median loss by value: " + "; ".join(parts) + "."


def least(rows: pd.DataFrame, parameters: Sequence[str]) -> str:
    """Name the least value at each combination of some parameters' values."""
    found = rows.groupby(list(parameters))["value"].min()
    parts = []
    for values, loss in found.items():
        assert isinstance(values, tuple)
        words = (
            f"{format_param(name)} {format_value(value)}"
            for name, value in zip(parameters, values, strict=True)
        )
        parts.append(f"{' and '.join(words)} {loss:.3f}")
    return "Least loss: " + "; ".join(parts) + "."


def distribution(rows: pd.DataFrame) -> str:
    """Name the quartiles."""
    lowest, lower, middle, upper, highest = rows["value"].quantile([0, 0.25, 0.5, 0.75, 1])
    return (
        f"From {lowest:.3f} to {highest:.3f} nats; a quarter of the trials lies below {lower:.3f}, "
        f"half below {middle:.3f}, three quarters below {upper:.3f}."
    )


def history(rows: pd.DataFrame) -> str:
    """Name the trials that were the best when they ended."""
    by_number = rows["value"].sort_index()
    best = by_number[by_number.cummin() == by_number].drop_duplicates()
    named = ", ".join(f"{value:.3f} at trial {number}" for number, value in best.items())
    return f"The best so far: {named}."


def curves(results: Results) -> str:
    """Name the curves of the best points, and where the least value of each curve lies."""
    rows = results.complete.assign(least=results.curves.groupby("number")["loss"].min())
    least = rows["least"]
    named = "; ".join(
        f"{row.label} {row.least:.4f}"
        for row in rows.dropna(subset="least").head(_NAMED).itertuples()
    )
    return (
        f"{format_count(results.curves['number'].nunique(), 'curve')} of the smoothed training "
        f"loss with minima from {least.min():.3f} to {least.max():.3f} nats. "
        f"The best: {named}."
    )


def timeline(table: pd.DataFrame) -> str:
    """Name the span of time, and how many trials each worker finished."""
    rows = table.dropna(subset=["started", "completed", "worker"])
    counts = rows["worker"].value_counts()
    named = ", ".join(f"{worker} {count:,}" for worker, count in counts.head(_NAMED).items())
    more = f", and {len(counts) - _NAMED} more workers" if len(counts) > _NAMED else ""
    return (
        f"From {rows['started'].min():%Y-%m-%d %H:%M} to "
        f"{rows['completed'].max():%Y-%m-%d %H:%M} UTC. Trials by worker: {named}{more}."
    )


def slopes(lineage: SourceComparison) -> str:
    """Name what each variant came to."""
    parts = []
    for variant, rows in lineage.by_variant():
        best = rows.sort_values("value").iloc[0]
        fell = int((rows["value"] < rows["source_value"]).sum())
        parts.append(
            f"{variant}: lower than in {lineage.source} for {fell} of {len(rows)}, the best "
            f"{best['label']} with {best['value']:.4f} nats"
        )
    return "; ".join(parts) + "."


def replicates(rows: pd.DataFrame, measure: Metric) -> str:
    """Name each architecture's mean and spread."""
    parts = (
        f"{name}: {mean:.4f}" + ("" if spread != spread else f" ± {spread:.4f}")
        for name, mean, spread in zip(rows.index, rows["mean"], rows["std"], strict=True)
    )
    return f"Mean and standard deviation of the {measure.axis}: " + "; ".join(parts) + "."


def difference_words(one: str, other: str, found: Difference) -> str:
    """Return in one line what an architecture has more than another."""
    bounds = ""
    if found.margin == found.margin:
        bounds = f" [{format_signed(found.low, 4)}, {format_signed(found.high, 4)}]"
    verdict = "told apart" if found.is_significant else "not told apart"
    return f"{one} less {other}: {format_signed(found.mean, 4)}{bounds}, {verdict}"


def differences(comparison: Comparison, names: Sequence[str]) -> str:
    """Say of each architecture which others it is better than, and from which it is not told."""
    parts = []
    for i, name in enumerate(names[:-1], 1):
        apart = [
            str(j)
            for j, other in enumerate(names[i:], i + 1)
            if comparison.is_significant(name, other)
        ]
        others = f"told apart from {', '.join(apart)}" if apart else "told apart from none"
        parts.append(f"{i}, {name}, is {others}")
    return (
        f"Of those that come after it: {'; '.join(parts)}. The last is {len(names)}, {names[-1]}."
    )
