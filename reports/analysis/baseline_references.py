"""Losses of the baseline cells, shown as reference lines in the figures of gated studies."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from reports.analysis.leaderboard import average_columns
from reports.results import Results
from reports.trial_table import list_conditions
from rnn.config import BASELINE_CELLS
from studies.space import BPTT_STEPS, CELL
from studies.training import TrainingSettings


@dataclass(frozen=True)
class BaselineReference:
    """Losses of the best architecture of one baseline cell, trained with one ``bptt_steps``.

    Attributes:
        label: name of the architecture.
        cell: name of the cell.
        study: name of the study that trained it.
        training_loss: least smoothed training loss; NaN if unknown.
        metric: loss by the metric of the study that it is a reference for; NaN if not comparable.
        training_differences: settings in which its training differs from that study's; may be "".
        held_out_loss: loss on the held-out split of that study; NaN if it was evaluated on other
            windows.
        parameter_count: number of weights and biases.
        seconds: mean computing time of a run.
        conditions: what the time depends on, :func:`reports.trial_table.list_conditions`.
    """

    label: str
    cell: str
    study: str
    training_loss: float
    metric: float
    training_differences: str
    held_out_loss: float
    parameter_count: float
    seconds: float
    conditions: str


def find_references(results: Results, others: Sequence[Results]) -> list[BaselineReference]:
    """Find the baseline cells of other studies that a study can be compared with.

    Args:
        results: results of the study. One of baseline cells alone has no references, and none has
            a cell of its own as a reference.
        others: studies on the same page. Those with other data are ignored.
    """
    if set(results.cells) <= set(BASELINE_CELLS):
        return []
    wanted = {str(cell) for cell in BASELINE_CELLS if cell not in results.cells}
    studies = [
        other for other in others if wanted & set(other.cells) and other.data == results.data
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
            f"{row['architecture']} ({other.name})" if names_study else row["architecture"],
            row[CELL],
            other.name,
            row["training_loss"],
            row[metric.column] if is_comparable else math.nan,
            differences,
            row[held_out] if ours.evaluation == theirs.evaluation else math.nan,
            row["parameter_count"],
            row["seconds"],
            conditions[row["architecture"]],
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
    values = {
        name: (other.values_of(name), results.values_of(name))
        for name in TrainingSettings.model_fields
        if name not in varied
    }
    return ", ".join(
        f"{name} {theirs} against {ours} here"
        for name, (theirs, ours) in values.items()
        if theirs != ours
    )
