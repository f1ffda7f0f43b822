"""A study that tests no statement → its architectures in their order, and what tells them apart."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from reports.charts import comparison_plots as held_out
from reports.data.results import Results
from reports.stats.comparison import Comparison
from reports.stats.metric import bits_per_byte_column
from reports.stats.variant_effects import replicates


@dataclass(frozen=True)
class Row:
    """An architecture in a standing.

    Attributes:
        label: of the architecture.
        runs: that are complete.
        mean: of the study's measure.
        low: the lower end of the 95% interval of the mean over the runs; NaN for one.
        high: the upper end.
        held_out: bits per byte on the validation split.
        parameters: weights and biases.
        behind: the best one's lead, in bits per byte on the same text; NaN of the best, and
            where there is no record.
        behind_low: the lower end of its 95% interval.
        behind_high: the upper end.
        is_significant: whether that is a difference, all comparisons considered; never of single
            runs.
    """

    label: str
    runs: int
    mean: float
    low: float
    high: float
    held_out: float
    parameters: int
    behind: float
    behind_low: float
    behind_high: float
    is_significant: bool


@dataclass(frozen=True)
class Standing:
    """A study's architectures, the best first.

    Attributes:
        rows: of each.
        comparison: of them; None if they are single runs.
        smallest: of replicates, the smallest that is not told apart from the best.
    """

    rows: list[Row]
    comparison: Comparison | None
    smallest: str | None

    @property
    def compares_single_runs(self) -> bool:
        """Whether single runs are compared, each with the best."""
        return self.comparison is None and any(not math.isnan(row.behind) for row in self.rows)

    @property
    def apart(self) -> int:
        """How many of the pairs that were compared are told apart."""
        pairs = self.comparison.pairs.values() if self.comparison else ()
        return sum(pair.is_significant for pair in pairs)


def summarize_study(results: Results) -> Standing:
    """Return how a study's architectures stand."""
    means = replicates(results)
    comparison = held_out.comparison_of(results, list(means.index))
    smallest = None
    if comparison is not None and comparison.generalizes_over_runs:
        smallest = comparison.smallest(dict(zip(means.index, means["parameters"], strict=True)))
    return Standing(list(_rows(results, means, comparison)), comparison, smallest)


def _rows(results: Results, means: pd.DataFrame, comparison: Comparison | None) -> Iterator[Row]:
    single_runs = held_out.differences_to_best(results, list(means.index))
    bits = results.complete.groupby("architecture")[bits_per_byte_column("validation")].mean()
    for label, row in means.iterrows():
        name = str(label)
        lead = single_runs.get(name)
        if comparison:
            lead = comparison.between(name, comparison.best)
        yield Row(
            label=name,
            runs=int(row["runs"]),
            mean=float(row["mean"]),
            low=float(row["low"]),
            high=float(row["high"]),
            held_out=float(bits[name]),
            parameters=int(row["parameters"]),
            behind=lead.mean if lead else float("nan"),
            behind_low=lead.low if lead else float("nan"),
            behind_high=lead.high if lead else float("nan"),
            is_significant=bool(lead and lead.is_significant),
        )
