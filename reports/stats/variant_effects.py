"""From study to study: what became of each architecture, and what replicates say of it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from reports.data.results import Results
from reports.formatting import format_param, format_value
from reports.stats.effects import CONFIDENCE, interval
from studies.attributes import SOURCE_TRIALS
from studies.space import PARAM_ORDER, REPLICATE

UNCHANGED = "as it was"
"""The variant that changes nothing in the architecture."""


@dataclass(frozen=True)
class SourceComparison:
    """Which of a derived study's points came from which of its source's.

    Attributes:
        source: the source study's name.
        study: the derived study's name.
        rows: a row for each source architecture and variant: ``origin`` (the number of its trial,
            of replicates the lowest), ``source_value`` and ``value`` (means over replicates),
            ``variant`` (what was changed, in words) and ``label``.
    """

    source: str
    study: str
    rows: pd.DataFrame

    def by_variant(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """Yield each variant's rows, what changes nothing first."""
        names = sorted(self.rows["variant"].unique(), key=lambda name: (name != UNCHANGED, name))
        for name in names:
            yield name, self.rows[self.rows["variant"] == name]


@dataclass(frozen=True)
class Change:
    """What a variant is worth beside the same architectures as they were, and from the source.

    Attributes:
        variant: in words.
        count: of its points.
        best: its least value, nats.
        from_source: mean difference to the source's values, nats; the budgets may differ.
        pairs: of its points with those that are as they were; 0 where that is not compared.
        mean: of the pairs' differences, nats; NaN without pairs.
        low: the lower end of the bootstrap's interval.
        high: the upper end.
        improved_count: in how many of the pairs the value is lower.
    """

    variant: str
    count: int
    best: float
    from_source: float
    pairs: int
    mean: float
    low: float
    high: float
    improved_count: int


def compare_with_source(results: Results) -> SourceComparison | None:
    """Return where a derived study's complete points came from; None where that is not known."""
    refinement = results.config.refinement
    if refinement is None or results.sources.empty:
        return None
    names = [name for name in PARAM_ORDER if name in results.table and name != REPLICATE]
    rows = []
    for row in results.complete.to_dict("records"):
        origins = results.sources[results.sources.index.isin(row[SOURCE_TRIALS] or [])]
        # Replicates of an architecture are one source: their mean.
        for _, runs in origins.groupby(names, sort=False, dropna=False):
            source, value = runs.iloc[0], runs["value"].mean()
            changed = [name for name in names if row[name] != source[name]]
            words = (f"{format_param(name)} {format_value(row[name])}" for name in changed)
            variant = ", ".join(words) or UNCHANGED
            rows.append((runs.index.min(), value, variant, row["architecture"], row["value"]))
    if not rows:
        return None
    table = pd.DataFrame(rows, columns=["origin", "source_value", "variant", "label", "value"])
    keys = ["origin", "source_value", "variant", "label"]
    means = table.groupby(keys)["value"].mean().reset_index()
    return SourceComparison(refinement.source, results.name, means)


def changes(lineage: SourceComparison) -> list[Change]:
    """Return what each variant is worth, pairs being variants of one source architecture."""
    as_it_was = lineage.rows[lineage.rows["variant"] == UNCHANGED].set_index("origin")["value"]
    found = []
    for variant, rows in lineage.by_variant():
        values = rows.set_index("origin")["value"]
        compared = variant != UNCHANGED
        differences = (values - as_it_was).dropna().to_numpy() if compared else np.empty(0)
        low, high = interval(differences)
        found.append(
            Change(
                variant,
                count=len(rows),
                best=float(rows["value"].min()),
                from_source=float((rows["value"] - rows["source_value"]).mean()),
                pairs=len(differences),
                mean=float(differences.mean()) if len(differences) else float("nan"),
                low=low,
                high=high,
                improved_count=int((differences < 0).sum()),
            )
        )
    return found


def replicates(results: Results) -> pd.DataFrame:
    """Return a row an architecture, the best first by the study's measure, and in its unit.

    Returns:
        Indexed by label: ``runs``, ``mean``, ``std``, ``min``, ``max``, ``values``, ``low`` and
        ``high``, the ends of Student's 95% interval of the mean (NaN for a single run), and
        ``parameters``.
    """
    by_architecture = results.complete.groupby("architecture")
    groups = by_architecture[results.metric.column]
    rows = groups.agg(["count", "mean", "std", "min", "max"]).rename(columns={"count": "runs"})
    half = stats.t.ppf((1 + CONFIDENCE) / 2, (rows["runs"] - 1).clip(lower=1))
    margin = half * rows["std"] / np.sqrt(rows["runs"])
    rows["low"], rows["high"] = rows["mean"] - margin, rows["mean"] + margin
    rows["values"] = groups.agg(list)
    rows["parameters"] = by_architecture["parameter_count"].mean()
    return rows.sort_values("mean")
