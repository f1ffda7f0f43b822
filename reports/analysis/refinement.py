"""Architectures of a refinement, compared with their sources and with each other."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

from reports.analysis.leaderboard import average_columns
from reports.results import Results
from reports.stats.differences import PairedDifference
from reports.stats.estimate import adjust_estimates
from reports.stats.run_means import average_runs
from reports.stats.shares import ShareChange
from reports.trial_table import list_params
from studies.attributes import SOURCE_TRIALS
from studies.messages import format_param, format_value
from studies.space import REPLICATE, architecture_key, replicate_of
from studies.trial_params import resolve_params

UNCHANGED = "unchanged"
"""Name of the variant that changes nothing."""


@dataclass(frozen=True)
class SourceComparison:
    """Losses of a refinement next to those of its source study.

    Attributes:
        rows: one row per source architecture and variant: ``origin`` (number of the source trial,
            the lowest of its replicates), ``source_value`` and ``value`` (adjusted means over
            replicates; of the source the best over its nuisance values), ``variant`` (name of the
            change) and ``label`` (name of the new architecture).
        runs: the runs of all architectures: ``label``, ``replicate`` and ``value``; of a task that
            says when it is solved 1 for one that is, 0 for another.
        is_solved: whether the task says so; the values of the rows are then medians.
    """

    source: str
    study: str
    rows: pd.DataFrame
    runs: pd.DataFrame
    higher_is_better: bool = False
    is_solved: bool = False

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
        count: number of its architectures.
        best: its best value.
        source_difference: mean difference to the values in the source study, which may have been
            trained with another budget.
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
    names = [name for name in results.all_parameters if name not in results.nuisance]
    known = results.judge(results.complete)
    means = average_columns(known, ["value"])["value"]
    is_solved = results.outcomes is not None
    if is_solved:
        means = known.groupby("architecture")["value"].median()
        known = results.judge().assign(value=results.outcomes).dropna(subset="value")
    runs = known.reindex(columns=["architecture", REPLICATE, "value"])
    runs = runs.rename(columns={"architecture": "label"}).fillna({REPLICATE: 0})
    sources = _read_sources(results)
    rows = []
    for label, trials in results.complete.groupby("architecture", sort=False):
        params = list_params(trials.iloc[0], names)
        derived_from = {int(n) for numbers in trials[SOURCE_TRIALS] for n in numbers or []}
        origins = [number for number in derived_from if number in sources]
        for number, source in _find_best_sources(sources, origins, results):
            changes = (
                f"{format_param(name)} {format_value(params.get(name)) or 'none'}"
                for name in names
                if params.get(name) != source.get(name)
            )
            variant = ", ".join(changes) or UNCHANGED
            rows.append((number, source["value"], variant, label, means[label]))
    if not rows:
        return None
    table = pd.DataFrame(rows, columns=["origin", "source_value", "variant", "label", "value"])
    table = table.sort_values(["origin", "variant", "label"], ignore_index=True)
    is_higher = is_solved or results.measure.higher_is_better
    return SourceComparison(refinement.source, results.name, table, runs, is_higher, is_solved)


def _read_sources(results: Results) -> dict[int, dict[str, Any]]:
    """Return parameters and ``value`` of each source trial.

    It is the mean of all of its replicates, or their median if the task says when it is solved, but
    of replicate 0 alone if the refinement trains that one, with the same data.
    """
    rows = results.sources
    params = {
        int(number): resolve_params(
            list_params(row, rows.columns), results.config, results.all_parameters
        )
        | {"value": row["value"]}
        for number, row in zip(rows.index, rows.to_dict("records"), strict=True)
    }
    settings = {number: architecture_key(row, ["value"]) for number, row in params.items()}
    means = average_runs(
        (settings[n], replicate_of(row), row["value"]) for n, row in params.items()
    )
    if results.outcomes is not None:
        groups: dict[Any, list[float]] = {}
        for number, row in params.items():
            groups.setdefault(settings[number], []).append(row["value"])
        means = {setting: median(values) for setting, values in groups.items()}
    if not results.has_replicates:
        means |= {settings[n]: row["value"] for n, row in params.items() if not replicate_of(row)}
    return {number: row | {"value": means[settings[number]]} for number, row in params.items()}


def _find_best_sources(
    sources: Mapping[int, dict[str, Any]], numbers: Sequence[int], results: Results
) -> list[tuple[int, dict[str, Any]]]:
    """Return each source architecture at its best, and the lowest number of its trials there.

    Of the values of nuisance parameters, the best is taken.
    """
    to_loss = results.measure.to_loss
    best: dict[Any, tuple[int, dict[str, Any]]] = {}
    for number in sorted(numbers):
        source = sources[number]
        architecture = architecture_key(source, ("value", *results.config.nuisance))
        loss = to_loss(source["value"])
        if architecture not in best or loss < to_loss(best[architecture][1]["value"]):
            best[architecture] = (number, source)
    return list(best.values())


def compute_variant_effects(comparison: SourceComparison) -> list[VariantEffect]:
    """Estimate the effect of each variant, over runs of one replicate.

    An architecture that derives from several sources is compared with the mean of these. P-values
    are corrected for the number of variants.
    """
    seeds = comparison.runs[REPLICATE].nunique()
    losses = comparison.runs.groupby(["label", REPLICATE])["value"].mean().unstack()
    unchanged = comparison.rows[comparison.rows["variant"] == UNCHANGED].set_index("origin")[
        "label"
    ]
    find_best = max if comparison.higher_is_better and not comparison.is_solved else min
    effects = []
    for variant, group in comparison.group_by_variant():
        pairs = group.assign(before=group["origin"].map(unchanged)).dropna(subset="before")
        before = losses.loc[pairs["before"]].groupby(pairs["label"].to_numpy(), sort=False).mean()
        differences = (losses.loc[before.index] - before).to_numpy()
        if variant == UNCHANGED:
            differences = differences[:0]
        contexts, runs = np.nonzero(~np.isnan(differences))
        known = differences[contexts, runs]
        shares = ShareChange.from_differences(known) if comparison.is_solved else None
        effects.append(
            VariantEffect.from_differences(
                known,
                contexts,
                seeds,
                higher_is_better=comparison.higher_is_better,
                shares=shares,
                variant=variant,
                count=len(group),
                best=float(find_best(group["value"])),
                source_difference=float((group["value"] - group["source_value"]).mean()),
            )
        )
    return adjust_estimates(effects)
