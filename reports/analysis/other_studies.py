"""Comparisons with other studies: sources of refinements, baseline cells, and the same networks."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from reports.analysis.leaderboard import average_columns
from reports.results import Results
from reports.stats.effects import FactorialTable, PairedDifference
from reports.stats.pareto import CostedArchitecture
from reports.stats.run_means import average_runs
from reports.stats.scale import NATS, Scale, format_param, format_value
from reports.trial_table import list_conditions, list_params
from rnn.config import BASELINE_CELLS
from studies.attributes import SOURCE_TRIALS
from studies.config import resolve_params
from studies.space import BPTT_STEPS, CELL, REPLICATE
from studies.training import TrainingSettings

BEST = 10
"""Number of the best architectures of two studies, of which some are in both."""

MIN_COMMON = 2 * BEST
"""Number of common architectures from which two studies are compared."""

UNCHANGED = "unchanged"
"""Name of the variant that changes nothing."""


@dataclass(frozen=True)
class SourceComparison:
    """Losses of a refinement next to those of its source study.

    Attributes:
        source: name of the source study.
        study: name of the refinement.
        rows: one row per source architecture and variant: ``origin`` (number of the source trial,
            the lowest of its replicates), ``source_value`` and ``value`` (adjusted means over
            replicates; of the source the best over its nuisance values), ``variant`` (name of the
            change) and ``label`` (name of the new architecture).
        runs: the runs of all architectures: ``label``, ``replicate`` and ``value``.
        scale: unit and precision of the values.
    """

    source: str
    study: str
    rows: pd.DataFrame
    runs: pd.DataFrame
    scale: Scale = NATS

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
        best: its least value.
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
    names = results.all_parameters
    runs = results.complete.reindex(columns=["architecture", REPLICATE, "value"])
    runs = runs.rename(columns={"architecture": "label"}).fillna({REPLICATE: 0})
    means = average_columns(results.complete, ["value"])["value"]
    sources = _read_sources(results)
    rows = []
    for row in results.complete.drop_duplicates("architecture").to_dict("records"):
        params = list_params(row, names)
        origins = [int(number) for number in row[SOURCE_TRIALS] or [] if number in sources]
        for number, source in _find_best_sources(sources, origins, results.config.nuisance):
            changes = (
                f"{format_param(name)} {format_value(params.get(name)) or 'none'}"
                for name in names
                if params.get(name) != source.get(name)
            )
            variant = ", ".join(changes) or UNCHANGED
            label = row["architecture"]
            rows.append((number, source["value"], variant, label, means[label]))
    if not rows:
        return None
    table = pd.DataFrame(rows, columns=["origin", "source_value", "variant", "label", "value"])
    table = table.sort_values(["origin", "variant", "label"], ignore_index=True)
    return SourceComparison(refinement.source, results.name, table, runs, results.scale)


def _read_sources(results: Results) -> dict[int, dict[str, Any]]:
    """Return parameters and ``value`` of each source trial: the mean of all of its replicates."""
    rows = results.sources
    params = {
        int(number): resolve_params(
            list_params(row, rows.columns), results.config, results.all_parameters
        )
        | {"value": row["value"]}
        for number, row in zip(rows.index, rows.to_dict("records"), strict=True)
    }
    settings = {
        number: frozenset(item for item in row.items() if item[0] not in ("value", REPLICATE))
        for number, row in params.items()
    }
    means = average_runs(
        (settings[n], row.get(REPLICATE, 0), row["value"]) for n, row in params.items()
    )
    return {number: row | {"value": means[settings[number]]} for number, row in params.items()}


def _find_best_sources(
    sources: Mapping[int, dict[str, Any]], numbers: Sequence[int], nuisance: Collection[str]
) -> list[tuple[int, dict[str, Any]]]:
    """Return each source architecture at its best, and the lowest number of its trials there.

    Of the values of nuisance parameters, the best is taken.
    """
    best: dict[Any, tuple[int, dict[str, Any]]] = {}
    for number in sorted(numbers):
        source = sources[number]
        architecture = frozenset(
            item for item in source.items() if item[0] not in ("value", REPLICATE, *nuisance)
        )
        if architecture not in best or source["value"] < best[architecture][1]["value"]:
            best[architecture] = (number, source)
    return list(best.values())


def compute_variant_effects(comparison: SourceComparison) -> list[VariantEffect]:
    """Estimate the effect of each variant, by the noise between replicates or the pairs."""
    rows = comparison.rows
    # By variant, so that the noise of one that is unstable is not that of the others.
    variants = rows.drop_duplicates("label").set_index("label")["variant"]
    runs = comparison.runs.assign(variant=comparison.runs["label"].map(variants).fillna(""))
    architectures = FactorialTable.from_runs(runs, ["label", "variant"], comparison.scale)
    # An architecture that derives from several sources has a row for each.
    place = {label: i for i, label in enumerate(comparison.runs["label"].drop_duplicates())}
    trials = rows["label"].map(place)
    unchanged = trials[rows["variant"] == UNCHANGED].set_axis(
        rows.loc[rows["variant"] == UNCHANGED, "origin"]
    )
    effects = []
    for variant, group in comparison.group_by_variant():
        pairs = np.empty((2, 0), dtype=np.int64)
        if variant != UNCHANGED:
            before = unchanged.reindex(group["origin"], fill_value=-1)
            pairs = np.array([before, trials[group.index]])
        effects.append(
            architectures.estimate(
                VariantEffect,
                pairs,
                (-1, 1),
                variant=variant,
                count=len(group),
                best=float(group["value"].min()),
                source_difference=float((group["value"] - group["source_value"]).mean()),
            )
        )
    return effects


@dataclass(frozen=True, kw_only=True)
class BaselineReference(CostedArchitecture):
    """Best architecture of one baseline cell, trained with one ``bptt_steps``.

    Its loss is NaN if it was evaluated on other windows than the study that it is a reference for.

    Attributes:
        study: name of the study that trained it.
        training_loss: least smoothed training loss; NaN if unknown.
        metric: loss by the metric of that study; NaN if not comparable.
        training_differences: settings in which its training differs from that study's; may be "".
        conditions: what the computing time depends on, :func:`reports.trial_table.list_conditions`.
    """

    study: str
    training_loss: float
    metric: float
    training_differences: str
    conditions: str


def find_references(results: Results, others: Sequence[Results]) -> list[BaselineReference]:
    """Find the baseline cells of other studies that a study can be compared with.

    Args:
        results: results of the study. One of baseline cells alone has no references, and none has
            a cell of its own as a reference.
        others: studies on the same page. Those with other data are ignored. Of a study that is
            judged by several objectives, the results by that of ``results`` are taken.
    """
    if set(results.cells) <= set(BASELINE_CELLS):
        return []
    wanted = {str(cell) for cell in BASELINE_CELLS if cell not in results.cells}
    objective = results.config.objective
    judged_alike = {other.folder for other in others if other.config.objective == objective}
    studies = [
        other
        for other in others
        if wanted & set(other.cells)
        and other.data == results.data
        and (other.config.objective == objective or other.folder not in judged_alike)
    ]
    return [
        reference
        for study in studies
        for reference in _find_in_study(results, study, wanted, names_study=len(studies) > 1)
    ]


def _find_in_study(
    results: Results, other: Results, cells: set[str], names_study: bool
) -> list[BaselineReference]:
    metric = results.metric
    rows = other.complete.assign(training_loss=_least_training_losses(other))
    rows = other.judge(rows[rows[CELL].isin(cells)])
    held_out = results.measure.column(metric.split)
    columns = ["value", "training_loss", metric.column, held_out, "parameter_count", "seconds"]
    keys = [CELL, BPTT_STEPS]
    known = rows.drop_duplicates("architecture").set_index("architecture")[keys]
    means = known.join(average_columns(rows, columns)).rename_axis("architecture").reset_index()
    best = means.loc[means.groupby(keys)["value"].idxmin()]
    conditions = list_conditions(rows)
    ours, theirs = results.config, other.config
    # Values are comparable by the same objective, held-out losses on the same windows.
    is_training_loss = metric.is_value and ours.objective != "validation"
    is_comparable = (not metric.is_value or ours.objective == theirs.objective) and (
        is_training_loss or ours.evaluation == theirs.evaluation
    )
    differences = _list_training_differences(results, other)
    return [
        BaselineReference(
            label=row["architecture"] + (f" ({other.name})" if names_study else ""),
            number=None,
            parameters=row["parameter_count"],
            seconds=row["seconds"],
            loss=row[held_out] if ours.evaluation == theirs.evaluation else math.nan,
            cell=row[CELL],
            study=other.name,
            training_loss=row["training_loss"],
            metric=row[metric.column] if is_comparable else math.nan,
            training_differences=differences,
            conditions=conditions[row["architecture"]],
        )
        for row in best.to_dict("records")
    ]


def _least_training_losses(results: Results) -> "pd.Series[float]":
    """Return the least smoothed training loss of each complete trial, as far as it is known."""
    rows = results.complete
    recorded = rows["training_loss"]
    if results.config.objective == "training":
        return recorded.fillna(rows["value"])
    return recorded.fillna(results.curves.groupby("number")["loss"].min())


def _list_training_differences(results: Results, other: Results) -> str:
    # A setting that a study varies is part of its labels, or a nuisance parameter.
    varied = {*results.parameters, *other.parameters}
    different = [
        name
        for name in TrainingSettings.model_fields
        if name not in varied and other.values_of(name) != results.values_of(name)
    ]
    return ", ".join(
        f"{name} {other.values_of(name)} against {results.values_of(name)} here"
        for name in different
    )


@dataclass(frozen=True)
class Agreement:
    """How far two studies agree on the architectures that are complete in both.

    Attributes:
        first: one of the studies.
        second: the other one.
        common: number of these architectures.
        rank_correlation: Spearman's coefficient of their values, positive where both agree.
        common_best: number of the best :data:`BEST` of one that are among those of the other.
        sides: numbers of those on the good side of the threshold of both studies, of the first
            alone, and of the second alone; None unless both have one.
    """

    first: Results
    second: Results
    common: int
    rank_correlation: float
    common_best: int
    sides: tuple[int, int, int] | None


def compare_rankings(studies: Sequence[Results]) -> list[Agreement]:
    """Compare each two studies with :data:`MIN_COMMON` complete architectures in common or more.

    Architectures are the same that have the same description, whatever the training. Each is judged
    at its best nuisance values, by its mean over replicates.
    """
    losses = [_mean_losses(each) for each in studies]
    return [
        _compare_rankings(first, second, pd.DataFrame({"first": a, "second": b}).dropna())
        for (first, a), (second, b) in combinations(zip(studies, losses, strict=True), 2)
        if len(a.index.intersection(b.index)) >= MIN_COMMON
    ]


def _compare_rankings(first: Results, second: Results, losses: pd.DataFrame) -> Agreement:
    best = [set(losses[name].nsmallest(BEST).index) for name in losses]
    sides, thresholds = None, [each.config.report_threshold for each in (first, second)]
    if None not in thresholds:
        a, b = (
            losses[name] < study.scale.to_loss(study.config.report_threshold)
            for name, study in (("first", first), ("second", second))
        )
        sides = int((a & b).sum()), int((a & ~b).sum()), int((b & ~a).sum())
    correlation = losses["first"].corr(losses["second"], method="spearman")
    return Agreement(first, second, len(losses), float(correlation), len(best[0] & best[1]), sides)


def _mean_losses(results: Results) -> "pd.Series[float]":
    """Return the mean value of each complete architecture, such that less is better."""
    means = average_columns(results.judge(results.complete), ["value"])["value"].dropna()
    return pd.Series(results.scale.to_loss(means), means.index)
