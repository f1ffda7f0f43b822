"""Effects of a refinement's variants, against the source study and the unchanged architectures."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from reports.data.results import Results
from reports.data.trial_table import ARCHITECTURE_PARAMS
from reports.formatting import format_param, format_value
from reports.stats.paired_difference import PairedDifference
from studies.attributes import SOURCE_TRIALS

UNCHANGED = "unchanged"
"""Name of the variant that changes nothing."""


@dataclass(frozen=True)
class SourceComparison:
    """Losses of a refinement next to those of its source study.

    Attributes:
        source: name of the source study.
        study: name of the refinement.
        rows: one row per source architecture and variant: ``origin`` (number of the source trial,
            the lowest of its replicates), ``source_value`` and ``value`` (means over replicates),
            ``variant`` (name of the change) and ``label`` (name of the new architecture).
    """

    source: str
    study: str
    rows: pd.DataFrame

    def group_by_variant(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """Yield the name and the rows of each variant, the unchanged one first."""
        names = sorted(self.rows["variant"].unique(), key=lambda name: (name != UNCHANGED, name))
        for name in names:
            yield name, self.rows[self.rows["variant"] == name]


@dataclass(frozen=True, kw_only=True)
class VariantEffect(PairedDifference):
    """Difference of a variant to the unchanged architectures, paired by source architecture.

    There are no pairs for the unchanged variant itself, and in a study without it.

    Attributes:
        variant: name of the variant.
        count: number of its architectures.
        best: its least value, in nats.
        source_difference: mean difference to the values in the source study, in nats, which may
            have been trained with another budget.
    """

    variant: str
    count: int
    best: float
    source_difference: float


def compare_with_source(results: Results) -> SourceComparison | None:
    """Match the complete trials of a refinement with the trials that they were derived from.

    Returns:
        The matched losses; None if the study is no refinement or its source cannot be compared.
    """
    refinement = results.config.refinement
    if refinement is None or results.sources.empty:
        return None
    names = [name for name in ARCHITECTURE_PARAMS if name in results.table]
    rows = []
    for row in results.complete.to_dict("records"):
        origins = results.sources[results.sources.index.isin(row[SOURCE_TRIALS] or [])]
        # Replicates of a source architecture count as one trial with their mean value.
        for _, runs in origins.groupby(names, sort=False, dropna=False):
            source, value = runs.iloc[0], runs["value"].mean()
            changes = (
                f"{format_param(name)} {format_value(row[name])}"
                for name in names
                if row[name] != source[name]
            )
            variant = ", ".join(changes) or UNCHANGED
            rows.append((runs.index.min(), value, variant, row["architecture"], row["value"]))
    if not rows:
        return None
    table = pd.DataFrame(rows, columns=["origin", "source_value", "variant", "label", "value"])
    keys = ["origin", "source_value", "variant", "label"]
    means = table.groupby(keys)["value"].mean().reset_index()
    return SourceComparison(refinement.source, results.name, means)


def compute_variant_effects(comparison: SourceComparison) -> list[VariantEffect]:
    """Estimate the effect of each variant."""
    rows = comparison.rows
    unchanged = rows[rows["variant"] == UNCHANGED].set_index("origin")["value"]
    effects = []
    for variant, group in comparison.group_by_variant():
        values = group.set_index("origin")["value"]
        is_compared = variant != UNCHANGED
        effects.append(
            VariantEffect.from_differences(
                (values - unchanged).to_numpy() if is_compared else np.empty(0),
                variant=variant,
                count=len(group),
                best=float(group["value"].min()),
                source_difference=float((group["value"] - group["source_value"]).mean()),
            )
        )
    return effects
