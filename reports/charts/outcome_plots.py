"""Outcomes of matched pairs over all trials, and over each subset that a reader may choose."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from reports.analysis.outcomes import build_outcome_table
from reports.charts.chart import IMPROVES, NEUTRAL, ROW_HEIGHT, WORSENS, Chart
from reports.charts.filtered_effects import SubsetFilter, describe_subset, list_subsets
from reports.data.results import Results
from reports.formatting import loss_unit
from reports.narrative import count_pairs
from reports.stats.effects import FactorialTable
from reports.stats.outcome_table import ContrastOutcomes, compute_outcomes

# Rescued and ruined pairs decide; the others frame them and stay pale.
_SEGMENTS = (
    ("both_good", "both {}", "rgba(47, 127, 209, 0.3)", ""),
    ("rescued", "rescued", IMPROVES, ""),
    ("ruined", "ruined", WORSENS, "/"),
    ("both_bad", "neither {}", "rgba(138, 144, 153, 0.45)", ""),
    ("unknown", "unknown", "rgba(138, 144, 153, 0.15)", "."),
)
"""Attribute, name, color and pattern of each part of a bar; a name has the good side."""


@dataclass(frozen=True)
class OutcomeSubset:
    """Outcomes of the contrasts within a subset of the trials.

    Attributes:
        key: keys of the chosen options, joined by ``/``.
        label: name of the subset.
        outcomes: outcomes of the contrasts with a pair.
        chart: chart of the outcomes; None without any.
    """

    key: str
    label: str
    outcomes: list[ContrastOutcomes]
    chart: Chart | None

    @property
    def unknown_count(self) -> int:
        """Number of pairs without two outcomes, over all contrasts."""
        return sum(each.unknown for each in self.outcomes)

    @property
    def is_divided(self) -> bool:
        """Whether some trials of its pairs are good, and some are not."""
        divided = sum(each.rescued + each.ruined for each in self.outcomes)
        good, bad = (
            sum(getattr(each, name) for each in self.outcomes) for name in ("both_good", "both_bad")
        )
        return bool(divided or (good and bad))


def compute_outcome_subsets(
    results: Results, filters: list[SubsetFilter]
) -> Iterator[OutcomeSubset]:
    """Yield the outcomes within each subset that the filters can select, all trials first.

    A study without a ``report_threshold`` has none.
    """
    threshold = results.config.report_threshold
    if threshold is None:
        return
    unit, side = loss_unit(results.config), results.scale.good_side
    tables: dict[tuple[Any, ...], FactorialTable] = {}
    for key, fixed in list_subsets(filters):
        nuisance = {name: value for name, value in fixed.items() if name in results.nuisance}
        judged = {name: value for name, value in fixed.items() if name not in nuisance}
        place = tuple(nuisance.items())
        if place not in tables:
            tables[place] = build_outcome_table(results, threshold, nuisance)
        outcomes = compute_outcomes(tables[place].subset(judged))
        label, _ = describe_subset(results, fixed)
        chart = None
        if outcomes:
            chart = Chart(
                f"Pairs {side} {threshold}{unit and f' {unit}'} ({label})",
                plot_outcomes(outcomes, side),
                describe_counts(outcomes, side),
            )
        yield OutcomeSubset(key, label, outcomes, chart)


def plot_outcomes(outcomes: Sequence[ContrastOutcomes], side: str) -> go.Figure:
    """Plot the pairs of each contrast as a stacked bar, one part for each outcome.

    Args:
        outcomes: the outcomes.
        side: where the good values lie, ``below`` or ``above`` the threshold.
    """
    rows = list(reversed(outcomes))  # Plotly's first row is at the bottom
    figure = go.Figure()
    for attribute, words, color, pattern in _SEGMENTS:
        name = words.format(side)
        counts = [getattr(each, attribute) for each in rows]
        if attribute == "unknown" and not any(counts):
            continue
        figure.add_trace(
            go.Bar(
                x=counts,
                y=[each.contrast.label for each in rows],
                name=name,
                orientation="h",
                marker={
                    "color": color,
                    "line": {"color": NEUTRAL, "width": 0.5},
                    # Faint, so that the numbers stay legible.
                    "pattern": {"shape": pattern, "solidity": 0.25, "fgopacity": 0.4},
                },
                text=[f"{count:,}" if count else "" for count in counts],
                textposition="inside",
                insidetextanchor="middle",
                # A pale part shows the page's color, so that its numbers have the page's ink.
                insidetextfont={} if color.startswith("rgba") else {"color": "#fff"},
                textangle=0,
                customdata=[count_pairs(each) for each in rows],
                hovertemplate=f"%{{customdata}}<br>{name}: %{{x:,}}<extra></extra>",
            )
        )
    return figure.update_layout(
        barmode="stack",
        xaxis_title="pairs",
        yaxis={"type": "category", "automargin": True},
        uniformtext={"mode": "hide", "minsize": 9},  # the table has the numbers without room
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
        height=150 + ROW_HEIGHT * max(1, len(rows)),
        bargap=0.25,
    )


def describe_counts(outcomes: Sequence[ContrastOutcomes], side: str) -> str:
    """List the outcomes of every contrast."""
    parts = (
        f"{count_pairs(each)}, {each.both_good:,} both {side}, {each.both_bad:,} neither {side}"
        + (f", {each.unknown:,} unknown" if each.unknown else "")
        for each in outcomes
    )
    return "; ".join(parts) + "."
